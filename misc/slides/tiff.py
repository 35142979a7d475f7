"""TIFF files that OpenSlide refuses or misreads, by region, with tifffile: stripped, tiled, OME, memory-mapped."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import cv2
import numpy as np

from misc.machine import check_fits
from misc.slides.blocks import BlockCache, fill
from misc.slides.ome import ome_mpp
from misc.slides.pixels import ImageError, to_rgb
from misc.slides.resolution import INCH_UM

RESOLUTION_UM = {2: INCH_UM, 3: 10000.0}  # tag ResolutionUnit: um in an inch, in a centimetre
TAGS_SAY = "the TIFF resolution"  # where `mpp_xy` comes from
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6  # tag PhotometricInterpretation
_READABLE = (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR)
_OLD_JPEG, _JPEG, _APERIO_JP2_YCBCR, _APERIO_JP2_RGB, _JP2 = 6, 7, 33003, 33005, 34712  # tag Compression
_DECODES_TO_RGB = (_OLD_JPEG, _JPEG, _APERIO_JP2_RGB, _JP2)
_PREMULTIPLIED, _ALPHA = 1, 2  # tag ExtraSamples


class TiffSource:
    """Levels of a TIFF file: those of its largest picture.

    Attributes: see `misc.slides.sources`.

    Raises:
        ImageError: no page of the file is an RGB or grey picture.
        TooLargeError: a strip is larger than the free memory; strips are decoded whole.
    """

    vendor = "tiff"
    power: float | None = None
    bounds_xywh = None

    def __init__(self, path: Path):
        from tifffile import TiffFile

        self._file = TiffFile(path)
        self._lock = threading.Lock()  # of the file's position
        self._segments = BlockCache()
        series = max(self._file.series, key=lambda item: _size_xy(item)[0] * _size_xy(item)[1], default=None)
        if series is None or 0 in _size_xy(series):
            raise ImageError("holds no picture")
        self._levels = sorted((_Level(item) for item in series.levels), key=lambda level: -level.size_xy[0])
        for page in (page for level in self._levels for page in level.pages if not page.is_memmappable):
            width, height = _segment_wh(page)
            sample_bytes = page.samplesperpixel * page.dtype.itemsize
            check_fits(width * height * sample_bytes, f"its strip of {width} x {height} px")
        self.sizes_xy = [level.size_xy for level in self._levels]
        self.is_deep = self._levels[0].pages[0].dtype.itemsize > 1
        top = self._levels[0]
        pages = max(len(self._file.pages), top.depth)
        self.notes = unread_pages(pages, sum(len(level.pages) for level in self._levels), top.pages[0].index)
        ome = ome_mpp(self._file.ome_metadata, self._file.series.index(series), self.sizes_xy[0])
        self.mpp_xy = ome or _tag_mpp(self._levels[0].pages[0])
        self.mpp_from = "the OME metadata" if ome else TAGS_SAY

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return a region that lies inside the level, (height, width, 3) uint8."""
        planes = [self._read_page(page, x, y, width, height) for page in self._levels[level].pages]
        samples = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return to_rgb(_plain(samples, self._levels[level].pages[0]))

    def close(self) -> None:
        self._file.close()

    def _read_page(self, page, x: int, y: int, width: int, height: int) -> np.ndarray:
        if page.is_memmappable:
            return self._mapped(page)[y : y + height, x : x + width]
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        read = [self._read_plane(page, plane, x, y, width, height) for plane in range(planes)]
        return read[0] if planes == 1 else np.concatenate(read, axis=2)

    def _mapped(self, page) -> np.ndarray:
        """Return an uncompressed page as (H, W, C), mapped into memory, not read."""
        dtype = np.dtype(page.dtype).newbyteorder(self._file.byteorder)
        planar = page.planarconfig == 2 and page.samplesperpixel > 1
        shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
        shape = (shape[2], *shape[:2]) if planar else shape
        if self._file.filehandle.size < page.dataoffsets[0] + np.prod(shape, dtype=np.int64) * dtype.itemsize:
            raise ImageError("the file is cut short")
        mapped = np.memmap(self._file.filehandle.path, dtype, "r", page.dataoffsets[0], shape)
        return np.moveaxis(mapped, 0, 2) if planar else mapped

    def _read_plane(self, page, plane: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Put a region together from the strips or tiles that it touches."""
        seg_w, seg_h = _segment_wh(page)
        across, down = -(-page.imagewidth // seg_w), -(-page.imagelength // seg_h)
        channels = 1 if page.planarconfig == 2 else page.samplesperpixel
        # segments that were never written stay white
        region = np.full((height, width, channels), (1 << page.bitspersample) - 1, page.dtype)
        first = plane * down * across
        return fill(region, x, y, (seg_w, seg_h), lambda row, col: self._segment(page, first + row * across + col))

    def _segment(self, page, index: int) -> np.ndarray | None:
        return self._segments.get((page.offset, index), lambda: self._decode(page, index))

    def _decode(self, page, index: int) -> np.ndarray | None:
        """Return a strip, as high as it is, or a whole tile, (h, w, C); `None` for one that was never written."""
        size = page.databytecounts[index]
        with self._lock:
            self._file.filehandle.seek(page.dataoffsets[index])
            data = self._file.filehandle.read(size)
        if len(data) < size:
            raise ImageError("the file is cut short")
        return page.decode(data, index, jpegtables=page.jpegtables)[0][0] if data else None


class _Level:
    """One level.

    Attributes:
        size_xy: width and height.
        pages: the page, or three grey ones that are red, green and blue.
        depth: number of pages of one kind; the first is read, unless they are colours.
    """

    def __init__(self, series):
        self.size_xy = _size_xy(series)
        sizes = dict(zip(series.axes.replace("Q", "I"), series.shape, strict=True))
        self.depth = sizes.get("I", 1)
        is_colours = "S" not in sizes and len(series.pages) == 3 and 3 in (sizes.get("C"), self.depth)
        if any(size > 1 for axis, size in sizes.items() if axis not in ("YXSIC" if is_colours else "YXSI")):
            raise ImageError(f"is a stack {sizes}; RGB or grey is needed")
        pages = series.pages[:3] if is_colours else series.pages[:1]
        self.pages = [page.aspage() for page in pages]  # later ones may be frames, which lack most attributes
        page = self.pages[0]
        if page.photometric not in _READABLE or page.dtype is None or page.dtype.kind not in "ub":
            raise ImageError(
                f"has pixels of kind {page.photometric!r}, {page.dtype}; 8 or 16 bit RGB or grey is needed"
            )


def unread_pages(pages: int, read: int, index: int = 0) -> tuple[str, ...]:
    """Return a note where a file has more pages than are read; `index` is that of the largest, counted from 0."""
    which = "the first" if index == 0 else f"number {index + 1}, the largest,"
    return (f"has {pages} pages; only {which} is read",) if pages > read else ()


def _segment_wh(page) -> tuple[int, int]:
    """Return width and height of a tile, or of a strip, px."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip, page.imagelength)


def _size_xy(series) -> tuple[int, int]:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("X", 0)), int(sizes.get("Y", 0))


