"""Where there is tissue on an IHC slide, as outlines in level-0 px: what areas and densities are of.

Counterstain is often so pale that grey values do not part tissue from glass. Here a pixel is tissue when light is lost
in it and around it: the optical density against the slide's own glass, averaged over the distance of some nuclei.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely

from misc.ihc.regions import TISSUE, Region
from misc.runs import find_mask_runs
from misc.slides.image import SlideImage

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

# Mean optical density from which there is tissue: glass of scanned slides stays below 0.02, the palest stroma is
# above 0.05.
TISSUE_OD = 0.035
# Over how much it is averaged, um: gaps between cells are tissue, a lumen is none.
BLUR_UM = 15.0
# Smallest piece of tissue, um^2; and smallest hole: of glass that is white, and of what might be pale stroma (a field
# within the tissue shows no glass to compare with).
MIN_PIECE_UM2, MIN_WHITE_HOLE_UM2, MIN_HOLE_UM2 = 5_000.0, 2_500.0, 100_000.0
WHITE_FROM = 220
# The glass is as bright as this share of the brightest pixels of the slide, unless that is darker than `GLASS_MIN`.
GLASS_QUANTILE, GLASS_MIN = 0.99, 200
# um per px where nothing says it; only the smoothness of the outline depends on it.
UNKNOWN_MPP = 0.5
# Pixel size at which it is looked for, um, and how far the outline may leave the px of that mask.
MASK_MPP, SMOOTH_PX = 4.0, 1.0


def tissue_region(image: SlideImage, mpp: float | None, xy: np.ndarray) -> Region | None:
    """Outline the tissue of a slide or an image; `None` where there is none.

    Where there is a nucleus there is tissue, however pale: given back as drawn, the outline leaves no nucleus out.

    Args:
        image: the slide.
        mpp: um per level-0 px, or `None`.
        xy: (N, 2) nuclei, level-0 px.
    """
    thumbnail = image.thumbnail()
    mpp = (mpp or UNKNOWN_MPP) * image.width / thumbnail.shape[1]
    if mpp < MASK_MPP:
        sides = (max(1, round(side * mpp / MASK_MPP)) for side in thumbnail.shape[1::-1])
        thumbnail, mpp = cv2.resize(thumbnail, tuple(sides), interpolation=cv2.INTER_AREA), MASK_MPP
    mask = tissue_mask(thumbnail, mpp)
    scale_xy = np.array([image.width / mask.shape[1], image.height / mask.shape[0]])
    columns, rows = np.clip((xy + 0.5) // scale_xy, 0, np.array(mask.shape[::-1]) - 1).astype(np.int64).T
    nuclei = np.zeros(mask.shape, np.uint8)
    nuclei[rows, columns] = 1
    mask |= cv2.dilate(nuclei, np.ones((3, 3), np.uint8)) > 0
    area = mask_outline(mask, *scale_xy.tolist())
    return None if area.is_empty else Region(TISSUE, TISSUE, area)


def tissue_mask(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Tell where there is tissue.

    Args:
        rgb: (h, w, 3) uint8, the whole slide.
        mpp: um per px of it.

    Returns:
        (h, w) bool.
    """
    glass = np.maximum(np.quantile(rgb.reshape(-1, 3), GLASS_QUANTILE, axis=0), GLASS_MIN)
    density = np.log10(glass / np.clip(rgb, 1, glass)).mean(axis=2).astype(np.float32)
    sigma = BLUR_UM / mpp
    density = cv2.GaussianBlur(density, (0, 0), sigma, borderType=cv2.BORDER_REFLECT) if sigma > 0.3 else density
    mask = _pieces(density > TISSUE_OD, MIN_PIECE_UM2 / mpp**2)
    white = cv2.blur(rgb, (3, 3)).min(axis=2) >= WHITE_FROM
    holes = _pieces(~mask, MIN_HOLE_UM2 / mpp**2) | _pieces(~mask & white, MIN_WHITE_HOLE_UM2 / mpp**2)
    return ~holes


def mask_outline(mask: np.ndarray, scale_x: float, scale_y: float) -> BaseGeometry:
    """Return the outline of a mask as an area in px of a plane `scale` times as fine; holes are holes.

    It leaves the edges of the px of the mask by at most `SMOOTH_PX` of them.
    """
    runs = find_mask_runs(mask.astype(np.uint8))
    x0, x1, y0, y1 = (runs.x0 * scale_x, runs.x1 * scale_x, runs.y * scale_y, (runs.y + 1) * scale_y)
    area = shapely.union_all(shapely.box(x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5))
    return area.simplify(SMOOTH_PX * max(scale_x, scale_y))


def _pieces(mask: np.ndarray, min_px: float) -> np.ndarray:
    """Return the connected pieces of at least so many px."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    keep[0] = False
    return keep[labels]
