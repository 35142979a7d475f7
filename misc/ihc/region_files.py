"""Files of regions: found by the name of the slide, read from what people draw with, written so that they edit them.

GeoJSON for QuPath and sessions for Sedeen hold tissue, regions and hot spots by class; given back as `--regions` they
give the same areas again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import shapely

from misc.files import full_stem, list_files, write_atomic
from misc.formats.annotations import read_regions
from misc.formats.qupath import qupath_xy
from misc.formats.sedeen import HOLE, HOT_SPOT, RANK_PENS, Graphic, pen
from misc.ihc.regions import TISSUE, Region, make_regions
from misc.type_info import RGB

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

SUFFIXES = (".geojson", ".geojson.gz", ".json", ".xml")
# Colours by class, Okabe and Ito's, told apart by readers of any colour vision; other classes are `_OTHER`.
COLOURS: dict[str, RGB] = {TISSUE: (0, 0, 0), HOT_SPOT: (213, 94, 0)}
_OTHER: RGB = (0, 114, 178)
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "hovernet-toolkit/region")


def region_colour(label: str) -> RGB:
    """Return the colour in which regions of a class are drawn, in all files and pictures."""
    return COLOURS.get(label, _OTHER)


def find_files(folder: str | Path) -> dict[str, list[Path]]:
    """List the files of a folder that may hold regions, by the name of their slide.

    `a.geojson`, `a.svs.geojson`, `a.session.xml` and `a.svs.session.xml` are all of the slide `a.svs`; the name is
    what is left of the extension of the file, so it may be `a` or `a.svs`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    found: dict[str, list[Path]] = {}
    for path in list_files(folder):
        if path.name.lower().endswith(SUFFIXES):
            found.setdefault(full_stem(path), []).append(path)
    return found


def file_of(files: Mapping[str, list[Path]], slide: str) -> Path | None:
    """Return the file of a slide, by its file name with or without the extension; `None` where there is none.

    Raises:
        ValueError: there is more than one.
    """
    paths = [path for name in dict.fromkeys((slide, full_stem(slide))) for path in files.get(name, [])]
    if len(paths) > 1:
        raise ValueError(f"{slide}: --regions has more than one file of it: {', '.join(path.name for path in paths)}")
    return paths[0] if paths else None


def load_regions(path: Path, origin_xy: tuple[int, int] = (0, 0)) -> list[Region]:
    """Read the regions of a slide.

    Args:
        path: GeoJSON, or XML of Sedeen, ASAP, ImageScope or HALO.
        origin_xy: corner of what QuPath shows of the slide, level-0 px, from which QuPath counts.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is broken, or what it holds outlines no region.
    """
    found = read_regions(path)
    if found.others and not found.contours:
        others = ", ".join(f"{count} {kind}" for kind, count in sorted(found.others.items()))
        raise ValueError(f"{path}: nothing in it outlines a region: {others}")
    regions = make_regions(found.contours)
    if path.name.lower().endswith(".xml") or not any(origin_xy):
        return regions
    moved = [shapely.transform(region.area, lambda xy: xy + origin_xy) for region in regions]
    return [Region(region.name, region.label, area) for region, area in zip(regions, moved, strict=True)]


def write_regions(
    path: Path,
    regions: Iterable[Region],
    measurements: Mapping[str, Mapping[str, float]] | None = None,
    origin_xy: tuple[int, int] = (0, 0),
) -> None:
    """Write regions as annotations for QuPath.

    Args:
        path: the file.
        regions: names and classes are QuPath's.
        measurements: by the name of the region, what QuPath shows of it.
        origin_xy: as in `load_regions`.
    """
    namespace = uuid.uuid5(_NAMESPACE, full_stem(path))
    features = []
    for region in regions:
        area = shapely.transform(region.area, lambda xy: qupath_xy(xy, origin_xy=origin_xy))
        properties = {"objectType": "annotation", "name": region.name}
        if region.label:
            properties["classification"] = {"name": region.label, "color": list(region_colour(region.label))}
        if values := (measurements or {}).get(region.name):
            properties["measurements"] = {name: value for name, value in values.items() if value == value}
        identity = str(uuid.uuid5(namespace, region.name))
        features.append(
            {"type": "Feature", "id": identity, "geometry": shapely.geometry.mapping(area), "properties": properties}
        )
    write_atomic(path, orjson.dumps({"type": "FeatureCollection", "features": features}))


def region_graphics(regions: Iterable[Region]) -> Iterator[Graphic]:
    """Yield the outlines of regions for Sedeen.

    It knows no holes: each is a graphic that is described as one. Hot spots are as the lab has them, `top1`, `top2`.
    """
    rank = 0
    for region in regions:
        colour, label = pen(region_colour(region.label)), region.label or region.name
        if region.label == HOT_SPOT:
            rank += 1
            colour, label = RANK_PENS[min(rank, len(RANK_PENS)) - 1], f"top{rank}"
        for polygon in shapely.get_parts(region.area):
            corners = _ring(polygon.exterior)
            kind = "rectangle" if len(corners) == 4 and polygon.equals(shapely.box(*polygon.bounds)) else "polygon"
            yield Graphic(kind, corners, colour, region.name, label)
            for hole in polygon.interiors:
                yield Graphic("polygon", _ring(hole), colour, region.name, f"{label}{HOLE}")


def _ring(ring: BaseGeometry) -> np.ndarray:
    """Return the points of a ring, (N, 2); the first one does not come back at the end."""
    return shapely.get_coordinates(ring)[:-1]
