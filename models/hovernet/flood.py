"""Watershed of the components that hold several markers, as part of a map it would be slow to flood whole.

The result is that of `skimage.segmentation.watershed` on the whole map, pixel for pixel. That function takes pixels
from a queue by height, then by the time they were reached; a pixel belongs to whoever of its neighbours is taken first.
Components do not touch, so each is flooded among others as it is alone. Two things make this fast:

- Most pixels need no queue. None is taken before the water stands as high as it is. Where the way down, each time to
  the lowest neighbour, ends in a marker, all pixels on it are taken at their own height, before any other neighbour:
  the water comes up this very way (`_settle`).
- What is left, basins without a marker, is flooded one component at a time: a short queue is a fast one.

Pixels of equal height are taken in an order that depends on the rest of the queue. A component with such pixels where
it is left to be flooded is flooded from its markers; there only the order of marker pixels is open, and
`_order_matters` finds where it could decide anything.
"""

from __future__ import annotations

import cv2
import numpy as np
from skimage.segmentation import watershed

try:
    from skimage.segmentation._watershed_cy import watershed_raveled  # not public: the tests compare with what is
except ImportError:
    watershed_raveled = None

INSIDE = (slice(1, -1), slice(1, -1))  # an image without its frame of one pixel
_BLUR = np.array([0.25, 0.5, 0.25])  # OpenCV's 3 px Gaussian at "sigma 0"
_PART_PX = 2**14  # px that are looked at at a time: so many stay in the processor's cache
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))  # a pixel and its four neighbours


def flood_rest(owner: np.ndarray, mask: np.ndarray, labels: np.ndarray, edges: np.ndarray, height: np.ndarray) -> bool:
    """Give the pixels of a mask that have no owner yet to the owned pixels that reach them.

    Args:
        owner: (H + 2, W + 2) int32, the owners, with a frame of 0: a pixel of the border has four neighbours, too.
        mask: (H, W) uint8 0/1.
        labels: (H, W) int32, the 4-connected components of the mask.
        edges: (H, W) float32, 0..1; used up.
        height: (H + 2, W + 2) float64, receives the relief.

    Returns:
        False where only `flood_all` finds the answer of the whole map; `owner` is then incomplete.
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
    """Give the free pixels at `places` (flat) to the marker that the way down leads to; the others stay 0.

    `height` becomes infinite outside the mask.
    """
    np.copyto(height[INSIDE], np.inf, where=mask == 0)
    height[[0, -1]] = height[:, [0, -1]] = np.inf
    heights, owners = height.ravel(), owner.ravel()
    # an owner below 0 names the place further down; a pixel without one names itself
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
    """Return the place of the lowest neighbour, or the place itself where none is lower or two are as low."""
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
    """Give every pixel of a mask that a marker reaches to that marker.

    Args:
        mask: (H, W) uint8 0/1.
        markers: (H, W) int32, 0 where there is none.
        height: (H, W) relief.

    Returns:
        (H, W) int32.
    """
    return watershed(height, markers=markers, mask=mask)


def write_relief(edges: np.ndarray, mask: np.ndarray, height: np.ndarray) -> None:
    """Write the landscape that is flooded to `height`, (H, W) float64: -1..0, nuclei are basins; `edges` is used up.

    Exact: edges are multiples of 2**-24 and the blur adds four bits, so that neither the type they are kept in nor the
    order of the sums matters.
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

    The order within one owner cannot: whatever it reaches, it reaches for the same owner. Pixels of several owners of
    one component are safe when all that they reach is higher than they are and no two of these heights are equal:
    then what they reach is ordered by height, whoever came first. Anything else counts as unsafe.

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
