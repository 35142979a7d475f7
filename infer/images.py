"""Reading image tiles: any format OpenCV decodes, checked for being whole, as 8-bit RGB."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import threading
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
# What Pillow calls the formats whose EXIF entry `read_image` follows.
_TURNED = ("JPEG", "MPO")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TAG_WIDTH, _TAG_HEIGHT, _TAG_ORIENTATION = 256, 257, 274
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
# A 16-bit image whose brightest value is below this (a sixteenth of the range, what a 12-bit camera fills) is dark.
DARK_16_BIT = 1 << 12

logger = logging.getLogger(__name__)


class ImageError(ValueError):
    """A file that cannot be used as an image; the message says why."""


class _AnySize:
    """Lets Pillow open and decode images of more than 179 million pixels, which it takes for an attack, in a block.

    Its limit is one for all threads: the first one to enter lifts it, the last one to leave puts it back.
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


def probe_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) from a file's header without decoding it, or `None` if the header does not tell."""
    try:
        with _any_size, Image.open(path) as image:
            if image.format == "TIFF":  # as it is stored; Pillow turns its size
                return image.tag_v2[_TAG_HEIGHT], image.tag_v2[_TAG_WIDTH]
            width, height = image.size
            # EXIF orientations 5 to 8 turn the image by a quarter; to look for them in a PNG, Pillow decodes it
            turned = image.format in _TURNED and image.getexif().get(0x0112, 1) >= 5
            return (width, height) if turned else (height, width)
    except Exception:  # whatever a damaged header makes Pillow raise: decoding will name the reason
        return None


def no_image_because(path: Path) -> str | None:
    """Return why a file is no image, judged by how it begins, or `None` where it may be one."""
    try:
        with open(path, "rb") as handle:
            if not handle.read(1):
                return "is empty (0 bytes)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    # OpenCV cannot open every name on Windows; Pillow can
    known = cv2.haveImageReader(str(path)) or probe_size(path) is not None
    return None if known else "is not an image that OpenCV can decode"


def read_image(path: Path) -> np.ndarray:
    """Read an image.

    16-bit images are scaled to 8 bits, grey ones get three equal channels, transparent ones are laid on white
    (where nothing was scanned there is glass, not tissue). The log says where a file has more pages than the one that
    is read, and where 16 bits are mostly dark. A JPEG is turned as its EXIF entry says; all others, TIFF among them,
    are read as they are stored, as the readers of slides do.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: the file is empty, damaged, cut short, or no image.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    if data.size == 0:
        raise ImageError("is empty (0 bytes)")
    _check_whole(data.tobytes())
    _keep_unturned(path, data)
    # JPEG: let OpenCV turn the picture as its EXIF entry says; the others keep their bit depth and alpha.
    is_jpeg = data[:2].tobytes() == _JPEG
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR if is_jpeg else cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageError("is not an image that OpenCV can decode, or is damaged")
    _note_oddities(path, data, image)
    return to_rgb8(image)


def _note_oddities(path: Path, data: np.ndarray, image: np.ndarray) -> None:
    pages = _nr_pages(data.tobytes()) if data[:4].tobytes() in _TIFF else 1
    if pages > 1:
        _note(f"{path}: has {pages} pages; only the first is read")
    if image.dtype == np.uint16 and (brightest := int(image.max(initial=0))) < DARK_16_BIT:
        _note(f"{path}: its 16 bits are used up to {brightest} of 65535: nearly black; stretch its values first")


def _keep_unturned(path: Path, data: np.ndarray) -> None:
    """Edit the bytes of a TIFF that asks to be shown turned: OpenCV turns it, and no option keeps it from that."""
    if data[:4].tobytes() not in _TIFF:
        return
    with contextlib.suppress(Exception), tifffile.TiffFile(path) as file:  # what it cannot read, OpenCV may
        tag = file.pages[0].tags.get(_TAG_ORIENTATION)
        if tag is not None:
            data[tag.valueoffset :][:2] = np.array([1], f"{file.byteorder}u2").view(np.uint8)


@functools.cache
def _note(text: str) -> None:
    """Say it once: validation reads the same files after every epoch."""
    logger.warning("%s", text)


def _nr_pages(tiff: bytes) -> int:
    with _any_size, contextlib.suppress(Exception):  # a later page may be damaged in any way; the first was read
        return getattr(Image.open(io.BytesIO(tiff)), "n_frames", 1)
    return 1


def _check_whole(data: bytes) -> None:
    """Refuse files that were cut short: decoders fill what is missing with grey and say nothing."""
    if data.startswith(_PNG) and data.rfind(b"IEND") < max(data.rfind(b"IDAT"), 0):
        raise ImageError("is a truncated PNG (no end chunk)")
    if data.startswith(_JPEG) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise ImageError("is a truncated JPEG (no end marker)")
    if data.startswith(_TIFF):
        _check_tiff(data)


def _check_tiff(data: bytes) -> None:
    """Let Pillow decode a TIFF: OpenCV leaves a damaged strip black and goes on."""
    with _any_size:
        try:
            image = Image.open(io.BytesIO(data))
        except OSError:
            return  # a kind of TIFF that Pillow does not know; OpenCV may
        try:
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise ImageError(f"is a damaged TIFF ({error})") from error


def to_rgb8(image: np.ndarray) -> np.ndarray:
    """Turn what OpenCV decoded (grey, BGR or BGRA; 8 or 16 bits) into (H, W, 3) uint8 RGB."""
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ImageError(f"has pixels of type {image.dtype}; 8 or 16 bits are needed")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.uint16)
        colour = (image[..., :3].astype(np.uint16) * alpha + 255 * (255 - alpha) + 127) // 255
        return cv2.cvtColor(colour.astype(np.uint8), cv2.COLOR_BGR2RGB)
    raise ImageError(f"has {image.shape[2]} channels; 1, 3 or 4 are needed")


def resize(array: np.ndarray, shape_yx: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """Resize an (H, W) or (H, W, C) array; averages when shrinking, interpolates linearly when enlarging."""
    if tuple(array.shape[:2]) == tuple(shape_yx):
        return array
    shrinks = shape_yx[0] * shape_yx[1] < array.shape[0] * array.shape[1]
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(array, shape_yx[::-1], interpolation=interpolation)
