"""Watershed of only those components of a map that hold several markers; flooding the whole map would be slow.

The result is that of `skimage.segmentation.watershed` on the whole map, pixel for pixel. That function takes pixels
from a queue by height, then by the time they were reached; a pixel gets the marker of the neighbour that is taken
first. Components do not touch, so each can be flooded alone. Two things make this fast:

- Most pixels need no queue. No pixel is taken before the water has its height. Follow the path from a pixel to its
  lowest neighbour, and so on. If the path ends in a marker, all its pixels belong to that marker: the water rises
  along this path and takes each pixel at its own height, before any other neighbour does (`_settle`).
- The remaining pixels, basins without a marker, are flooded one component at a time, since a short queue is fast.

The order of pixels of equal height depends on the rest of the queue. If the remaining pixels of a component have equal
heights, the whole component is flooded from its markers. Then only the order of marker pixels is open, and
`_order_matters` finds whether it could change the result.
"""

from __future__ import annotations

import cv2
import numpy as np
import skimage  # parts load when they are used, so that workers start sooner

try:
    from skimage.segmentation._watershed_cy import watershed_raveled  # private: tests check it against the public one
except ImportError:
    watershed_raveled = None

INSIDE = (slice(1, -1), slice(1, -1))  # an image without its frame of one pixel
_BLUR = np.array([0.25, 0.5, 0.25])  # OpenCV's 3 px Gaussian at "sigma 0"
_PART_PX = 2**14  # px per step: this many fit the processor's cache
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))  # a pixel and its four neighbours


def flood_rest(owner: np.ndarray, mask: np.ndarray, labels: np.ndarray, edges: np.ndarray, height: np.ndarray) -> bool:
    """Assign the free pixels of a mask to the owners whose pixels reach them first.

    Args:
        owner: (H + 2, W + 2) int32, the owners, with a frame of 0, so that border pixels have four neighbours, too.
        mask: (H, W) uint8 0/1.
        labels: (H, W) int32, the 4-connected components of the mask.
        edges: (H, W) float32, 0..1; overwritten.
        height: (H + 2, W + 2) float64, receives the relief.

    Returns:
        False where only `flood_all` gives the result of the whole map; `owner` is then incomplete.
    """
    write_relief(edges, mask, height[INSIDE])
    if watershed_raveled is None:
        return False
    free = np.zeros(owner.shape, np.uint8)
    np.bitwise_and(mask, (owner[INSIDE] == 0).view(np.uint8), out=free[INSIDE])
    places, owners, left = np.flatnonzero(free.view(bool)), owner.ravel(), free.ravel()
    _settle(height, owner, places, mask)
    left[places] = owners[places] == 0
    near, component = _near_free(free, mask, labels, height)
    equal = (np.diff(component) == 0) & (np.diff(height.ravel()[near]) == 0)
    if equal.any():  # flood all of the component, from its markers
        y, x = np.divmod(places, owner.shape[1])
        again = places[np.isin(labels[y - 1, x - 1], component[1:][equal])]
        owners[again], left[again] = 0, 1
        near, component = _near_free(free, mask, labels, height)
    owned = owners[near] > 0
    seeds, component = near[owned], component[owned]
    if _order_matters(height, owner, free.view(bool), seeds, component):
        return False
    _flood(height, owner, free, seeds, component)
    return True


def _settle(height: np.ndarray, owner: np.ndarray, places: np.ndarray, mask: np.ndarray) -> None:
    """Assign the free pixels at `places` (flat) to the marker at the end of their path down; the others stay 0.

    `height` becomes infinite outside the mask.
    """
    np.copyto(height[INSIDE], np.inf, where=mask == 0)
    height[[0, -1]] = height[:, [0, -1]] = np.inf
    heights, owners = height.ravel(), owner.ravel()
    # an owner below 0 is the place of the next lower pixel; a pixel without one points to itself
    for part in np.split(places, range(_PART_PX, len(places), _PART_PX)):
        owners[part] = -_lower_neighbour(heights, part, height.shape[1])
    moving = places
    while len(moving):
        old = owners[moving]
        new = owners.take(-old)
        owners[moving] = new
        moving = moving[(new < 0) & (new != old)]
    owners[places] = np.maximum(owners[places], 0)


