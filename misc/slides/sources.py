"""Open slides by content: OpenSlide first, then our own readers for what it refuses or misreads, and pictures.

OpenSlide (4.0.1, as `openslide-bin` brings it) reads Aperio, Hamamatsu, Leica, MIRAX, Philips, Sakura, Trestle,
Ventana, generic tiled TIFF, DICOM (from one file all levels of its series), and Zeiss CZI (raw or Zstandard). Other
TIFF is read with tifffile, other DICOM with pydicom, other CZI with pylibCZIrw and OME-Zarr with zarr where those are
installed.

A source has

    sizes_xy     (width, height) of each level, the largest first
    vendor       maker of the scanner; `None` if unknown
    mpp_xy       um a pixel of level 0 along x and y, or `None`; `mpp_from`: its source
    power        of the objective, or `None`
    bounds_xywh  the part of level 0 that was scanned, px, or `None` where nothing says it
    is_deep      whether it has 16 bits that come out as 8
    notes        remarks for the user

and `read(level, x, y, width, height)`, which returns (height, width, 3) uint8 of a region inside the level, and may be
called from several threads.
"""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide

from misc.machine import TooLargeError
from misc.slides.blocks import BlockCache, fill
from misc.slides.czi import CziSource
from misc.slides.dicom import series_in
from misc.slides.dicom_frames import DicomSource
from misc.slides.ome_zarr import OmeZarrSource, is_ome_zarr
from misc.slides.picture import JPEG, PNG, ImageSource, is_picture
from misc.slides.pixels import ImageError, on_white
from misc.slides.tiff import RESOLUTION_UM, TAGS_SAY, TiffSource, unread_pages

# Files with these suffixes count as slides whatever their content, so that broken ones are reported, not left out.
SLIDE_SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .vms .vmu .scn .mrxs .svslide .bif .czi .dcm .qptiff .png .jpg .jpeg".split()
)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MIRAX_SUFFIX = ".mrxs"
_GENERIC_TIFF, _DICOM, _NDPI, _CZI = "generic-tiff", "dicom", "hamamatsu", "zeiss"
_TAG_ORIENTATION = 274
_RGB, _YCBCR = 2, 6  # tag PhotometricInterpretation
# OpenSlide's errors for DICOM that our reader may read: no ImageType, other bits or channels, another JPEG
_OFF_DICOM = ("get image flavor", "Attribute", "Unsupported")
_ALPHA = 2  # tag ExtraSamples: alpha that colours are not multiplied by
BLOCK_PX = 512  # px, side of the pieces in which levels off the pixel grid are read
# px in a tile (256 MB). Scanners' have at most 4096 x 4096; OpenSlide ends the process when it cannot get the memory.
MAX_TILE_PX = 1 << 26
MAX_SIDE_PX = 1 << 21  # px, half a metre at 0.25 um/px
# Opens a slide and reads a px of each level; crashes on some damaged headers.
_TRY_OUT = """
import sys, openslide
try:
    slide = openslide.OpenSlide(sys.argv[1])
    for level in range(slide.level_count):
        slide.read_region((0, 0), level, (1, 1))
except openslide.OpenSlideError:
    pass  # opening it here will say why
"""
_EXCEPTION = 1  # exit code of Python after an exception


class SlideError(ValueError):
    """A slide that cannot be read; the message names the file and the reason in one line.

    Attributes:
        reason: the message without the file.
    """

    def __init__(self, path: str | Path, reason: object):
        self.reason = " ".join(str(reason).split())
        super().__init__(f"{path}: {self.reason}")


