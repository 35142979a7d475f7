"""Convert stored pixels of any depth, number of channels and transparency to 8-bit RGB."""

from __future__ import annotations

import cv2
import numpy as np

from misc.machine import check_fits

WHITE = 255  # areas that were not scanned count as glass


class ImageError(ValueError):
    """A file that cannot be used as an image; the message says why, and does not name the file."""


# Least memory for reading a whole picture, bytes a pixel: the decoded 8-bit RGB and the returned copy.
_WHOLE_BYTES_PX = 6


def check_size(size_xy: tuple[int, int]) -> None:
    """Refuse a picture that is larger than the free memory, before anything is decoded.

    Raises:
        TooLargeError: it is larger; a damaged header may claim any size.
    """
    width, height = size_xy
    check_fits(_WHOLE_BYTES_PX * width * height, f"its {width} x {height} px")


def to_8_bits(samples: np.ndarray) -> np.ndarray:
    """Return uint8, uint16 or bool samples as uint8; the full range stays the full range.

    Raises:
        ImageError: the samples have another type.
    """
    if samples.dtype == np.uint8:
        return samples
    if samples.dtype == bool:
        return samples.astype(np.uint8) * 255
    if samples.dtype.kind == "u" and samples.dtype.itemsize == 2:
        return ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    raise ImageError(f"has pixels of type {samples.dtype}; 8 or 16 bits without sign are needed")


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Blend (..., 4) uint8 pixels with straight alpha over white; returns (..., 3) uint8."""
    if rgba.size and cv2.minMaxLoc(cv2.extractChannel(rgba, 3))[0] == WHITE:
        return cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
    alpha = rgba[..., 3:]
    alpha = alpha.astype(np.uint16)
    return ((rgba[..., :3] * alpha + WHITE * (WHITE - alpha) + 127) // WHITE).astype(np.uint8)


def to_rgb(samples: np.ndarray) -> np.ndarray:
    """Turn (H, W) grey or (H, W, C) grey, grey + alpha, RGB or RGBA into (H, W, 3) uint8.

    Raises:
        ImageError: another number of channels, or another type than 8 or 16 bits without sign.
    """
    samples = to_8_bits(samples if samples.ndim == 3 else samples[..., None])
    channels = samples.shape[2]
    if channels in (1, 2):
        samples = np.concatenate([np.repeat(samples[..., :1], 3, axis=2), samples[..., 1:]], axis=2)
    elif channels not in (3, 4):
        raise ImageError(f"has {channels} channels; 1 (grey), 3 (RGB) or either with alpha are needed")
    return on_white(samples) if samples.shape[2] == 4 else samples
