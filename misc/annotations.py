"""Hand-drawn contours from Sedeen, QuPath, ASAP and Aperio ImageScope, as one kind of object.

The format is told by the content, not by the name. All coordinates come out as px of the image in which whole numbers
are the centres of pixels. QuPath counts from the corner of the first pixel, and is moved by half a pixel. ImageScope's
coordinates are centres: so taken, the contours of TCGA-B0-5710 give the pixels of its published label map, all of them.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException

from misc import sedeen
from misc.export_qupath import MIN_POINTS

# From the corner of a pixel to its centre, px.
CORNER_TO_CENTRE = -0.5
ELLIPSE_POINTS = 90
# What ImageScope's `Region@Type` means; other numbers enclose nothing.
_APERIO_SHAPES = {"0": "polygon", "1": "rectangle", "2": "ellipse"}
_APERIO_OTHERS = {"3": "arrow", "4": "ruler", "5": "polyline"}
_ASAP_SHAPES = frozenset({"polygon", "spline", "rectangle"})
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Contour:
    """One outlined object.

    Attributes:
        rings: each (N, 2) float64, x and y in px; even-odd: a ring within a ring is a hole.
        label: the class as text, empty where there is none.
        colour: `#rrggbb` in lower case, empty where there is none.
    """

    rings: list[np.ndarray]
    label: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Annotations:
    """What an annotation file holds.

    Attributes:
        contours: in the order of the file.
        others: what encloses no area (text, rulers, points, ...), number by type.
        image_name: file name of the image it was drawn on, empty where the file does not say.
    """

    contours: list[Contour]
    others: Counter = field(default_factory=Counter)
    image_name: str = ""


def read_annotations(path: str | Path) -> Annotations:
    """Read a Sedeen session, QuPath GeoJSON (`.gz` too), ASAP or ImageScope XML.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or broken; one line says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    data = path.read_bytes()
    try:
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        if text[:1] in (b"{", b"["):
            return _from_geojson(json.loads(text))
        if text[:1] != b"<":
            raise ValueError("neither XML nor GeoJSON")
        root = defusedxml.ElementTree.fromstring(text, forbid_dtd=True)
    except ParseError as error:
        raise ValueError(f"{path}: broken XML: {error}") from error
    except DefusedXmlException as error:
        raise ValueError(f"{path}: refused, annotations hold no entities: {type(error).__name__}") from error
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: {error}") from error
    if root.tag == "session":
        return _from_sedeen(path)
    readers = {"ASAP_Annotations": _from_asap, "Annotations": _from_aperio}
    if root.tag not in readers:
        raise ValueError(
            f"{path}: its first element is <{root.tag}>; Sedeen (<session>), ASAP (<ASAP_Annotations>) and ImageScope "
            "(<Annotations>) are read"
        )
    try:
        return readers[root.tag](root)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _from_sedeen(path: Path) -> Annotations:
    session = sedeen.read_session(path)
    contours, others = [], Counter()
    for graphic in session.graphics:
        if graphic.may_be_nucleus:
            contours.append(Contour([graphic.outline_xy()], graphic.description.strip(), graphic.pen_colour[:7]))
        else:
            others[graphic.type] += 1
    return Annotations(contours, others, session.image_name)


def _from_geojson(content) -> Annotations:
    features = content.get("features", [content]) if isinstance(content, dict) else content
    contours, others = [], Counter()
    for feature in features:
        if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
            raise ValueError("not GeoJSON: a FeatureCollection or a list of Features with geometries was expected")
        geometry, properties = feature["geometry"], feature.get("properties") or {}
        rings = _geojson_rings(geometry)
        if not rings:
            others[str(geometry.get("type")).lower()] += 1
            continue
        classification = properties.get("classification") or {}
        colour = classification.get("color", classification.get("colorRGB", properties.get("color")))
        contours.append(Contour(rings, str(classification.get("name") or "").strip(), _qupath_colour(colour)))
    return Annotations(contours, others)


def _geojson_rings(geometry: dict) -> list[np.ndarray]:
    """Return the rings of a Polygon or MultiPolygon; nothing for points and lines."""
    polygons = {"Polygon": lambda c: [c], "MultiPolygon": list}.get(geometry.get("type"), lambda c: [])(
        geometry.get("coordinates", [])
    )
    rings = [np.array(ring, np.float64).reshape(-1, 2) + CORNER_TO_CENTRE for polygon in polygons for ring in polygon]
    return [ring for ring in rings if len(ring) >= MIN_POINTS]


def _qupath_colour(colour) -> str:
    """Turn [r, g, b] or QuPath's signed ARGB integer into `#rrggbb`."""
    if isinstance(colour, (list, tuple)):
        return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in colour[:3]))
    return "" if colour is None else f"#{int(colour) & 0xFFFFFF:06x}"


