"""Read a whole image with the same code as a slide, so that both give the same pixels."""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from misc.slides.picture import ImageSource, is_picture, picture_mpp, picture_size
from misc.slides.pixels import ImageError, check_size
from misc.slides.resolution import resolution_of
from misc.slides.sources import TIFF, SlideError, file_head, open_source

__all__ = ["ImageError", "no_image_because", "probe_mpp", "probe_size", "read_image", "resize"]

# A 16-bit image is dark if its brightest 8-bit value is this or less (4095, the maximum of a 12-bit camera, gives it).
DARK_OF_255 = 16
# Files that lie beside images and are none by their name: tables, texts, labels, annotations.
SIDE_SUFFIXES = frozenset(
    ".csv .tsv .txt .md .log .json .geojson .xml .html .htm .pdf .mat .npy .npz .ini .db .yaml .yml".split()
)

logger = logging.getLogger(__name__)


def probe_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) from a file's header without decoding it, or `None` if the header does not tell."""
    try:
        if not file_head(path).startswith(TIFF):
            return picture_size(path)
        with contextlib.closing(open_source(path)) as source:
            width, height = source.sizes_xy[0]
            return height, width
    except (SlideError, OSError):
        return None


def probe_mpp(path: Path) -> tuple[float | None, str]:
    """Return um a pixel from a file's header, and its source; or `None`, and the ignored value, if any."""
    try:
        if not file_head(path).startswith(TIFF):
            source = _Header(*picture_mpp(path))
        else:
            with contextlib.closing(open_source(path)) as source:
                pass
    except (SlideError, OSError):
        return None, ""
    mpp, _, said_by, notes = resolution_of(source)
    return (None, "; ".join(notes)) if mpp is None else (float(mpp.mean()), said_by)


class _Header(NamedTuple):
    """The resolution in a picture's header, as a source."""

    mpp_xy: tuple[float, float] | None
    mpp_from: str
    power: float | None = None


def no_image_because(path: Path) -> str | None:
    """Return why a file is no image, judged by how it begins, or `None` where it may be one."""
    try:
        head = file_head(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not head:
        return "is empty (0 bytes)"
    known = head.startswith(TIFF) or is_picture(path)
    return None if known else "is not an image that OpenCV can decode"


def read_image(path: Path) -> np.ndarray:
    """Read an image.

    16-bit images are scaled to 8 bits, grey ones get three equal channels, transparent ones are shown on white
    (where nothing was scanned there is glass, not tissue). A warning is logged if a file has more pages than the one
    that is read, and if a 16-bit image is mostly dark. A JPEG is turned as its EXIF entry says; all others, TIFF among
    them, are read as they are stored.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: the file is empty, damaged, cut short, or no image.
        TooLargeError: its pixels do not fit into the free memory.
    """
    try:
        with contextlib.closing(open_source(path)) as source:
            image = _read_whole(source)
            notes = [*source.notes]
            if source.is_deep and (brightest := int(image.max(initial=0))) <= DARK_OF_255:
                notes.append(
                    f"its 16 bits are used up to {brightest / 255:.0%}: nearly black; stretch its values first"
                )
    except SlideError as error:
        raise ImageError(error.reason) from error
    for note in notes:
        _note(f"{path}: {note}")
    return image


def _read_whole(source) -> np.ndarray:
    if isinstance(source, ImageSource):
        return source.image
    check_size(source.sizes_xy[0])
    try:
        return source.read(0, 0, 0, *source.sizes_xy[0])
    except Exception as error:  # whatever OpenSlide or a codec raises on damaged data
        raise ImageError(f"is a damaged TIFF ({error})") from error


@functools.cache
def _note(text: str) -> None:
    """Log it once: validation reads the same files after every epoch."""
    logger.warning("%s", text)


def resize(array: np.ndarray, shape_yx: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """Resize an (H, W) or (H, W, C) array; averages when shrinking, interpolates linearly when enlarging."""
    if tuple(array.shape[:2]) == tuple(shape_yx):
        return array
    shrinks = shape_yx[0] * shape_yx[1] < array.shape[0] * array.shape[1]
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(array, shape_yx[::-1], interpolation=interpolation)