def _plain(samples: np.ndarray, page) -> np.ndarray:
    """Look up palettes, invert negatives, undo premultiplied alpha, and drop samples that are no colour."""
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if page.photometric == _PALETTE:
        return np.moveaxis(page.colormap[:, samples[..., 0]], 0, 2)
    if page.photometric == _YCBCR and page.compression not in _DECODES_TO_RGB:
        samples = cv2.cvtColor(np.ascontiguousarray(samples[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    samples = _full_range(samples, page.bitspersample)
    if page.photometric == _CMYK:
        top = np.iinfo(samples.dtype).max
        light = np.invert(samples[..., :4]).astype(np.uint64)
        return ((light[..., :3] * light[..., 3:] + top // 2) // top).astype(samples.dtype)
    colours = 1 if page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK) and samples.shape[2] < 3 else 3
    kinds = tuple(page.extrasamples)
    has_alpha = bool(kinds) and kinds[0] in (_PREMULTIPLIED, _ALPHA) and samples.shape[2] > colours
    samples = samples[..., : colours + has_alpha]
    if page.photometric == _MIN_IS_WHITE:
        samples = np.concatenate([np.invert(samples[..., :1]), samples[..., 1:]], axis=2)
    if has_alpha and kinds[0] == _PREMULTIPLIED:
        top = np.iinfo(samples.dtype).max
        colour = samples[..., :-1].astype(np.uint64) * top // np.maximum(samples[..., -1:], 1)
        samples = np.concatenate([np.minimum(colour, top).astype(samples.dtype), samples[..., -1:]], axis=2)
    return samples


def _full_range(samples: np.ndarray, bits: int) -> np.ndarray:
    """Stretch samples of fewer bits than their type has, such as 12 of 16; bool is left to `to_8_bits`."""
    if samples.dtype == bool or bits == 8 * samples.itemsize:
        return samples
    top, full = (1 << bits) - 1, np.iinfo(samples.dtype).max
    return (samples.astype(np.uint64) * full // top).astype(samples.dtype)


def _tag_mpp(page) -> tuple[float, float] | None:
    """Return um a pixel from the tags XResolution, YResolution and ResolutionUnit."""
    tags = {
        name: page.tags[name].value for name in ("XResolution", "YResolution", "ResolutionUnit") if name in page.tags
    }
    um = RESOLUTION_UM.get(int(tags.get("ResolutionUnit", 0)))
    values = [tags.get(name) for name in ("XResolution", "YResolution")]
    if um is None or None in values:
        return None
    return tuple(um * below / above if above else math.inf for above, below in values)
