"""Network maps to nuclei.

Graham et al., "HoVer-Net", Medical Image Analysis 58 (2019) 101563, section 3.2. Nuclear pixels come from the NP map.
The gradients of the HV maps are steep where nuclei touch: these edges are removed from the nuclear pixels, and each
remaining piece is the marker of a nucleus. A watershed from the markers assigns every nuclear pixel to one of them.

By default (`PostProc()`), the results equal the reference implementation's, bit for bit, in one pass over the map
instead of one per nucleus:

- a component with one marker belongs to that marker, one without a marker is dropped, and only components with
  several markers are flooded (`flood.py`);
- sizes, boxes, centroids and types are sums over runs of pixels (`misc/runs.py`); contours are traced in one image
  where the nuclei lie apart.

`process` is the reference's interface; `segment`, `measure` and `process_nuclei` are the same steps as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import cv2
import numpy as np

from misc.nuclei import Nuclei
from misc.runs import Regions, Runs, find_mask_runs, find_regions, find_runs, pack_boxes, paint_runs
from models.hovernet import flood
from models.hovernet.edges import MARKER_THRESHOLD, Window, axis_edges, direction_edges

# The reference implementation's values (tuned at 40x, 0.25 um/px). Results are equal to its results only with these,
# and those of `edges.py`.
NP_THRESHOLD = 0.5  # default probability, inclusive, from which a pixel is nuclear
MIN_SIZE_PX = 10  # px, inclusive: smallest component of nuclear pixels
OPENING_KSIZE = 5  # px: ellipse that opens the markers
MIN_MARKER_PX = 10  # px, inclusive: smallest marker
MIN_CONTOUR_POINTS = 3  # points: with fewer, a nucleus is a dot or a line and is not reported
TYPE_PROB_EPS = 1.0e-6  # px: added to a nucleus' size in `type_prob`

_KEPT_BYTES = 2**25 - 2**13  # just below 32 MiB, the largest block to which glibc adapts (mallopt(3))
_OUTSIDE = 2  # marks the outer background in `_fill_holes`; neither 0 nor 1

AXES, DIRECTIONS = "axes", "directions"  # ways to find edges, see `edges.py`
KEEP, DROP = "keep", "drop"  # what to do with nuclei in ink, see `ink.py`
_CHOICES = {"edges": (AXES, DIRECTIONS), "ink": (KEEP, DROP)}


def check_value(key: str, value: Any, name: str) -> None:
    """Check a value of `PostProc`.

    Raises:
        ValueError: it cannot be that of `key`; `name` says what it was to be.
    """
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ValueError(f"{name} must be {' or '.join(f'`{way}`' for way in _CHOICES[key])}, got {value!r}")
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1 or (key == "np_threshold" and value == 0):
        least = "above 0" if key == "np_threshold" else "from 0"
        raise ValueError(f"{name} is a probability {least} and below 1, got {value!r}")


@dataclass(frozen=True)
class PostProc:
    """How nuclei are found; the defaults are the reference's way.

    Attributes:
        np_threshold: probability, inclusive, from which a pixel is nuclear; above 0 and below 1. Other values than the
            reference's give smaller or larger outlines.
        edges: `axes`, the reference's, or `directions`.
        min_prob: the nuclear probability of a nucleus, the mean over its pixels, must be at least this; from 0 to below
            1. Nuclei below it are left out of the instance map.
        ink: `keep`, or `drop`: nuclei that have the colour of ink or dark pigment are left out of the instance map.

    Raises:
        ValueError: a value is another.
    """

    np_threshold: float = NP_THRESHOLD
    edges: str = AXES
    min_prob: float = 0.0
    ink: str = KEEP

    def __post_init__(self):
        for name, value in asdict(self).items():
            check_value(name, value, name)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], where: str) -> PostProc:
        """Return what the `meta` of a checkpoint recommends, else the reference's values.

        Raises:
            ValueError: a value cannot be; the message says it is in `where`.
        """
        said = {field.name: meta[field.name] for field in fields(cls) if meta.get(field.name) is not None}
        for name, value in said.items():
            check_value(name, value, f"{name} in {where}")
        return cls(**said)


REFERENCE = PostProc()


class _Layer(NamedTuple):
    """Components of a mask: `mask` (H, W) uint8 0/1, `labels` (H, W) int32 in raster order, `runs` valued by label."""

    mask: np.ndarray
    labels: np.ndarray
    runs: Runs
    nr_labels: int  # background included, erased ones too


def process(
    pred_map: np.ndarray,
    nr_types: int | None = None,
    return_centroids: bool = False,
    how: PostProc = REFERENCE,
) -> tuple[np.ndarray, dict[int, dict] | None]:
    """Turn the network's maps into an instance map and a dictionary of nuclei.

    Args:
        pred_map: (H, W, 4) [type, np, h, v] when `nr_types` is given, else (H, W, 3) [np, h, v]; any float type.
        nr_types: number of types of the network, background included; `None` for an untyped one.
        return_centroids: return the dictionary for an untyped network, too.
        how: how nuclei are found.

    Returns:
        The instance map as `segment` returns it; and `{id: {"bbox": [[rmin, cmin], [rmax, cmax]], "centroid": [x, y],
        "contour": (M, 2) int32 x, y, "type_prob": float, "type": int}}` in px, or `None` when neither `nr_types` nor
        `return_centroids` is given. Nuclei that `measure` drops stay in the map. If no pixel is background, the
        reference treats the first nucleus as background and leaves it out of the dictionary; so does this function.
        `process_nuclei`, which the pipeline uses, does not.

    Raises:
        ValueError: `pred_map` has another shape, or its HV maps hold NaN or infinity.
    """
    if nr_types is None and not return_centroids:
        return segment(_split(pred_map, nr_types)[1], None, how), None
    inst_map, nuclei = process_nuclei(pred_map, nr_types, how=how)
    lowest = inst_map.min(initial=inst_map.size)
    if lowest > 0:
        nuclei = nuclei.select(nuclei.ids != lowest)
    return inst_map, nuclei.to_dict()


def process_nuclei(
    pred_map: np.ndarray,
    nr_types: int | None = None,
    class_probs_map: np.ndarray | None = None,
    core: Window | None = None,
    how: PostProc = REFERENCE,
    ink_map: np.ndarray | None = None,
) -> tuple[np.ndarray, Nuclei]:
    """Do the same as `process`, but return the nuclei as arrays; arguments as in `process`, `measure` and `segment`."""
    type_map, np_hv = _split(pred_map, nr_types)
    inst_map = segment(np_hv, core, how, ink_map)
    return inst_map, measure(inst_map, type_map, nr_types, class_probs_map)


def segment(
    np_hv: np.ndarray,
    core: Window | None = None,
    how: PostProc = REFERENCE,
    ink_map: np.ndarray | None = None,
) -> np.ndarray:
    """Return the instance map of a nuclear probability map and its distance maps.

    Args:
        np_hv: (H, W, 3) [np 0..1, h, v], any float type and memory layout.
        core: the part (not empty) whose extremes stretch the HV maps and their slopes; `None`: all of it. Pixels around
            a tile complete the nuclei on its border, and must not change the nuclei inside. Edges of all directions
            are not stretched.
        how: how nuclei are found.
        ink_map: (H, W) float, above 0 where the image has the colour of ink (`ink.py`); `how.ink == "drop"` needs it.

    Returns:
        (H, W) int32, 0 background, nuclei numbered in raster order of their markers; numbers may be missing.

    Raises:
        ValueError: the shape is another, the HV maps hold NaN or infinity, or `ink_map` is missing.
    """
    if how.ink == DROP and ink_map is None:
        raise ValueError(f"ink `{DROP}` needs a map of the ink; `process` has none")
    if np_hv.ndim != 3 or np_hv.shape[2] != 3:
        raise ValueError(f"maps must be (H, W, 3) [np, h, v], got shape {np_hv.shape}")
    if 0 in np_hv.shape:
        return np.zeros(np_hv.shape[:2], np.int32)
    _keep_freed_memory()
    prob = np_hv[..., 0].astype(np.float32, copy=False)
    blob = _label((prob >= np.float32(how.np_threshold)).view(np.uint8), MIN_SIZE_PX)
    # New memory costs more time than the arithmetic, so arrays are shared: one for both slopes and (with a frame) the
    # relief, another for the second edges and the labels.
    work = np.zeros((prob.shape[0] + 2, prob.shape[1] + 2), np.float64)
    spare = np.empty(prob.shape, np.float32)
    if how.edges == DIRECTIONS:
        edges = direction_edges(np_hv[..., 1], np_hv[..., 2])
    else:
        edges = axis_edges(np_hv[..., 1], np_hv[..., 2], core, work[flood.INSIDE], spare)
    markers = _label(_marker_pixels(blob.mask, edges), MIN_MARKER_PX, spare.view(np.int32))
    inst_map = _grow(blob, markers, edges, work)
    if how.min_prob:
        _drop_doubtful(inst_map, prob, how.min_prob)
    if how.ink == DROP:
        _erase(inst_map, np.bincount(inst_map.ravel(), ink_map.ravel()) > 0)
    return inst_map


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
        nr_types: number of types, background included; if `None` or too small, as many as `type_map` holds.
        class_probs_map: (H, W, T) softmax of the TP branch; its mean over a nucleus is its `class_probs`.

    Returns:
        The nuclei by ascending id, without those whose contour has fewer than `MIN_CONTOUR_POINTS` points (see
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
    region_of_run = np.searchsorted(regions.ids, runs.value)
    points_xy, lengths = _trace(runs, region_of_run, regions)
    pixels = runs.pixels(inst_map.shape[1])
    region = np.repeat(region_of_run, runs.x1 - runs.x0)
    columns = {}
    if type_map is not None:
        counts = _count_types(type_map, pixels, region, (len(regions.ids), nr_types or 0))
        columns["types"], columns["type_prob"] = _majority(counts, regions.areas)
    if class_probs_map is not None:
        columns["class_probs"] = _means(class_probs_map, pixels, region, regions.areas)
    nuclei = Nuclei(
        ids=regions.ids.astype(np.int64),
        boxes_yx=regions.boxes.astype(np.int32).reshape(-1, 2, 2),
        centroids_xy=regions.centroids_xy,
        points_xy=points_xy,
        offsets=np.append(0, np.cumsum(lengths)),
        **columns,
    )
    drawn = lengths >= MIN_CONTOUR_POINTS
    return nuclei if drawn.all() else nuclei.select(drawn)


def count_dropped(inst_map: np.ndarray, nuclei: Nuclei) -> int:
    """Return how many nuclei of the map `measure` left out because their contour is a dot or a line."""
    return len(np.unique(find_runs(inst_map).value)) - len(nuclei)


def _split(pred_map: np.ndarray, nr_types: int | None) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the type map (`None` when untyped) and the (H, W, 3) rest."""
    channels = 3 if nr_types is None else 4
    if pred_map.ndim != 3 or pred_map.shape[2] != channels:
        names = "[np, h, v]" if nr_types is None else "[type, np, h, v]"
        raise ValueError(f"nr_types={nr_types} needs maps (H, W, {channels}) {names}, got shape {pred_map.shape}")
    return (None, pred_map) if nr_types is None else (pred_map[..., 0], pred_map[..., 1:])


