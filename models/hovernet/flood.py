"""Watershed of the components that hold several markers, as part of a map it would be slow to flood whole.

The result is that of `skimage.segmentation.watershed` on the whole map, pixel for pixel. That function takes pixels by
height, then by the time they were reached. Components do not touch, so each is flooded among others as it is alone;
only marker pixels of equal height have no order of their own: they come as the queue happens to hold them, which
depends on everything else in it. `_order_matters` finds where that could decide anything.
"""

from __future__ import annotations

import cv2
import numpy as np
from skimage.segmentation import watershed
from skimage.segmentation._watershed_cy import watershed_raveled

from misc.runs import Runs, box_slices, find_regions

_BLUR = np.array([0.25, 0.5, 0.25])  # OpenCV's 3 px Gaussian at "sigma 0"
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))  # a pixel and its four neighbours
_BATCH_PX = 2**15  # px of boxes flooded at a time: the queue stays in the processor's cache, which makes it 3x as fast
_RIM_PX = 1  # px around a component that its relief depends on: the reach of the blur


def flood_all(mask: np.ndarray, markers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Give every pixel of the mask that a marker reaches to that marker; arguments as in `flood_regions`."""
    return watershed(_relief(edges, mask), markers=markers, mask=mask)


def flood_regions(
    inst_map: np.ndarray,
    runs: Runs,
    mask: np.ndarray,
    markers: np.ndarray,
    edges: np.ndarray,
) -> bool:
    """Flood some components of a mask, packed into small images.

    Args:
        inst_map: (H, W) int32, receives the marker of every pixel of these components.
        runs: the components to flood.
        mask: (H, W) uint8, 1 in all components, these or others.
        markers: (H, W) int32, 0 where there is none.
        edges: (H, W) float32, 0..1.

    Returns:
        False where only flooding the whole map gives the whole map's answer; `inst_map` is then incomplete.
    """
    regions = find_regions(runs)
    area = (regions.boxes[:, 2:] - regions.boxes[:, :2]).prod(axis=1)
    batch = np.cumsum(area) // _BATCH_PX
    region = np.searchsorted(regions.ids, runs.value)
    for chosen in np.split(np.arange(len(batch)), np.flatnonzero(np.diff(batch)) + 1):
        first, last = chosen[[0, -1]]
        some = (first <= region) & (region <= last)
        boxes = regions.boxes[chosen]
        if not _flood_packed(inst_map, runs.where(some), region[some] - first, boxes, mask, markers, edges):
            return False
    return True


def _flood_packed(
    inst_map: np.ndarray,
    runs: Runs,
    box_of_run: np.ndarray,
    boxes: np.ndarray,
    mask: np.ndarray,
    markers: np.ndarray,
    edges: np.ndarray,
) -> bool:
    """Flood the components of `runs`, each in its box, in one packed image."""
    packed, shape = _pack(boxes[:, 2:] - boxes[:, :2] + 2 * _RIM_PX)
    down, right = (packed[:, :2] + _RIM_PX - boxes[:, :2])[box_of_run].T
    moved = Runs(runs.y + down, runs.x0 + right, runs.x1 + right, runs.value)
    source, place = runs.pixels(inst_map.shape[1]), moved.pixels(shape[1])
    component, marker = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    component.ravel()[place] = np.repeat(runs.value, runs.x1 - runs.x0)
    marker.ravel()[place] = markers.ravel()[source]
    height = _packed_relief(edges, mask, boxes, packed, shape)
    free = (component > 0) & (marker == 0)
    # marker pixels without a free neighbour reach nothing and are left out
    seed = (marker > 0) & (cv2.dilate(free.view(np.uint8), _CROSS) > 0)
    if _order_matters(height, component, marker, free, np.flatnonzero(seed)):
        return False
    flooded = _flood(height, marker * seed, seed | free)
    np.maximum(flooded, marker, out=flooded)
    inst_map.ravel()[source] = flooded.ravel()[place]
    return True


def _flood(height: np.ndarray, markers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Do what `watershed` does for an image whose border pixels are all outside the mask; (H, W) int32.

    Its checks, its padding and the copies it makes take as long as a third of the flooding itself, for images as small
    as these. The function it calls is not public: the tests compare with the public one.
    """
    flooded = markers.ravel()
    row = height.shape[1]
    neighbours, strides = np.array([-row, -1, 1, row], np.intp), np.array([row, 1], np.intp)
    watershed_raveled(
        height.ravel(), np.flatnonzero(flooded), neighbours, mask.ravel().view(np.int8), strides, 0, flooded, False
    )
    return flooded.reshape(height.shape)


def _relief(edges: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the landscape that is flooded, (H, W) float64: -1..0, nuclei are basins.

    Exact: edges are multiples of 2**-24 and the blur adds four bits, so that neither the type they are kept in nor the
    order of the sums matters.
    """
    depth = np.minimum(1 - edges, 1)
    depth *= mask
    return cv2.sepFilter2D(depth, cv2.CV_64F, -_BLUR, _BLUR)


def _packed_relief(
    edges: np.ndarray, mask: np.ndarray, boxes: np.ndarray, packed: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Return the relief of the (N, 4) `boxes`, each in its `packed` place, rim included."""
    packed_edges, packed_mask = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    rims = boxes + np.array([-1, -1, 1, 1]) * _RIM_PX
    insides = np.clip(rims, 0, np.array(mask.shape * 2))
    overhangs = np.abs(rims - insides)[:, [0, 2, 1, 3]]  # top, bottom, left, right
    for inside, place, overhang in zip(box_slices(insides), box_slices(packed), overhangs.tolist(), strict=True):
        if any(overhang):  # mirrored as the blur mirrors the border of the whole map
            packed_edges[place], packed_mask[place] = (
                cv2.copyMakeBorder(image[inside], *overhang, cv2.BORDER_REFLECT_101) for image in (edges, mask)
            )
        else:
            packed_edges[place], packed_mask[place] = edges[inside], mask[inside]
    return _relief(packed_edges, packed_mask)


def _order_matters(
    height: np.ndarray, component: np.ndarray, marker: np.ndarray, free: np.ndarray, seeds: np.ndarray
) -> bool:
    """Tell whether the order among marker pixels of equal height could decide who gets a pixel.

    The order within one marker cannot: whatever it reaches, it reaches for the same marker. Pixels of several markers
    of one component are safe when all that they reach is higher than they are and no two of these heights are equal:
    then what they reach is ordered by height, whoever came first. Anything else counts as unsafe.

    Args:
        height: (H, W) relief; `component` and `marker` alike, int32, 0 outside.
        free: (H, W) bool, pixels of components that have no marker; none on the border of the image.
        seeds: (N,) flat positions of the marker pixels that have a free neighbour.
    """
    level = height.ravel()[seeds]
    order = np.argsort(level)
    same = np.diff(level[order]) == 0
    if not same.any():
        return False
    seeds = seeds[order[np.append(same, False) | np.append(False, same)]]
    # groups of equal height and component, sorted by marker
    columns = [image.ravel()[seeds] for image in (marker, component, height)]
    order = np.lexsort(columns)
    new_marker, new_component, new_height = (np.append(True, np.diff(column[order]) != 0) for column in columns)
    new_group = new_component | new_height
    group = np.cumsum(new_group)
    mixed = np.isin(group, group[new_marker & ~new_group])
    if not mixed.any():
        return False
    seeds, group = seeds[order][mixed, None], group[mixed, None]
    neighbours = seeds + np.array([-height.shape[1], -1, 1, height.shape[1]])
    reached = free.ravel()[neighbours]
    heights = height.ravel()[neighbours]
    if (reached & (heights <= height.ravel()[seeds])).any():
        return True
    pairs = np.stack([np.broadcast_to(group, reached.shape)[reached], heights[reached]])
    return np.unique(pairs, axis=1).shape[1] < pairs.shape[1]


def _pack(sizes: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Place boxes of (N, 2) height and width on shelves; return (N, 4) y0, x0, y1, x1 and the (H, W) of the whole."""
    width = max(int(np.sqrt(sizes.prod(axis=1).sum())), int(sizes[:, 1].max()))
    places = np.empty((len(sizes), 4), np.int64)
    y = x = shelf = 0
    for i in np.argsort(-sizes[:, 0], kind="stable"):
        h, w = sizes[i].tolist()
        if x + w > width:
            y, x, shelf = y + shelf, 0, 0
        places[i] = y, x, y + h, x + w
        x, shelf = x + w, max(shelf, h)
    return places, (y + shelf, width)
