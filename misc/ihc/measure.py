"""DAB and haematoxylin of a million nuclei and of the rings around them, in one pass over the slide.

The slide is read cell by cell, in bands from top to bottom; each pixel is read once. The nuclei of a cell are drawn as
a label map, and counted into histograms of DAB: one for each nucleus, one for its ring. A nucleus that lies across the
border of cells is summed over them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import cv2
import numpy as np

from misc.ihc.stain import StainModel
from misc.nuclei import Nuclei
from misc.nuclei_features import ReadRegion, boxes_of_contours

# Side of a cell, px: a multiple of what tiles of slides measure, 12 MB of RGB.
CELL_PX = 2048
# Width of the ring around a nucleus, um (what is cytoplasm in most cells), and its px where a slide does not say them.
RING_UM, RING_PX = 2.0, 8
# Densities are counted in bins of this width, from `LOW_OD` up: a median is exact to half of it.
BIN_OD, LOW_OD, HIGH_OD = 0.01, -0.3, 2.2
BINS = round((HIGH_OD - LOW_OD) / BIN_OD)
MIDDLES_OD = (LOW_OD + (np.arange(BINS) + 0.5) * BIN_OD).astype(np.float32)
# Of rings, which have more pixels than nuclei, each second one along rows and columns is looked at.
RING_STEP = 2
# Threads that read cells ahead.
READERS = 2
# The ground between nuclei is read off their rings: this percentile of them, so that cytoplasm and neighbours that are
# stained do not count. Beyond the limits it is no ground (it is 0 to 0.1 on labs' slides), and is taken as the limit.
GROUND_PERCENTILE, GROUND_OD = 25, (-0.1, 0.15)
# DAB lies around the nuclei, in membranes or cytoplasm, where this share of the positive ones has more in the ring.
AROUND_SHARE = 0.5


@dataclass(frozen=True)
class Densities:
    """What was measured of N nuclei, each (N,) float32 in the order of the nuclei; NaN where nothing was measured.

    All but `pixels` are optical densities.

    Attributes:
        dab_mean, dab_median: of the nucleus. Medians are lower medians, exact to half of `BIN_OD`.
        hematoxylin_mean: of the nucleus.
        ring_dab_mean, ring_dab_median: of the ring around it, without the pixels of any nucleus, exact to half of
            `BIN_OD`; NaN where other nuclei leave no ring.
        pixels: number of pixels of the nucleus.
    """

    dab_mean: np.ndarray
    dab_median: np.ndarray
    hematoxylin_mean: np.ndarray
    ring_dab_mean: np.ndarray
    ring_dab_median: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.dab_mean)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the densities by name, as CSV and GeoJSON call them with `_od` added."""
        return {f"{f.name}_od": getattr(self, f.name) for f in fields(self) if f.name != "pixels"}

    def ground(self) -> float:
        """Return the DAB density of unstained tissue, above which thresholds count; 0 where there are no rings."""
        rings = self.ring_dab_median[np.isfinite(self.ring_dab_median)]
        return float(np.clip(np.percentile(rings, GROUND_PERCENTILE), *GROUND_OD)) if len(rings) else 0.0

    def lies_around(self, positive: np.ndarray) -> bool:
        """Whether DAB lies around the nuclei that are called positive, (N,) bool, rather than in them."""
        share = (self.ring_dab_median > self.dab_median)[positive]
        return bool(len(share)) and float(share.mean()) > AROUND_SHARE


