"""Network maps to nuclei.

Graham et al., "HoVer-Net", Medical Image Analysis 58 (2019) 101563, section 3.2: nuclear pixels come from the NP map;
the gradients of the HV maps are steep where nuclei touch, so what is left of the nuclei without these edges marks one
nucleus each, and a watershed from the markers gives every nuclear pixel to one of them.

The values are the reference implementation's, bit for bit, in one pass over the map instead of one per nucleus:

- a component that holds one marker belongs to it whole, one without a marker is dropped, and only components with
  several markers are flooded (`flood.py`);
- sizes, boxes, centroids and types are sums over runs of pixels (`misc/runs.py`); contours are traced in the nucleus'
  own box.

`process` is the reference's interface; `segment`, `measure` and `process_nuclei` are the same steps as arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from misc.nuclei import Nuclei
from misc.runs import Regions, Runs, box_slices, find_regions, find_runs, paint_runs
from models.hovernet import flood

# The reference implementation's values (tuned at 40x, 0.25 um/px). Results are equal to its results only with these.
NP_THRESHOLD = 0.5  # probability, inclusive: from here on a pixel is nuclear
MIN_SIZE_PX = 10  # px, inclusive: smallest component of nuclear pixels
SOBEL_KSIZE = 21  # px, odd: window of the HV gradients
MARKER_THRESHOLD = 0.4  # 0..1, exclusive: edges from this strength on are cut out of the markers
OPENING_KSIZE = 5  # px: ellipse that opens the markers
MIN_MARKER_PX = 10  # px, inclusive: smallest marker
MIN_CONTOUR_POINTS = 3  # points: with fewer, a nucleus is a dot or a line and is not reported
TYPE_PROB_EPS = 1.0e-6  # px: added to a nucleus' size in `type_prob`

_STRIP_PX = 128  # columns that `_stretched_slope` filters at a time; a multiple of
_STRIP_ALIGN_PX = 16  # at least as many pixels as one step of the filter computes
_STRETCH = {"alpha": 0, "beta": 1, "norm_type": cv2.NORM_MINMAX, "dtype": cv2.CV_32F}  # to 0..1
_OUTSIDE = 2  # marks the outer background in `_fill_holes`; neither 0 nor 1


Window = tuple[slice, slice]  # rows, columns


class _Layer(NamedTuple):
    """Components of a mask: `mask` (H, W) uint8 0/1, `labels` (H, W) int32 in raster order, `runs` valued by label."""

    mask: np.ndarray
    labels: np.ndarray
    runs: Runs
    nr_labels: int  # background included, erased ones too


class _Cut(NamedTuple):
    """A region by `index`: the slices of its box, its pixels in there (bool), its contour (M, 2) int32 x, y."""

    index: int
    window: Window
    inside: np.ndarray
    contour: np.ndarray


def process(
    pred_map: np.ndarray, nr_types: int | None = None, return_centroids: bool = False
) -> tuple[np.ndarray, dict[int, dict] | None]:
    """Turn the network's maps into an instance map and a dictionary of nuclei.

    Args:
        pred_map: (H, W, 4) [type, np, h, v] when `nr_types` is given, else (H, W, 3) [np, h, v]; any float type.
        nr_types: number of types of the network, background included; `None` for an untyped one.
        return_centroids: ask for the dictionary of an untyped network too.

    Returns:
        The instance map as `segment` returns it; and `{id: {"bbox": [[rmin, cmin], [rmax, cmax]], "centroid": [x, y],
        "contour": (M, 2) int32 x, y, "type_prob": float, "type": int}}` in px, or `None` when neither `nr_types` nor
        `return_centroids` is given. Nuclei that `measure` drops stay in the map. Where no pixel at all is background
        the reference takes the first nucleus for it and leaves it out of the dictionary, and so does this function;
        `process_nuclei`, which the pipeline uses, does not.

    Raises:
        ValueError: `pred_map` has another shape, or its HV maps hold NaN or infinity.
    """
    if nr_types is None and not return_centroids:
        return segment(_split(pred_map, nr_types)[1]), None
    inst_map, nuclei = process_nuclei(pred_map, nr_types)
    lowest = inst_map.min(initial=inst_map.size)
    if lowest > 0:
        nuclei = nuclei.select(nuclei.ids != lowest)
    return inst_map, nuclei.to_dict()


def process_nuclei(
    pred_map: np.ndarray,
    nr_types: int | None = None,
    class_probs_map: np.ndarray | None = None,
    core: Window | None = None,
) -> tuple[np.ndarray, Nuclei]:
    """Do what `process` does and return the nuclei as arrays; arguments as in `process`, `measure` and `segment`."""
    type_map, np_hv = _split(pred_map, nr_types)
    inst_map = segment(np_hv, core)
    return inst_map, measure(inst_map, type_map, nr_types, class_probs_map)


def segment(np_hv: np.ndarray, core: Window | None = None) -> np.ndarray:
    """Return the instance map of a nuclear probability map and its distance maps.

    Args:
        np_hv: (H, W, 3) [np 0..1, h, v], any float type and memory layout.
        core: the part (not empty) by whose extremes the HV maps and their slopes are stretched; `None`: all of it. The
            pixels around a tile are there for the nuclei on its border, and must not change those inside.

    Returns:
        (H, W) int32, 0 background, nuclei numbered in raster order of their markers; numbers may be missing.

    Raises:
        ValueError: the shape is another, or the HV maps hold NaN or infinity.
    """
    if np_hv.ndim != 3 or np_hv.shape[2] != 3:
        raise ValueError(f"maps must be (H, W, 3) [np, h, v], got shape {np_hv.shape}")
    if 0 in np_hv.shape:
        return np.zeros(np_hv.shape[:2], np.int32)
    prob = np_hv[..., 0].astype(np.float32, copy=False)
    blob = _label((prob >= NP_THRESHOLD).view(np.uint8), MIN_SIZE_PX)
    edges = _edges(np_hv[..., 1], np_hv[..., 2], core)
    markers = _label(_marker_pixels(blob.mask, edges), MIN_MARKER_PX)
    return _grow(blob, markers, edges)


def measure(
    inst_map: np.ndarray,
    type_map: np.ndarray | None = None,
    nr_types: int | None = None,
    class_probs_map: np.ndarray | None = None,
) -> Nuclei:
    """Measure every nucleus of an instance map.

    Args:
        inst_map: (H, W) integers, 0 background.
        type_map: (H, W) type of every pixel, whole numbers >= 0 of any dtype; `None` leaves the nuclei untyped.
        nr_types: number of types, background included; `None`, or one too small: as many as `type_map` holds.
        class_probs_map: (H, W, T) softmax of the TP branch; its mean over a nucleus is its `class_probs`.

    Returns:
        The nuclei by ascending id, but for those whose contour has fewer than `MIN_CONTOUR_POINTS` points (see
        `count_dropped`). A nucleus has the type that most of its pixels have or, where that is background, the
        next most frequent one, if any. Between equally frequent types the smaller number wins.

    Raises:
        ValueError: shapes do not fit, or a type is negative.
    """
    for name, extra in (("type_map", type_map), ("class_probs_map", class_probs_map)):
        if extra is not None and extra.shape[:2] != inst_map.shape:
            raise ValueError(f"{name} {extra.shape} does not fit the instance map {inst_map.shape}")
    runs = find_runs(inst_map)
    regions = find_regions(runs)
    cuts = [cut for cut in _cut_out(inst_map, regions) if len(cut.contour) >= MIN_CONTOUR_POINTS]
    kept = np.array([cut.index for cut in cuts], np.int64)
    columns = {}
    if type_map is not None:
        counts = _count_types(runs, regions.ids, *_whole_types(type_map, nr_types))
        columns["types"], columns["type_prob"] = _majority(counts[kept], regions.areas[kept])
    if class_probs_map is not None:
        means = [class_probs_map[cut.window][cut.inside].mean(axis=0, dtype=np.float64) for cut in cuts]
        columns["class_probs"] = np.array(means, np.float32).reshape(len(cuts), class_probs_map.shape[2])
    contours = [cut.contour for cut in cuts]
    return Nuclei.from_contours(regions.ids[kept], regions.boxes[kept], regions.centroids_xy[kept], contours, **columns)


def count_dropped(inst_map: np.ndarray, nuclei: Nuclei) -> int:
    """Return how many nuclei of the map `measure` left out because their contour is a dot or a line."""
    return len(np.unique(find_runs(inst_map).value)) - len(nuclei)


def _split(pred_map: np.ndarray, nr_types: int | None) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the type map (`None` when untyped) and the (H, W, 3) rest."""
    channels = 3 if nr_types is None else 4
    if pred_map.ndim != 3 or pred_map.shape[2] != channels:
        names = "[np, h, v]" if nr_types is None else "[type, np, h, v]"
        raise ValueError(f"nr_types={nr_types} wants maps (H, W, {channels}) {names}, got shape {pred_map.shape}")
    return (None, pred_map) if nr_types is None else (pred_map[..., 0], pred_map[..., 1:])


