"""Fields of a slide to annotate: on tissue, spread over the slide, the same for the same seed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from misc.files import atomic_path, full_stem
from misc.slides.handler import FileHandler, get_file_handler
from misc.slides.resolution import INCH_UM
from misc.slides.tissue import TissueMask, otsu_mask, thumbnail

logger = logging.getLogger(__name__)

# Least share of a field that is tissue.
MIN_TISSUE = 0.7


@dataclass(frozen=True)
class Roi:
    """A field that was written.

    Attributes:
        file: the PNG.
        slide: file name of the slide.
        x, y: its top left corner, level-0 px.
        size_px: its side in the PNG.
        mpp: um per px of the PNG; `None` if the slide has no resolution.
    """

    file: Path
    slide: str
    x: int
    y: int
    size_px: int
    mpp: float | None


def extract_rois(
    slide_path: Path,
    output_dir: Path,
    size_px: int,
    count: int,
    mpp: float | None = None,
    seed: int = 0,
    slide_mpp: float | None = None,
) -> list[Roi]:
    """Write fields of a slide as `<slide>_x<x>_y<y>.png`; x and y are the corner's level-0 px.

    Args:
        slide_path: the slide.
        output_dir: folder for the PNGs; created if missing.
        size_px: side of a field, px of the PNG.
        count: number of fields; fewer if there is not enough tissue.
        mpp: um per px of the fields; `None` reads the slide as it was scanned.
        seed: chooses the first field.
        slide_mpp: um per px of the slide's level 0; `None` takes the file's.

    Raises:
        SlideError, ValueError: the slide cannot be read, or is smaller than a field.
    """
    with get_file_handler(slide_path, mpp=slide_mpp) as handler:
        if mpp is not None:
            if handler.metadata["base_mpp"] is None:
                raise ValueError(f"{slide_path}: does not say its resolution; give it with --slide_mpp (um/px)")
            handler.prepare_reading(read_mpp=mpp)
        height, width = handler.shape_yx
        if size_px < 1 or size_px > min(height, width):
            raise ValueError(f"{Path(slide_path).name} is {width} x {height} px: no field of {size_px} px fits")
        corners = choose_fields(otsu_mask(thumbnail(handler)), handler.shape_yx, size_px, count, seed)
        if len(corners) < count:
            logger.warning(
                "%s: %d of %d fields: the rest is glass, ink or too little tissue; a smaller --size finds more",
                *(slide_path, len(corners), count),
            )
        output_dir.mkdir(parents=True, exist_ok=True)
        return [_write(handler, output_dir, y, x, size_px) for y, x in corners.tolist()]


def choose_fields(tissue: TissueMask, slide_yx: tuple[int, int], size_px: int, count: int, seed: int) -> np.ndarray:
    """Choose fields of a grid: the first at random, each next one as far as possible from those chosen.

    Args:
        tissue: mask of the slide.
        slide_yx: size of the slide in the plane that is read, px.
        size_px: side of a field in that plane, px.
        count: number of fields.
        seed: chooses the first field.

    Returns:
        (N, 2) int64 top left corners y, x, px of that plane, without overlap; N is at most `count`.
    """
    axes = [np.arange(0, side - size_px + 1, size_px) + (side - size_px) % size_px // 2 for side in slide_yx]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    corners = corners[tissue.shares(np.hstack([corners, corners + size_px]), slide_yx) >= MIN_TISSUE]
    if not len(corners):
        return corners
    chosen = [int(np.random.default_rng(seed).integers(len(corners)))]
    distance = np.full(len(corners), np.inf)
    while len(chosen) < min(count, len(corners)):
        distance = np.minimum(distance, np.abs(corners - corners[chosen[-1]]).max(axis=1))
        chosen.append(int(distance.argmax()))
    return corners[chosen]


def _write(handler: FileHandler, output_dir: Path, y: int, x: int, size_px: int) -> Roi:
    rgb = handler.read_region((x, y), (size_px, size_px))
    scale_y, scale_x = handler.scale_yx
    level0_x, level0_y = round(x * scale_x), round(y * scale_y)
    path = output_dir / f"{full_stem(handler.path)}_x{level0_x}_y{level0_y}.png"
    base_mpp = handler.metadata["base_mpp"]
    mpp = None if base_mpp is None else float(base_mpp[0] * scale_x)
    dpi = {} if mpp is None else {"dpi": (INCH_UM / mpp, INCH_UM / float(base_mpp[1] * scale_y))}
    with atomic_path(path) as temporary:
        Image.fromarray(rgb).save(temporary, "PNG", **dpi)  # written as px per metre, chunk pHYs
    return Roi(path, handler.path.name, level0_x, level0_y, size_px, mpp)