def _keep_freed_memory() -> None:
    """Let the C library keep up to 64 MB of freed memory: for small maps, new pages take half as long as the sums.

    glibc keeps twice the size of the largest block freed so far. The pages of this block are never used.
    """
    np.empty(_KEPT_BYTES, np.uint8)


def _trace(runs: Runs, region_of_run: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Trace all regions, drawn apart in one image.

    Returns:
        (P, 2) int32 x, y: the contours one after the other, as traced in each region's own box; and their (N,) lengths.
    """
    places, shape = pack_boxes(regions.boxes[:, 2:] - regions.boxes[:, :2] + 1)  # a free row and column between them
    shifts = places - regions.boxes[:, :2]
    moved = runs.moved(*shifts[region_of_run].T)
    packed, region_at = np.zeros(shape, np.uint8), np.zeros(shape, np.int32)
    packed.ravel()[moved.pixels(shape[1])] = 1
    region_at[moved.y, moved.x0] = region_of_run
    contours = cv2.findContours(packed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0] if packed.size else ()
    starts_xy = np.array([contour[0, 0] for contour in contours], np.int64).reshape(-1, 2)
    # a contour starts where a run does; a nucleus in pieces has several contours, and the first counts
    first = np.unique(region_at[starts_xy[:, 1], starts_xy[:, 0]], return_index=True)[1]
    chosen = [contours[i][:, 0] for i in first.tolist()]
    lengths = np.fromiter(map(len, chosen), np.int64, len(chosen))
    points_xy = np.concatenate([np.zeros((0, 2), np.int32), *chosen])
    points_xy -= np.repeat(shifts[:, ::-1].astype(np.int32), lengths, axis=0)
    return points_xy, lengths


def _label(mask: np.ndarray, min_size: int, labels: np.ndarray | None = None) -> _Layer:
    """Label the 4-connected components of a 0/1 uint8 mask in raster order and erase those below `min_size` px.

    `labels` (H, W) int32 is filled, if given.
    """
    mask = np.ascontiguousarray(mask)  # `ravel` below must be a view
    nr_labels, labels = cv2.connectedComponents(mask, labels, connectivity=4)
    runs = find_mask_runs(mask)
    runs = runs._replace(value=labels[runs.y, runs.x0])
    small = (np.bincount(runs.value, runs.x1 - runs.x0, nr_labels) < min_size)[runs.value]
    pixels = runs.where(small).pixels(mask.shape[1])
    mask.ravel()[pixels] = 0
    labels.ravel()[pixels] = 0
    return _Layer(mask, labels, runs.where(~small), nr_labels)


def _marker_pixels(blob: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the (H, W) uint8 mask of nuclei without their edges, holes filled, opened."""
    threshold = np.float32(MARKER_THRESHOLD)  # rounds up, so the same float32 numbers are below it as below 0.4
    core = blob & (edges < threshold).view(np.uint8)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (OPENING_KSIZE, OPENING_KSIZE))
    return cv2.morphologyEx(_fill_holes(core), cv2.MORPH_OPEN, ellipse)


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return the mask with all background that is not 4-connected to the border of the image."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(framed, None, (0, 0), _OUTSIDE, flags=4)
    return (framed[1:-1, 1:-1] != _OUTSIDE).view(np.uint8)


