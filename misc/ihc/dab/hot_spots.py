"""Hot spots by the rules labs follow: a window of a known area in which the most nuclei are positive.

Windows are squares or circles around the points of a grid, fixed to 0 um, whose step is a tenth of the window asked
for. A window that holds too few nuclei grows until it holds enough, each on its own. A nucleus at x lies in the cell
floor(x / step) of the grid. A square consists of cells: squares that touch share no nucleus. A circle holds the nuclei
up to its radius.

Labs count in fields on tissue. By index, a field that lies half over glass has fewer nuclei and wins more often by
chance, so a window counts only where enough of it is tissue: the share of `SAMPLES` x `SAMPLES` points of each cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely

from misc.ihc.density import window_sums
from misc.ihc.markers import BY_INDEX, SQUARE, Marker
from misc.ihc.regions import area_mask
from misc.ihc.scores import NEGATIVE, NOT_COUNTED, Score, score

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

# Sides of a window in steps of the grid: the one asked for (a step is 50 um for 0.5 mm, some cells), and what it grows
# to, up to four times its area. Even, so that squares around a point consist of cells.
SIDES = (10, 12, 14, 16, 18, 20)
# Share of a side by which rounding may let windows overlap that touch.
TOUCHING = 1e-9
# Points of a grid at most (a slide of 50 mm has a million), and nuclei that are compared with circles at once.
MAX_POINTS, PART = 16_000_000, 250_000
# Points along a side of a cell at which is looked for tissue: 12.5 um apart for 0.5 mm.
SAMPLES = 4
# Points of the circle that is drawn for a hot spot.
CIRCLE_POINTS = 64


@dataclass(frozen=True)
class HotSpot:
    """One hot spot.

    Attributes:
        rank: 1 is the best.
        centre_xy_um: of the window.
        side_um: of the square, or the diameter of the circle; larger than the marker's where it had to grow.
        shape: `SQUARE` or `CIRCLE`.
        members: (M,) int64 positions of its nuclei in the arrays that were searched, rising; those measured and inside.
        score: of these.
        has_enough: whether it holds the marker's `min_nuclei`.
        has_tissue: whether the marker's `min_tissue` of it is tissue.
    """

    rank: int
    centre_xy_um: tuple[float, float]
    side_um: float
    shape: str
    members: np.ndarray
    score: Score
    has_enough: bool
    has_tissue: bool

    @property
    def area_mm2(self) -> float:
        return self.side_um**2 / 1e6 * (1 if self.shape == SQUARE else np.pi / 4)

    def outline_xy_um(self) -> np.ndarray:
        """Return the outline as an open ring, (P, 2) float64 x, y in um: 4 corners, or `CIRCLE_POINTS` of a circle."""
        if self.shape == SQUARE:
            ring = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
        else:
            angle = np.arange(CIRCLE_POINTS) * (2 * np.pi / CIRCLE_POINTS)
            ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return np.array(self.centre_xy_um) + ring * self.side_um / 2


def find_hot_spots(
    centroids_xy_um: np.ndarray,
    classes: np.ndarray,
    inside: np.ndarray | None,
    marker: Marker,
    tissue_um: BaseGeometry | None = None,
) -> list[HotSpot]:
    """Find the windows with the largest share (or number a mm2) of positive nuclei, none overlapping an earlier one.

    Greedy: the best window is taken, those that overlap it are struck out, and so on. Among equals the one with more
    nuclei, then the one nearest to the middle of all, then the first in row-major order. Windows with too few nuclei
    even when grown, or with too little tissue, are left out; only where all are such, the fullest of them is returned,
    and is flagged. Windows without a positive nucleus are no hot spots.

    Args:
        centroids_xy_um: (N, 2) float64, x then y, um.
        classes: (N,) uint8, as `misc.ihc.scores.classify` gives them; those not measured do not count.
        inside: (N,) bool, nuclei of the chosen regions; `None`: all.
        marker: shape and area of the window, ranking, `min_nuclei`, `min_tissue`, `top_k`.
        tissue_um: where there is tissue, x and y in um; `None`: everywhere.

    Returns:
        Best first, `marker.top_k` at most.
    """
    classes, chosen = np.asarray(classes), np.asarray(classes) > NOT_COUNTED
    chosen = np.flatnonzero(chosen if inside is None else chosen & inside)
    positive = classes[chosen] > NEGATIVE
    if not positive.any():
        return []
    grid = _Grid(np.asarray(centroids_xy_um, np.float64)[chosen], positive, marker, tissue_um)
    spots = []
    for rank, (point, side, has_tissue) in enumerate(grid.best(), 1):
        members = chosen[grid.members(point, side)]
        scored = score(classes[members])
        centre = tuple((point * grid.step).tolist())
        enough = scored.measured >= marker.min_nuclei
        spots.append(HotSpot(rank, centre, side * grid.step, marker.shape, members, scored, enough, has_tissue))
    return spots


class _Grid:
    """The points of the grid, and what the window around each holds. Cells and points are counted from 0 um, (x, y).

    Attributes:
        step: um.
        total, positive: (rows, columns) int64, nuclei in the window around each point.
        side: (rows, columns) int64, of that window, steps.
        tissue: (rows, columns + 1) int32, sample points of each row that lie in tissue, counted from the left.
    """

    def __init__(self, xy: np.ndarray, positive: np.ndarray, marker: Marker, tissue_um: BaseGeometry | None):
        self.marker, self.step = marker, marker.side_um / SIDES[0]
        self.cells = np.floor(xy / self.step).astype(np.int64)
        self.in_cell = (xy - self.cells * self.step).T.copy()  # (2, N) um from the corner of its cell
        self.is_positive = positive
        low, high = self.cells.min(axis=0), self.cells.max(axis=0) + 1  # a cell has a point at either side
        columns, rows = self.size = (high - low + 1).tolist()
        if rows * columns > MAX_POINTS:
            raise ValueError(f"nuclei lie {(high - low).max() * self.step:.3g} um apart: a wrong pixel size?")
        self.pad = SIDES[-1] // 2 + 1  # windows reach beyond the points
        self.first = low
        self.wide = (rows + 2 * self.pad, columns + 2 * self.pad)
        place = self.cells - low + self.pad
        self.place = place[:, 1] * self.wide[1] + place[:, 0]
        self.base = self._bin(self.place, positive)
        self.tissue = None if tissue_um is None else self._sample(tissue_um)
        self.total, self.positive = np.zeros((2, rows, columns), np.int64)
        self.side = np.zeros((rows, columns), np.int64)
        wanted = np.ones((rows, columns), bool)
        for side in SIDES:
            total, found = self._squares(side) if marker.shape == SQUARE else self._circles(side, wanted)
            self.total[wanted], self.positive[wanted], self.side[wanted] = total[wanted], found[wanted], side
            wanted &= self.total < marker.min_nuclei

    def _bin(self, place: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Count nuclei by cell, (2, *wide): all, and positive."""
        size = self.wide[0] * self.wide[1]
        negative, found = np.bincount(place + positive * size, minlength=2 * size).reshape(2, *self.wide)
        return np.stack([negative + found, found])

    def _crop(self, sums: np.ndarray, dy: int, dx: int) -> np.ndarray:
        """Return what lies (dy, dx) from each point, of (2, ...) arrays that begin `pad` before the first point."""
        top, left = self.pad + dy, self.pad + dx
        return sums[:, top : top + self.size[1], left : left + self.size[0]]

    def _squares(self, side: int) -> np.ndarray:
        sums = np.stack([window_sums(counts, (side, side)) for counts in self.base])
        return self._crop(sums, -side // 2, -side // 2)

    def _circles(self, side: int, wanted: np.ndarray) -> np.ndarray:
        """Count the nuclei in circles: cells that lie in one for sure as a whole, the others nucleus by nucleus."""
        radius, sums = side / 2, np.zeros((2, *wanted.shape), np.int64)
        reach = np.arange(-side // 2 - 1, side // 2 + 1)
        near, far = np.maximum(np.maximum(reach, -reach - 1), 0), np.maximum(np.abs(reach), np.abs(reach + 1))
        unsure = []
        for dy, near_y, far_y in zip(reach.tolist(), near, far, strict=True):
            for dx, near_x, far_x in zip(reach.tolist(), near, far, strict=True):
                if np.hypot(far_x, far_y) < radius * (1 - TOUCHING):
                    sums += self._crop(self.base, dy, dx)
                elif np.hypot(near_x, near_y) <= radius * (1 + TOUCHING):
                    unsure.append((dy, dx))
        return sums + self._crop(self._compare(side, wanted, unsure), 0, 0)

    def _compare(self, side: int, wanted: np.ndarray, unsure: list[tuple[int, int]]) -> np.ndarray:
        """Count, (2, *wide), the nuclei in circles around points from which their cell lies (dy, dx)."""
        reach = side // 2 + 1
        around = cv2.dilate(
            np.pad(wanted, self.pad).astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
        )
        chosen = np.flatnonzero(around.ravel()[self.place])
        sums = np.zeros((2, *self.wide), np.int64)
        for part in np.split(chosen, range(PART, len(chosen), PART)):
            for dy, dx in unsure:
                kept = part[self._in_circle(self.in_cell[:, part], dx, dy, side)]
                sums += self._bin(self.place[kept] - (dy * self.wide[1] + dx), self.is_positive[kept])
        return sums

    def _in_circle(self, in_cell: np.ndarray, dx, dy, side: int) -> np.ndarray:
        """Which nuclei lie in the circle around a point from which their cell lies (dx, dy); (2, N) -> (N,) bool."""
        x, y = in_cell[0] + dx * self.step, in_cell[1] + dy * self.step
        return x * x + y * y <= (side * self.step / 2) ** 2

    def members(self, point: np.ndarray, side: int) -> np.ndarray:
        """Return which nuclei lie in the window around a point, (N,) bool."""
        if self.marker.shape == SQUARE:
            return ((self.cells >= point - side // 2) & (self.cells < point + side // 2)).all(axis=1)
        return self._in_circle(self.in_cell, *(self.cells - point).T, side)

    def _sample(self, tissue_um: BaseGeometry) -> np.ndarray:
        """Look for tissue at the sample points, see `tissue`."""
        corner = self.first - self.pad
        in_samples = shapely.transform(tissue_um, lambda xy: (xy / self.step - corner) * SAMPLES - 0.5)
        mask = area_mask(in_samples, tuple(side * SAMPLES for side in self.wide))
        return np.cumsum(np.pad(mask, ((0, 0), (1, 0))), axis=1, dtype=np.int32)

    def _has_tissue(self, wanted: np.ndarray) -> np.ndarray:
        """Tell which of the wanted windows, (rows, columns) bool, have enough tissue; of the others it says no."""
        if self.tissue is None:
            return np.ones_like(wanted)
        enough = np.zeros_like(wanted)
        for side in SIDES:
            rows, columns = at = np.nonzero(wanted & (self.side == side))
            y, x, radius = (rows + self.pad) * SAMPLES, (columns + self.pad) * SAMPLES, side * SAMPLES // 2
            found, total = np.zeros(len(rows), np.int64), 0
            for dy in range(-radius, radius):
                # sample points of this row to each side of the middle
                reach = radius if self.marker.shape == SQUARE else int(np.sqrt(radius**2 - (dy + 0.5) ** 2) + 0.5)
                found += self.tissue[y + dy, x + reach] - self.tissue[y + dy, x - reach]
                total += 2 * reach
            enough[at] = found >= self.marker.min_tissue * total
        return enough

    def best(self) -> Iterator[tuple[np.ndarray, int, bool]]:
        """Yield the point (x, y) and the side of one window after the other, best first, and if it has the tissue."""
        rank = self.positive / np.maximum(self.total if self.marker.ranked_by == BY_INDEX else self.side**2, 1)
        left, top_k = (self.total >= self.marker.min_nuclei) & (self.positive > 0), self.marker.top_k
        on_tissue = self._has_tissue(left)
        left &= on_tissue
        if not left.any():
            left, rank, top_k = self.positive > 0, self.total, 1
            on_tissue = self._has_tissue(left)
        points = np.stack(np.indices(left.shape)[::-1]).reshape(2, -1).T + self.first
        away = np.abs(2 * points - points[0] - points[-1]).sum(axis=1)  # from the middle
        for _ in range(top_k):
            if not left.any():
                return
            at = np.flatnonzero(left & (rank == rank[left].max()))
            best = at[np.lexsort((away[at], -self.total.ravel()[at]))[0]]
            side = int(self.side.ravel()[best])
            yield points[best], side, bool(on_tissue.flat[best])
            left &= self._apart(points - points[best], (self.side.ravel() + side) / 2).reshape(left.shape)

    def _apart(self, away_xy: np.ndarray, touching: np.ndarray) -> np.ndarray:
        """Whether windows share no area: (P, 2) steps between the centres, (P,) where they touch -> (P,) bool."""
        if self.marker.shape == SQUARE:
            return (np.abs(away_xy) >= touching[:, None]).any(axis=1)
        return (away_xy**2).sum(axis=1) >= (touching * (1 - TOUCHING)) ** 2
