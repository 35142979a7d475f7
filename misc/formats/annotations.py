"""Hand-drawn contours from Sedeen, QuPath, ASAP and Aperio ImageScope, as one kind of object.

The format is told by the content, not by the name. All coordinates come out as px of the image in which whole numbers
are the centres of pixels. QuPath counts from the corner of the first pixel, and is moved by half a pixel. ImageScope's
coordinates are centres: so taken, the contours of TCGA-B0-5710 give the pixels of its published label map, all of them.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException

from misc.formats import sedeen
from misc.formats.qupath import MIN_POINTS

# From the corner of a pixel to its centre, px.
CORNER_TO_CENTRE = -0.5
ELLIPSE_POINTS = 90
# What ImageScope's `Region@Type` means; other numbers enclose nothing.
_APERIO_SHAPES = {"0": "polygon", "1": "rectangle", "2": "ellipse"}
_APERIO_OTHERS = {"3": "arrow", "4": "ruler", "5": "polyline"}
_ASAP_SHAPES = frozenset({"polygon", "spline", "rectangle"})
_GZIP_MAGIC = b"\x1f\x8b"
# Byte-order marks; what may stand before the first character; bytes in which that one should be.
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MARKS_AND_SPACE = b"\xef\xbb\xbf\xff\xfe \t\r\n"
_SNIFF_BYTES = 4096


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
    """Read a Sedeen session, QuPath GeoJSON, ASAP or ImageScope XML; in UTF-8 or UTF-16, compressed (gzip) or not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or broken; one line says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return _checked(_parse(path.read_bytes()))
    except ParseError as error:
        raise ValueError(f"{path}: broken XML: {error}") from error
    except DefusedXmlException as error:
        raise ValueError(f"{path}: refused, annotations hold no entities: {type(error).__name__}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: brackets within brackets, too deep to be annotations") from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not as annotations should be: {type(error).__name__}: {error}") from error


def _parse(data: bytes) -> Annotations:
    """Read whatever kind it is; UTF-16 has a zero in each character that tells the kind."""
    if data.startswith(_GZIP_MAGIC):
        data = gzip.decompress(data)
    first = data[:_SNIFF_BYTES].replace(b"\0", b"").lstrip(_MARKS_AND_SPACE)[:1]
    if first in (b"{", b"["):
        return _from_geojson(json.loads(data))
    if first != b"<":
        raise ValueError("neither XML nor GeoJSON")
    if not data.startswith(_UTF16_MARKS):
        data = data.lstrip(_MARKS_AND_SPACE)  # a declaration may not stand behind white space
    _, root = next(defusedxml.ElementTree.iterparse(io.BytesIO(data), events=("start",), forbid_dtd=True))
    if root.tag == "session":
        return _from_sedeen(sedeen.parse_session(io.BytesIO(data)))
    readers = {"ASAP_Annotations": _from_asap, "Annotations": _from_aperio}
    if root.tag not in readers:
        raise ValueError(
            f"its first element is <{root.tag}>; Sedeen (<session>), ASAP (<ASAP_Annotations>) and ImageScope "
            "(<Annotations>) are read"
        )
    return readers[root.tag](defusedxml.ElementTree.fromstring(data, forbid_dtd=True))


def _checked(found: Annotations) -> Annotations:
    for index, contour in enumerate(found.contours):
        if not all(np.isfinite(ring).all() for ring in contour.rings):
            raise ValueError(f"contour {index} has coordinates that are no finite numbers")
    return found


def _from_sedeen(session: sedeen.Session) -> Annotations:
    contours, others = [], Counter()
    for graphic in session.graphics:
        if graphic.may_be_nucleus:
            contours.append(Contour([graphic.outline_xy()], graphic.description.strip(), graphic.pen_colour[:7]))
        else:
            others[graphic.type] += 1
    return Annotations(contours, others, session.image_name)


def _from_geojson(content) -> Annotations:
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise ValueError(f"not GeoJSON: its features are no list but {type(features).__name__}")
    contours, others = [], Counter()
    for index, feature in enumerate(features):
        if not isinstance(feature, dict) or "geometry" not in feature:
            raise ValueError("not GeoJSON: a FeatureCollection or a list of Features with geometries was expected")
        # a cell of QuPath's has two outlines, and the nucleus is what is wanted
        geometry = feature.get("nucleusGeometry") or feature["geometry"] or {"type": "nothing"}
        try:
            rings = _geojson_rings(geometry)
            label, colour = _geojson_class(feature.get("properties") or {})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"feature {index}: {error}") from error
        if rings:
            contours.append(Contour(rings, label, colour))
        else:
            others[str(geometry.get("type")).lower()] += 1
    return Annotations(contours, others)


def _geojson_class(properties: dict) -> tuple[str, str]:
    """Return the class and its `#rrggbb`; a classification is an object, or simply the name of the class."""
    classification = properties.get("classification") or {}
    if isinstance(classification, str):
        return classification.strip(), _qupath_colour(properties.get("color"))
    colour = classification.get("color", classification.get("colorRGB", properties.get("color")))
    names = classification.get("names") or []  # of derived classes, e.g. ["Tumor", "Positive"]
    return str(classification.get("name") or ": ".join(names)).strip(), _qupath_colour(colour)


