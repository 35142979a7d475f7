"""An index of nuclei on disk that finds those of any field fast: made once, then mapped into memory.

Nuclei are sorted by cells of `CELL_PX` (by their centroids), so a field reads a few runs of rows. Contours are bytes,
relative to the nucleus' own corner. A pyramid of counts by type serves views too far out to show single nuclei.
A million nuclei take about 100 MB. All coordinates are px of the JSON file's plane.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.files import short_stem
from misc.locks import locked
from misc.nuclei import Nuclei
from misc.nuclei_features import pixel_areas

VERSION = 1  # of the index files; other versions are made again
CELL_PX = 512
# px, side of the smallest bins: 16 um at 40x. Each level above has bins of twice the side.
BIN_PX = 64
# px, side of the fields whose highest densities set the end of the colour scale.
PEAK_PX = 256
# Most cells of a slide: 2 million px by 2 million px. More means a broken file.
MAX_CELLS = 1 << 24
# A type is one byte in the tiles that the page colours.
MAX_TYPES = 255
# Nuclei whose contours are copied at once; this bounds memory.
MOVED_NUCLEI = 200_000
# Share of nuclei below the end of a slider: one giant would make it useless.
RANGE_QUANTILE = 0.998

# One nucleus. Its contour is `corner + (points[start:start + length] << shift)`. `shift` is 0, except for the rare
# object of more than 256 px, whose contour is rounded. `centre` is relative to `corner`; `side` is (w - 1, h - 1) >>
# shift; `code` is a position in `types`.
NUCLEUS = np.dtype(
    [
        ("id", "<i8"),
        ("corner", "<i4", 2),
        ("start", "<u4"),
        ("length", "<u4"),
        ("centre", "<f4", 2),
        ("prob", "<f4"),
        ("area", "<f4"),
        ("dab", "<f4"),
        ("side", "u1", 2),
        ("shift", "u1"),
        ("code", "u1"),
    ]
)


@dataclass(frozen=True)
class Field:
    """The nuclei that reach into a box: (N,) records of `NUCLEUS`, and their (N,) rows in the index."""

    nuclei: np.ndarray
    rows: np.ndarray


class NucleiIndex:
    """An open index.

    Attributes:
        meta: `types` ids by code (`null` without types), `counts` of nuclei by code, `ranges` (low, high) of `prob`,
            `area` and `dab` where known, `mean_area` px^2, `peak` nuclei per px^2 at the end of the colour scale.
        nuclei: (N,) records of `NUCLEUS`.
        points: (P, 2) uint8, the contours.
        probs: (N, K) float32, probability of each type; K is 0 if the file has none.
        counts: of each level (rows, cols, types), bins of `BIN_PX << level`.
    """

    def __init__(self, folder: Path):
        self.meta = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.nuclei, self.points, self.probs = (_load(folder / f"{n}.npy") for n in ("nuclei", "points", "probs"))
        self._first, self._extent = np.load(folder / "first.npy"), np.load(folder / "extent.npy")
        self.counts = [_load(folder / f"counts_{level}.npy") for level in range(self.meta["levels"])]

    def __len__(self) -> int:
        return len(self.nuclei)

    def field(self, x0: float, y0: float, x1: float, y1: float) -> Field:
        """Return the nuclei whose box overlaps the box from (x0, y0) to (x1, y1), px, both inclusive."""
        low, high = self._extent[:, :2], self._extent[:, 2:]
        cells = np.flatnonzero((low <= (x1, y1)).all(axis=1) & (high >= (x0, y0)).all(axis=1))
        rows = np.concatenate([np.arange(0), *(np.arange(*self._first[cell : cell + 2]) for cell in cells)])
        nuclei = self.nuclei[rows]
        last = nuclei["corner"] + (nuclei["side"].astype(np.int32) << nuclei["shift"][:, None])
        inside = ((nuclei["corner"] <= (x1, y1)) & (last >= (x0, y0))).all(axis=1)
        return Field(nuclei[inside], rows[inside])

    def contours(self, nuclei: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the contour points of some nuclei, (P, 2) int32 x, y, and the (N + 1,) int64 start of each contour."""
        lengths = nuclei["length"].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.repeat(nuclei["start"] - offsets[:-1], lengths) + np.arange(offsets[-1])
        points = self.points[where].astype(np.int32) << np.repeat(nuclei["shift"], lengths)[:, None]
        return points + np.repeat(nuclei["corner"], lengths, axis=0), offsets


