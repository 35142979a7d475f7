"""Edges between touching nuclei, from the network's distance maps.

In a nucleus the distances rise from -1 to +1; across the border of two nuclei they fall back. There are two ways to
find these falls:

- `axis_edges`, the reference's: the horizontal map along x and the vertical one along y, each relative to the
  steepest fall and rise of the map. An oblique border falls in neither map as much as an upright one, and what is an
  edge depends on all the other nuclei of the map.
- `direction_edges`: the steepest fall of the distance in any direction, on a fixed scale.

Both return the strength of the edge at each pixel; from `MARKER_THRESHOLD` on it is cut.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np

Window = tuple[slice, slice]  # rows, columns

# The reference implementation's values (tuned at 40x, 0.25 um/px). Results are equal to its results only with these.
SOBEL_KSIZE = 21  # px, odd: window of the gradients
MARKER_THRESHOLD = 0.4  # 0..1, exclusive: edges from this strength on are cut out of the markers

# `direction_edges` alone; chosen on the training images of Kumar and CoNSeP, and PanNuke's patches.
FALL_THRESHOLD = 0.015  # per px: a distance that falls by this is as strong an edge as `MARKER_THRESHOLD`
_STRENGTH_PER_FALL = 3  # px: the strengths then span about 0..1, as those of `axis_edges` do

# Rows and columns that `_slope` filters at a time: this many fit the processor's cache. With 512 columns (rows of 4096
# bytes) all rows would share a part of the cache, and the filter would take twice as long.
_FILTER_YX = (256, 384)
_FILTER_ALIGN_PX = 16  # divides the columns; at least as many pixels as one step of the filter computes
_STRETCH = {"alpha": 0, "beta": 1, "norm_type": cv2.NORM_MINMAX, "dtype": cv2.CV_32F}  # to 0..1


def direction_edges(h: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return how steeply the distance falls at each pixel, in the direction in which it falls most.

    The distance along a direction u is (h, v) . u, and its slope u . J u, with J the matrix of the four derivatives.
    The least slope of all directions is the lower eigenvalue of the symmetric part of J.

    Args:
        h, v: (H, W) horizontal and vertical distance, any float type and memory layout.

    Returns:
        (H, W) float32, about 0..1.

    Raises:
        ValueError: the maps hold NaN or infinity.
    """
    h, v = (_finite(np.ascontiguousarray(plane, np.float32)) for plane in (h, v))
    along_x, along_y = _derivative(h, 1, 0), _derivative(v, 0, 1)
    shear = _derivative(h, 0, 1) + _derivative(v, 1, 0)
    fall = (cv2.magnitude(along_x - along_y, shear) - along_x - along_y) / 2
    return MARKER_THRESHOLD + _STRENGTH_PER_FALL * (fall - FALL_THRESHOLD)


def _derivative(plane: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Return the derivative of a float32 map along x or y, per px."""
    kernels = cv2.getDerivKernels(dx, dy, SOBEL_KSIZE, normalize=True, ktype=cv2.CV_32F)
    return cv2.sepFilter2D(plane, cv2.CV_32F, *kernels)


def axis_edges(h: np.ndarray, v: np.ndarray, core: Window | None, slope: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """Return the strength of the border between nuclei at each pixel, (H, W) float32, in the core 0..1 up to rounding.

    Both maps and both slopes are stretched to 0..1 over the core; a constant map becomes 0, so that every pixel is an
    edge.

    Args:
        h, v: (H, W) horizontal and vertical distance, any float type and memory layout.
        core: the part whose extremes count; `None`: all of it.
        slope, spare: (H, W) float64 and float32, work arrays.

    Raises:
        ValueError: the maps hold NaN or infinity.
    """
    fall = _stretched_slope(h, np.empty_like(spare), slope, core, 1, 0)
    edges = cv2.min(fall, _stretched_slope(v, spare, slope, core, 0, 1), dst=fall)
    return np.subtract(1, edges, out=edges)


def _finite(plane: np.ndarray) -> np.ndarray:
    if not np.isfinite([plane.min(), plane.max()]).all():
        raise ValueError("the HV maps hold NaN or infinity; run the network with --precision=fp32")
    return plane


def _stretched_slope(
    plane: np.ndarray, target: np.ndarray, slope: np.ndarray, core: Window | None, dx: int, dy: int
) -> np.ndarray:
    """Write the stretched derivative of an HV map along one axis to `target`: 0 where it falls most.

    `target` is (H, W) float32, and `slope` (H, W) float64 is a work array.
    """
    if plane.dtype != np.float32 or not plane.flags.c_contiguous:
        target[:] = plane
        plane = target
    _slope(_stretch(_finite(plane), target, core), slope, dx, dy)
    return _stretch(slope, target, core)


def _slope(plane: np.ndarray, slope: np.ndarray, dx: int, dy: int) -> None:
    """Write the derivative of a map along one axis to `slope`.

    The filter works on pieces that start at multiples of `_FILTER_ALIGN_PX` columns. So vector instructions group the
    pixels as in the whole map, and every bit is the same.
    """
    rows, columns = _FILTER_YX
    above = SOBEL_KSIZE // 2
    beside = -(-above // _FILTER_ALIGN_PX) * _FILTER_ALIGN_PX
    for y, x in itertools.product(range(0, plane.shape[0], rows), range(0, plane.shape[1], columns)):
        top, left = max(y - above, 0), max(x - beside, 0)
        part = plane[top : y + rows + above, left : x + columns + beside]
        part = part.astype(np.float64)  # once, instead of once for each tap
        filtered = cv2.Sobel(part, cv2.CV_64F, dx, dy, ksize=SOBEL_KSIZE)
        target = slope[y : y + rows, x : x + columns]
        target[:] = filtered[y - top :, x - left :][: target.shape[0], : target.shape[1]]


def _stretch(source: np.ndarray, target: np.ndarray, core: Window | None) -> np.ndarray:
    """Write `source`, stretched so that its core spans 0..1, to `target` (float32), which may be the same array."""
    if core is None:
        return cv2.normalize(source, target, **_STRETCH)
    low, high = map(source.dtype.type, cv2.minMaxLoc(source[core])[:2])
    cv2.normalize(source[core], target[core], **_STRETCH)  # the reference's numbers to the bit
    scale = 1 / (high - low) if high > low else 0
    (top, bottom, _), (left, right, _) = (part.indices(size) for part, size in zip(core, source.shape, strict=True))
    for around in np.s_[:top, :], np.s_[bottom:, :], np.s_[top:bottom, :left], np.s_[top:bottom, right:]:
        target[around] = (source[around] - low) * scale
    return target