def _geojson_rings(geometry: dict) -> list[np.ndarray]:
    """Return the rings of a Polygon or MultiPolygon; nothing for points and lines."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        return []
    rings = [_ring(ring) for polygon in ([coordinates] if kind == "Polygon" else coordinates) for ring in polygon]
    return [ring for ring in rings if len(ring) >= MIN_POINTS]


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


def _qupath_colour(colour) -> str:
    """Turn [r, g, b], QuPath's signed ARGB integer or `#rrggbb` into `#rrggbb`."""
    if colour is None:
        return ""
    if isinstance(colour, str) and colour.startswith("#"):
        return colour[:7].lower()
    if not isinstance(colour, list):
        return f"#{int(colour) & 0xFFFFFF:06x}"
    red, green, blue = (int(value) & 0xFF for value in colour[:3])
    return f"#{red:02x}{green:02x}{blue:02x}"


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
            if region.get("NegativeROA", "0") == "1":
                others["negative region"] += 1
            elif kind in _APERIO_SHAPES and len(points) >= MIN_POINTS:
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
        shared: names and colours that mean several types, and so decide nothing.
    """

    def __init__(self, types: dict[str, int | None], shared: Collection[str] = ()):
        self.types = {_normalised(key): value for key, value in types.items()}
        self.shared = set(shared) - self.types.keys()

    @classmethod
    def of_type_info(cls, type_info: dict) -> TypeMapping:
        """Take names and colours of a `type_info.json`; type 0 is no nucleus, and left out."""
        known = {key: value for key, value in type_info.items() if key is not None}
        meanings: dict[str, set[int | None]] = {}
        for key, (name, rgb) in known.items():
            for what in (name, sedeen.pen(rgb)) if key else (name,):
                meanings.setdefault(_normalised(what), set()).add(key or None)
        shared = {what for what, ids in meanings.items() if len(ids) > 1}
        return cls({what: min(ids) for what, ids in meanings.items() if what not in shared}, shared)

    @classmethod
    def of_lab(cls) -> TypeMapping:
        """Take the seed lab's pens and names: negative, weak, moderate, strong; the tumour bed is left out."""
        types = {name: key for key, name in sedeen.LAB_CLASSES.items()}
        return cls(types | {pen: key for key, pen in sedeen.LAB_PENS.items()} | {sedeen.TUMOUR_BED_PEN: None})

    @classmethod
    def read(cls, path: str | Path, known: Collection[int | None] | None = None) -> TypeMapping:
        """Read `{"tumour": 1, "#00ff00": 2, "bed": null}`; 0 is no nucleus, and left out as null is.

        Args:
            path: the file.
            known: the type ids there are; `None` allows all.

        Raises:
            FileNotFoundError, ValueError: there is no such file, it is not of that form, or has another id.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            return cls({key: _type_id(value, known) for key, value in content.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f'{path}: expected {{"class or #rrggbb": type id or null, ...}}: {error}') from error

    def __or__(self, other: TypeMapping) -> TypeMapping:
        return TypeMapping({**self.types, **other.types}, self.shared | other.shared)

    def types_of(self, contours: list[Contour], unknown: int | None = None) -> list[int | None]:
        """Return the type of each contour, `None` for those to leave out; the name decides before the colour.

        Args:
            contours: what was drawn.
            unknown: type of those of which neither name nor colour is known; `None` makes them an error.

        Raises:
            ValueError: there are such; all are listed with their number.
        """
        nameless = Counter(self._describe(contour) for contour in contours if not self._known(contour))
        if nameless and unknown is None:
            listed = ", ".join(f"{what} ({count})" for what, count in sorted(nameless.items()))
            raise ValueError(f"no type for {listed}; name them in --mapping (null leaves them out), or use --untyped")
        return [next((self.types[key] for key in self._known(contour)), unknown) for contour in contours]

    def _known(self, contour: Contour) -> list[str]:
        return [key for key in _keys(contour) if key in self.types]

    def _describe(self, contour: Contour) -> str:
        label = f"`{contour.label}`" if contour.label else ""
        several = "which means several types" if self.shared & set(_keys(contour)) else ""
        return " ".join(filter(None, [label, contour.colour, several])) or "no class, no colour"


def _keys(contour: Contour) -> Iterator[str]:
    yield from (key for key in (contour.label.lower(), contour.colour.lower()) if key)


def _normalised(key: str) -> str:
    """Return a name or colour as contours are looked up by: `#rrggbb` without opacity."""
    key = key.strip().lower()
    return key[:7] if key.startswith("#") else key


def _type_id(value, known: Collection[int | None] | None) -> int | None:
    """Return the id that a mapping gives, `None` for null and 0."""
    if value is None:
        return None
    if type(value) is not int or value < 0:  # True is an int, too
        raise ValueError(f"{json.dumps(value)} is no type id (1, 2, ...)")
    if value and known is not None and value not in known:
        raise ValueError(f"--type_info_path has no type {value}")
    return value or None
