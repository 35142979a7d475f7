"""From a slide's JSON of nuclei to its density map and hot spots.

Positions are level-0 px. A nucleus lies where its centroid lies, in px counted as in the JSON: at scale 1 they are
the numbers of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from misc.files import full_stem
from misc.formats.nuclei_json import MAX_PX, iter_json, read_header, types_from_header
from misc.formats.sedeen import LAB_TYPES
from misc.formats.slide_facts import level0_xy, slide_facts
from misc.ihc.density import SLACK_PX, bin_counts, boxes_to_px, find_hot_spots, mm2, smooth
from misc.ihc.scores import DAB, NEGATIVE, classify
from misc.nuclei import Nuclei
from misc.nuclei_features import nuclear_densities
from misc.slides.image import SlideImage
from misc.text import counted
from misc.type_info import TypeInfo, differing_names, positive_ids, say_types, type_ids

# Words that stand for a choice of positive nuclei other than by type.
ALL, BY_DAB = "all", "dab"
# Share by which a hot spot of whole bins may differ from the size asked for without a note.
HOT_SPOT_ROUNDING = 0.05
# The names or numbers of types, or one of these words; `None`: the types whose names say that they are positive.
PositiveTypes = tuple[int | str, ...] | str | None


@dataclass(frozen=True)
class SlideNuclei:
    """Where the nuclei of one slide are, and of what kind.

    Attributes:
        name: stem of the JSON file.
        image_name: full file name of the slide, empty where nothing says it.
        width, height: level-0 px; 0 where nothing says it and there is no nucleus.
        size_known: whether file or slide say the size; else it is what holds all nuclei.
        mpp_xy: um per level-0 px, or `None`.
        scale: level-0 px per px of the file's coordinates.
        slack_px: how far rounding may put a nucleus outside the slide.
        xy: (N, 2) float64 centroids, level-0 px.
        types: (N,) int32, or `None` for an untyped network.
        dab: (N,) float32 mean DAB density, NaN where not measured; `None` if nobody asked.
        notes: what a person should know about how this was read.
        type_info: names of the types, or `None` where nothing names them.
        bounds_xywh: the part of level 0 that was scanned, px, or `None` where nothing says it.
        tissue_share: share of the slide that is tissue, 0 to 1, or `None` where the file does not say it.
    """

    name: str
    image_name: str
    width: int
    height: int
    size_known: bool
    mpp_xy: tuple[float, float] | None
    scale: float
    slack_px: float
    xy: np.ndarray
    types: np.ndarray | None
    dab: np.ndarray | None
    notes: list[str] = field(default_factory=list)
    type_info: TypeInfo | None = None
    bounds_xywh: tuple[int, int, int, int] | None = None
    tissue_share: float | None = None

    def __len__(self) -> int:
        return len(self.xy)


@dataclass(frozen=True)
class SlideMap:
    """The density map of one slide.

    Attributes:
        slide: the nuclei.
        positive: (N,) bool, the nuclei that the map counts.
        judged: (N,) bool, the nuclei of which it is known whether they are positive: what shares are shares of. By
            type that is all of them, by DAB density those that could be measured.
        is_share: whether positive means something; not for untyped nuclei, which are all counted.
        counts: (rows, columns) int64, positive nuclei by bin.
        rate: (rows, columns) float64, smoothed, positive nuclei per px^2 of the slide.
        shown_rate: the same of what QuPath shows of the slide, whose bins begin at the corner of its bounds.
        tile_size: side of a bin, px.
        boxes_bins, boxes_px: (K, 4) int64 hot spots, best first, in bins and in px of the slide.
        sums: (K,) int64, positive nuclei in each.
        counted: which nuclei are positive, in words.
    """

    slide: SlideNuclei
    positive: np.ndarray
    judged: np.ndarray
    is_share: bool
    counts: np.ndarray
    rate: np.ndarray
    shown_rate: np.ndarray
    tile_size: int
    boxes_bins: np.ndarray
    boxes_px: np.ndarray
    sums: np.ndarray
    counted: str

    def density(self, shown: bool = False) -> tuple[np.ndarray, str]:
        """Return the map as people read it, and its unit: nuclei/mm2, or nuclei/px2 where px have no size.

        Args:
            shown: the map of what QuPath shows of the slide.
        """
        rate = self.shown_rate if shown else self.rate
        what = "positive nuclei" if self.is_share else "nuclei"
        if self.slide.mpp_xy is None:
            return rate, f"{what} per px²"
        return rate / mm2(1.0, self.slide.mpp_xy), f"{what} per mm²"


# ---------------------------------------------------------------------------------------------- reading


def load_slide(
    path: Path,
    image: SlideImage | None = None,
    mpp: float | None = None,
    measure: bool = False,
    progress: Callable[[int], object] = lambda count: None,
    scale: float | None = None,
    type_info: TypeInfo | None = None,
) -> SlideNuclei:
    """Read the nuclei of a slide as a stream; of each, only the position, the type and the DAB density are kept.

    Args:
        path: the JSON file.
        image: the slide; without it the size is what the file says, or the extent of the nuclei.
        mpp: um per level-0 px, before what file and slide say.
        measure: measure the DAB density of each nucleus in `image`.
        progress: called with the number of nuclei after each piece.
        scale: level-0 px per px of the file, before what file and slide say.
        type_info: names of the types, before what the file says.

    Raises:
        ValueError: the file is broken or of another slide, or `measure` lacks an image.
    """
    header = read_header(path)
    facts = slide_facts(path, header, image, scale, mpp)
    if measure and image is None:
        raise ValueError(f"{path}: DAB densities are measured in the image; give --wsi_dir")
    xy, types, dab, extent, notes = [], [], [], np.zeros(2), list(facts.notes)
    own_names = types_from_header(header)
    if type_info and own_names and (other := differing_names(own_names, type_info)):
        notes.append(f"the file calls its types {say_types(other, own_names)}, --type_info_path otherwise")
    for part in iter_json(path):
        xy.append(level0_xy(part, facts.scale))
        types.append(part.types)
        extent = np.fmax(extent, _extent(part, xy[-1], facts.scale))
        if measure:
            dab.append(_measure(part, image, facts.scale))
        progress(len(part))
    width, height = (facts.width, facts.height) if facts.width else _size(path, extent, notes)
    if missing := sum(int(np.isnan(values).sum()) for values in dab):
        notes.append(f"DAB density is not known of {counted(missing, 'nucleus')} outside the image or without contour")
    return SlideNuclei(
        name=full_stem(path),
        image_name=facts.name,
        width=width,
        height=height,
        size_known=facts.width > 0,
        mpp_xy=facts.mpp_xy,
        scale=facts.scale,
        slack_px=max(SLACK_PX, facts.scale),
        xy=np.concatenate([np.zeros((0, 2)), *xy]),
        types=np.concatenate(types) if types and types[0] is not None else None,
        dab=np.concatenate([np.zeros(0, np.float32), *dab]) if measure else None,
        notes=notes,
        type_info=type_info or own_names,
        bounds_xywh=facts.bounds_xywh,
        tissue_share=facts.tissue_share,
    )


def _extent(part: Nuclei, xy: np.ndarray, scale: float) -> np.ndarray:
    """Return the (width, height) that holds the nuclei, level-0 px; those without a contour are their centroids."""
    bare = xy[np.diff(part.offsets) == 0]
    return np.fmax((part.points_xy.max(axis=0, initial=-1) + 1) * scale, np.floor(bare.max(axis=0, initial=-1)) + 1)


def _size(path: Path, extent: np.ndarray, notes: list[str]) -> tuple[int, int]:
    if extent.max() > MAX_PX:
        raise ValueError(f"{path}: nuclei lie as far as {extent.max():g} px: a broken file, or a wrong scale")
    width, height = (int(v) for v in np.ceil(extent))
    if width and height:
        notes.append(f"the size of the slide is not known: {width} x {height} px hold all nuclei (give --wsi_dir)")
    else:
        notes.append("no nuclei, and the size of the slide is not known: no map (give --wsi_dir)")
    return width, height


def _measure(part: Nuclei, image: SlideImage, scale: float) -> np.ndarray:
    at_level0 = part if scale == 1 else part.scale(scale, scale)
    return nuclear_densities(at_level0, image.read, (image.height, image.width), "hdab")[:, DAB].astype(np.float32)


# ---------------------------------------------------------------------------------------------- counting


def map_slide(
    slide: SlideNuclei,
    positive_types: PositiveTypes,
    thresholds: tuple[float, float, float],
    tile_size: int,
    window_px: tuple[float, float],
    top_k: int,
    sigma: float,
) -> SlideMap:
    """Bin the positive nuclei of a slide, smooth the map, and find the hot spots on the counts as they are.

    Args:
        slide: the nuclei, of a slide of known size.
        positive_types: types that are positive, by name or number, or `ALL`, or `BY_DAB`; `None`: those whose names
            say so.
        thresholds: DAB densities; the first one is where positive begins.
        tile_size: side of a bin, px.
        window_px: (x, y) sides of a hot spot, px; rounded to whole bins.
        top_k: most hot spots.
        sigma: of the smoothing, in bins.

    Raises:
        ValueError: nuclei lie outside the slide, sizes make no sense, or no type is known to be positive.
    """
    chosen = find_positive(slide, positive_types, thresholds)
    window = tuple(max(1, round(px / tile_size)) for px in window_px[::-1])
    counts = bin_counts(slide.xy[chosen.positive], slide.width, slide.height, tile_size, slide.slack_px)
    boxes, sums = find_hot_spots(counts, top_k, window)
    rate = smooth(counts, sigma) / tile_size**2
    notes = [*slide.notes, *chosen.notes, *_rounding_note(window, window_px, tile_size)]
    if window[0] > counts.shape[0] or window[1] > counts.shape[1]:
        notes.append("a hot spot is as large as the slide where the slide is smaller than the hot spot asked for")
    if len(boxes) < top_k:
        notes.append(f"{len(boxes)} of {top_k} hot spots: no further window holds a positive nucleus")
    return SlideMap(
        slide=replace(slide, notes=notes),
        positive=chosen.positive,
        judged=chosen.judged,
        is_share=chosen.is_share,
        counts=counts,
        rate=rate,
        shown_rate=rate if slide.bounds_xywh is None else _shown_rate(slide, chosen.positive, tile_size, sigma),
        tile_size=tile_size,
        boxes_bins=boxes,
        boxes_px=boxes_to_px(boxes, tile_size, slide.width, slide.height),
        sums=sums,
        counted=chosen.words,
    )


def _shown_rate(slide: SlideNuclei, positive: np.ndarray, tile_size: int, sigma: float) -> np.ndarray:
    """Bin and smooth the positive nuclei within the bounds of a slide, counted from the corner of these."""
    x, y, width, height = slide.bounds_xywh
    xy = slide.xy[positive] - (x, y)
    xy = xy[((xy >= -slide.slack_px) & (xy < np.array([width, height]) + slide.slack_px)).all(axis=1)]
    return smooth(bin_counts(xy, width, height, tile_size, slide.slack_px), sigma) / tile_size**2


def _rounding_note(window: tuple[int, int], window_px: tuple[float, float], tile_size: int) -> list[str]:
    """Say how large a hot spot is where whole bins are not about what was asked for."""
    width, height = window[1] * tile_size, window[0] * tile_size
    if all(abs(got / px - 1) <= HOT_SPOT_ROUNDING for got, px in zip((width, height), window_px, strict=True)):
        return []
    return [
        f"a hot spot is {width} x {height} px, whole bins, where {window_px[0]:.6g} x {window_px[1]:.6g} px were asked "
        "for; a smaller --tile_size comes closer"
    ]


class Positive(NamedTuple):
    """Which nuclei are positive and of which that is known, (N,) bool; whether it means something; words; and notes."""

    positive: np.ndarray
    judged: np.ndarray
    is_share: bool
    words: str
    notes: list[str]


def find_positive(
    slide: SlideNuclei, positive_types: PositiveTypes, thresholds: tuple[float, float, float]
) -> Positive:
    """Choose the nuclei that a map counts; see `map_slide`."""
    untyped, everyone = slide.types is None and len(slide) > 0, np.ones(len(slide), bool)
    if positive_types == ALL:
        return Positive(everyone, everyone, True, "all nuclei", [])
    if positive_types == BY_DAB or (untyped and slide.dab is not None):
        if slide.dab is None:
            raise ValueError(f"{slide.name}: positive by DAB density needs --score")
        note = ["nuclei have no types: positive is by DAB density"] if positive_types != BY_DAB else []
        positive = classify(slide.dab, thresholds) > NEGATIVE
        return Positive(positive, np.isfinite(slide.dab), True, f"DAB density from {thresholds[0]:g}", note)
    if untyped:
        note = ["nuclei have no types: all of them are counted (or give --score)"]
        return Positive(everyone, everyone, False, "all nuclei", note)
    if slide.types is None:
        return Positive(everyone, everyone, True, "", [])
    ids, words, note = _positive_types(slide, positive_types)
    found = np.isin(slide.types, ids)
    if not found.any():
        note.append(f"no nucleus is of type {words}: an empty map")
    return Positive(found, everyone, True, words, note)


def _positive_types(slide: SlideNuclei, wanted: tuple[int | str, ...] | None) -> tuple[tuple[int, ...], str, list[str]]:
    """Return the ids of the positive types, what they are called, and notes."""
    names, notes = slide.type_info, []
    if names is None and wanted is None:
        lab = say_types(LAB_TYPES, LAB_TYPES)
        if slide.types.max(initial=0) > max(LAB_TYPES):
            raise ValueError(
                f"{slide.name}: the file names no types, and they are not the default ones ({lab}); give "
                "--positive_types or --type_info_path"
            )
        names = LAB_TYPES
        notes.append(f"the file names no types: taken as {lab} (--type_info_path, --positive_types say otherwise)")
    names = names or {}
    ids = positive_ids(names) if wanted is None else type_ids(wanted, names, f"{slide.name}: --positive_types")
    if not ids:
        raise ValueError(
            f"{slide.name}: no type's name says positive, weak, moderate or strong "
            f"({say_types((key for key in names if key), names)}); give --positive_types"
        )
    return ids, say_types(ids, names), notes
