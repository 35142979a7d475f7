"""Hand-drawn contours of any program."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

# Corners of the polygon that stands for an ellipse: within 0.1 % of its area.
ELLIPSE_POINTS = 90
# Notes and outlines of fields that users draw besides nuclei; an image may have only these and no nucleus.
_BESIDE_NUCLEI = frozenset({"text", "ruler", "arrow", "region", "tma core"})


@dataclass(frozen=True)
class Contour:
    """One outlined object.

    Attributes:
        rings: each (N, 2) float64, x and y in px; even-odd: a ring within a ring is a hole.
        label: the class as text, empty where there is none.
        colour: `#rrggbb` in lower case, empty where there is none.
        named: the label is the name of a class, and the colour only a default of the program, which does not count.
        holes: rings to subtract.
        name: the name that a user gave it, or empty.
    """

    rings: list[np.ndarray]
    label: str = ""
    colour: str = ""
    named: bool = False
    holes: list[np.ndarray] = field(default_factory=list)
    name: str = ""

    def scaled(self, factor: float) -> Contour:
        """Return the contour on an image `factor` times as large; pixel (0, 0) stays at the corner."""
        scale = lambda rings: [(ring + 0.5) * factor - 0.5 for ring in rings]  # noqa: E731
        return replace(self, rings=scale(self.rings), holes=scale(self.holes))


@dataclass(frozen=True)
class Annotations:
    """The content of an annotation file.

    Attributes:
        contours: in the order of the file.
        others: number of other objects by kind (text, rulers, points, regions, ...).
        image_name: file name of the image it was drawn on, empty where the file does not say.
    """

    contours: list[Contour]
    others: Counter = field(default_factory=Counter)
    image_name: str = ""

    def check_understood(self) -> None:
        """Refuse a file with objects but without an outline of a nucleus.

        Raises:
            ValueError: it is such a file; the annotation of an image without nuclei has no objects.
        """
        if not self.contours and self.others.keys() - _BESIDE_NUCLEI:
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))
            raise ValueError(f"nothing in it outlines a nucleus: {listed}")


def ellipse(corners: np.ndarray) -> np.ndarray:
    """Return the ellipse in the box of some (N, 2) points, as a polygon."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    return (low + high) / 2 + np.stack([np.cos(angle), np.sin(angle)], axis=1) * (high - low) / 2


def rectangle(corners: np.ndarray) -> np.ndarray:
    """Return the (4, 2) corners of the box of some (N, 2) points."""
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def area(ring: np.ndarray) -> float:
    """Return the area of an (N, 2) ring, px^2 (shoelace formula); NaN on overflow."""
    with np.errstate(invalid="ignore", over="ignore"):
        x, y = (ring - ring.mean(axis=0)).T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