def _load(path: Path) -> np.ndarray:
    """Map an array into memory; an empty one is read, since it cannot be mapped."""
    with open(path, "rb") as handle:
        np.lib.format.read_magic(handle)
        shape = np.lib.format.read_array_header_1_0(handle)[0]
    return np.load(path, mmap_mode="r" if 0 not in shape else None)


def open_index(folder: Path, key: dict) -> NucleiIndex | None:
    """Open an index; return `None` if there is none of this `key`, plain values that say what it was made from."""
    try:
        if json.loads((folder / "index.json").read_text(encoding="utf-8"))["key"] != _full(key):
            return None
        return NucleiIndex(folder)
    except (OSError, ValueError, KeyError):  # missing or damaged
        return None


def build_index(folder: Path, key: dict, parts: Iterable[Nuclei], dab: np.ndarray | None = None) -> NucleiIndex:
    """Make an index, or open the one that another process made meanwhile.

    Args:
        folder: of the index; replaced if it exists.
        key: what the index is made from; see `open_index`.
        parts: the nuclei, in pieces.
        dab: (N,) float32 DAB density in the order of the parts, NaN where unknown; `None` without a measurement.

    Raises:
        ValueError: nuclei lie too far apart for a slide, have too many types, or `dab` has another length.
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{short_stem(folder.name)}.lock", wait=True):
        if found := open_index(folder, key):
            return found
        part = folder.with_name(f".{short_stem(folder.name)}.part")
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir()
        try:
            _write(part, key, parts, dab)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return NucleiIndex(folder)


def _full(key: dict) -> dict:
    return {"version": VERSION, **key}


def _write(folder: Path, key: dict, parts: Iterable[Nuclei], dab: np.ndarray | None) -> None:
    tables, points, probs, types = [], [], [], []
    for part in parts:
        table, contours = _pack(part, sum(map(len, points)))
        tables.append(table)
        points.append(contours)
        types.append(np.full(len(part), -1, np.int32) if part.types is None else part.types)
        probs.append(np.zeros((len(part), 0), np.float32) if part.class_probs is None else part.class_probs)
    nuclei = np.concatenate(tables) if tables else np.zeros(0, NUCLEUS)
    points = np.concatenate(points) if points else np.zeros((0, 2), np.uint8)
    probs = np.concatenate(probs) if probs else np.zeros((0, 0), np.float32)
    ids, codes, counts = np.unique(np.concatenate([np.zeros(0, int), *types]), return_inverse=True, return_counts=True)
    if len(ids) > MAX_TYPES:
        raise ValueError(f"has {len(ids)} types of nuclei; at most {MAX_TYPES} can be shown")
    if dab is not None and len(dab) != len(nuclei):
        raise ValueError(f"{len(dab)} DAB densities for {len(nuclei)} nuclei; run plot_heat_map.py --score again")
    nuclei["code"], nuclei["dab"] = codes, np.nan if dab is None else dab
    centres = np.maximum(nuclei["corner"] + nuclei["centre"], 0)
    shape, order, first = _sort(centres)
    nuclei = nuclei[order]
    _save_points(folder, nuclei, points)
    np.save(folder / "nuclei.npy", nuclei)
    np.save(folder / "probs.npy", probs[order])
    np.save(folder / "first.npy", first)
    np.save(folder / "extent.npy", _extents(nuclei, first))
    levels = _count(centres, codes, len(ids), shape)
    for level, grid in enumerate(levels):
        np.save(folder / f"counts_{level}.npy", grid)
    meta = {"key": _full(key), "types": [None if i < 0 else i for i in ids.tolist()], "counts": counts.tolist()}
    meta |= {"levels": len(levels), "peak": _peak(levels), "ranges": _ranges(nuclei)}
    meta["mean_area"] = float(nuclei["area"].mean(dtype=np.float64)) if len(nuclei) else 0.0
    (folder / "index.json").write_text(json.dumps(meta), encoding="utf-8")


def _pack(part: Nuclei, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the records of some nuclei, whose points begin at row `start`, and their contours as bytes."""
    lengths, drawn = np.diff(part.offsets), np.diff(part.offsets) > 0
    low = np.rint(part.centroids_xy).astype(np.int32)  # of a nucleus without a contour
    high = low.copy()
    low[drawn] = np.minimum.reduceat(part.points_xy, part.offsets[:-1][drawn])
    high[drawn] = np.maximum.reduceat(part.points_xy, part.offsets[:-1][drawn])
    table = np.zeros(len(part), NUCLEUS)
    longest = (high - low).max(axis=1, initial=0)
    table["shift"] = np.ceil(np.log2(np.maximum((longest + 1) / 256, 1)))
    table["side"] = (high - low) >> table["shift"][:, None]
    points = part.points_xy - np.repeat(low, lengths, axis=0)
    points >>= np.repeat(table["shift"], lengths)[:, None]
    table["id"], table["corner"], table["centre"] = part.ids, low, part.centroids_xy - low
    table["start"], table["length"] = start + part.offsets[:-1], lengths
    table["prob"] = np.nan if part.type_prob is None else part.type_prob
    table["area"] = pixel_areas(part)
    return table, points.astype(np.uint8)


