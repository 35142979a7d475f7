"""What can be read as a slide, opened by content: OpenSlide first, tifffile for OME-TIFF and what it refuses, pictures.

A source has `sizes_xy` (width and height of each level, largest first), `vendor`, `mpp_xy`, `mpp_from`, `power`, and
`read(level, x, y, width, height)`, which returns (height, width, 3) uint8 of a region inside the level. `read` may be
called from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import openslide

from misc.slides.pixels import on_white, to_rgb
from misc.slides.tiff import RESOLUTION_UM, TAGS_SAY, TiffSource

# Files that are taken for slides whatever they hold, so that a broken one is reported and not passed over.
SLIDE_SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .vms .vmu .scn .mrxs .svslide .bif .czi .dcm .qptiff .png .jpg .jpeg".split()
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _JPEG = b"\x89PNG", b"\xff\xd8\xff"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_GENERIC_TIFF = "generic-tiff"
_TAG_ORIENTATION = 274
BLOCK_PX = 512  # px, side of the pieces in which levels off the pixel grid are read
_CACHED_BLOCKS = 64  # of 0.75 MB


class SlideError(ValueError):
    """A slide that cannot be read; the message names the file and the reason in one line."""

    def __init__(self, path: str | Path, reason: object):
        super().__init__(f"{path}: {' '.join(str(reason).split())}")


def is_slide(path: str | Path) -> bool:
    """Tell whether a file is to be read as a slide; side files (text, `.dat`, `.ini`, masks as `.npy`...) are not.

    Files with a slide's name but broken content count, so that opening them says what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    try:
        return _head(path).startswith((*_TIFF, _PNG, _JPEG)) or openslide.OpenSlide.detect_format(path) is not None
    except (OSError, openslide.OpenSlideError):
        return False


def open_source(path: Path) -> OpenSlideSource | TiffSource | ImageSource:
    """Open a slide by what it holds; its name does not matter.

    Raises:
        SlideError: it is no slide, is damaged, or may not be read.
    """
    try:
        head = _head(path)
        if not head:
            raise SlideError(path, "is empty (0 bytes)")
        vendor = openslide.OpenSlide.detect_format(path)
        if vendor == _GENERIC_TIFF and (_is_turned(path) or _is_readable_ome(path)):
            return TiffSource(path)
        if vendor is not None:
            return OpenSlideSource(path)
        if head.startswith(_TIFF):
            return TiffSource(path)
        if head.startswith((_PNG, _JPEG)):
            return ImageSource(path)
    except SlideError:
        raise
    except OSError as error:
        raise SlideError(path, f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # whatever a damaged file makes OpenSlide, tifffile or OpenCV raise
        raise SlideError(path, f"cannot be opened ({error})") from error
    raise SlideError(path, "is no slide: neither OpenSlide, TIFF, PNG nor JPEG")


def _head(path: Path) -> bytes:
    with open(path, "rb") as handle:
        return handle.read(8)


def _is_turned(path: Path) -> bool:
    """Tell whether a TIFF asks to be shown turned: OpenSlide then turns each of its tiles where it lies.

    Such a file is read as it is stored, in which its coordinates mean the same to other programs.
    """
    from tifffile import TiffFile

    with TiffFile(path) as file:
        tag = file.pages[0].tags.get(_TAG_ORIENTATION)
        return tag is not None and tag.value != 1


def _is_readable_ome(path: Path) -> bool:
    """Tell whether a TIFF is an OME-TIFF that we decode: OpenSlide sees neither its resolution nor smaller levels."""
    from tifffile import TiffFile

    with TiffFile(path) as file:
        if not file.is_ome:
            return False
    source = TiffSource(path)
    try:
        source.read(0, 0, 0, 1, 1)
    except Exception:  # no codec for it here, or damaged: OpenSlide may know more, and say more
        return False
    finally:
        source.close()
    return True


class OpenSlideSource:
    """A slide that OpenSlide opens."""

    def __init__(self, path: Path):
        self._slide = openslide.OpenSlide(path)
        properties = self._slide.properties
        self.sizes_xy = [tuple(size) for size in self._slide.level_dimensions]
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR)
        self.power = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.mpp_xy, self.mpp_from = _openslide_mpp(properties, self.vendor)
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region that lies inside the level."""
        downsample = self._slide.level_downsamples[level]
        if downsample == int(downsample):
            return self._read(level, x, y, width, height)
        # OpenSlide takes the corner in whole px of level 0. Where that falls between two px of this level it blends
        # them, so that a pixel would depend on where its region begins: such levels are read in fixed blocks.
        region = np.empty((height, width, 3), np.uint8)
        for row in range(y // BLOCK_PX, -(-(y + height) // BLOCK_PX)):
            for col in range(x // BLOCK_PX, -(-(x + width) // BLOCK_PX)):
                block = self._block(level, row, col)
                top, left = row * BLOCK_PX, col * BLOCK_PX
                y0, x0 = max(y, top), max(x, left)
                y1, x1 = min(y + height, top + block.shape[0]), min(x + width, left + block.shape[1])
                region[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def close(self) -> None:
        self._slide.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        downsample = self._slide.level_downsamples[level]
        corner = (round(x * downsample), round(y * downsample))
        return on_white(np.asarray(self._slide.read_region(corner, level, (width, height))))

    def _block(self, level: int, row: int, col: int) -> np.ndarray:
        key = (level, row, col)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        width, height = self.sizes_xy[level]
        x, y = col * BLOCK_PX, row * BLOCK_PX
        block = self._read(level, x, y, min(BLOCK_PX, width - x), min(BLOCK_PX, height - y))
        with self._lock:
            self._blocks[key] = block
            if len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return block


def _openslide_mpp(properties, vendor: str | None) -> tuple[tuple[float, float] | None, str]:
    """Return um a pixel (x, y) and where it comes from."""
    axes = [_number(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    if None not in axes:
        return tuple(axes), TAGS_SAY if vendor == _GENERIC_TIFF else "the scanner"
    um = {"inch": RESOLUTION_UM[2], "centimeter": RESOLUTION_UM[3]}.get(properties.get("tiff.ResolutionUnit", ""))
    per_unit = [_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
    if um is None or None in per_unit or min(per_unit) <= 0:
        return None, TAGS_SAY
    return tuple(um / value for value in per_unit), TAGS_SAY


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


class ImageSource:
    """A PNG or JPEG picture, held in memory; says nothing of its resolution (what it has is for printing)."""

    vendor = "image"
    power = mpp_xy = None
    mpp_from = ""

    def __init__(self, path: Path):
        data = path.read_bytes()
        is_png = data.startswith(_PNG)
        if is_png and b"IEND" not in data[-64:] and data.rfind(b"IEND") < data.rfind(b"IDAT"):
            raise ValueError("truncated PNG, no end chunk")
        if not is_png and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
            raise ValueError("truncated JPEG, no end marker")
        # PNG keeps its depth and alpha; JPEG is turned as its EXIF entry says
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED if is_png else cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError("damaged PNG or JPEG")
        if image.ndim == 3:
            order = [2, 1, 0, 3][: image.shape[2]] if image.shape[2] >= 3 else slice(None)
            image = image[..., order]
        self._image = to_rgb(image)
        self.sizes_xy = [self._image.shape[1::-1]]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region that lies inside the picture."""
        return self._image[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """Nothing is open."""