def _grow(blob: _Layer, markers: _Layer, edges: np.ndarray, work: np.ndarray) -> np.ndarray:
    """Assign every nuclear pixel of a component with markers to one of them; (H, W) int32, values of the markers.

    `edges` and `markers` are overwritten; `work` (H + 2, W + 2) float64 is a work array.
    """
    inside = cv2.bitwise_and(markers.mask, blob.mask)
    # a filled hole can lie outside the nuclear pixels
    runs = markers.runs if np.array_equal(inside, markers.mask) else find_mask_runs(inside)
    component, marker = blob.labels[runs.y, runs.x0], markers.labels[runs.y, runs.x0]
    owner_of = np.zeros(blob.nr_labels, np.int32)
    owner_of[component] = marker
    contested = np.zeros(blob.nr_labels, bool)
    contested[component[owner_of[component] != marker]] = True
    owner_of[contested] = 0
    owner = paint_runs(blob.runs.moved(1, 1)._replace(value=owner_of[blob.runs.value]), work.shape)
    if contested.any():
        chosen = contested[component]
        seeds = runs.where(chosen).moved(1, 1)
        owner.ravel()[seeds.pixels(owner.shape[1])] = np.repeat(marker[chosen], seeds.x1 - seeds.x0)
        if not flood.flood_rest(owner, blob.mask, blob.labels, edges, work):
            return flood.flood_all(blob.mask, markers.labels, work[flood.INSIDE])
    markers.labels[:] = owner[flood.INSIDE]
    return markers.labels


