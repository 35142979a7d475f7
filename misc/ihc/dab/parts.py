"""Scores of one slide: of all its nuclei, of each region, of all regions together, of the rest, and of its hot spots.

A nucleus counts once in "all regions", and in every region it lies in. What is excluded, or lies outside of the tissue
that somebody drew, counts nowhere but in a part of its own, so that the parts add up to the nuclei of the slide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import shapely

from misc.formats.sedeen import HOT_SPOT
from misc.ihc.dab.hot_spots import HotSpot, find_hot_spots
from misc.ihc.density import mm2
from misc.ihc.markers import Marker
from misc.ihc.regions import Chosen, Region, holds, union
from misc.ihc.scores import MarkerScore, score_marker

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

# What a part of a slide is, as the tables call it.
SLIDE, REGION, ALL_REGIONS, REST, EXCLUDED, SPOT = "slide", "region", "all regions", "rest", "excluded", "hot spot"


@dataclass(frozen=True)
class Part:
    """Some nuclei of a slide, and their scores.

    Attributes:
        scope: one of the words above.
        members: (N,) bool.
        area_mm2: of its tissue; NaN where px have no size.
        scored: the scores.
        region: its outline, of regions and hot spots.
        rank: of a hot spot, 1 is the best.
        side_um: of a hot spot that was searched: side of the square, or diameter.
        tissue_share: of a hot spot, how much of it is tissue, 0 to 1.
        flags: what a person should know before quoting the numbers.
    """

    scope: str
    members: np.ndarray
    area_mm2: float
    scored: MarkerScore
    region: Region | None = None
    rank: int | None = None
    side_um: float | None = None
    tissue_share: float | None = None
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.region.name if self.region else ""


@dataclass(frozen=True)
class SlideScores:
    """The parts of a slide, and which of them its index is of."""

    parts: list[Part]

    @property
    def overall(self) -> Part:
        """All regions together where there are regions, else the slide."""
        return next((part for part in self.parts if part.scope == ALL_REGIONS), self.parts[0])

    @property
    def hot_spots(self) -> list[Part]:
        return [part for part in self.parts if part.scope == SPOT]


@dataclass(frozen=True)
class Scorer:
    """What the scores of a slide are computed from.

    Attributes:
        xy: (N, 2) centroids, level-0 px.
        classes: (N,) staining classes.
        marker: how they are read.
        chosen: the regions of the slide.
        tissue: where there is tissue, drawn or found.
        mpp_xy: um per level-0 px, or `None`: no areas, and no hot spots but those that were drawn.
        size_wh: of the slide, level-0 px.
    """

    xy: np.ndarray
    classes: np.ndarray
    marker: Marker
    chosen: Chosen
    tissue: BaseGeometry
    mpp_xy: tuple[float, float] | None
    size_wh: tuple[int, int]

    def run(self) -> SlideScores:
        """Score all parts of the slide."""
        excluded = union(self.chosen.excluded)
        counted = ~holds(excluded, self.xy)
        if self.chosen.tissue:
            counted &= holds(self.tissue, self.xy)
        ground = self.tissue - excluded
        parts = [self._part(SLIDE, counted, ground)]
        if regions := self.chosen.scored:
            together, area = np.zeros(len(self.xy), bool), union(regions)
            for region in regions:
                inside = region.holds(self.xy) & counted
                together |= inside
                parts.append(self._part(REGION, inside, region.area & ground, region=region))
            parts.append(self._part(ALL_REGIONS, together, area & ground))
            parts.append(self._part(REST, counted & ~together, ground - area))
            ground = area & ground
        within = SlideScores(parts).overall.members
        if not counted.all():
            parts.append(self._part(EXCLUDED, ~counted, excluded & self.tissue))
        return SlideScores([*parts, *self._hot_spots(within, ground)])

    def _hot_spots(self, within: np.ndarray, ground: BaseGeometry) -> list[Part]:
        """Score the fields that were drawn, or else search; only nuclei and tissue of the regions count in them."""
        if drawn := self.chosen.hot_spots:
            found = [self._spot(region, region.area, region.holds(self.xy) & within, ground) for region in drawn]
            found.sort(key=lambda part: -np.nan_to_num(part.scored.score.index, nan=-1))
            return [replace(part, rank=rank) for rank, part in enumerate(found, 1)]
        if self.mpp_xy is None:
            return []
        xy_um = (self.xy + 0.5) * self.mpp_xy
        tissue_um = shapely.transform(self.tissue, lambda xy: (xy + 0.5) * self.mpp_xy)
        found = find_hot_spots(xy_um, self.classes, within, self.marker, tissue_um)
        return [self._found(spot, ground) for spot in found]

    def _found(self, spot: HotSpot, ground: BaseGeometry) -> Part:
        outline = shapely.Polygon(spot.outline_xy_um() / self.mpp_xy - 0.5)
        members = np.zeros(len(self.xy), bool)
        members[spot.members] = True
        flags = []
        if spot.side_um > self.marker.side_um:
            flags.append(f"grown to {spot.side_um:.0f} um to hold {self.marker.min_nuclei} nuclei")
        if not spot.has_enough:
            flags.append(f"no field holds {self.marker.min_nuclei} nuclei: the fullest one")
        if not spot.has_tissue:
            flags.append(f"less than {100 * self.marker.min_tissue:g} % of it is tissue, as of all fields: the fullest")
        width, height = self.size_wh
        on_slide = outline & shapely.box(-0.5, -0.5, width - 0.5, height - 0.5)
        region = Region(f"{HOT_SPOT} {spot.rank}", HOT_SPOT, on_slide)
        return self._spot(region, outline, members, ground, rank=spot.rank, side_um=spot.side_um, flags=tuple(flags))

    def _spot(self, region: Region, field: BaseGeometry, members: np.ndarray, ground: BaseGeometry, **more) -> Part:
        """Score a field, of which `region` is what lies on the slide."""
        share = float((field & self.tissue).area / field.area)
        return self._part(SPOT, members, region.area & ground, region=region, tissue_share=share, **more)

    def _part(self, scope: str, members: np.ndarray, area: BaseGeometry, **more) -> Part:
        size = float("nan") if self.mpp_xy is None else mm2(float(area.area), self.mpp_xy)
        scored = score_marker(self.classes, self.marker, members)
        more["flags"] = (*more.get("flags", ()), *scored.flags)
        return Part(scope, members, size, scored, **more)
