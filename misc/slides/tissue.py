"""Find tissue on a slide, so that the network does not read empty glass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import skimage

from misc.files import write_atomic
from misc.formats.annotations import read_annotations
from misc.formats.masks import rasterise
from misc.formats.scanline import Box
from misc.slides.handler import FileHandler
from misc.slides.images import resize
from misc.slides.pixels import WHITE

TISSUE_MAG = 1.25  # a px is 8 um, about a nucleus
PX_UM2 = 64.0

# Optical densities are over glass, log10 of glass / pixel; the colour of a px is its largest less its least channel.
# What follows was chosen on some seventy slides and fields, H&E and DAB, of six scanners and cameras.
# Glass is at least this bright in all channels, and grey. (Fields without any glass, of a camera: 216 at most.)
GLASS_FROM = 215
GLASS_COLOUR = 0.02
# A slide with a smaller share of such px is tissue from edge to edge.
MIN_GLASS = 0.01
# Otsu's threshold on density + colour lies between the first two: seams and smears on glass have less, pale stroma has
# more. From the third on, every px is tissue. Next to tissue, px are tissue from the fourth on: pale fat.
SCORE_FROM, SCORE_TO, SCORE_TOP, SCORE_BESIDE = 0.03, 0.06, 0.30, 0.02
SMOOTH_PX = 0.7
# A large nucleus, 20 um across: smaller pieces are dust, smaller holes are filled.
SPECK_UM2 = 314.0

# Ink. Stains absorb green most (haematoxylin and eosin) or blue (DAB), pens red: what red absorbs more than green, in
# ink, and around it, where it fades.
INK_RED, INK_RED_AROUND = 0.10, 0.05
# A dark blue pen absorbs red and green alike, as haematoxylin does, but more than nuclei that are averaged over a px.
DARK_BLUE, DARK_BLUE_AROUND, DARK_BLUE_ALIKE, DARK_BLUE_SHARE = 0.60, 0.35, 0.03, 0.50
# Black: every channel absorbs at least this much, and the colour is at most this share of it (strong DAB: 0.4).
BLACK, BLACK_COLOUR = 0.50, 0.30
# Smallest stroke, um2; px by which ink is widened; and the share of all px but glass beyond which it is a stain, not
# ink.
MIN_INK_UM2 = 4000.0
INK_RIM_PX = 2
MAX_INK = 0.5

# How far width and height of a given mask may deviate from the slide's proportions: share of a side, and px.
ASPECT_TOLERANCE = 0.02
ASPECT_TOLERANCE_PX = 2


@dataclass(frozen=True)
class TissueMask:
    """A small mask of a whole slide.

    Attributes:
        mask: (h, w) bool.
        source: `otsu`, `given` or `all`, and whether it is limited to regions.
    """

    mask: np.ndarray
    source: str

    @property
    def share(self) -> float:
        """Share of the slide that is tissue, 0 to 1."""
        return float(self.mask.mean())

    @cached_property
    def _sums(self) -> np.ndarray:
        return np.pad(self.mask.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)

    def covers(self, boxes_yx: np.ndarray, slide_yx: tuple[int, int]) -> np.ndarray:
        """Tell which boxes have tissue in them; a mask pixel that a box touches counts.

        Args:
            boxes_yx: (N, 4) y0, x0, y1, x1 in px of a plane of the slide, exclusive; may reach over its edges.
            slide_yx: (H, W) of that plane.

        Returns:
            (N,) bool.
        """
        return self.shares(boxes_yx, slide_yx) > 0

    def shares(self, boxes_yx: np.ndarray, slide_yx: tuple[int, int]) -> np.ndarray:
        """Return the share of tissue in each box, (N,) float64 from 0 to 1; arguments as in `covers`."""
        height, width = self.mask.shape
        scale = np.array([height, width]) / slide_yx
        low = np.floor(boxes_yx[:, :2] * scale + 1e-9).astype(np.int64)
        high = np.ceil(boxes_yx[:, 2:] * scale - 1e-9).astype(np.int64)
        low, high = np.clip(low, 0, (height, width)), np.clip(high, 0, (height, width))
        (y0, x0), (y1, x1) = low.T, high.T
        found = self._sums[y1, x1] - self._sums[y0, x1] - self._sums[y1, x0] + self._sums[y0, x0]
        area = (y1 - y0) * (x1 - x0)
        return np.where(area > 0, found / np.maximum(area, 1), 0.0)

    def save(self, path: str | Path) -> None:
        """Write the mask as a PNG of 0 and 255."""
        save_png(path, self.mask.astype(np.uint8) * 255)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Write a picture.

    Args:
        path: the file.
        image: (H, W) or (H, W, 3) RGB uint8.

    Raises:
        OSError: it cannot be written; with the system's reason, which `cv2.imwrite` does not give.
    """
    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    good, data = cv2.imencode(".png", ordered)
    if not good:
        raise OSError(f"{path}: {image.shape[1]} x {image.shape[0]} px cannot be turned into a PNG")
    write_atomic(path, data.tobytes())


def thumbnail(handler: FileHandler) -> np.ndarray:
    """Return the slide at 1.25x (or its own magnification, if lower), (h, w, 3) uint8, read piece by piece."""
    base_mag = handler.metadata["base_mag"]
    return handler.get_full_img(read_mag=TISSUE_MAG if base_mag is None else min(TISSUE_MAG, base_mag))


def find_tissue(rgb: np.ndarray, mpp_xy: tuple[float, float]) -> TissueMask:
    """Find tissue on a picture of a whole slide; one that is finer than 1.25x is made smaller first.

    Args:
        rgb: (h, w, 3) uint8.
        mpp_xy: um per px of it.
    """
    shape = tuple(max(1, round(side * um / PX_UM2**0.5)) for side, um in zip(rgb.shape[:2], mpp_xy[::-1], strict=True))
    return otsu_mask(resize(rgb, shape) if shape[0] < rgb.shape[0] else rgb)


