"""Contours in GeoJSON: QuPath's objects, with the objects inside them, or plain features.

QuPath counts from the corner of the first pixel; the contours are moved by half a pixel to the centres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import skimage

from misc.formats.contours import Annotations, Contour, area, ellipse
from misc.formats.qupath import MIN_POINTS

# From the corner of a pixel to its centre, px.
CORNER_TO_CENTRE = -0.5
# `objectType` of QuPath's; earlier versions wrote the class of the object as its id.
ANNOTATION, DETECTION, CELL = "annotation", "detection", "cell"
TMA_CORE = "tma core"
AROUND_NUCLEI = frozenset({"tile", TMA_CORE, "root"})
# Outlines of parts of the slide; a feature without a kind counts as one.
_REGIONS = frozenset({ANNOTATION, TMA_CORE, ""})
_KINDS_BY_ID = {
    "PathAnnotationObject": ANNOTATION,
    "PathDetectionObject": DETECTION,
    "PathCellObject": CELL,
    "PathTileObject": "tile",
    "TMACoreObject": TMA_CORE,
    "PathRootObject": "root",
}


@dataclass(frozen=True)
class GeoObject:
    """One object.

    Attributes:
        kind: QuPath's object type, in lower case; empty where the file has none.
        geometry: as in the file.
        is_nucleus: the geometry is a cell's nucleus.
        outlines: rings of each outlined thing, (N, 2) float64, px; whole numbers are pixel centres.
        label: the class, empty where there is none.
        colour: `#rrggbb`, empty where there is none.
        name: the name that a user gave it.
    """

    kind: str
    geometry: dict
    is_nucleus: bool
    outlines: list[list[np.ndarray]]
    label: str
    colour: str
    name: str


def from_geojson(content) -> Annotations:
    """Read a FeatureCollection, a list of features, or one feature.

    Where the file holds detections or cells, annotations are regions. In a file of annotations alone an unclassified
    one that contains others is a region.

    Raises:
        ValueError: it is none of these, or a feature is broken; the message says which.
    """
    objects = list(find_objects(content))
    has_detections = any(one.kind in (DETECTION, CELL) for one in objects)
    contours, may_be_region, others = [], [], Counter()
    for one in objects:
        if one.kind == CELL and not one.is_nucleus:
            others["cell without nucleus"] += 1
        elif one.kind in AROUND_NUCLEI:
            others[one.kind] += 1
        elif one.kind == ANNOTATION and has_detections:
            others["region"] += 1
        elif not one.outlines:
            others[str(one.geometry.get("type")).lower()] += 1
        else:
            contours += [Contour(rings, one.label, one.colour) for rings in one.outlines]
            may_be_region += [not one.label and not has_detections] * len(one.outlines)
    regions = _regions(contours, may_be_region)
    if regions:
        others["region"] += len(regions)
    return Annotations([contour for i, contour in enumerate(contours) if i not in regions], others)


def regions_from_geojson(content) -> Annotations:
    """Read the regions of a slide: annotations and cores of tissue arrays, not detections, cells and tiles.

    Raises:
        ValueError: as `from_geojson`.
    """
    contours, others = [], Counter()
    for one in find_objects(content):
        if one.kind in _REGIONS and one.outlines:
            label = one.label or (TMA_CORE if one.kind == TMA_CORE else "")
            contours += [Contour(rings, label, one.colour, name=one.name) for rings in one.outlines]
        else:
            others[one.kind or str(one.geometry.get("type")).lower()] += 1
    return Annotations(contours, others)


def find_objects(content) -> Iterator[GeoObject]:
    """Yield the objects in the order of the file, each before those that lie in it.

    Raises:
        ValueError: a feature is broken; the message says which.
    """
    waiting = _as_list(content)[::-1]
    index = 0
    while waiting:
        feature = waiting.pop()
        if not isinstance(feature, dict) or "geometry" not in feature:
            raise ValueError("not GeoJSON: a FeatureCollection or a list of Features with geometries was expected")
        try:
            properties = feature.get("properties") or {}
            children = properties.get("childObjects") or feature.get("childObjects") or []
            yield _object(feature, properties)
            waiting += _as_list(children)[::-1]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"feature {index}: {error}") from error
        index += 1


def _as_list(content) -> list:
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise ValueError(f"not GeoJSON: its features are no list but {type(features).__name__}")
    return features


def _object(feature: dict, properties: dict) -> GeoObject:
    kind = str(properties.get("objectType") or properties.get("object_type") or "").lower().replace("_", " ")
    nucleus = _nucleus(feature) or _nucleus(properties)  # a cell has two outlines; we want the inner one
    geometry = nucleus or feature["geometry"] or {"type": "nothing"}
    outlines = list(_outlines(geometry))
    if not nucleus and any(where.get("isEllipse") for where in (geometry, properties, feature)):
        outlines = [[ellipse(ring) for ring in rings] for rings in outlines]
    kind = kind or _KINDS_BY_ID.get(str(feature.get("id")), "")
    name = str(properties.get("name") or "").strip()
    return GeoObject(kind, geometry, bool(nucleus), outlines, *_class_of(properties), name)


def _nucleus(where: dict) -> dict | None:
    """Return the outline of a cell's nucleus: `nucleusGeometry` as QuPath has it, `extra_geometries` as QuBaLab."""
    return where.get("nucleusGeometry") or (where.get("extra_geometries") or {}).get("nucleus")


