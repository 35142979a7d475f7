"""Horizontal runs of equal pixels, and regions made of them.

An image of labels holds some hundred times fewer runs than pixels. Sizes, boxes and centroids of all its regions are
sums over the runs: one pass over the image, however many regions there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Runs(NamedTuple):
    """R runs in raster order, each within one row.

    Attributes:
        y: (R,) int64, row.
        x0: (R,) int64, first column.
        x1: (R,) int64, column after the last.
        value: (R,) value of the pixels, never 0.
    """

    y: np.ndarray
    x0: np.ndarray
    x1: np.ndarray
    value: np.ndarray

    def where(self, chosen: np.ndarray) -> Runs:
        """Return the runs that a mask or an index array names."""
        return Runs(*(column[chosen] for column in self))

    def moved(self, down: int | np.ndarray, right: int | np.ndarray) -> Runs:
        """Return the runs moved by px: one value for all, or (R,) values."""
        return Runs(self.y + down, self.x0 + right, self.x1 + right, self.value)

    def pixels(self, width: int) -> np.ndarray:
        """Return the flat positions of all pixels of the runs, (P,) int64, in an image of that width."""
        size = self.x1 - self.x0
        # where the run starts, plus the place in the run
        return np.repeat(self.y * width + self.x0 - np.cumsum(size) + size, size) + np.arange(size.sum())


class Regions(NamedTuple):
    """N regions by ascending id.

    Attributes:
        ids: (N,) the values of the runs.
        boxes: (N, 4) int64, y0, x0, y1, x1 in px, the last two exclusive.
        areas: (N,) int64, px.
        centroids_xy: (N, 2) float64, px.
    """

    ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    centroids_xy: np.ndarray


def find_runs(image: np.ndarray) -> Runs:
    """Find the runs of non-zero pixels of an (H, W) image of integers or bools."""
    height, width = image.shape
    change = np.ones((height, width + 1), bool)  # one column more: a run ends with its row
    np.not_equal(image[:, 1:], image[:, :-1], out=change[:, 1:width])
    position = np.flatnonzero(change)
    y = position // (width + 1)
    x = position - y * (width + 1)
    first = np.flatnonzero(x[:-1] < width)
    value = image.ravel()[(position - y)[first]]
    first, value = first[value != 0], value[value != 0]
    return Runs(y[first], x[first], x[first + 1], value)


def find_mask_runs(mask: np.ndarray) -> Runs:
    """Do what `find_runs` does for an (H, W) uint8 mask of 0 and 1, in half the time."""
    width = mask.shape[1] + 1
    change = np.zeros((mask.shape[0], width), np.uint8)
    change[:, :-1] = mask
    change[:, 1:] ^= mask
    # every row begins and ends outside, so starts and ends alternate
    start, end = np.flatnonzero(change.view(bool)).reshape(-1, 2).T
    y = start // width
    return Runs(y, start - y * width, end - y * width, np.ones(len(y), np.uint8))


def paint_runs(runs: Runs, shape: tuple[int, int]) -> np.ndarray:
    """Return the (H, W) image of the runs, of the type of their values, 0 elsewhere."""
    row = runs.y * shape[1]
    borders = np.stack([row + runs.x0, row + runs.x1], axis=1).ravel()
    lengths = np.diff(borders, prepend=0, append=shape[0] * shape[1])  # gap, run, gap, run, ..., gap
    colours = np.zeros(len(lengths), runs.value.dtype)
    colours[1::2] = runs.value
    return np.repeat(colours, lengths).reshape(shape)


def find_regions(runs: Runs) -> Regions:
    """Gather the runs of each value into a region; all sums are exact integers."""
    if not len(runs.value):
        none = np.zeros(0, np.int64)
        return Regions(runs.value, none.reshape(0, 4), none, np.zeros((0, 2)))
    runs = runs.where(np.argsort(runs.value, kind="stable"))  # stable: a region's rows stay in order
    start = np.flatnonzero(np.append(True, runs.value[1:] != runs.value[:-1]))
    last = np.append(start[1:], len(runs.value)) - 1
    size = runs.x1 - runs.x0
    areas = np.add.reduceat(size, start)
    sum_x = np.add.reduceat(size * (runs.x0 + runs.x1 - 1) // 2, start)
    sum_y = np.add.reduceat(size * runs.y, start)
    x0, x1 = np.minimum.reduceat(runs.x0, start), np.maximum.reduceat(runs.x1, start)
    y0, y1 = runs.y[start], runs.y[last] + 1
    # divided inside the box and shifted afterwards, as for moments of a crop: the last bit depends on it
    centroids = np.stack([(sum_x - x0 * areas) / areas + x0, (sum_y - y0 * areas) / areas + y0], axis=1)
    return Regions(runs.value[start], np.stack([y0, x0, y1, x1], axis=1), areas, centroids)


def pack_boxes(sizes: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Place boxes on shelves, the highest first, in about a square.

    Args:
        sizes: (N, 2) height and width, px.

    Returns:
        (N, 2) int64 y and x of the boxes' first pixels, and the (H, W) of the whole.
    """
    if not len(sizes):
        return np.zeros((0, 2), np.int64), (0, 0)
    order = np.argsort(-sizes[:, 0], kind="stable")
    heights, widths = sizes[order].T
    starts = np.cumsum(widths) - widths  # as if all stood on one shelf
    _, first, shelf = np.unique(
        starts // int(np.sqrt(sizes.prod(axis=1).sum())), return_index=True, return_inverse=True
    )
    tops = np.append(0, np.cumsum(heights[first]))
    places = np.empty((len(sizes), 2), np.int64)
    places[order] = np.stack([tops[shelf], starts - starts[first][shelf]], axis=1)
    return places, (int(tops[-1]), int((places[:, 1] + sizes[:, 1]).max()))
