"""The slide that belongs to a JSON file: its size and pixel size, its regions, and a thumbnail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from misc.files import full_stem, list_files

# Longest side of a thumbnail, px.
THUMBNAIL_PX = 2000
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class SlideImage:
    """A slide or an image at full size.

    Attributes:
        name: full file name.
        width, height: level-0 px.
        mpp_xy: um per px along x and y, or `None` where the file does not say.
        mag: objective power, or `None` where the file does not say.
        read: `read(y, x, h, w)` gives that region as (h, w, 3) uint8 RGB; transparent parts are white.
        thumbnail: gives the whole slide as (h, w, 3) uint8 RGB, longest side at most `THUMBNAIL_PX`.
    """

    name: str
    width: int
    height: int
    mpp_xy: tuple[float, float] | None
    mag: float | None
    read: Callable[[int, int, int, int], np.ndarray]
    thumbnail: Callable[[], np.ndarray]


def find_image(stem: str, folder: str | Path) -> SlideImage:
    """Open the image of that name; files beside it that are no images do not count.

    Raises:
        FileNotFoundError: there is no such folder, or no image of that name in it.
        ValueError: there is more than one.
    """
    found, reasons = [], []
    for path in (p for p in list_files(folder) if full_stem(p) == stem):
        try:
            found.append(open_image(path))
        except ValueError as error:
            reasons.append(str(error))
    if len(found) > 1:
        raise ValueError(f"{stem}: {folder} has more than one image of this name: {', '.join(i.name for i in found)}")
    if not found:
        raise FileNotFoundError(f"{stem}: {folder} has no image of this name{''.join('; ' + r for r in reasons)}")
    return found[0]


def open_image(path: str | Path) -> SlideImage:
    """Open a slide (what OpenSlide knows) or an image that fits into memory.

    Raises:
        ValueError: it is neither, or broken.
    """
    import openslide

    path = Path(path)
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return _from_array(path.name, _read_image(path))
    try:
        return _from_slide(path.name, openslide.OpenSlide(str(path)))
    except openslide.OpenSlideError as error:
        raise ValueError(f"{path}: OpenSlide cannot open it: {error}") from error


def _from_slide(name: str, slide) -> SlideImage:
    from PIL import Image

    def flatten(region) -> np.ndarray:
        white = Image.new("RGBA", region.size, (*WHITE, 255))
        return np.asarray(Image.alpha_composite(white, region).convert("RGB"))

    def read(y: int, x: int, h: int, w: int) -> np.ndarray:
        return flatten(slide.read_region((x, y), 0, (w, h)))

    def thumbnail() -> np.ndarray:
        level = slide.get_best_level_for_downsample(max(slide.dimensions) / THUMBNAIL_PX)
        return shrink(flatten(slide.read_region((0, 0), level, slide.level_dimensions[level])))

    mpp = [_number(slide.properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    mag = _number(slide.properties.get("openslide.objective-power"))
    return SlideImage(name, *slide.dimensions, None if None in mpp else tuple(mpp), mag, read, thumbnail)


def _from_array(name: str, rgb: np.ndarray) -> SlideImage:
    height, width = rgb.shape[:2]
    return SlideImage(
        name, width, height, None, None, lambda y, x, h, w: rgb[y : y + h, x : x + w], lambda: shrink(rgb)
    )


def _read_image(path: Path) -> np.ndarray:
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB) if path.stat().st_size else None
    if image is None:
        raise ValueError(f"{path}: neither a slide that OpenSlide opens nor an image that OpenCV reads")
    return image


def shrink(rgb: np.ndarray) -> np.ndarray:
    """Return an image whose longest side is at most `THUMBNAIL_PX`."""
    factor = THUMBNAIL_PX / max(rgb.shape[:2])
    height, width = (max(1, round(side * factor)) for side in rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA) if factor < 1 else rgb


def _number(text: str | None) -> float | None:
    """Return a positive number, or `None` for anything else."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