def _cut_out(inst_map: np.ndarray, regions: Regions) -> list[_Cut]:
    """Cut every region out of the map and trace it."""
    cuts = []
    for i, (inst_id, window) in enumerate(zip(regions.ids.tolist(), box_slices(regions.boxes), strict=True)):
        inside = inst_map[window] == inst_id
        # the first contour is an outer one; holes come later, and so do all pieces but one of a nucleus in pieces
        contours = cv2.findContours(
            inside.view(np.uint8),
            cv2.RETR_TREE,
            cv2.CHAIN_APPROX_SIMPLE,
            offset=(window[1].start, window[0].start),
        )[0]
        cuts.append(_Cut(i, window, inside, contours[0][:, 0]))
    return cuts


def _label(mask: np.ndarray, min_size: int) -> _Layer:
    """Label the 4-connected components of a uint8 mask in raster order and erase those below `min_size` px."""
    mask = np.ascontiguousarray(mask)  # `ravel` below must be a view
    nr_labels, labels = cv2.connectedComponents(mask, connectivity=4)
    runs = find_runs(mask)
    runs = runs._replace(value=labels[runs.y, runs.x0])
    small = (np.bincount(runs.value, runs.x1 - runs.x0, nr_labels) < min_size)[runs.value]
    pixels = runs.where(small).pixels(mask.shape[1])
    mask.ravel()[pixels] = 0
    labels.ravel()[pixels] = 0
    return _Layer(mask, labels, runs.where(~small), nr_labels)