def is_slide(path: str | Path) -> bool:
    """Tell whether a file is to be read as a slide; side files (text, `.dat`, `.ini`, masks as `.npy`...) are not.

    Files with a slide's suffix but broken content count, so that opening them reports what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    try:
        return file_head(path).startswith((*TIFF, PNG, JPEG)) or openslide.OpenSlide.detect_format(path) is not None
    except (OSError, openslide.OpenSlideError):
        return False


def open_source(path: Path) -> Source:
    """Open a slide by its content; its name does not matter.

    Args:
        path: a file, or a folder: OME-Zarr, or the files of one DICOM series.

    Raises:
        SlideError: it is not a slide, is damaged, or cannot be read.
    """
    try:
        source = _open(_first_file(path))
        width, height = source.sizes_xy[0]
        if max(width, height) > MAX_SIDE_PX:
            source.close()
            raise ImageError(f"says that it has {width} x {height} px: a damaged header")
        return source
    except (ImageError, TooLargeError) as error:
        raise SlideError(path, error) from error
    except OSError as error:
        raise SlideError(path, f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged files raise any error in OpenSlide, tifffile or OpenCV
        raise SlideError(path, f"cannot be opened ({error})") from error


def file_head(path: Path) -> bytes:
    """Return the first bytes of a file, by which its kind is known."""
    with open(path, "rb") as handle:
        return handle.read(8)


def _first_file(path: Path) -> Path:
    """Return the largest level of a folder that is one DICOM slide; any other path as it is."""
    series = series_in(path) if path.is_dir() else []
    if len(series) > 1:
        raise ImageError(f"is a folder of {len(series)} DICOM slides; give one of its files")
    return series[0][0].path if series else path


def _open(path: Path) -> Source:
    if is_ome_zarr(path):
        return OmeZarrSource(path)
    head = file_head(path)
    if not head:
        raise ImageError("is empty (0 bytes)")
    if head.startswith((PNG, JPEG)) and path.suffix.lower() != MIRAX_SUFFIX:  # whose index is a JPEG thumbnail
        return ImageSource(path)
    vendor = openslide.OpenSlide.detect_format(path)
    header = _TiffHeader(path) if head.startswith(TIFF) else None
    if header and (vendor is None or (vendor == _GENERIC_TIFF and header.is_misread)):
        return TiffSource(path)
    if vendor is None:
        if is_picture(path):
            return ImageSource(path)
        raise ImageError("is not an image that OpenCV can decode, and is no slide")
    if header is None or header.nr_pages == 0 or vendor == _NDPI:
        stat = path.stat()
        _try_out(path, stat.st_size, stat.st_mtime_ns)
    try:
        source = OpenSlideSource(path)
        if vendor == _GENERIC_TIFF:
            source.notes = unread_pages(header.nr_pages, len(source.sizes_xy))
        return source
    except openslide.OpenSlideError as error:
        if vendor == _DICOM and any(reason in str(error) for reason in _OFF_DICOM):
            return DicomSource(path)
        if vendor == _CZI:
            return CziSource(path)
        raise


class _TiffHeader:
    """The properties of a TIFF that decide how to open it.

    Attributes:
        nr_pages: 0 where tifffile cannot read it; OpenSlide may.
        is_misread: whether OpenSlide would misread it as a generic TIFF. It rotates each tile of a rotated file in
            place (we read the stored pixels, so that coordinates agree with other programs), ignores resolution and
            levels of OME-TIFF, and confuses channels and pages.

    Raises:
        ImageError: tiles are of a size that ends the process.
    """

    def __init__(self, path: Path):
        from tifffile import TiffFile

        self.nr_pages, self.is_misread = 0, True
        try:
            with TiffFile(path) as file:
                top = [page.aspage() for page in file.pages]
                self._check_tiles([*top, *(sub.aspage() for page in top for sub in page.pages or ())])
                self.is_misread = file.is_ome or not _is_plain(top[0])
                self.nr_pages = len(top)
        except ImageError:
            raise
        except Exception:  # unknown or damaged files raise any error in tifffile
            return

    @staticmethod
    def _check_tiles(pages) -> None:
        for page in pages:
            if page.is_tiled and page.tilewidth * page.tilelength > MAX_TILE_PX:
                raise ImageError(f"has tiles of {page.tilewidth} x {page.tilelength} px: a damaged header")


def _is_plain(page) -> bool:
    """Tell whether OpenSlide reads a page of a generic TIFF correctly: RGB, maybe alpha, not rotated."""
    turned = page.tags.get(_TAG_ORIENTATION)
    upright = turned is None or turned.value == 1
    return upright and page.photometric in (_RGB, _YCBCR) and tuple(page.extrasamples) in ((), (_ALPHA,))


@functools.lru_cache
def _try_out(path: Path, size: int, mtime_ns: int) -> None:
    """Try to open a slide with an unchecked header in another process, so that a crash does not end this one.

    Raises:
        ImageError: it ended.
    """
    run = subprocess.run([sys.executable, "-c", _TRY_OUT, str(path)], capture_output=True, check=False)
    if run.returncode not in (0, _EXCEPTION):
        raise ImageError(f"ends OpenSlide (code {run.returncode}): a damaged header")


class OpenSlideSource:
    """A slide that OpenSlide opens."""

    is_deep = False
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path):
        self._slide = openslide.OpenSlide(path)
        properties = self._slide.properties
        self.sizes_xy = [tuple(size) for size in self._slide.level_dimensions]
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR)
        self.power = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.mpp_xy, self.mpp_from = _openslide_mpp(properties, self.vendor)
        self.bounds_xywh = _bounds(properties)
        self._blocks = BlockCache()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region that lies inside the level."""
        downsample = self._slide.level_downsamples[level]
        if downsample == int(downsample):
            return self._read(level, x, y, width, height)
        # OpenSlide takes the corner in whole px of level 0. Where that falls between two px of this level it blends
        # them, so that a pixel would depend on where its region begins: such levels are read in fixed blocks.
        region = np.empty((height, width, 3), np.uint8)
        return fill(region, x, y, (BLOCK_PX, BLOCK_PX), lambda row, col: self._block(level, row, col))

    def close(self) -> None:
        self._slide.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        downsample = self._slide.level_downsamples[level]
        corner = (round(x * downsample), round(y * downsample))
        return on_white(np.asarray(self._slide.read_region(corner, level, (width, height))))

    def _block(self, level: int, row: int, col: int) -> np.ndarray:
        (width, height), x, y = self.sizes_xy[level], col * BLOCK_PX, row * BLOCK_PX
        size = min(BLOCK_PX, width - x), min(BLOCK_PX, height - y)
        return self._blocks.get((level, row, col), lambda: self._read(level, x, y, *size))


def _openslide_mpp(properties, vendor: str | None) -> tuple[tuple[float, float] | None, str]:
    """Return um a pixel (x, y) and where it comes from."""
    axes = [_number(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    if None not in axes:
        return tuple(axes), TAGS_SAY if vendor == _GENERIC_TIFF else "the scanner"
    um = {"inch": RESOLUTION_UM[2], "centimeter": RESOLUTION_UM[3]}.get(properties.get("tiff.ResolutionUnit", ""))
    per_unit = [_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
    if um is None or None in per_unit:
        return None, TAGS_SAY
    return tuple(um / value if value else math.inf for value in per_unit), TAGS_SAY


def _bounds(properties) -> tuple[int, int, int, int] | None:
    names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
    values = [_number(properties.get(f"openslide.{name}")) for name in names]
    return None if None in values or min(values[2:]) < 1 else tuple(int(value) for value in values)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


Source = OpenSlideSource | TiffSource | DicomSource | CziSource | OmeZarrSource | ImageSource
