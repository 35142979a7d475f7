"""Density maps and hot spots: counting on a grid of square bins, pure arithmetic.

A slide of width W and height H px is cut into bins of `tile_size` x `tile_size` px from its top left corner; the last
column and row may reach beyond the slide. A hot spot is a window of whole bins, so the positions searched are the
corners of bins: that is what "all positions" means here.
"""

from __future__ import annotations

import numpy as np
import scipy

from misc.text import counted

# Bins of a slide at most, so that a map takes less than 1 GB: a slide of 200,000 x 200,000 px at the default tile size.
# More is a wrong coordinate or a tile size of a few px.
MAX_BINS = 16_000_000
# How far outside the slide a position may lie, px: rounding of coordinates at a lower magnification.
SLACK_PX = 1.0
# Sums of fractions that differ by less than this share of the whole map's sum are equal: far above what rounding does
# (some 1e-13), far below one nucleus of the many on a slide.
ROUNDING = 1e-10
UM_PER_MM = 1000.0


def mm2(area_px: float, mpp_xy: tuple[float, float]) -> float:
    """Return an area of px in mm2."""
    return area_px * mpp_xy[0] * mpp_xy[1] / UM_PER_MM**2


def grid_shape(width: int, height: int, tile_size: int) -> tuple[int, int]:
    """Return (rows, columns) of the grid that covers a slide.

    Args:
        width, height: px, positive.
        tile_size: side of a bin, px.

    Raises:
        ValueError: a size is not positive, or there are more than `MAX_BINS`.
    """
    if min(width, height, tile_size) <= 0:
        raise ValueError(f"sizes must be positive, got a slide of {width} x {height} px and bins of {tile_size} px")
    rows, columns = -(-height // tile_size), -(-width // tile_size)
    if rows * columns > MAX_BINS:
        raise ValueError(
            f"{columns:.7g} x {rows:.7g} bins are too many for a slide of {width:.10g} x {height:.10g} px; use a "
            "larger tile size"
        )
    return int(rows), int(columns)


def check_inside(xy: np.ndarray, width: int, height: int, slack_px: float = SLACK_PX) -> None:
    """Refuse points that lie outside the slide.

    Args:
        xy: (N, 2), x then y, px of the slide.
        width, height: px.
        slack_px: how far outside rounding may put a point.

    Raises:
        ValueError: a point lies farther outside, or is not finite.
    """
    outside = ~((xy >= -slack_px) & (xy < np.array([width, height]) + slack_px)).all(axis=1)
    if outside.any():
        x, y = xy[outside][0]
        raise ValueError(
            f"{outside.sum()} of {counted(len(xy), 'nucleus')} outside the slide of {width} x {height} px, the first "
            f"at ({x:.8g}, {y:.8g}): another slide, or another scale"
        )


def bin_index(xy: np.ndarray, width: int, height: int, tile_size: int, slack_px: float = SLACK_PX) -> np.ndarray:
    """Return the bin that each point lies in.

    Args:
        xy: (N, 2), x then y, px of the slide.
        width, height: px.
        tile_size: side of a bin, px.
        slack_px: points that lie outside by no more than this belong to the bin at the edge.

    Returns:
        (N, 2) int64, [row, column]: floor(y / tile_size), floor(x / tile_size).

    Raises:
        ValueError: a point lies outside the slide, or is not finite.
    """
    rows, columns = grid_shape(width, height, tile_size)
    xy = np.asarray(xy, np.float64).reshape(-1, 2)
    check_inside(xy, width, height, slack_px)
    cells = np.floor(xy[:, ::-1] / tile_size).astype(np.int64)
    return np.clip(cells, 0, [rows - 1, columns - 1])


def bin_counts(xy: np.ndarray, width: int, height: int, tile_size: int, slack_px: float = SLACK_PX) -> np.ndarray:
    """Count the points in each bin; the counts sum to the number of points.

    Args and errors: as `bin_index`.

    Returns:
        (rows, columns) int64.
    """
    rows, columns = grid_shape(width, height, tile_size)
    cells = bin_index(xy, width, height, tile_size, slack_px)
    flat = np.bincount(cells[:, 0] * columns + cells[:, 1], minlength=rows * columns)
    return flat.reshape(rows, columns)


def smooth(counts: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a map with a Gaussian; the edges are mirrored, so that the sum stays.

    Args:
        counts: (rows, columns).
        sigma: standard deviation in bins; 0 leaves the map as it is.

    Returns:
        (rows, columns) float64.
    """
    counts = np.asarray(counts, np.float64)
    return scipy.ndimage.gaussian_filter(counts, sigma, mode="reflect") if sigma > 0 else counts


def window_sums(counts: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Sum every window of whole bins, by an integral image.

    Args:
        counts: (rows, columns).
        window: (rows, columns) of the window, no larger than `counts`.

    Returns:
        (rows - window rows + 1, columns - window columns + 1); element (r, c) is the sum of
        `counts[r : r + window[0], c : c + window[1]]`. Exact for integers.
    """
    height, width = window
    integral = np.zeros((counts.shape[0] + 1, counts.shape[1] + 1), counts.dtype)
    np.cumsum(counts, axis=0, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    tall = integral[height:] - integral[:-height]
    return tall[:, width:] - tall[:, :-width]


def find_hot_spots(counts: np.ndarray, top_k: int, window: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Find the fullest windows, one after the other, so that none overlaps an earlier one.

    Greedy: the window with the largest sum is taken (among equals the first in row-major order), every window that
    shares a bin with it is struck out, and so on. Windows may touch. Windows with nothing in them are no hot spots.

    Args:
        counts: (rows, columns), not negative; whole numbers are summed exactly, whatever their type. Sums of
            fractions, as of counts / N^2, are equal when they differ by less than `ROUNDING` times the sum of the
            map, so that ties are those of the counts.
        top_k: most windows to return.
        window: (rows, columns) of the window; where the map is smaller, the window is as large as the map.

    Returns:
        (K, 4) int64 boxes [x0, y0, x1, y1] in bins, x1 and y1 exclusive, best first, K <= top_k; and their (K,) sums.

    Raises:
        ValueError: `counts` is no map of numbers >= 0, or `window` or `top_k` is not positive.
    """
    counts = _as_exact(counts)
    if top_k < 1 or min(window) < 1:
        raise ValueError(f"top_k and window must be positive, got {top_k} and {tuple(window)}")
    height, width = min(window[0], counts.shape[0]), min(window[1], counts.shape[1])
    boxes, sums = [], []
    left = window_sums(counts, (height, width)) if counts.size else np.zeros((0, 0), counts.dtype)
    equal = ROUNDING * counts.sum() if counts.dtype == np.float64 else 0
    while left.size and len(boxes) < top_k:
        top = left.max()
        if top <= equal:
            break
        row, column = np.unravel_index(np.argmax(left >= top - equal), left.shape)
        boxes.append((column, row, column + width, row + height))
        sums.append(left[row, column])
        left[max(0, row - height + 1) : row + height, max(0, column - width + 1) : column + width] = 0
    return np.array(boxes, np.int64).reshape(-1, 4), np.array(sums, counts.dtype)


def _as_exact(counts: np.ndarray) -> np.ndarray:
    """Return the counts as int64 where that loses nothing, otherwise as float64."""
    counts = np.asarray(counts)
    if counts.ndim != 2 or not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError(f"expected a map (rows, columns) of numbers >= 0, got shape {counts.shape}")
    whole = counts.astype(np.int64)
    return whole if np.array_equal(whole, counts) else counts.astype(np.float64)


def boxes_to_px(boxes: np.ndarray, tile_size: int, width: int, height: int) -> np.ndarray:
    """Turn boxes of bins into boxes of px that lie in the slide.

    Args:
        boxes: (K, 4) [x0, y0, x1, y1] in bins, far edges exclusive.
        tile_size: side of a bin, px.
        width, height: px of the slide; the last bin is cut off there.

    Returns:
        (K, 4) int64, far edges exclusive.
    """
    px = np.asarray(boxes, np.int64).reshape(-1, 4) * tile_size
    return np.minimum(px, [width, height, width, height])
