"""The facts of a slide from the header of a JSON file and its image: name, size, pixel size, and scale to level 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.formats.nuclei_json import MAX_PX, types_to_header
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.slides.resolution import MPP_TIMES_MAG
from misc.type_info import TypeInfo

# Possible pixel sizes of a slide, um, and scales between two of its levels; other numbers are wrong.
MPP_UM = (1e-4, 1e4)
SCALE = (1e-4, 1e4)


@dataclass(frozen=True)
class SlideFacts:
    """The known facts of a slide.

    Attributes:
        name: full file name, empty where nothing says it.
        width, height: level-0 px; both 0 where nothing says them.
        scale: level-0 px per px of the file's coordinates.
        mpp_xy: um per level-0 px along x and y, or `None`.
        notes: how the scale was found, for the user.
        bounds_xywh: the part of level 0 that was scanned, px, or `None` where nothing says it.
        tissue_share: share of the slide that is tissue, 0 to 1, or `None` where the header does not say it.
    """

    name: str
    width: int
    height: int
    scale: float
    mpp_xy: tuple[float, float] | None
    notes: tuple[str, ...] = ()
    bounds_xywh: tuple[int, int, int, int] | None = None
    tissue_share: float | None = None

    @property
    def origin_xy(self) -> tuple[int, int]:
        """Corner of the part of level 0 that QuPath shows, px."""
        return (0, 0) if self.bounds_xywh is None else self.bounds_xywh[:2]


def slide_facts(
    path: Path, header: dict, image: SlideImage | None = None, scale: float | None = None, mpp: float | None = None
) -> SlideFacts:
    """Collect the facts; an option overrides the header. Name and size are the image's where there is one.

    Args:
        path: the JSON file, for messages.
        header: its top-level keys without the nuclei.
        image: the slide, opened, or `None`.
        scale: level-0 px per px of the coordinates, as the option `--scale` says it.
        mpp: um per level-0 px, as the option `--mpp` says it.

    Raises:
        ValueError: the header is broken, or of another image.
    """
    slide = header.get("slide") or {}
    if not isinstance(slide, dict):
        raise ValueError(f'{path}: "slide" is no object: {slide!r}')
    said = tuple(_side(slide, key, path) for key in ("width", "height"))
    if image and 0 not in said and said != (image.width, image.height):
        raise ValueError(
            f"{path}: is of a slide of {said[0]} x {said[1]} px, but {image.name} has {image.width} x {image.height}"
        )
    factor, notes = level0_scale(path, header, image, scale)
    file_mpp = _positive(header, "mpp", path)
    mpp = mpp or _positive(slide, "mpp", path, "slide.") or (file_mpp / factor if file_mpp else None)
    for what, value, (low, high) in (("the scale", factor, SCALE), ("the pixel size in um", mpp, MPP_UM)):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{path}: {what} is {value:g}; from {low:g} to {high:g} is possible")
    width, height = (image.width, image.height) if image else said if 0 not in said else (0, 0)
    return SlideFacts(
        name=image.name if image else str(slide.get("name") or ""),
        width=width,
        height=height,
        scale=factor,
        mpp_xy=(mpp, mpp) if mpp else image.mpp_xy if image else None,
        notes=notes,
        bounds_xywh=(image and image.bounds_xywh) or _bounds(slide, path),
        tissue_share=_share(slide, path),
    )


def header_of(header: dict, facts: SlideFacts, image: SlideImage | None, type_info: TypeInfo | None) -> dict:
    """Return the header of a file of ours, with `mag`, for nuclei that had `header` and of which `facts` are known.

    Args:
        header: top-level keys that were there.
        facts: of the slide.
        image: the slide, opened, or `None`: says the magnification.
        type_info: names that go before those in `header`.
    """
    own = header.get("slide") or {}
    slide = {"name": facts.name, "width": facts.width, "height": facts.height} if facts.width else {}
    slide["mpp"] = None if facts.mpp_xy is None else sum(facts.mpp_xy) / 2
    if image or header.get("mag") is None or facts.scale != 1:  # else the scale is a guess, which a slide may correct
        slide |= {"scale": facts.scale, "bounds": facts.bounds_xywh and list(facts.bounds_xywh)}
    mag = header.get("mag") or (image.mag / facts.scale if image and image.mag else None)
    mpp = slide["mpp"] and slide["mpp"] * facts.scale
    types = {"types": types_to_header(type_info)} if type_info else {}
    return {**header, "mag": mag, "mpp": mpp, "slide": {**own, **slide}, **types}


def level0_xy(nuclei: Nuclei, scale: float) -> np.ndarray:
    """Return the centroids of nuclei in level-0 px, (N, 2) float64; pixel centres, as in the file."""
    return (nuclei.centroids_xy + 0.5) * scale - 0.5


def says_all(header: dict) -> bool:
    """Whether the header gives the scale to level 0 and QuPath's corner, or is of an image, which needs neither."""
    slide = header.get("slide")
    return header.get("mag") is None or (
        isinstance(slide, dict) and slide.get("scale") is not None and "bounds" in slide
    )


def level0_scale(
    path: Path, header: dict, image: SlideImage | None, scale: float | None
) -> tuple[float, tuple[str, ...]]:
    """Return level-0 px per px of the file's coordinates, and notes.

    In this order: the option; `slide.scale`; objective power of the image over the file's `mag`; um per px at `mag`
    over those of the image; 1.
    """
    said = scale or _positive(header.get("slide") or {}, "scale", path, "slide.")
    mag = _positive(header, "mag", path)
    if said or mag is None:
        return said or 1.0, ()
    if image and image.mag:
        factor, own = image.mag / mag, f"{image.mag:g}x"
    elif image and image.mpp_xy:
        mpp = sum(image.mpp_xy) / 2
        factor, own = MPP_TIMES_MAG / mag / mpp, f"{mpp:.4g} um/px"
    else:
        return 1.0, (
            f"found at {mag:g}x, and nothing says the slide's own magnification: coordinates are assumed to be "
            "level-0 px; give --scale",
        )
    if factor == 1:
        return 1.0, ()
    return factor, (f"found at {mag:g}x in a slide of {own}: coordinates are multiplied by {factor:g}",)


def _bounds(slide: dict, path: Path) -> tuple[int, int, int, int] | None:
    bounds = slide.get("bounds")
    if bounds is None:
        return None
    is_box = isinstance(bounds, list) and len(bounds) == 4 and all(type(value) is int for value in bounds)
    if not is_box or min(bounds) < 0 or 0 in bounds[2:]:
        raise ValueError(f'{path}: "slide.bounds" is [x, y, width, height] in px or null, got {bounds!r}')
    return tuple(bounds)


def _side(slide: dict, key: str, path: Path) -> int:
    """Return a side of the slide in px, 0 where the header does not say it."""
    value = _positive(slide, key, path, "slide.")
    if value is not None and not 1 <= value <= MAX_PX:
        raise ValueError(f'{path}: "slide.{key}" is a number of px from 1 to {MAX_PX}, got {value:g}')
    return int(value or 0)


def _share(slide: dict, path: Path) -> float | None:
    share = slide.get("tissue_share")
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1):
        raise ValueError(f'{path}: "slide.tissue_share" is a number from 0 to 1 or null, got {share!r}')
    return share


def _positive(values: dict, key: str, path: Path, where: str = "") -> float | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f'{path}: "{where}{key}" is a positive number or null, got {value!r}')
    return float(value)