def _from_asap(root: Element) -> Annotations:
    contours, others = [], Counter()
    for element in root.iterfind("./Annotations/Annotation"):
        shape = element.get("Type", "").lower()
        found = sorted(element.iterfind("Coordinates/Coordinate"), key=lambda c: int(float(c.get("Order", 0))))
        points = np.array([(float(c.get("X")), float(c.get("Y"))) for c in found]).reshape(-1, 2)
        if shape in _ASAP_SHAPES and len(points) >= MIN_POINTS:
            group = element.get("PartOfGroup", "")
            label = "" if group == "None" else group.strip()
            contours.append(Contour([points], label, element.get("Color", "").lower()[:7]))
        else:
            others[shape or "unknown"] += 1
    return Annotations(contours, others)


def _from_aperio(root: Element) -> Annotations:
    contours, others = [], Counter()
    for layer in root.iterfind("./Annotation"):
        # red in the lowest byte
        colour = int(layer.get("LineColor", 0)).to_bytes(4, "little")[:3].hex()
        for region in layer.iterfind("Regions/Region"):
            kind = region.get("Type", "0")
            points = np.array([(float(v.get("X")), float(v.get("Y"))) for v in region.iterfind("Vertices/Vertex")])
            if _APERIO_SHAPES.get(kind) == "ellipse" and len(points):
                points = _ellipse(points)
            if kind in _APERIO_SHAPES and len(points) >= MIN_POINTS:
                label = (region.get("Text") or layer.get("Name") or "").strip()
                contours.append(Contour([points.reshape(-1, 2)], label, f"#{colour}"))
            else:
                others[_APERIO_OTHERS.get(kind, _APERIO_SHAPES.get(kind, "unknown"))] += 1
    return Annotations(contours, others)


def _ellipse(corners: np.ndarray) -> np.ndarray:
    """Return the ellipse in the box of some points, as a polygon."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    return (low + high) / 2 + np.stack([np.cos(angle), np.sin(angle)], axis=1) * (high - low) / 2


class TypeMapping:
    """Which class names and colours mean which type.

    Args:
        types: name or `#rrggbb` to type id, or to `None` for what is to be left out; upper and lower case are the same.
    """

    def __init__(self, types: dict[str, int | None]):
        self.types = {key.strip().lower()[: 7 if key.startswith("#") else None]: value for key, value in types.items()}

    @classmethod
    def of_type_info(cls, type_info: dict) -> TypeMapping:
        """Take names and colours of a `type_info.json`; type 0 is no nucleus, and left out."""
        known = {key: value for key, value in type_info.items() if key is not None}
        types = {name: key or None for key, (name, _) in known.items()}
        types |= {sedeen.pen(rgb): key for key, (_, rgb) in known.items() if key}
        return cls(types)

    @classmethod
    def of_lab(cls) -> TypeMapping:
        """Take the seed lab's pens and names: negative, weak, moderate, strong; the tumour bed is left out."""
        types = {name: key for key, name in sedeen.LAB_CLASSES.items()}
        return cls(types | {pen: key for key, pen in sedeen.LAB_PENS.items()} | {sedeen.TUMOUR_BED_PEN: None})

    @classmethod
    def read(cls, path: str | Path) -> TypeMapping:
        """Read `{"tumour": 1, "#00ff00": 2, "bed": null}`.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is not of that form.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            return cls({str(key): None if value is None else int(value) for key, value in content.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f'{path}: expected {{"class or #rrggbb": type id or null, ...}}: {error}') from error

    def __or__(self, other: TypeMapping) -> TypeMapping:
        return TypeMapping({**self.types, **other.types})

    def types_of(self, contours: list[Contour]) -> list[int | None]:
        """Return the type of each contour, `None` for those to leave out; the name decides before the colour.

        Raises:
            ValueError: neither name nor colour is known; all of those are listed with their number.
        """
        unknown = Counter(_describe(contour) for contour in contours if not set(_keys(contour)) & self.types.keys())
        if unknown:
            listed = ", ".join(f"{what} ({count})" for what, count in sorted(unknown.items()))
            raise ValueError(f"no type for {listed}; name them in --mapping (null leaves them out), or use --untyped")
        return [next(self.types[key] for key in _keys(contour) if key in self.types) for contour in contours]


def _keys(contour: Contour) -> Iterator[str]:
    yield from (key for key in (contour.label.lower(), contour.colour.lower()) if key)


def _describe(contour: Contour) -> str:
    label = f"`{contour.label}`" if contour.label else ""
    return " ".join(filter(None, [label, contour.colour])) or "no class, no colour"