def _class_of(properties: dict) -> tuple[str, str]:
    """Return the class and its `#rrggbb`; a classification is an object, or simply the name of the class."""
    classification = properties.get("classification") or {}
    if isinstance(classification, str):
        return classification.strip(), _colour(properties.get("color"))
    colour = classification.get("color", classification.get("colorRGB", properties.get("color")))
    names = classification.get("names") or []  # of derived classes, e.g. ["Tumor", "Positive"]
    return str(classification.get("name") or ": ".join(names)).strip(), _colour(colour)


def _outlines(geometry: dict) -> Iterator[list[np.ndarray]]:
    """Yield the rings of each outlined thing: a Polygon, a MultiPolygon, each of a collection; points are none."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            if part["type"] != kind:  # collections in collections are no nuclei
                yield from _outlines(part)
    elif kind in ("Polygon", "MultiPolygon"):
        rings = [_ring(ring) for polygon in ([coordinates] if kind == "Polygon" else coordinates) for ring in polygon]
        rings = [ring for ring in rings if len(ring) >= MIN_POINTS]
        if rings:
            yield rings


def _ring(points) -> np.ndarray:
    """Return the (N, 2) points of a ring; a third coordinate, which GeoJSON allows, is left out."""
    try:
        ring = np.array(points, np.float64)
    except (ValueError, TypeError):
        ring = np.zeros(0)
    if ring.ndim != 2 or ring.shape[1] < 2:
        if isinstance(points, list) and not points:
            return np.zeros((0, 2))
        raise ValueError("a ring is no list of points [x, y]")
    return ring[:, :2] + CORNER_TO_CENTRE


def _colour(colour) -> str:
    """Turn [r, g, b], QuPath's signed ARGB integer or `#rrggbb` into `#rrggbb`."""
    if colour is None:
        return ""
    if isinstance(colour, str) and colour.startswith("#"):
        return colour[:7].lower()
    if not isinstance(colour, list):
        return f"#{int(colour) & 0xFFFFFF:06x}"
    red, green, blue = (int(value) & 0xFF for value in colour[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _regions(contours: list[Contour], may_be_region: list[bool]) -> set[int]:
    """Return which contours are regions: candidates with a smaller contour completely inside."""
    candidates = np.flatnonzero(may_be_region)
    if not len(candidates):
        return set()
    low = np.array([contour.rings[0].min(axis=0) for contour in contours])
    high = np.array([contour.rings[0].max(axis=0) for contour in contours])
    order = np.argsort(low[:, 0], kind="stable")
    left = low[order, 0]
    found = set()
    for i in candidates.tolist():
        # only contours that begin between its left and right edge can lie in it
        near = order[np.searchsorted(left, low[i, 0]) : np.searchsorted(left, high[i, 0], "right")]
        inside = near[((low[near] >= low[i]) & (high[near] <= high[i])).all(axis=1) & (near != i)]
        if any(_contains(contours[i].rings[0], contours[j].rings[0]) for j in inside.tolist()):
            found.add(i)
    return found


def _contains(outer: np.ndarray, inner: np.ndarray) -> bool:
    return area(outer) > area(inner) and bool(skimage.measure.points_in_poly(inner, outer).all())
