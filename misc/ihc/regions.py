"""Regions of a slide: areas that people outlined, and which nuclei lie in them.

All coordinates are level-0 px in which whole numbers are the centres of pixels. A nucleus lies in a region when its
centroid does, or is on its edge; in a hole it does not.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import shapely

from misc.formats.contours import Contour
from misc.formats.scanline import box_of, fill_ring
from misc.formats.sedeen import HOT_SPOT

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

# Classes that mean more than a region: where there is tissue at all, and fields that are scored as they are drawn.
TISSUE = "Tissue"
NO_CLASS = "region"


@dataclass(frozen=True)
class Region:
    """An outlined area.

    Attributes:
        name: no two regions of a slide share it.
        label: its class, empty where there is none.
        area: a polygon or several, valid, level-0 px.
    """

    name: str
    label: str
    area: BaseGeometry

    @functools.cached_property
    def area_px(self) -> float:
        """Area in level-0 px^2, holes taken off."""
        return float(self.area.area)

    def holds(self, xy: np.ndarray) -> np.ndarray:
        """Tell which points lie in the region: (N, 2) level-0 px -> (N,) bool."""
        return holds(self.area, xy)


@dataclass(frozen=True)
class Chosen:
    """The regions of a slide by what they are there for.

    Attributes:
        scored: each gets scores of its own, and all of them together.
        excluded: nuclei in these count nowhere.
        tissue: outlines of tissue; nuclei outside count nowhere, and areas are of tissue in them. Empty: not drawn.
        hot_spots: fields that a person placed; empty: they are to be searched.
        others: of classes that nobody asked for.
    """

    scored: list[Region]
    excluded: list[Region]
    tissue: list[Region]
    hot_spots: list[Region]
    others: list[Region]


def holds(area: BaseGeometry, xy: np.ndarray) -> np.ndarray:
    """Tell which points lie in an area or on its edge.

    Args:
        area: a polygon or several.
        xy: (N, 2) float64.

    Returns:
        (N,) bool.
    """
    inside = np.zeros(len(xy), bool)
    if area.is_empty:
        return inside
    x0, y0, x1, y1 = area.bounds
    near = np.flatnonzero(((xy >= (x0, y0)) & (xy <= (x1, y1))).all(axis=1))
    shapely.prepare(area)
    inside[near] = shapely.intersects_xy(area, xy[near, 0], xy[near, 1])
    return inside


def union(regions: Iterable[Region]) -> BaseGeometry:
    """Return what several regions cover together."""
    return shapely.union_all([region.area for region in regions])


def area_mask(area: BaseGeometry, shape: tuple[int, int]) -> np.ndarray:
    """Tell which px of a grid have their centre in an area; whole numbers are the centres, (rows, columns) bool."""
    mask = np.zeros(shape, bool)
    for polygon in shapely.get_parts(area):
        for ring in (polygon.exterior, *polygon.interiors):
            points = shapely.get_coordinates(ring)
            box = box_of([points], shape)
            mask[box.y0 : box.y1, box.x0 : box.x1] ^= fill_ring(points, box)  # a hole takes away what is around it
    return mask


def outline(contour: Contour) -> BaseGeometry:
    """Make a valid area of drawn rings: even-odd, as they are filled by the programs that drew them.

    A line that crosses itself parts the area there; what has no area at all is empty.
    """
    rings = [_valid(ring) for ring in contour.rings]
    area = functools.reduce(operator.xor, rings)
    if contour.holes:
        area = area - shapely.union_all([_valid(ring) for ring in contour.holes])
    return _polygons(area)


def make_regions(contours: Sequence[Contour]) -> list[Region]:
    """Turn outlines into regions; those of one name are numbered, `Tumor 1`, `Tumor 2`, in the order of the file.

    Outlines without an area are left out.
    """
    areas = [outline(contour) for contour in contours]
    found = [
        Region(contour.name or contour.label or NO_CLASS, contour.label, area)
        for contour, area in zip(contours, areas, strict=True)
        if not area.is_empty
    ]
    count = Counter(region.name for region in found)
    taken = {name for name, times in count.items() if times == 1}
    named = []
    for region in found:
        name = region.name
        if count[name] > 1:
            numbered = (f"{region.name} {number}" for number in itertools.count(1))
            name = next(one for one in numbered if one not in taken)
        taken.add(name)
        named.append(replace(region, name=name))
    return named


def choose(regions: Sequence[Region], include: Sequence[str], exclude: Sequence[str]) -> Chosen:
    """Part the regions of a slide by class; upper and lower case are the same.

    Args:
        regions: all that were drawn.
        include: classes that are scored; none: all but those that are left out or mean something else.
        exclude: classes whose nuclei count nowhere.

    Raises:
        ValueError: the slide has no region of any included class.
    """
    wanted, unwanted = ({name.strip().lower() for name in names} for names in (include, exclude))
    kinds: dict[str, list[Region]] = {"scored": [], "excluded": [], "tissue": [], "hot_spots": [], "others": []}
    meanings = {TISSUE.lower(): "tissue", HOT_SPOT.lower(): "hot_spots"}
    for region in regions:
        label = region.label.lower()
        if label in unwanted:
            kinds["excluded"].append(region)
        elif label in wanted or label not in meanings:
            kinds["scored" if not wanted or label in wanted else "others"].append(region)
        else:
            kinds[meanings[label]].append(region)
    if wanted and not kinds["scored"]:
        there = ", ".join(sorted({region.label or "no class" for region in regions})) or "none"
        raise ValueError(f"no region of class {', '.join(include)} (--include); the classes drawn are: {there}")
    return Chosen(**kinds)


def _valid(ring: np.ndarray) -> BaseGeometry:
    polygon = shapely.Polygon(ring)
    return polygon if polygon.is_valid else shapely.make_valid(polygon)


def _polygons(area: BaseGeometry) -> BaseGeometry:
    """Leave out the lines and points that overlaying areas may leave behind."""
    parts = [part for part in shapely.get_parts(area) if part.geom_type in ("Polygon", "MultiPolygon") and part.area]
    return shapely.union_all(parts) if parts else shapely.Polygon()