def measure(
    nuclei: Nuclei,
    read: ReadRegion,
    shape_px: tuple[int, int],
    model: StainModel,
    mpp: float | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Densities:
    """Measure each nucleus and the ring around it.

    Pixels that several nuclei or rings claim are the later nucleus'; a ring is `RING_UM` wide along rows and columns.

    Args:
        nuclei: N nuclei on the pixel grid of the image.
        read: `read(y, x, h, w)` gives that region as (h, w, 3) uint8 RGB.
        shape_px: height and width of the image.
        model: the stains.
        mpp: um/px of the image; without it the ring is `RING_PX` wide.
        progress: called with the number of nuclei that were finished, cell by cell.
    """
    ring_px = RING_PX if mpp is None else max(round(RING_UM / mpp), 1)
    found = np.full((len(nuclei), len(fields(Densities))), np.nan, np.float32)
    waiting: dict[int, np.ndarray] = {}
    for (cell, members, is_whole, is_last), rgb in _read_ahead(_cells(nuclei, shape_px, ring_px), read):
        rows = _count(*_draw(nuclei, members, cell, ring_px), len(members), rgb, model)
        for i in np.flatnonzero(~is_whole):
            rows[i] += waiting.pop(members[i], 0)
            if not is_last[i]:
                waiting[members[i]] = rows[i].copy()  # not the whole cell's
        found[members[is_last]] = _summary(rows[is_last])
        progress(int(is_last.sum()))
    return Densities(*found.T)


def _cells(nuclei: Nuclei, shape_px: tuple[int, int], ring_px: int) -> Iterator[tuple]:
    """Yield the cells that have nuclei or rings in them, in rows from the top left.

    Yields:
        (y0, x0, y1, x1) px, far edges exclusive; (n,) positions of its nuclei; (n,) bool, those with no other cell,
        and those with no later one.
    """
    boxes = boxes_of_contours(nuclei)
    drawn = np.flatnonzero(np.diff(nuclei.offsets) > 0)
    low = np.maximum(boxes[drawn, 0] - ring_px, 0) // CELL_PX
    high = (np.minimum(boxes[drawn, 1] + ring_px, shape_px) - 1) // CELL_PX
    size = np.maximum(high - low + 1, 0)
    count = size.prod(axis=1)
    which = np.repeat(np.arange(len(drawn)), count)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    down, along = np.divmod(nth, size[which, 1])
    rows, columns = low[which, 0] + down, low[which, 1] + along
    order = np.lexsort((which, columns, rows))
    breaks = np.flatnonzero(np.diff(rows[order]) | np.diff(columns[order])) + 1
    for group in np.split(order, breaks) if len(order) else ():
        y0, x0 = int(rows[group[0]]) * CELL_PX, int(columns[group[0]]) * CELL_PX
        y1, x1 = min(y0 + CELL_PX, shape_px[0]), min(x0 + CELL_PX, shape_px[1])
        own = which[group]
        yield (y0, x0, y1, x1), drawn[own], count[own] == 1, nth[group] == count[own] - 1


def _read_ahead(cells: Iterator[tuple], read: ReadRegion) -> Iterator[tuple[tuple, np.ndarray]]:
    """Yield each cell and its pixels; other threads read the next ones meanwhile."""
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque = deque()
        for cell in cells:
            y0, x0, y1, x1 = cell[0]
            ahead.append((cell, pool.submit(read, y0, x0, y1 - y0, x1 - x0)))
            if len(ahead) > READERS:
                done, pixels = ahead.popleft()
                yield done, pixels.result()
        for done, pixels in ahead:
            yield done, pixels.result()


def _draw(
    nuclei: Nuclei, members: np.ndarray, cell: tuple[int, int, int, int], ring_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the nuclei of a cell and their rings.

    Returns:
        Two (h, w) arrays of the cell's px: i + 1 where nucleus i of the `members` lies, and where its ring; else 0.
    """
    y0, x0, y1, x1 = cell
    dtype = np.uint16 if len(members) < np.iinfo(np.uint16).max else np.float32
    labels = np.zeros((y1 - y0 + 2 * ring_px, x1 - x0 + 2 * ring_px), dtype)
    for label, i in enumerate(members.tolist(), 1):
        cv2.fillPoly(labels, [nuclei.contour(i)], label, offset=(ring_px - x0, ring_px - y0))
    grown = cv2.dilate(labels, np.ones((2 * ring_px + 1, 2 * ring_px + 1), np.uint8))
    grown *= labels == 0
    inner = np.s_[ring_px : ring_px + y1 - y0, ring_px : ring_px + x1 - x0]
    return labels[inner], grown[inner]


def _count(labels: np.ndarray, rings: np.ndarray, count: int, rgb: np.ndarray, model: StainModel) -> np.ndarray:
    """Return a row of numbers for each nucleus, which add up over cells.

    Returns:
        (n, 2 * BINS + 2) float32: histogram of DAB in the nucleus and in the ring; sums of DAB and of haematoxylin in
        the nucleus.
    """
    thinned = np.s_[::RING_STEP, ::RING_STEP]
    which, densities = _pixels(labels, rgb, model)
    ring_which, ring_densities = _pixels(rings[thinned], rgb[thinned], model)
    rows = np.empty((count, 2 * BINS + 2), np.float32)
    rows[:, :BINS] = _histogram(which, densities[:, 1], count)
    rows[:, BINS:-2] = _histogram(ring_which, ring_densities[:, 1], count)
    rows[:, -2] = np.bincount(which, densities[:, 1], minlength=count)
    rows[:, -1] = np.bincount(which, densities[:, 0], minlength=count)
    return rows


def _pixels(labels: np.ndarray, rgb: np.ndarray, model: StainModel) -> tuple[np.ndarray, np.ndarray]:
    """Return the nucleus of each pixel that has one, (P,) int64 from 0, and its densities, (P, 2) float32."""
    places = np.flatnonzero(labels != 0)
    pixels = np.take(rgb.reshape(-1, 3), places, axis=0)
    return labels.ravel()[places].astype(np.int64) - 1, model.densities(pixels)


def _histogram(which: np.ndarray, dab: np.ndarray, count: int) -> np.ndarray:
    bins = np.clip((dab - LOW_OD) * (1 / BIN_OD), 0, BINS - 1).astype(np.int64)
    return np.bincount(which * BINS + bins, minlength=count * BINS).reshape(count, BINS)


def _summary(rows: np.ndarray) -> np.ndarray:
    """Turn the rows of finished nuclei into the columns of `Densities`, (n, 6)."""
    nucleus, ring, (dab, hematoxylin) = rows[:, :BINS], rows[:, BINS:-2], rows[:, -2:].T
    with np.errstate(invalid="ignore"):  # nothing over nothing is NaN: not measured
        pixels = nucleus.sum(axis=1)
        ring_mean = ring @ MIDDLES_OD / ring.sum(axis=1)
        own = [dab / pixels, _median(nucleus), hematoxylin / pixels]
        return np.column_stack([*own, ring_mean, _median(ring), pixels])


def _median(histogram: np.ndarray) -> np.ndarray:
    """Return the middle of the bin that holds the lower median, (n, BINS) -> (n,); NaN for an empty histogram."""
    sums = np.cumsum(histogram, axis=1)
    total = sums[:, -1:]
    middle = np.argmax(2 * sums >= total, axis=1)
    return np.where(total[:, 0] > 0, MIDDLES_OD[middle], np.nan)
