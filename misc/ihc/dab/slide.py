"""One slide: from its nuclei, their densities and its regions to classes and scores.

Where the network's type and the DAB density disagree, the density decides: its limits can be read, changed, and
compared between labs. On 1,242 labelled nuclei of two labs (`benchmarks/ihc_classes.py`) it is right for 97.5 %
(F1 of positive 0.967), the network for 98.1 % (0.975).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely

from misc.ihc.dab.found import FoundNuclei
from misc.ihc.dab.parts import Scorer, SlideScores
from misc.ihc.markers import Marker
from misc.ihc.measure import Densities
from misc.ihc.regions import TISSUE, Chosen, Region, union
from misc.ihc.scores import CLASS_NAMES, MODERATE, NEGATIVE, NOT_COUNTED, WEAK, classes_of_types, classify
from misc.ihc.stain import StainModel
from misc.nuclei import Nuclei
from misc.runs import find_mask_runs
from misc.slides.image import SlideImage
from misc.slides.tissue import find_tissue
from misc.text import counted

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

# um per px where nothing says it; what is dust on the slide depends on it.
UNKNOWN_MPP = 0.5
# How far the outline of tissue may leave the px of its mask.
SMOOTH_PX = 1.0


@dataclass(frozen=True)
class Stained:
    """The DAB of a slide: densities of its nuclei, the stains they were found with, and what nuclei lie on."""

    densities: Densities
    model: StainModel
    ground: float

    @property
    def dab(self) -> np.ndarray:
        """Median DAB density of each nucleus above the ground, which the thresholds are about."""
        return self.densities.dab_median - self.ground


@dataclass(frozen=True)
class DabSlide:
    """A slide that is scored.

    Attributes:
        name: of its files.
        image: the slide.
        mpp_xy: um per level-0 px, or `None`.
        nuclei: at level 0; their types are the staining classes, densities are among `measured`.
        stained: its DAB.
        scores: of its parts.
        tissue: outlines, drawn or found.
        chosen: the regions that were drawn.
        marker: how the classes are read.
        notes: what a person should know.
    """

    name: str
    image: SlideImage
    mpp_xy: tuple[float, float] | None
    nuclei: Nuclei
    stained: Stained
    scores: SlideScores
    tissue: list[Region]
    chosen: Chosen
    marker: Marker
    notes: tuple[str, ...]

    @property
    def mpp(self) -> float | None:
        return self.mpp_xy and float(np.mean(self.mpp_xy))

    @property
    def regions(self) -> list[Region]:
        """Outlines of all there are: tissue, regions, hot spots."""
        spots = [part.region for part in self.scores.hot_spots]
        return [*self.tissue, *self.chosen.scored, *self.chosen.excluded, *self.chosen.others, *spots]

    @property
    def origin_xy(self) -> tuple[int, int]:
        return origin(self.image)

    def facts(self) -> dict:
        """Return the columns that are the same in all rows of the slide."""
        limits = zip(list(CLASS_NAMES.values())[1:], self.marker.thresholds, strict=True)
        facts = {"marker": self.marker.name, "stain": self.stained.model.words(), "ground_od": self.stained.ground}
        facts |= {f"{name}_from_od": limit for name, limit in limits}
        facts |= {"min_contrast_od": self.marker.min_contrast, "min_area_um2": self.marker.min_area_um2}
        return facts | {"mpp_um": self.mpp, "width_px": self.image.width, "height_px": self.image.height}

    def words(self) -> list[str]:
        """Return what pictures say of stains and thresholds, and the notes."""
        weak, moderate, strong = self.marker.thresholds
        model, numbers = self.stained.model, lambda values: ", ".join(f"{value:.2f}" for value in values)
        contrast = f"; weak and moderate {self.marker.min_contrast:.3g} above the ring around them"
        said = [
            f"DAB above the background ({self.stained.ground:.2f}): weak {weak:.3g}, moderate {moderate:.3g}, strong "
            f"{strong:.3g}{contrast if self.marker.min_contrast else ''}",
            f"stains ({model.source}): H {numbers(model.hematoxylin_rgb)}; DAB {numbers(model.dab_rgb)}; "
            f"{model.angle_deg:.0f} degrees apart",
        ]
        return [*said, *(f"! {note}" for note in self.notes)]


def origin(image: SlideImage) -> tuple[int, int]:
    """Return the corner of what QuPath shows of a slide, level-0 px."""
    return image.bounds_xywh[:2] if image.bounds_xywh else (0, 0)


def score_slide(
    name: str, image: SlideImage, slide: FoundNuclei, stained: Stained, chosen: Chosen, marker: Marker, by_types: bool
) -> DabSlide:
    """Classify and score the nuclei of a slide.

    Args:
        name: of its files.
        image: the slide.
        slide: its nuclei.
        stained: their DAB.
        chosen: its regions.
        marker: thresholds and rules.
        by_types: the classes are the network's types.

    Raises:
        ValueError: the types say nothing of staining.
    """
    classes = _classes(slide, stained, marker, by_types)
    xy = slide.nuclei.centroids_xy
    found = None if chosen.tissue else tissue_region(image, slide.mpp_xy, xy)
    tissue = chosen.tissue or ([found] if found else [])
    scores = Scorer(xy, classes, marker, chosen, union(tissue), slide.mpp_xy, (image.width, image.height)).run()
    notes = [*slide.notes, *stained.model.warnings, *_odd(slide, stained, classes, tissue, marker)]
    return DabSlide(
        name=name,
        image=image,
        mpp_xy=slide.mpp_xy,
        nuclei=replace(
            slide.nuclei, types=classes.astype(np.int32), class_probs=None, measured=stained.densities.columns()
        ),
        stained=stained,
        scores=scores,
        tissue=tissue,
        chosen=chosen,
        marker=marker,
        notes=tuple(notes),
    )


def tissue_region(image: SlideImage, mpp_xy: tuple[float, float] | None, xy: np.ndarray) -> Region | None:
    """Outline the tissue of a slide or an image; `None` where there is none.

    Where there is a nucleus there is tissue, however pale: given back as drawn, the outline leaves no nucleus out.

    Args:
        image: the slide.
        mpp_xy: um per level-0 px, or `None`.
        xy: (N, 2) nuclei, level-0 px.
    """
    rgb = image.thumbnail()
    mpp_xy = _known(mpp_xy)
    mask = find_tissue(rgb, (mpp_xy[0] * image.width / rgb.shape[1], mpp_xy[1] * image.height / rgb.shape[0])).mask
    scale_xy = np.array([image.width / mask.shape[1], image.height / mask.shape[0]])
    columns, rows = np.clip((xy + 0.5) // scale_xy, 0, np.array(mask.shape[::-1]) - 1).astype(np.int64).T
    nuclei = np.zeros(mask.shape, np.uint8)
    nuclei[rows, columns] = 1
    mask |= cv2.dilate(nuclei, np.ones((3, 3), np.uint8)) > 0
    area = mask_outline(mask, *scale_xy.tolist())
    return None if area.is_empty else Region(TISSUE, TISSUE, area)


def mask_outline(mask: np.ndarray, scale_x: float, scale_y: float) -> BaseGeometry:
    """Return the outline of a mask as an area in px of a plane `scale` times as fine; holes are holes.

    It leaves the edges of the px of the mask by at most `SMOOTH_PX` of them.
    """
    runs = find_mask_runs(mask.astype(np.uint8))
    x0, x1, y0, y1 = (runs.x0 * scale_x, runs.x1 * scale_x, runs.y * scale_y, (runs.y + 1) * scale_y)
    area = shapely.union_all(shapely.box(x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5))
    return area.simplify(SMOOTH_PX * max(scale_x, scale_y))


def _classes(slide: FoundNuclei, stained: Stained, marker: Marker, by_types: bool) -> np.ndarray:
    if not by_types:
        classes = _not_from_around(classify(stained.dab, marker.thresholds), stained.densities, marker.min_contrast)
        classes[_small(slide, stained.densities, marker)] = NOT_COUNTED
        return classes
    if slide.nuclei.types is None or slide.types is None:
        raise ValueError("--classes=types needs a network with types, and these nuclei have none")
    return classes_of_types(slide.nuclei.types, slide.types, stained.dab, marker.thresholds)


def _known(mpp_xy: tuple[float, float] | None) -> tuple[float, float]:
    return mpp_xy or (UNKNOWN_MPP, UNKNOWN_MPP)


def _small(slide: FoundNuclei, densities: Densities, marker: Marker) -> np.ndarray:
    """(N,) bool: nuclei that were measured and are too small to count."""
    um2 = densities.pixels * np.prod(_known(slide.mpp_xy))
    return (um2 > 0) & (um2 < marker.min_area_um2)


def _not_from_around(classes: np.ndarray, densities: Densities, min_contrast: float) -> np.ndarray:
    """Call weak and moderate nuclei negative that are not browner than the ring around them.

    Cytoplasm and membranes lie over the nucleus, too. A strong nucleus among others like it is positive without that.
    """
    pale = densities.dab_median - densities.ring_dab_median < min_contrast  # False where there is no ring
    graded = (classes == WEAK) | (classes == MODERATE)
    return np.where(graded & pale & (min_contrast > 0), NEGATIVE, classes).astype(classes.dtype)


def _odd(slide: FoundNuclei, stained: Stained, classes: np.ndarray, tissue: list[Region], marker: Marker) -> list[str]:
    """Say what is unusual about a slide."""
    notes = []
    if not tissue:
        notes.append("no tissue found")
    if len(classes) and not (classes > NEGATIVE).any():
        notes.append("no positive nucleus, so no hot spot")
    small = _small(slide, stained.densities, marker)
    if missing := int(((classes == NOT_COUNTED) & ~small).sum()):
        notes.append(f"{missing} nuclei could not be measured: in no share")
    if small.any():
        notes.append(f"{counted(int(small.sum()), 'nucleus')} smaller than --min_area: in no share")
    if 2 * small.sum() > len(small):
        notes.append(f"most nuclei are that small: is {_known(slide.mpp_xy)[0]:g} um/px right?")
    brown = stained.dab >= marker.thresholds[0]
    if stained.densities.lies_around(brown):
        notes.append("DAB lies around the nuclei rather than in them: a marker of membranes or cytoplasm?")
        if marker.min_contrast:
            notes.append(f"{counted(int((brown & (classes == NEGATIVE)).sum()), 'nucleus')} negative by --min_contrast")
    return notes
