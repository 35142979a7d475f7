"""Pictures that are decoded whole: PNG, JPEG, BMP, WebP and other formats of OpenCV."""

from __future__ import annotations

import math
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from misc.files import unusable_name
from misc.slides.pixels import ImageError, check_size, to_rgb
from misc.slides.resolution import INCH_UM

PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
# Pillow's names of the formats whose EXIF orientation is applied.
_TURNED = ("JPEG", "MPO")
_TAG_ORIENTATION = 0x0112


class ImageSource:
    """A picture, held in memory.

    Attributes: see `misc.slides.sources`; `image` is the whole of it, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it is empty, damaged, cut short, or no picture.
        TooLargeError: it does not fit into the free memory.
    """

    vendor = "image"
    power = bounds_xywh = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path):
        data = path.read_bytes()
        if data.startswith(PNG):
            _check_png(data)
        if (size_yx := picture_size(path)) is not None:
            check_size(size_yx[::-1])
        samples = _decode(data)
        self.is_deep = samples.dtype == np.uint16
        self.image = to_rgb(samples)
        self.sizes_xy = [self.image.shape[1::-1]]
        self.mpp_xy, self.mpp_from = picture_mpp(path)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region that lies inside the picture."""
        return self.image[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """Nothing is open."""


def _check_png(data: bytes) -> None:
    """Refuse a PNG that is cut short or has a wrong checksum: decoders trust any size in a header, and fill
    missing parts with grey."""
    at = len(PNG) + 4  # of the signature
    while (kind := data[at + 4 : at + 8]) != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        if not kind or at + 12 + length > len(data):
            raise ImageError("is a truncated PNG (no end chunk)")
        end = at + 8 + length
        if kind == b"IHDR" and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError("is damaged: its header has another checksum than it says")
        at = end + 4


def is_picture(path: Path) -> bool:
    """Tell from its first bytes whether a file is one that `ImageSource` may decode."""
    # OpenCV cannot open every name on Windows, and crashes with a name that is not UTF-8; Pillow can open all
    return (not unusable_name(path) and cv2.haveImageReader(str(path))) or picture_size(path) is not None


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) from a picture's header without decoding it, or `None` if the header does not tell."""
    try:
        with _any_size, Image.open(path) as image:
            width, height = image.size
            # EXIF orientations 5 to 8 turn the image by a quarter; to look for them in a PNG, Pillow decodes it
            turned = image.format in _TURNED and image.getexif().get(_TAG_ORIENTATION, 1) >= 5
            return (width, height) if turned else (height, width)
    except Exception:  # a damaged header can raise any error in Pillow; decoding reports the reason
        return None


def picture_mpp(path: Path) -> tuple[tuple[float, float] | None, str]:
    """Return um a pixel (x, y) from a picture's header, `None` where it says nothing, and what says it."""
    try:
        with _any_size, Image.open(path) as image:
            dpi, kind = image.info.get("dpi"), image.format
    except Exception:  # as above
        return None, ""
    said_by = {"PNG": "the PNG's pHYs", "JPEG": "the JPEG density"}.get(kind, f"the {kind} resolution")
    return dpi and tuple(INCH_UM / float(value) if value else math.inf for value in dpi), said_by


def _decode(data: bytes) -> np.ndarray:
    """Return (H, W) or (H, W, C) samples, RGB; a PNG keeps its depth and alpha, a JPEG is turned as its EXIF says."""
    if not data:
        raise ImageError("is empty (0 bytes)")
    # decoders fill missing parts with grey, without an error
    if data.startswith(JPEG) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise ImageError("is a truncated JPEG (no end marker)")
    flags = cv2.IMREAD_COLOR_RGB if data.startswith(JPEG) else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageError("is not an image that OpenCV can decode, or is damaged")
    if flags == cv2.IMREAD_COLOR_RGB or image.ndim == 2 or image.shape[2] not in (3, 4):
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


class _AnySize:
    """Lets Pillow open images of more than 179 million pixels in a block; it would refuse them as an attack.

    All threads share Pillow's limit: the first thread to enter lifts it, the last one to leave restores it.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit


_any_size = _AnySize()
