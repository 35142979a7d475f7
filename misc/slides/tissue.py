"""Where there is tissue on a slide, so that empty glass is neither read nor sent to the network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from skimage.morphology import disk, remove_small_holes, remove_small_objects

from misc.files import write_atomic
from misc.slides.handler import FileHandler

# Upstream's steps and numbers, px at `TISSUE_MAG`.
TISSUE_MAG = 1.25
MIN_OBJECT_PX = 16 * 16
MIN_HOLE_PX = 128 * 128
DILATION_RADIUS_PX = 16
# Otsu's threshold parts noise where all pixels are alike: below this range of grey values there is one class only, and
# that is glass where it is brighter than `GLASS_FROM`.
MIN_GREY_RANGE = 12
GLASS_FROM = 200
# How far width and height of a given mask may deviate from the slide's proportions: share of a side, and px.
ASPECT_TOLERANCE = 0.02
ASPECT_TOLERANCE_PX = 2


@dataclass(frozen=True)
class TissueMask:
    """A small mask of a whole slide.

    Attributes:
        mask: (h, w) bool.
        source: `otsu`, `given` or `all`.
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
        OSError: it cannot be written; why is the system's reason, which `cv2.imwrite` keeps to itself.
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


def otsu_mask(rgb: np.ndarray) -> TissueMask:
    """Find tissue by Otsu's threshold on grey values, without specks, with holes filled, and widened, as upstream.

    Args:
        rgb: (h, w, 3) uint8, the slide at 1.25x.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if int(grey.max()) - int(grey.min()) < MIN_GREY_RANGE:
        return TissueMask(np.full(grey.shape, grey.mean() < GLASS_FROM), "otsu")
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    mask = remove_small_objects(grey <= threshold, max_size=MIN_OBJECT_PX - 1, connectivity=2)
    mask = remove_small_holes(mask, max_size=MIN_HOLE_PX - 1)
    widened = cv2.dilate(mask.astype(np.uint8), disk(DILATION_RADIUS_PX))
    return TissueMask(widened.astype(bool), "otsu")


def whole_mask() -> TissueMask:
    """Return a mask that leaves nothing out."""
    return TissueMask(np.ones((1, 1), bool), "all")


def load_mask(path: str | Path, slide_yx: tuple[int, int]) -> TissueMask:
    """Read a mask image; whatever is not black is tissue, in any channel and of any depth; alpha says nothing.

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
    # half a px of rounding in the height moves the width by so much
    slack = max(ASPECT_TOLERANCE_PX, 0.5 * slide_w / slide_h + 0.5, ASPECT_TOLERANCE * width)
    if abs(width - expected) > slack:
        raise ValueError(
            f"mask {path.name} is {width} x {height} px, the slide {slide_w} x {slide_h} px: proportions differ "
            f"(at that height {expected:.0f} px of width were expected)"
        )
    return TissueMask(image > 0, "given")
