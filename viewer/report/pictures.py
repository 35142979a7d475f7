"""Pictures of a report: the whole slide, the density of its nuclei, and fields at full resolution with outlines."""

from __future__ import annotations

import cv2
import numpy as np

from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.slides.images import resize
from misc.type_info import UNTYPED, TypeInfo
from viewer.report.page import Picture, data_uri

# Longest side of the picture of a whole slide, and side of a field, px on the page.
OVERVIEW_PX = 440
FIELD_PX = 256
WEBP_QUALITY = 65
# Standard deviation of the density's Gaussian, as a share of the overview's longest side.
DENSITY_SIGMA = 1 / 80
DENSITY_RGB = (20, 60, 160)
DENSITY_OPACITY = 0.75
TISSUE_RGB = (0, 110, 80)
SPOT_RGB = (200, 0, 90)
LETTERS = 0.45  # scale of OpenCV's font: 10 px high
# Lengths of scale bars, um; the longest one up to a third of the picture is drawn.
SCALE_BARS_UM = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def inline(rgb: np.ndarray) -> str:
    """Return a picture (H, W, 3) uint8 RGB as a data URI; WebP is a third smaller than JPEG."""
    _, data = cv2.imencode(".webp", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    return data_uri(data.tobytes(), "image/webp")


def fit(rgb: np.ndarray, longest_px: int = OVERVIEW_PX) -> np.ndarray:
    """Shrink a picture until its longest side has at most `longest_px`."""
    zoom = min(1.0, longest_px / max(rgb.shape[:2]))
    return resize(rgb, tuple(max(1, round(side * zoom)) for side in rgb.shape[:2]))


def overview(rgb: np.ndarray, width_px: int, mpp: float | None, tissue: np.ndarray | None, boxes_px=()) -> np.ndarray:
    """Draw the outline of the tissue, numbered hot spots and a scale bar on the picture of a whole slide.

    Args:
        rgb: (h, w, 3) uint8, the whole slide.
        width_px: its width at level 0.
        mpp: um per level-0 px, or `None`.
        tissue: (h', w') bool, or `None`.
        boxes_px: hot spots, [x0, y0, x1, y1] in level-0 px.
    """
    picture = rgb.copy()
    zoom = rgb.shape[1] / width_px
    if tissue is not None and not tissue.all():
        mask = cv2.resize(tissue.astype(np.uint8), rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        outlines = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]
        cv2.drawContours(picture, outlines, -1, TISSUE_RGB, 1, cv2.LINE_AA)
    for rank, box in enumerate(boxes_px, 1):
        x0, y0, x1, y1 = (round(float(side) * zoom) for side in box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), SPOT_RGB, 2, cv2.LINE_AA)
        label(picture, str(rank), (x0 + 3, y0 - 4 if y0 > 16 else y1 + 14), SPOT_RGB)
    scale_bar(picture, mpp / zoom if mpp else None)
    return picture


def density(rgb: np.ndarray, centroids_xy: np.ndarray, width_px: int) -> np.ndarray:
    """Draw the density of nuclei on a grey picture of the slide: the denser, the more opaque one hue.

    Args:
        rgb: (h, w, 3) uint8, the whole slide.
        centroids_xy: (N, 2) level-0 px.
        width_px: width of the slide at level 0.
    """
    height, width = rgb.shape[:2]
    at = np.floor((centroids_xy + 0.5) * width / width_px).astype(np.int64)
    at = at[((at >= 0) & (at < (width, height))).all(axis=1)]
    counts = np.bincount(at[:, 1] * width + at[:, 0], minlength=height * width).reshape(height, width)
    smooth = cv2.GaussianBlur(counts.astype(np.float32), (0, 0), max(1.0, max(height, width) * DENSITY_SIGMA))
    opacity = (smooth / max(float(smooth.max()), 1e-9))[..., None] * DENSITY_OPACITY
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.rint(grey * (1 - opacity) + np.array(DENSITY_RGB) * opacity).astype(np.uint8)


def field(
    image: SlideImage, corner_xy: tuple[int, int], side_px: int, nuclei: Nuclei, scale: float, types: TypeInfo
) -> np.ndarray:
    """Draw a square field at full resolution with the outlines of its nuclei.

    Args:
        image: the slide.
        corner_xy, side_px: the field, level-0 px.
        nuclei: in and around the field, px of their own plane.
        scale: level-0 px per px of that plane.
        types: names and colours.

    Returns:
        (FIELD_PX, FIELD_PX, 3) uint8 RGB; white beyond the slide.
    """
    (x, y), picture = corner_xy, np.full((side_px, side_px, 3), 255, np.uint8)
    height, width = max(min(side_px, image.height - y), 0), max(min(side_px, image.width - x), 0)
    if height and width:
        picture[:height, :width] = image.read(y, x, height, width)
    zoom = FIELD_PX / side_px
    picture = resize(picture, (FIELD_PX, FIELD_PX))
    shift = 4  # OpenCV draws at sixteenths of a px
    points = np.rint((((nuclei.points_xy + 0.5) * scale - corner_xy) * zoom - 0.5) * (1 << shift)).astype(np.int32)
    ids = [None] * len(nuclei) if nuclei.types is None else nuclei.types.tolist()
    for i, type_id in enumerate(ids):
        ring = points[nuclei.offsets[i] : nuclei.offsets[i + 1]]
        cv2.polylines(picture, [ring], True, types.get(type_id, UNTYPED)[1], 1, cv2.LINE_AA, shift)
    scale_bar(picture, image.mpp_xy[0] / zoom if image.mpp_xy else None)
    return picture


def scale_bar(picture: np.ndarray, mpp: float | None) -> None:
    """Draw a bar and its length in the lower right corner, if the pixel size `mpp`, um, is known."""
    height, width = picture.shape[:2]
    lengths = [um for um in SCALE_BARS_UM if mpp and um / mpp <= width / 3]
    if not lengths:
        return
    um = lengths[-1]
    x1, y1 = width - 8, height - 8
    x0 = x1 - round(um / mpp)
    cv2.rectangle(picture, (x0 - 1, y1 - 4), (x1 + 1, y1 + 1), (255, 255, 255), -1)
    cv2.rectangle(picture, (x0, y1 - 3), (x1, y1), (0, 0, 0), -1)
    label(picture, f"{um} um" if um < 1000 else f"{um // 1000} mm", (x0, y1 - 9), (0, 0, 0))


def label(picture: np.ndarray, text: str, at_xy: tuple[int, int], rgb: tuple[int, int, int]) -> None:
    """Write a short text on a picture, on a white background."""
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, LETTERS, 1)
    x, y = at_xy
    cv2.rectangle(picture, (x - 2, y - height - 2), (x + width + 2, y + base), (255, 255, 255), -1)
    cv2.putText(picture, text, at_xy, cv2.FONT_HERSHEY_SIMPLEX, LETTERS, rgb, 1, cv2.LINE_AA)


def whole(rgb: np.ndarray, alt: str, caption: str) -> Picture:
    """Return the picture of a whole slide for the page."""
    return Picture(inline(rgb), alt, caption, wide=True)
