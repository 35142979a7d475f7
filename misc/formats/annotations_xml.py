"""Contours in the XML of ASAP, Aperio ImageScope and HALO.

We read ImageScope's and HALO's coordinates as centres of pixels: then the contours of TCGA-B0-5710 give exactly the
pixels of its published label map. Both call their root `<Annotations>`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import numpy as np
import skimage

from misc.formats.contours import Annotations, Contour, area, ellipse, rectangle
from misc.formats.qupath import MIN_POINTS

_ASAP_SHAPES = frozenset({"polygon", "spline", "rectangle"})
# What ImageScope's `Region@Type` means; HALO writes the words.
_SHAPES = {"0": "polygon", "1": "rectangle", "2": "ellipse", "3": "arrow", "4": "ruler", "5": "polyline"}
_OUTLINES = frozenset({"polygon", "rectangle", "ellipse"})
# The attribute that ImageScope adds to every layer: free text, not a class.
_DESCRIPTION = "description"
# Smallest share of a ring's points inside a contour for it to be a hole of that contour.
MOSTLY = 0.5
# The expected children of each element, and other allowed ones; any other child means that another program wrote the
# file.
_CONTENT = {
    "ASAP_Annotations": ({"Annotations"}, {"AnnotationGroups"}),
    "Annotations": ({"Annotation"}, set()),
    "Annotation": ({"Regions"}, {"Attributes", "Plots"}),
    "Regions": ({"Region"}, {"RegionAttributeHeaders"}),
    "Region": ({"Vertices"}, {"Attributes", "Comments"}),
    "Vertices": ({"Vertex", "V"}, set()),
}


def from_asap(root: Element) -> Annotations:
    """Read ASAP's `<ASAP_Annotations>`.

    Raises:
        ValueError: it holds elements that ASAP does not write.
    """
    _checked(root)
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


@dataclass
class _Layer:
    """The regions of one `<Annotation>`, and the rings of their holes."""

    contours: list[Contour] = field(default_factory=list)
    negative: list[np.ndarray] = field(default_factory=list)


def from_imagescope(root: Element) -> Annotations:
    """Read ImageScope's or HALO's `<Annotations>`.

    Raises:
        ValueError: it holds elements that neither of them writes.
    """
    layers, others = [], Counter()
    for element in _checked(root):
        layers.append(_read_layer(element, others))
    everywhere = [contour for layer in layers for contour in layer.contours]
    alone = [ring for layer in layers for ring in take_away(layer.negative, layer.contours)]
    if alone := take_away(alone, everywhere):
        others["negative region"] += len(alone)
    return Annotations(everywhere, others)


def _read_layer(element: Element, others: Counter) -> _Layer:
    layer, named = _Layer(), _class_of(element)
    # red in the lowest byte
    colour = (int(element.get("LineColor", 0)) & 0xFFFFFFFF).to_bytes(4, "little")[:3].hex()
    for regions in _checked(element):
        for region in _checked(regions):
            kind = region.get("Type", "0").lower()
            kind = _SHAPES.get(kind, kind or "unknown")
            ring = _ring(region, kind)
            if kind not in _OUTLINES or len(ring) < MIN_POINTS:
                others[kind] += 1
            elif region.get("NegativeROA", "0") == "1":
                layer.negative.append(ring)
            else:
                text = (region.get("Text") or element.get("Name") or "").strip()
                layer.contours.append(Contour([ring], text or named, f"#{colour}", named=bool(named and not text)))
    return layer


def _ring(region: Element, kind: str) -> np.ndarray:
    """Return the outline of a region, (N, 2); HALO gives rectangles and ellipses by two corners of their box."""
    found = [vertex for vertices in _checked(region) for vertex in _checked(vertices)]
    points = np.array([(float(v.get("X")), float(v.get("Y"))) for v in found]).reshape(-1, 2)
    if kind == "ellipse" and len(points):
        return ellipse(points)
    return rectangle(points) if kind == "rectangle" and len(points) == 2 else points


def _class_of(layer: Element) -> str:
    """Return the class that the attributes of a layer name, as MoNuSAC's files do; empty where none does."""
    for attribute in layer.iterfind("Attributes/Attribute"):
        name, value = (attribute.get(key, "").strip() for key in ("Name", "Value"))
        if name.lower() == _DESCRIPTION:
            name = value
        if name:
            return name
    return ""


def take_away(rings: list[np.ndarray], contours: list[Contour]) -> list[np.ndarray]:
    """Make each ring a hole of the smallest contour around it; return the rings outside all contours."""
    if not rings or not contours:
        return rings
    outer = [contour.rings[0] for contour in contours]
    sizes = np.array([area(ring) for ring in outer])
    low, high = (np.array([getattr(ring, end)(axis=0) for ring in outer]) for end in ("min", "max"))
    alone = []
    for ring in rings:
        centre = ring.mean(axis=0)
        near = np.flatnonzero((sizes > area(ring)) & (low <= centre).all(axis=1) & (high >= centre).all(axis=1))
        around = [
            i for i in near[np.argsort(sizes[near])] if skimage.measure.points_in_poly(ring, outer[i]).mean() > MOSTLY
        ]
        if around:
            contours[around[0]].holes.append(ring)
        else:
            alone.append(ring)
    return alone


def _checked(element: Element) -> list[Element]:
    """Return the expected children of an element.

    Raises:
        ValueError: it has only children that none of the programs writes.
    """
    wanted, beside = _CONTENT[element.tag]
    found = [child for child in element if child.tag in wanted]
    strange = [child.tag for child in element if isinstance(child.tag, str) and child.tag not in beside]
    if strange and not found:
        raise ValueError(f"<{strange[0]}> in <{element.tag}>: neither ASAP, ImageScope nor HALO writes this")
    return found