def _lower_neighbour(heights: np.ndarray, places: np.ndarray, row: int) -> np.ndarray:
    """Return the place of the lowest neighbour; the place itself where none is lower or two are equally low."""
    steps = (-row, -1, 1, row)
    around = [heights.take(places + step) for step in steps]
    lowest = np.minimum(np.minimum(around[0], around[1]), np.minimum(around[2], around[3]))
    toward, as_low = np.zeros(len(places), np.int32), np.zeros(len(places), np.uint8)
    for step, neighbour in zip(steps, around, strict=True):
        is_lowest = neighbour == lowest
        toward += is_lowest * np.int32(step)
        as_low += is_lowest
    return places + toward * ((as_low == 1) & (lowest < heights.take(places)))


def _near_free(
    free: np.ndarray, mask: np.ndarray, labels: np.ndarray, height: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the flat positions of the free pixels and their neighbours in the mask, and their components.

    They are ordered by component, then by height.
    """
    y, x = np.divmod(np.flatnonzero((cv2.dilate(free, _CROSS)[INSIDE] & mask).view(bool)), mask.shape[1])
    near, component = (y + 1) * free.shape[1] + x + 1, labels[y, x]
    order = np.lexsort((height.ravel()[near], component))
    return near[order], component[order]


def flood_all(mask: np.ndarray, markers: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Assign every pixel of a mask to the marker that reaches it.

    Args:
        mask: (H, W) uint8 0/1.
        markers: (H, W) int32, 0 where there is none.
        height: (H, W) relief.

    Returns:
        (H, W) int32.
    """
    return skimage.segmentation.watershed(height, markers=markers, mask=mask)


def write_relief(edges: np.ndarray, mask: np.ndarray, height: np.ndarray) -> None:
    """Write the relief to flood to `height`, (H, W) float64: -1..0, nuclei are basins; `edges` is overwritten.

    Exact: edges are multiples of 2**-24 and the blur adds four bits, so the type of the arrays and the order of the
    sums do not matter.
    """
    depth = np.subtract(1, edges, out=edges)
    np.minimum(depth, 1, out=depth)
    depth *= mask
    cv2.sepFilter2D(depth, cv2.CV_64F, -_BLUR, _BLUR, height)


def _flood(height: np.ndarray, owner: np.ndarray, free: np.ndarray, seeds: np.ndarray, component: np.ndarray) -> None:
    """Flood the free pixels from the seeds; the public function would copy the whole map for each component."""
    row = height.shape[1]
    neighbours, strides = np.array([-row, -1, 1, row], np.intp), np.array([row, 1], np.intp)
    heights, mask, owners = height.ravel(), free.ravel().view(np.int8), owner.ravel()
    for some in np.split(seeds, np.flatnonzero(np.diff(component)) + 1):
        watershed_raveled(heights, some, neighbours, mask, strides, 0, owners, False)


def _order_matters(
    height: np.ndarray, owner: np.ndarray, free: np.ndarray, seeds: np.ndarray, component: np.ndarray
) -> bool:
    """Tell whether the order among owned pixels of equal height could decide who gets a pixel.

    The order within one owner cannot: all pixels reached get the same owner. Pixels of several owners in one component
    are safe if all pixels that they reach are higher and no two of these heights are equal: then the heights alone
    give the order. All other cases count as unsafe.

    Args:
        height: (H, W) relief; `owner` alike, int32.
        free: (H, W) bool, pixels without an owner; none on the border of the image.
        seeds: (N,) flat positions of the owned pixels that have a free neighbour, by component and height.
        component: (N,) their component.
    """
    if not len(seeds):
        return False
    level = height.ravel()[seeds]
    new_group = np.append(True, (np.diff(component) != 0) | (np.diff(level) != 0))
    group = np.cumsum(new_group)
    group_owner = owner.ravel()[seeds]
    first_owner = group_owner[new_group][group - 1]
    mixed = np.isin(group, group[group_owner != first_owner])
    if not mixed.any():
        return False
    seeds, group, level = seeds[mixed, None], group[mixed, None], level[mixed, None]
    neighbours = seeds + np.array([-height.shape[1], -1, 1, height.shape[1]])
    reached = free.ravel()[neighbours]
    heights = height.ravel()[neighbours]
    if (reached & (heights <= level)).any():
        return True
    pairs = np.stack([np.broadcast_to(group, reached.shape)[reached], heights[reached]])
    return np.unique(pairs, axis=1).shape[1] < pairs.shape[1]
