"""Hot spots by the rules labs follow: a window of a known area in which the most nuclei are positive.

Windows are squares or circles around the points of a grid, fixed to 0 um, that has `STEPS` to a side of the window
asked for and spans the nuclei. A window that holds too few nuclei grows by `GROWTH` until it holds enough, each on its own.
A nucleus lies in a square where -h <= x - x0 < h (and so for y), h half the side: squares that touch share none. In a
circle it lies up to the radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from misc.ihc.markers import BY_INDEX, SQUARE, Marker
from misc.ihc.scores import NEGATIVE, NOT_MEASURED, Score, score

# Points of the grid to a side of the window asked for: 50 um for 0.5 mm, some cells.
STEPS = 10
# Sides of a window, as multiples of the one asked for: up to four times its area.
GROWTH = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
# Share of a side by which rounding may let windows overlap that touch.
TOUCHING = 1e-9
# Points of a grid at most (a slide of 50 mm has a million), and nuclei that are counted at once.
MAX_POINTS, PART = 16_000_000, 100_000
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
    """

    rank: int
    centre_xy_um: tuple[float, float]
    side_um: float
    shape: str
    members: np.ndarray
    score: Score
    has_enough: bool

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
    centroids_xy_um: np.ndarray, classes: np.ndarray, inside: np.ndarray | None, marker: Marker
) -> list[HotSpot]:
    """Find the windows with the largest share (or number a mm2) of positive nuclei, none overlapping an earlier one.

    Greedy: the best window is taken, those that overlap it are struck out, and so on. Among equals the one with more
    nuclei, then the one nearest to the middle of all, then the first in row-major order. Windows with too few nuclei
    even when grown are left out; only where all are such, the fullest of them is returned, and is flagged. Windows
    without a positive nucleus are no hot spots.

    Args:
        centroids_xy_um: (N, 2) float64, x then y, um.
        classes: (N,) uint8, as `misc.ihc.scores.classify` gives them; those not measured do not count.
        inside: (N,) bool, nuclei of the chosen regions; `None`: all.
        marker: shape and area of the window, ranking, `min_nuclei`, `top_k`.

    Returns:
        Best first, `marker.top_k` at most.
    """
    chosen = np.asarray(classes) > NOT_MEASURED
    chosen = np.flatnonzero(chosen if inside is None else chosen & inside)
    xy, positive = np.asarray(centroids_xy_um, np.float64)[chosen], np.asarray(classes)[chosen] > NEGATIVE
    if not positive.any():
        return []
    grid = _Grid(xy, positive, marker)
    spots = []
    for rank, (centre, side) in enumerate(grid.best(), 1):
        members = chosen[_within(xy - centre, side, marker.shape)]
        scored = score(classes[members])
        enough = scored.measured >= marker.min_nuclei
        spots.append(HotSpot(rank, (float(centre[0]), float(centre[1])), side, marker.shape, members, scored, enough))
    return spots


def _within(offset_xy: np.ndarray, side: float, shape: str) -> np.ndarray:
    """(N, 2) from the centre of a window -> (N,) bool, which lie in it."""
    if shape == SQUARE:
        return ((offset_xy >= -side / 2) & (offset_xy < side / 2)).all(axis=1)
    return (offset_xy**2).sum(axis=1) <= (side / 2) ** 2


