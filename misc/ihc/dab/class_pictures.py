"""Pictures of the staining class of each nucleus, in its colour: whole images, fields of a slide, overviews.

matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from misc.ihc.panel import CLASS_TYPES, HALO, Caption, beside, draw_regions, enlargement
from misc.ihc.regions import Region

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_PX, HALO_PX = 2, 4
# What OpenCV takes of the fractions of a px, bits.
FRACTION_BITS = 3


@dataclass(frozen=True)
class Outlines:
    """Nuclei to draw: contours (M, 2) int, px of the field; and the class of each, (N,) int."""

    contours: Sequence[np.ndarray]
    classes: np.ndarray


def field_picture(
    rgb: np.ndarray, nuclei: Outlines, caption: Caption, mpp: float | None, regions: Iterable[Region] = ()
) -> Figure:
    """Draw the outlines of nuclei on a field at full resolution, with legend, counts and scale bar beside it.

    Args:
        rgb: (h, w, 3) uint8.
        nuclei: in px of the field.
        caption: what to say.
        mpp: um per px, or `None`: no scale bar.
        regions: to be outlined, in px of the field.
    """
    zoom = enlargement(rgb)
    figure, axes, _, _ = beside(draw_outlines(rgb, nuclei, zoom), caption, mpp and mpp / zoom)
    draw_regions(axes, regions, 1 / zoom)
    return figure


def draw_outlines(rgb: np.ndarray, nuclei: Outlines, zoom: int = 1) -> np.ndarray:
    """Return the field enlarged by a whole number, with a line around each nucleus, (h * zoom, w * zoom, 3) uint8."""
    canvas = np.ascontiguousarray(rgb.repeat(zoom, axis=0).repeat(zoom, axis=1))
    fine = 1 << FRACTION_BITS
    rings = [np.rint(((contour + 0.5) * zoom - 0.5) * fine).astype(np.int32) for contour in nuclei.contours]
    cv2.polylines(canvas, rings, True, HALO, HALO_PX, cv2.LINE_AA, shift=FRACTION_BITS)
    for class_id, (_, colour) in CLASS_TYPES.items():
        of_class = [ring for ring, own in zip(rings, nuclei.classes.tolist(), strict=True) if own == class_id]
        cv2.polylines(canvas, of_class, True, colour, LINE_PX, cv2.LINE_AA, shift=FRACTION_BITS)
    return canvas


def overview_picture(
    rgb: np.ndarray, regions: Iterable[Region], caption: Caption, shrunk: float, mpp: float | None
) -> Figure:
    """Draw tissue, regions and hot spots on the whole slide.

    Args:
        rgb: (h, w, 3) uint8, the slide, made smaller.
        regions: in level-0 px.
        caption: what to say.
        shrunk: level-0 px per px of `rgb`.
        mpp: um per level-0 px, or `None`.
    """
    zoom = enlargement(rgb)
    figure, axes, _, _ = beside(rgb.repeat(zoom, 0).repeat(zoom, 1), caption, mpp and mpp * shrunk / zoom)
    draw_regions(axes, regions, shrunk / zoom)
    return figure