def _edges(h: np.ndarray, v: np.ndarray, core: Window | None) -> np.ndarray:
    """Return how strong the border between nuclei is at each pixel, (H, W) float32, in the core 0..1 up to rounding.

    Across a border the distances fall from +1 to -1. Both maps and both slopes are stretched to 0..1 over the core; a
    constant one becomes 0, which makes everything an edge.
    """
    # fresh memory costs more than the arithmetic: one buffer for both slopes, and the planes are overwritten
    slope = np.empty(h.shape, np.float64)
    falls = [
        _stretched_slope(np.array(plane, np.float32, order="C"), slope, core, *axis)
        for plane, axis in ((h, (1, 0)), (v, (0, 1)))
    ]
    edges = cv2.min(falls[0], falls[1], dst=falls[0])
    return np.subtract(1, edges, out=edges)


def _stretched_slope(plane: np.ndarray, slope: np.ndarray, core: Window | None, dx: int, dy: int) -> np.ndarray:
    """Replace an HV map by its stretched derivative along one axis: 0 where it falls most; `slope` is a work array.

    The filter goes over strips of columns that fit the processor's cache. They start at multiples of
    `_STRIP_ALIGN_PX`: vector instructions group the pixels as in the whole map, and every bit is the same.
    """
    if not cv2.checkRange(plane)[0]:
        raise ValueError("the HV maps hold NaN or infinity; run the network with --precision=fp32")
    _stretch(plane, plane, core)
    margin = -(-(SOBEL_KSIZE // 2) // _STRIP_ALIGN_PX) * _STRIP_ALIGN_PX
    for x in range(0, plane.shape[1], _STRIP_PX):
        left = max(x - margin, 0)
        part = plane[:, left : x + _STRIP_PX + margin].astype(np.float64)  # once, instead of once for each tap
        strip = cv2.Sobel(part, cv2.CV_64F, dx, dy, ksize=SOBEL_KSIZE)
        slope[:, x : x + _STRIP_PX] = strip[:, x - left : x - left + _STRIP_PX]
    return _stretch(slope, plane, core)


def _stretch(source: np.ndarray, target: np.ndarray, core: Window | None) -> np.ndarray:
    """Write `source`, stretched so that its core spans 0..1, to `target` (float32), which may be the same array.

    `source` is used up: whole maps in fresh memory cost more than the arithmetic.
    """
    if core is None:
        return cv2.normalize(source, target, **_STRETCH)
    inner = cv2.normalize(source[core], None, **_STRETCH)  # the reference's numbers to the bit
    low, high = source[core].min(), source[core].max()
    source -= low
    np.multiply(source, 1 / (high - low) if high > low else 0, out=target, casting="same_kind")
    target[core] = inner
    return target


def _marker_pixels(blob: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the (H, W) uint8 mask of nuclei without their edges, holes filled, opened."""
    core = blob & (edges < np.float64(MARKER_THRESHOLD))  # compared in double precision
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (OPENING_KSIZE, OPENING_KSIZE))
    return cv2.morphologyEx(_fill_holes(core), cv2.MORPH_OPEN, ellipse)


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return the mask with all background that is not 4-connected to the border of the image."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(framed, None, (0, 0), _OUTSIDE, flags=4)
    return (framed[1:-1, 1:-1] != _OUTSIDE).view(np.uint8)


def _grow(blob: _Layer, markers: _Layer, edges: np.ndarray) -> np.ndarray:
    """Give every nuclear pixel of a component with markers to one of them; (H, W) int32, values of the markers."""
    inside = cv2.bitwise_and(markers.mask, blob.mask)
    # a filled hole can lie outside the nuclear pixels
    runs = markers.runs if np.array_equal(inside, markers.mask) else find_runs(inside)
    component, marker = blob.labels[runs.y, runs.x0], markers.labels[runs.y, runs.x0]
    owner = np.zeros(blob.nr_labels, np.int32)
    owner[component] = marker
    contested = np.zeros(blob.nr_labels, bool)
    contested[component[owner[component] != marker]] = True
    owner[contested] = 0
    inst_map = paint_runs(blob.runs._replace(value=owner[blob.runs.value]), blob.mask.shape)
    if contested.any():
        runs = blob.runs.where(contested[blob.runs.value])
        if not flood.flood_regions(inst_map, runs, blob.mask, markers.labels, edges):
            return flood.flood_all(blob.mask, markers.labels, edges)
    return inst_map


def _whole_types(type_map: np.ndarray, nr_types: int | None) -> tuple[np.ndarray, int]:
    """Return the types as int32, and how many there are."""
    types = type_map.astype(np.int32)
    if types.min(initial=0) < 0:
        raise ValueError(f"types must be >= 0, got {types.min()}")
    return types, max(nr_types or 0, int(types.max(initial=0)) + 1)


def _count_types(runs: Runs, ids: np.ndarray, type_map: np.ndarray, nr_types: int) -> np.ndarray:
    """Return how many pixels of each type the runs of each id have, (N, T) int64; `ids` ascend."""
    first = np.searchsorted(ids, runs.value) * nr_types
    keys = np.repeat(first, runs.x1 - runs.x0)
    keys += type_map.ravel()[runs.pixels(type_map.shape[1])]
    return np.bincount(keys, minlength=len(ids) * nr_types).reshape(len(ids), nr_types)


def _majority(counts: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the type (N,) int32 and its share (N,) float64 of nuclei with (N, T) `counts` of pixels."""
    others = counts.copy()
    others[:, 0] = 0
    best = counts.argmax(axis=1)
    # without any other type all of them are zero, and argmax says 0 again
    best = np.where(best == 0, others.argmax(axis=1), best).astype(np.int32)
    return best, counts[np.arange(len(areas)), best] / (areas + TYPE_PROB_EPS)