def _sort(centres: np.ndarray) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """Return (rows, columns) of the cells, the order of the nuclei by cell, and each cell's first row, (C + 1,)."""
    cells = (centres // CELL_PX).astype(np.int64)
    columns, rows = (int(n) + 1 for n in cells.max(axis=0, initial=0))
    if rows * columns > MAX_CELLS:
        raise ValueError(f"has nuclei at up to {centres.max():.0f} px: the file is broken")
    flat = cells[:, 1] * columns + cells[:, 0]
    first = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=rows * columns))])
    return (rows, columns), np.argsort(flat, kind="stable"), first


def _save_points(folder: Path, nuclei: np.ndarray, points: np.ndarray) -> None:
    """Write the contours in the order of the nuclei, and set the start of each."""
    lengths = nuclei["length"].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    shape = (int(lengths.sum()), 2)
    if not shape[0]:
        np.save(folder / "points.npy", points[:0])
        return
    out = np.lib.format.open_memmap(folder / "points.npy", "w+", np.uint8, shape)
    for i in range(0, len(nuclei), MOVED_NUCLEI):
        of = slice(i, i + MOVED_NUCLEI)
        moved = np.repeat(nuclei["start"][of].astype(np.int64) - starts[of], lengths[of])
        begin = starts[i]
        out[begin : begin + len(moved)] = points[moved + np.arange(begin, begin + len(moved))]
    out.flush()
    nuclei["start"] = starts


def _extents(nuclei: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the box around the nuclei of each cell, (C, 4) int32 x0, y0, x1, y1; inverted for an empty cell."""
    extent = np.full((len(first) - 1, 4), [1, 1, -1, -1], np.int32) * np.iinfo(np.int32).max
    filled = np.diff(first) > 0
    if filled.any():
        last = nuclei["corner"] + (nuclei["side"].astype(np.int32) + 1 << nuclei["shift"][:, None]) - 1
        extent[filled, :2] = np.minimum.reduceat(nuclei["corner"], first[:-1][filled])
        extent[filled, 2:] = np.maximum.reduceat(last, first[:-1][filled])
    return extent


def _count(centres: np.ndarray, codes: np.ndarray, nr_types: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """Count nuclei by bin and type; return (rows, cols, types) of each level: bins double until one is left."""
    rows, columns = (n * CELL_PX // BIN_PX for n in shape)
    bins = (centres // BIN_PX).astype(np.int64)
    flat = (bins[:, 1] * columns + bins[:, 0]) * nr_types + codes
    grid = np.bincount(flat, minlength=rows * columns * nr_types).reshape(rows, columns, nr_types)
    levels = [grid]
    while max(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        even = np.pad(levels[-1], ((0, height % 2), (0, width % 2), (0, 0)))
        levels.append(even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2])
    return [level.astype(np.min_scalar_type(level.max(initial=0))) for level in levels]


def _peak(levels: list[np.ndarray]) -> float:
    """Return the density at the end of the colour scale, nuclei per px^2: that of the densest fields."""
    level = min((PEAK_PX // BIN_PX).bit_length() - 1, len(levels) - 1)
    totals = levels[level].sum(axis=2)
    return float(np.quantile(totals[totals > 0], 0.99)) / (BIN_PX << level) ** 2 if totals.any() else 1.0


def _ranges(nuclei: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the ends of the slider for each value that is known."""
    ranges = {}
    for name in ("prob", "area", "dab"):
        values = nuclei[name][np.isfinite(nuclei[name])]
        if len(values):
            high = 1.0 if name == "prob" else float(np.quantile(values, RANGE_QUANTILE))
            ranges[name] = (0.0, max(high, 1e-6))
    return ranges