def otsu_mask(rgb: np.ndarray) -> TissueMask:
    """Find tissue: px that Otsu's threshold on optical density plus colour separates from glass, and that are not ink.

    Density alone finds grey dirt, colour alone the seams of pale glass. Holes larger than a nucleus stay.

    Args:
        rgb: (h, w, 3) uint8, the slide at 1.25x.
    """
    density, has_glass = _densities(rgb)
    mask = np.ones(rgb.shape[:2], bool)
    if has_glass:
        score = density.mean(axis=0) + np.ptp(density, axis=0)
        # as square roots, the few px of the darkest tissue do not pull the threshold up
        threshold = skimage.filters.threshold_otsu(np.sqrt(np.minimum(score, SCORE_TOP))) ** 2
        mask = skimage.filters.apply_hysteresis_threshold(score, SCORE_BESIDE, np.clip(threshold, SCORE_FROM, SCORE_TO))
    ink = _ink(density)
    if (ink & mask).sum() <= MAX_INK * mask.sum():
        mask &= ~ink
    if mask.any() and not mask.all():
        speck_px = int(SPECK_UM2 / PX_UM2)
        mask = skimage.morphology.remove_small_objects(mask, max_size=speck_px, connectivity=2)
        mask = skimage.morphology.remove_small_holes(mask, max_size=speck_px)
    return TissueMask(mask, "otsu")


def _densities(rgb: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return optical densities over glass, (3, h, w) float32, smoothed, and whether there is glass at all."""
    channels = np.stack(cv2.split(rgb))
    darkest = channels.min(axis=0)
    glass = (darkest >= GLASS_FROM) & (channels.max(axis=0) < darkest * np.float32(10**GLASS_COLOUR))
    has_glass = bool(glass.mean() >= MIN_GLASS)
    # areas that were not scanned are white; glass seldom is
    scanned = glass & (darkest < WHITE - 1)
    glass = scanned if scanned.mean() >= MIN_GLASS else glass
    white = np.median(channels[:, glass], axis=1) if has_glass else np.full(3, WHITE)
    table = np.log10(np.maximum(white[:, None] / np.maximum(np.arange(256), 1), 1)).astype(np.float32)
    return np.stack(
        [
            cv2.GaussianBlur(cv2.LUT(channel, densities), (0, 0), SMOOTH_PX)
            for channel, densities in zip(channels, table, strict=True)
        ]
    ), has_glass


def _ink(density: np.ndarray) -> np.ndarray:
    """Tell which px of (3, h, w) densities are ink of a pen or of the cutting room: green, blue or black."""
    red, green, blue = density
    darkest, least = density.max(axis=0), density.min(axis=0)
    redder = red - green
    is_blue = (redder > -DARK_BLUE_ALIKE) & (blue < DARK_BLUE_SHARE * red)
    black = (least > BLACK) & (darkest - least < BLACK_COLOUR * darkest)
    core = (redder > INK_RED) | (is_blue & (red > DARK_BLUE)) | black
    if not core.any():
        return core
    around = core | (redder > INK_RED_AROUND) | (is_blue & (red > DARK_BLUE_AROUND))
    ink = skimage.filters.apply_hysteresis_threshold(core + around.astype(np.uint8), 0, 1)
    ink = skimage.morphology.remove_small_objects(ink, max_size=int(MIN_INK_UM2 / PX_UM2), connectivity=2)
    return cv2.dilate(ink.astype(np.uint8), skimage.morphology.disk(INK_RIM_PX)) > 0


def whole_mask() -> TissueMask:
    """Return a mask that leaves nothing out."""
    return TissueMask(np.ones((1, 1), bool), "all")


def load_mask(path: str | Path, slide_yx: tuple[int, int]) -> TissueMask:
    """Read a mask image; every px that is not black is tissue, in any channel and of any depth; alpha is ignored.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is no image, or its proportions are not the slide's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such mask: {path}")
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{path} is no image that can be read")
    if image.ndim == 3:
        image = image[..., : 3 if image.shape[2] >= 3 else 1].max(axis=2)
    (height, width), (slide_h, slide_w) = image.shape, slide_yx
    expected = slide_w * height / slide_h
    # the change of width for half a px of rounding in the height
    slack = max(ASPECT_TOLERANCE_PX, 0.5 * slide_w / slide_h + 0.5, ASPECT_TOLERANCE * width)
    if abs(width - expected) > slack:
        raise ValueError(
            f"mask {path.name} is {width} x {height} px, the slide {slide_w} x {slide_h} px: proportions differ "
            f"(at that height {expected:.0f} px of width were expected)"
        )
    return TissueMask(image > 0, "given")


def within_regions(tissue: TissueMask, path: str | Path, slide_width: int) -> TissueMask:
    """Remove tissue outside hand-drawn regions; a px of the mask is inside if its centre is.

    Args:
        tissue: the mask.
        path: file of annotations, see `read_annotations`.
        slide_width: px of level 0, in which regions are drawn.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it cannot be read, or it has no outline.
    """
    contours = read_annotations(path).contours
    if not contours:
        raise ValueError(f"{path}: outlines no region")
    height, width = tissue.mask.shape
    inside, box = np.zeros((height, width), bool), Box(0, 0, height, width)
    for contour in contours:
        inside |= rasterise(contour.scaled(width / slide_width), box)
    return TissueMask(tissue.mask & inside, f"{tissue.source}, within {len(contours)} regions")
