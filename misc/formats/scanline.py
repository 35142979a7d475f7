"""Fill rings row by row: the cost grows with the points plus the filled pixels, not with their product.

scikit-image tests every pixel of the box against every edge. OpenCV rounds corners to pixel centres, or draws thick
edges: neither gives the pixels whose centre lies in or on the ring.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from misc.machine import check_fits

# Largest distance, px, at which a pixel centre counts as on an edge: rounding of the crossing of edge and row.
ON_EDGE_PX = 1e-9
# Bytes for each crossing of an edge and a row while they are sorted and paired.
_CROSSING_BYTES = 96


class Box(NamedTuple):
    """A part of an image, px; the far edges are exclusive."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0


def box_of(rings: list[np.ndarray], shape: tuple[int, int]) -> Box:
    """Return the box of the pixel centres that (N, 2) rings of x and y may hold, within an image of (H, W) px."""
    points = np.concatenate(rings)
    limits = np.array(shape[::-1])
    x0, y0 = np.clip(np.ceil(points.min(axis=0) - ON_EDGE_PX), 0, limits).astype(int).tolist()
    x1, y1 = np.clip(np.floor(points.max(axis=0) + ON_EDGE_PX) + 1, [x0, y0], np.maximum(limits, [x0, y0])).astype(int)
    return Box(y0, x0, int(y1), int(x1))


def fill_ring(ring_xy: np.ndarray, box: Box) -> np.ndarray:
    """Fill a ring by the even-odd rule.

    Args:
        ring_xy: (N, 2) float64, x and y in px, finite; the last point is joined to the first.
        box: what to return.

    Returns:
        (h, w) bool: pixels of the box whose centre lies in or on the ring. Where two edges merely cross in a centre
        that is otherwise outside, it stays outside, as in published label maps.
    """
    return fill_edges(ring_xy, np.roll(ring_xy, -1, axis=0), box)


def fill_edges(start_xy: np.ndarray, end_xy: np.ndarray, box: Box) -> np.ndarray:
    """Fill rings of which no two share a row, as `fill_ring` does each.

    Args:
        start_xy, end_xy: (N, 2) float64, where each edge of the rings starts and ends.
        box: what to return, (h, w) bool.
    """
    edges = np.concatenate([start_xy.T, end_xy.T])
    rows, left, right = (np.concatenate(part) for part in zip(_inside(*edges, box), _level(*edges, box), strict=True))
    left = np.maximum(np.ceil(left - ON_EDGE_PX), box.x0).astype(np.int64) - box.x0
    right = np.minimum(np.floor(right + ON_EDGE_PX), box.x1 - 1).astype(np.int64) - box.x0 + 1
    there = left < right
    rows, left, right = rows[there] - box.y0, left[there], right[there]
    height, width = box.shape
    # +1 where a span begins, -1 behind its end: the sum along a row is how many spans hold a pixel
    steps = np.zeros((height, width + 1), np.int32)
    np.add.at(steps, (rows, left), 1)
    np.add.at(steps, (rows, right), -1)
    return np.cumsum(steps, axis=1, out=steps)[:, :-1] > 0


def _inside(
    x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray, box: Box
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows and spans between the first and second, third and fourth, ... crossing of the ring and a row.

    An edge crosses the rows from its upper end on, its lower end excluded: every row has an even number of crossings.
    """
    first, stop = (np.clip(np.ceil(end(y0, y1)), box.y0, box.y1).astype(np.int64) for end in (np.minimum, np.maximum))
    count = stop - first
    total = int(count.sum())
    check_fits(total * _CROSSING_BYTES, f"an outline that crosses {total} rows")
    edge = np.repeat(np.arange(len(x0)), count)
    row = np.arange(total) - np.repeat(np.cumsum(count) - count - first, count)
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    x = x0[edge] + (row - y0[edge]) * slope
    order = np.lexsort((x, row))
    enter, leave = order[::2], order[1::2]
    # two edges that meet in one point enclose nothing there; but a part one pixel wide is an edge out and back
    there = (x[leave] - x[enter] > ON_EDGE_PX) | (slope[enter] == slope[leave])
    enter, leave = enter[there], leave[there]
    return row[enter], x[enter], x[leave]


def _level(
    x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray, box: Box
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows and spans of level edges and of lone corners, on which pixel centres may lie, too."""
    on_row = (y0 == np.floor(y0)) & (y0 >= box.y0) & (y0 < box.y1)
    x1 = np.where(y0 == y1, x1, x0)
    return y0[on_row].astype(np.int64), np.minimum(x0, x1)[on_row], np.maximum(x0, x1)[on_row]