def _drop_doubtful(inst_map: np.ndarray, prob: np.ndarray, min_prob: float) -> None:
    """Erase the nuclei of an instance map whose pixels have a mean probability below `min_prob`."""
    ids = inst_map.ravel()
    _erase(inst_map, np.bincount(ids, prob.ravel()) < min_prob * np.bincount(ids))


def _erase(inst_map: np.ndarray, chosen: np.ndarray) -> None:
    """Erase the nuclei of an instance map that `chosen`, bool by id, names."""
    chosen[0] = False
    inst_map[chosen[inst_map]] = 0


def _count_types(type_map: np.ndarray, pixels: np.ndarray, region: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Count the `pixels` (flat, each of a `region`) by type; int64 of `shape` or with more columns."""
    type_map = np.ascontiguousarray(type_map)
    lowest = type_map.min(initial=0)
    if not lowest > -1:  # nor NaN
        raise ValueError(f"types must be >= 0, got {lowest:g}")
    types = type_map.ravel()[pixels].astype(np.int64)
    nr_types = max(shape[1], int(types.max(initial=0)) + 1)
    types += region * nr_types
    return np.bincount(types, minlength=shape[0] * nr_types).reshape(shape[0], nr_types)


def _means(maps: np.ndarray, pixels: np.ndarray, region: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return the means of (H, W, T) `maps` over the `pixels` (flat) of each `region`, (N, T) float32."""
    sums = [np.bincount(region, plane.ravel()[pixels], len(areas)) / areas for plane in np.moveaxis(maps, -1, 0)]
    return np.array(sums, np.float32).T.copy()


def _majority(counts: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the type (N,) int32 and its share (N,) float64 of nuclei with (N, T) `counts` of pixels."""
    others = counts.copy()
    others[:, 0] = 0
    best = counts.argmax(axis=1)
    # without any other type all counts are zero, and argmax gives 0 again
    best = np.where(best == 0, others.argmax(axis=1), best).astype(np.int32)
    return best, counts[np.arange(len(areas)), best] / (areas + TYPE_PROB_EPS)