class _Grid:
    """The points of the grid, and what the window around each holds.

    Attributes:
        total, positive: (rows, columns) int64.
        side: (rows, columns) um.
    """

    def __init__(self, xy: np.ndarray, positive: np.ndarray, marker: Marker):
        self.marker, self.step = marker, marker.side_um / STEPS
        low, high = xy.min(axis=0), xy.max(axis=0)
        self.middle_xy = (low + high) / 2
        self.first, last = np.floor(low / self.step).astype(np.int64), np.ceil(high / self.step).astype(np.int64)
        shape = tuple((last - self.first + 1)[::-1].tolist())
        if shape[0] * shape[1] > MAX_POINTS:
            raise ValueError(f"nuclei lie {(high - low).max():.3g} um apart: a wrong pixel size, or a tiny hot spot")
        self.total, self.positive = np.zeros((2, *shape), np.int64)
        self.side = np.zeros(shape)
        wanted = np.ones(shape, bool)
        for side in (growth * marker.side_um for growth in GROWTH):
            total, found = self._count(xy, positive, side, wanted)
            self.total[wanted], self.positive[wanted], self.side[wanted] = total[wanted], found[wanted], side
            wanted &= self.total < marker.min_nuclei
            if not wanted.any():
                break

    def _count(self, xy: np.ndarray, positive: np.ndarray, side: float, wanted: np.ndarray) -> np.ndarray:
        """Count the nuclei in the windows around the points that are wanted: (2, rows, columns), all and positive."""
        reach = int(np.ceil(side / 2 / self.step)) + 1
        columns, rows = (np.array(wanted.shape[::-1]) + 2 * reach).tolist()  # windows reach over the grid's edges
        near = cv2.dilate(np.pad(wanted, reach).astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        cells = np.floor(xy / self.step).astype(np.int64)
        at = (cells[:, 1] - self.first[1] + reach) * columns + cells[:, 0] - self.first[0] + reach
        chosen = np.flatnonzero(near.ravel()[at])
        sums = np.zeros(2 * rows * columns, np.int64)
        for part in np.split(chosen, range(PART, len(chosen), PART)):
            flat = at[part] + positive[part] * (rows * columns)
            for dx, dy, within in self._windows(xy[part], cells[part], side, reach):
                sums += np.bincount(flat[within] + (dy * columns + dx), minlength=len(sums))
        sums = sums.reshape(2, rows, columns)[:, reach : rows - reach, reach : columns - reach]
        return np.stack([sums.sum(axis=0), sums[1]])

    def _windows(self, xy: np.ndarray, cells: np.ndarray, side: float, reach: int):
        """Yield (dx, dy) and which nuclei lie in the window around the point that is so far from their cell's."""
        steps = range(-reach, reach + 1)
        for dx in steps:
            x = xy[:, 0] - (cells[:, 0] + dx) * self.step
            for dy in steps:
                y = xy[:, 1] - (cells[:, 1] + dy) * self.step
                yield dx, dy, _within(np.stack([x, y], axis=1), side, self.marker.shape)

    def best(self):
        """Yield the centre (x, y) in um and the side of one window after the other, best first."""
        by_index = self.marker.ranked_by == BY_INDEX
        rank = self.positive / np.maximum(self.total if by_index else self.side**2, 1)
        left = (self.total >= self.marker.min_nuclei) & (self.positive > 0)
        top_k = self.marker.top_k
        if not left.any():
            left, rank, top_k = self.positive > 0, self.total.astype(np.float64), 1
        rows, columns = np.indices(left.shape)
        x, y = (columns + self.first[0]) * self.step, (rows + self.first[1]) * self.step
        from_middle = (x - self.middle_xy[0]) ** 2 + (y - self.middle_xy[1]) ** 2
        for _ in range(top_k):
            if not left.any():
                return
            at = np.flatnonzero(left & (rank == rank[left].max()))
            best = at[np.lexsort((from_middle.ravel()[at], -self.total.ravel()[at]))[0]]
            centre, side = (x.ravel()[best], y.ravel()[best]), self.side.ravel()[best]
            yield np.array(centre), float(side)
            away_xy = np.stack([x - centre[0], y - centre[1]])
            left &= _apart(away_xy, (self.side + side) / 2, self.marker.shape)


def _apart(away_xy: np.ndarray, touching: np.ndarray, shape: str) -> np.ndarray:
    """Whether windows share no area: (2, ...) um between the centres, (...) um where they touch -> (...) bool."""
    touching = touching * (1 - TOUCHING)
    if shape == SQUARE:
        return (np.abs(away_xy) >= touching).any(axis=0)
    return (away_xy**2).sum(axis=0) >= touching**2
