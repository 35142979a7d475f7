"""Reading whole slides by region, at any magnification or resolution, with bounded memory.

Planes: level 0 is the slide as it was scanned; `prepare_reading` chooses the plane that `read_region` reads from. Its
pixels come from the next larger level, resized region by region on a grid that is fixed for the whole slide. So a
pixel does not depend on the region that was asked for.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.slides.folder import slide_files
from misc.slides.pixels import check_size
from misc.slides.resample import Axis, resample
from misc.slides.resolution import resolution_of
from misc.slides.sources import SlideError, is_slide, open_source

__all__ = ["FileHandler", "SlideError", "get_file_handler", "is_slide", "read_reflect"]

SAME_LEVEL_PX = 2  # px: largest difference to a level that is used as it is (levels are rounded)
SAME_LEVEL_SHARE = 0.01  # and share of its size, for small levels
PIECE_PX = 2048  # px: larger regions are read in pieces of that side, which bounds memory


@dataclass(frozen=True)
class _Plane:
    """What `read_region` reads: `level` of the file, resized along two axes."""

    level: int
    axis_y: Axis
    axis_x: Axis


class FileHandler:
    """An open slide.

    Attributes:
        path: the file, or the folder of a DICOM series.
        metadata: `base_shape` (2,) int64 width and height of level 0 in px; `base_mpp` (2,) float64 x, y in um/px, or
            `None`; `base_mag` float or `None`; `available_mag` one float a level, largest first, or `None`; `vendor`;
            `mpp_from` source of the mpp; `notes` lines on ignored values and parts; `bounds_xywh` the part
            of level 0 that was scanned (four int, px), or `None` where nothing says it.

    Raises:
        SlideError: see `open_source`.
        ValueError: `mpp` or `mag` is not positive.
    """

    def __init__(self, path: str | Path, mpp: float | None = None, mag: float | None = None):
        for option, value in (("--mpp", mpp), ("--mag", mag)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{option} must be a positive number, got {value}")
        self.path, self._said = Path(path), {"mpp": mpp, "mag": mag}
        self._files = _stamps(self.path)
        self._source = open_source(self.path)
        base_mpp, base_mag, mpp_from, notes = resolution_of(self._source, mpp, mag)
        sizes = np.array(self._source.sizes_xy, np.int64)
        self.metadata = {
            "base_shape": sizes[0],
            "base_mpp": base_mpp,
            "base_mag": base_mag,
            "available_mag": None if base_mag is None else (base_mag * sizes[:, 0] / sizes[0, 0]).tolist(),
            "vendor": self._source.vendor,
            "mpp_from": mpp_from,
            "notes": [*notes, *self._source.notes],
            "bounds_xywh": self._source.bounds_xywh,
        }
        self._plane = self._level_plane(0, sizes[0])

    def __enter__(self) -> FileHandler:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        self._source.close()

    def check_unchanged(self) -> None:
        """Raise an error if the slide's files have changed since they were opened; call it after the last read.

        Raises:
            SlideError: a file has another size or date, is gone, or is new.
        """
        now = _stamps(self.path)
        if now != self._files:
            names = sorted({path.name for path, _ in set(now.items()) ^ set(self._files.items())})
            raise SlideError(self.path, f"was changed while it was read ({', '.join(names[:3])}); run it again")

    def reopen(self) -> FileHandler:
        """Open the same slide again, prepared for the same plane.

        Raises:
            SlideError: it cannot be opened, or is not what it was.
        """
        self.check_unchanged()
        fresh = FileHandler(self.path, **self._said)
        if fresh._source.sizes_xy != self._source.sizes_xy:
            fresh.close()
            raise SlideError(self.path, "was changed while it was read (it has other levels); run it again")
        fresh._plane = self._plane
        return fresh

    def at(self, read_mag: float | None = None, read_mpp=None) -> FileHandler:
        """Return a handler prepared for another plane, which shares the open file; arguments as in `get_dimensions`."""
        other = copy.copy(self)
        other._plane = self._choose(read_mag, read_mpp)
        return other

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width of the prepared plane (level 0 before `prepare_reading`), px."""
        return self._plane.axis_y.target, self._plane.axis_x.target

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Level-0 px a px of the prepared plane, rows and columns: corner y of the plane is y * scale at level 0."""
        width, height = self.metadata["base_shape"].tolist()
        return height / self.shape_yx[0], width / self.shape_yx[1]

    def get_dimensions(self, read_mag: float | None = None, read_mpp=None) -> np.ndarray:
        """Return (width, height) in px at a magnification, or at um/px (one number or x, y); um/px has priority.

        Raises:
            SlideError: the slide does not say its resolution, and no option does.
            ValueError: what is asked for is not positive.
        """
        plane = self._choose(read_mag, read_mpp)
        return np.array([plane.axis_x.target, plane.axis_y.target], np.int64)

    def prepare_reading(self, read_mag: float | None = None, read_mpp=None) -> None:
        """Choose what `read_region` reads; arguments and errors as in `get_dimensions`."""
        self._plane = self._choose(read_mag, read_mpp)

    @property
    def shrinks(self) -> float:
        """Px of the file's level that are read for a px of the prepared plane, along x; 1 for a level as it is."""
        return self._plane.axis_x.source / self._plane.axis_x.target

    def read_region(self, coords_xy, size_wh) -> np.ndarray:
        """Read a region of the prepared plane.

        Args:
            coords_xy: (x, y) of its top left corner, px.
            size_wh: (width, height), px, at least 1.

        Returns:
            (height, width, 3) uint8, RGB; transparent pixels are shown on white.

        Raises:
            ValueError: the region does not lie inside the plane; see `read_reflect` for those that do not.
            SlideError: the file is damaged there.
        """
        return self._read(self._plane, coords_xy, size_wh)

    def get_full_img(self, read_mag: float | None = None, read_mpp=None) -> np.ndarray:
        """Return the whole slide, (H, W, 3) uint8, read in pieces; arguments and errors as in `get_dimensions`.

        Raises:
            TooLargeError: it does not fit into the free memory.
        """
        plane = self._choose(read_mag, read_mpp)
        check_size((plane.axis_x.target, plane.axis_y.target))
        return self._read(plane, (0, 0), (plane.axis_x.target, plane.axis_y.target))

    def _choose(self, read_mag: float | None, read_mpp) -> _Plane:
        scale_xy = self._scale(read_mag, read_mpp)
        # a tiny share more, so that 0.99999999 px count as one
        wanted = np.maximum(np.floor(self.metadata["base_shape"] * scale_xy * (1 + 1e-9)), 1).astype(np.int64)
        for level, size in enumerate(self._source.sizes_xy):
            off = np.abs(np.array(size) - wanted)
            if (off <= SAME_LEVEL_PX).all() and (off <= SAME_LEVEL_SHARE * wanted).all():
                return self._level_plane(level, np.array(size))
        larger = [level for level, size in enumerate(self._source.sizes_xy) if (np.array(size) >= wanted).all()]
        return self._level_plane(larger[-1] if larger else 0, wanted)

    def _scale(self, read_mag: float | None, read_mpp) -> np.ndarray:
        """Return px of the plane that is asked for a px of level 0, (x, y)."""
        asked = read_mag if read_mpp is None else read_mpp
        if asked is None:
            raise ValueError("give read_mag or read_mpp")
        asked = np.broadcast_to(np.asarray(asked, np.float64), 2)
        if not (np.isfinite(asked) & (asked > 0)).all():
            raise ValueError(f"magnification or um/px must be positive, got {asked.tolist()}")
        if self.metadata["base_mpp"] is None:
            reason = "does not say its resolution; give it with --mpp (um/px) or --mag (objective)"
            raise SlideError(self.path, "; ".join([reason, *self.metadata["notes"]]))
        return asked / self.metadata["base_mag"] if read_mpp is None else self.metadata["base_mpp"] / asked

    def _level_plane(self, level: int, size_xy: np.ndarray) -> _Plane:
        width, height = self._source.sizes_xy[level]
        return _Plane(level, Axis(int(height), int(size_xy[1])), Axis(int(width), int(size_xy[0])))

    def _read(self, plane: _Plane, coords_xy, size_wh) -> np.ndarray:
        (x, y), (width, height) = (int(v) for v in coords_xy), (int(v) for v in size_wh)
        plane_w, plane_h = plane.axis_x.target, plane.axis_y.target
        if width < 1 or height < 1 or x < 0 or y < 0 or x + width > plane_w or y + height > plane_h:
            region = f"region x={x} y={y} {width}x{height} px"
            raise ValueError(f"{self.path.name}: {region} is not inside the slide, {plane_w}x{plane_h} px")
        pieces_y, pieces_x = _pieces(plane.axis_y, y, y + height), _pieces(plane.axis_x, x, x + width)
        if len(pieces_y) == len(pieces_x) == 1:
            return self._read_piece(plane, y, x, y + height, x + width)
        region = np.empty((height, width, 3), np.uint8)
        for y0, y1 in pieces_y:
            for x0, x1 in pieces_x:
                region[y0 - y : y1 - y, x0 - x : x1 - x] = self._read_piece(plane, y0, x0, y1, x1)
        return region

    def _read_piece(self, plane: _Plane, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        top, bottom = plane.axis_y.span(y0, y1)
        left, right = plane.axis_x.span(x0, x1)
        try:
            pixels = self._source.read(plane.level, left, top, right - left, bottom - top)
        except Exception as error:  # OpenSlide and codecs raise any error on damaged data
            where = f"level {plane.level}, x {left} to {right}, y {top} to {bottom}"
            raise SlideError(self.path, f"cannot be read at {where} ({error})") from error
        return resample(pixels, plane.axis_y, plane.axis_x, (y0, x0, y1, x1))


def get_file_handler(
    path: str | Path, backend: str | None = None, mpp: float | None = None, mag: float | None = None
) -> FileHandler:
    """Open a slide by its content.

    Args:
        path: OpenSlide's formats, TIFF and OME-TIFF, PNG, JPEG.
        backend: an extension, as in the reference implementation; ignored.
        mpp: um/px of level 0, overrides what the file says.
        mag: objective power of level 0, overrides what the file says.

    Raises:
        SlideError: the file is not a slide, is damaged, or cannot be read.
    """
    return FileHandler(path, mpp, mag)


def read_reflect(handler: FileHandler, y: int, x: int, height: int, width: int) -> np.ndarray:
    """Read a window of the prepared plane that may lie outside of it, there reflected at the slide's edges.

    Equal to that window of `np.pad(whole, ..., "reflect")`, however far outside and however small the slide is.

    Returns:
        (height, width, 3) uint8.
    """
    rows, cols = (
        reflected(start, length, size)
        for start, length, size in zip((y, x), (height, width), handler.shape_yx, strict=True)
    )
    top, left = int(rows.min()), int(cols.min())
    region = handler.read_region((left, top), (int(cols.max()) + 1 - left, int(rows.max()) + 1 - top))
    if region.shape[:2] == (height, width) and rows[0] == top and cols[0] == left:
        return region  # a window inside the plane needs no reflection
    return region[rows - top][:, cols - left]


def reflected(start: int, length: int, size: int) -> np.ndarray:
    """Return the positions within 0..size-1 that start .. start+length-1 are reflected to."""
    period = max(2 * (size - 1), 1)
    offset = np.arange(start, start + length) % period
    return np.minimum(offset, period - offset) if size > 1 else np.zeros(length, np.int64)


def _stamps(path: Path) -> dict[Path, tuple[int, int]]:
    """Return size and date (ns) of the files of a slide; -1 where that fails."""
    stamps = {}
    for file in slide_files(path):
        try:
            stat = file.stat()
            stamps[file] = stat.st_size, stat.st_mtime_ns
        except OSError:
            stamps[file] = -1, -1
    return stamps


def _pieces(axis: Axis, start: int, stop: int) -> list[tuple[int, int]]:
    """Cut a range of the plane so that both the pieces and their source ranges are short."""
    step = max(min(PIECE_PX, PIECE_PX * axis.target // axis.source), 1)
    cuts = [start, *range((start // step + 1) * step, stop, step), stop]
    return list(itertools.pairwise(cuts))
