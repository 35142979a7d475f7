"""The slide or image that belongs to a JSON file: its size and pixel size, its regions, and a thumbnail."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.slides.folder import slides_called
from misc.slides.handler import get_file_handler

# Longest side of a thumbnail, px.
THUMBNAIL_PX = 2000


@dataclass(frozen=True)
class SlideImage:
    """A slide or an image at full size.

    Attributes:
        name: full file name.
        width, height: level-0 px.
        mpp_xy: um per px along x and y, or `None` where the file does not say.
        mag: objective power, or `None` where the file does not say.
        bounds_xywh: the part of level 0 that was scanned, px, or `None` where nothing says it.
        read: `read(y, x, h, w)` gives that region as (h, w, 3) uint8 RGB; transparent parts are white.
        thumbnail: gives the whole slide as (h, w, 3) uint8 RGB, longest side at most `THUMBNAIL_PX`; read once, and not
            to be written to.
    """

    name: str
    width: int
    height: int
    mpp_xy: tuple[float, float] | None
    mag: float | None
    read: Callable[[int, int, int, int], np.ndarray]
    thumbnail: Callable[[], np.ndarray]
    bounds_xywh: tuple[int, int, int, int] | None = None


def find_image(stem: str, folder: str | Path) -> SlideImage:
    """Open the image of that name; files beside it that are no images do not count.

    Raises:
        FileNotFoundError: there is no such folder, or no image of that name in it.
        ValueError: there is more than one.
    """
    found, reasons = [], []
    for path in slides_called(stem, folder):
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
    """Open whatever `misc.slides.handler` reads, at level 0.

    Raises:
        ValueError: it is no image, or broken.
    """
    path = Path(path)
    handler = get_file_handler(path)
    width, height = (int(v) for v in handler.metadata["base_shape"])
    mpp = handler.metadata["base_mpp"]
    return SlideImage(
        name=path.name,
        width=width,
        height=height,
        mpp_xy=None if mpp is None else (float(mpp[0]), float(mpp[1])),
        mag=handler.metadata["base_mag"],
        read=lambda y, x, h, w: handler.read_region((x, y), (w, h)),
        thumbnail=functools.cache(lambda: _thumbnail(path, max(width, height))),
        bounds_xywh=handler.metadata["bounds_xywh"],
    )


def _thumbnail(path: Path, longest_px: int) -> np.ndarray:
    # called 1x whatever it is, the slide can be asked for at a share of its size even if it says no resolution
    with get_file_handler(path, mag=1.0) as handler:
        rgb = handler.get_full_img(read_mag=min(1.0, THUMBNAIL_PX / longest_px))
    rgb.flags.writeable = False
    return rgb
