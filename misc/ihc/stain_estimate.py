"""Colours of the stains of one slide, read off the slide itself, and whether it is bright-field H-DAB at all.

After Macenko et al. (2009), "A method for normalizing histology slides for quantitative analysis", ISBI: pure stains
are directions of optical density. Macenko takes the outermost directions; where few nuclei are positive these are
noise, and too far out for the counterstain. Here each stain is the median direction of the pixels of its hue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from misc.ihc.stain import AUTO, DEFAULT, GIVEN, WHITE, StainModel, angle_deg, optical_density
from misc.slides.image import SlideImage

# Blur before pixels are looked at, px: noise and the colour fringes of JPEG.
BLUR_PX = 1.0
# White point: the brightest tenth of the smoothed picture, believed where it is bright and grey enough to be glass.
# Areas of 255 that are wider than this are no light, but what is written where a scanner did not look.
WHITE_PERCENTILE, WHITE_BLUR_PX = 90, 2.0
PADDING_PX = 13
WHITE_LEAST, WHITE_SPREAD = 150, 45
# A pixel is stained from this density on (length of the vector), and tells its hue down to this value.
STAINED_OD, DARKEST_VALUE = 0.2, 15
# By how much the density in one channel exceeds that in another for a hue: blue pixels take red light most, brown ones
# blue light, pink ones green light.
HUE_RATIO = 1.15
# A stain is estimated from at least so many stained pixels, and this share of them.
LEAST_PIXELS, LEAST_SHARE = 200, 0.001
# What is believed, degrees: default vectors lie 37 apart; those of labs' slides are up to 15 off.
MAX_OFF_DEG, LEAST_ANGLE_DEG = 20, 20
# H&E: more than this share of the stained pixels is pink (0.8 to 1 there, up to 0.05 in H-DAB), and fewer are brown.
PINK_SHARE, BROWN_SHARE = 0.5, 0.02
# Fluorescence: more than this share of the picture is darker than this value in every channel.
DARK_SHARE, DARK_VALUE = 0.5, 64
# Images of up to so many px are looked at whole; slides in this many fields of tissue, of this side in level-0 px.
WHOLE_PX = 4_000_000
FIELDS, FIELD_PX = 24, 256


@dataclass(frozen=True)
class Hues:
    """Shares of the stained pixels, 0 to 1, and their median directions, (3,) unit vectors or `None` for too few."""

    blue: float
    brown: float
    pink: float
    blue_rgb: np.ndarray | None
    brown_rgb: np.ndarray | None


def parse_stain(text: str) -> StainModel | None:
    """Read the option `--stain`.

    Args:
        text: `default`, `auto`, or two vectors `r,g,b:r,g,b` of optical density, haematoxylin and DAB.

    Returns:
        The model; `None` for `auto`, which every slide has its own of (`estimate_stains`).

    Raises:
        ValueError: it is none of these, or the vectors are no two stains.
    """
    said = text.strip().lower()
    if said in (DEFAULT, AUTO):
        return StainModel() if said == DEFAULT else None
    try:
        vectors = [[float(x) for x in part.split(",")] for part in said.split(":")]
        (h, d), good = vectors, all(len(v) == 3 and np.isfinite(v).all() and max(v) > 0 for v in vectors)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"--stain is default, auto or r,g,b:r,g,b (haematoxylin and DAB), got {text!r}")
    h, d = (tuple((np.array(v) / np.linalg.norm(v)).tolist()) for v in (h, d))
    if angle_deg(h, d) < 1:
        raise ValueError(f"--stain={text}: haematoxylin and DAB have the same colour")
    return StainModel(h, d, source=GIVEN)


def estimate_stains(rgb: np.ndarray, given: StainModel | None = None) -> StainModel:
    """Find the stains of a slide, and its white point.

    Args:
        rgb: (H, W, 3) uint8, a picture of its tissue (and glass) in which nuclei can be told: see `tissue_sample`.
        given: vectors that are kept (`--stain` other than `auto`); then only white point and warnings are found.

    Returns:
        The model. Vectors that are implausible are the default's, and a warning says so.

    Raises:
        ValueError: the picture is dark: fluorescence, or nothing at all.
    """
    check_bright(rgb)
    white, warnings = find_white(rgb)
    hues = find_hues(rgb, white)
    if hues.pink > PINK_SHARE and hues.brown < BROWN_SHARE:
        warnings.append("looks like H&E (eosin, no DAB): the scores mean nothing")
    model = replace(given or StainModel(source=AUTO), white_rgb=white)
    if given is None:
        model, notes = _plausible(model, hues)
        warnings += notes
    return replace(model, warnings=(*model.warnings, *warnings))


def _plausible(model: StainModel, hues: Hues) -> tuple[StainModel, list[str]]:
    """Put the vectors that were found in place of the default's where they are believed."""
    notes = []
    for name, attribute, found in (
        ("DAB", "dab_rgb", hues.brown_rgb),
        ("haematoxylin", "hematoxylin_rgb", hues.blue_rgb),
    ):
        if found is None:
            notes.append(f"too little {name} to see its colour: the default's")
        elif (off := angle_deg(found, getattr(model, attribute))) > MAX_OFF_DEG:
            notes.append(f"{name} is {off:.0f} degrees off the default: not believed, the default's")
        else:
            model = replace(model, **{attribute: tuple(found.tolist())})
    if model.angle_deg < LEAST_ANGLE_DEG:
        notes.append(f"the stains found are {model.angle_deg:.0f} degrees apart: not believed, the default's")
        model = replace(model, hematoxylin_rgb=StainModel.hematoxylin_rgb, dab_rgb=StainModel.dab_rgb)
    return model, notes


def check_bright(rgb: np.ndarray) -> None:
    """Refuse a picture with a dark ground.

    Raises:
        ValueError: most of it is nearly black.
    """
    dark = float((rgb.max(axis=2) < DARK_VALUE).mean())
    if dark > DARK_SHARE:
        raise ValueError(
            f"{dark:.0%} of the picture is dark: fluorescence, not bright-field? DAB is scored in bright-field images"
        )


def find_white(rgb: np.ndarray) -> tuple[tuple[float, float, float], list[str]]:
    """Return the value of glass, or of the palest ground where a picture has none; and a note if it is not believed."""
    square = np.ones((PADDING_PX, PADDING_PX), np.uint8)
    padding = cv2.erode((rgb.min(axis=2) == WHITE).astype(np.uint8), square, borderValue=1)
    seen = cv2.dilate(padding, np.ones((2 * PADDING_PX, 2 * PADDING_PX), np.uint8)) == 0  # and what the blur mixes
    if not seen.any():
        return (WHITE,) * 3, []
    smooth = cv2.GaussianBlur(rgb, (0, 0), WHITE_BLUR_PX)[seen]
    least = smooth.min(axis=1)
    white = np.median(smooth[least >= np.percentile(least, WHITE_PERCENTILE)], axis=0)
    if white.min() < WHITE_LEAST or np.ptp(white) > WHITE_SPREAD:
        return (WHITE,) * 3, ["no glass and no pale ground: white is 255"]
    return tuple(white.tolist()), []


def find_hues(rgb: np.ndarray, white_rgb: tuple[float, float, float]) -> Hues:
    """Sort the stained pixels of a picture by hue; (H, W, 3) uint8."""
    pixels = cv2.GaussianBlur(rgb, (0, 0), BLUR_PX).reshape(-1, 3)
    density = np.maximum(optical_density(pixels) - np.log10(WHITE / np.array(white_rgb, np.float32)), 0)
    length = np.linalg.norm(density, axis=1)
    stained = (length > STAINED_OD) & (pixels.min(axis=1) > DARKEST_VALUE)
    direction = density[stained] / length[stained, None]
    red, green, blue = direction.T
    is_blue = (red > HUE_RATIO * blue) & (green < HUE_RATIO * red)
    is_brown = (blue > HUE_RATIO * red) & (blue > green)
    is_pink = (green > HUE_RATIO * blue) & (green > HUE_RATIO * red)
    count = max(len(direction), 1)
    shares = (float(which.sum() / count) for which in (is_blue, is_brown, is_pink))
    return Hues(*shares, *(_median_direction(direction[which], count) for which in (is_blue, is_brown)))


def _median_direction(directions: np.ndarray, count: int) -> np.ndarray | None:
    if len(directions) < max(LEAST_PIXELS, LEAST_SHARE * count):
        return None
    middle = np.median(directions, axis=0)
    return (middle / np.linalg.norm(middle)).astype(np.float64)


def tissue_sample(image: SlideImage) -> np.ndarray:
    """Return a picture in which the stains of a slide can be seen: fields of its tissue, and some of its glass.

    An image of up to `WHOLE_PX` is returned whole. Of a slide, the stained parts of the thumbnail say where to look:
    nuclei are smaller than a thumbnail's pixels, so the fields are read at level 0.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the slide is dark.
    """
    if image.width * image.height <= WHOLE_PX:
        return image.read(0, 0, image.height, image.width)
    thumbnail = image.thumbnail()
    check_bright(thumbnail)
    side = max(FIELD_PX * thumbnail.shape[1] / image.width, 1.0)
    rows, columns = (max(int(n / side), 1) for n in thumbnail.shape[:2])
    small = cv2.resize(thumbnail, (columns, rows), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    white, _ = find_white(thumbnail)
    return np.concatenate([_read_field(image, i, rows, columns) for i in _choose_fields(small, white)])


def _choose_fields(colours: np.ndarray, white_rgb: tuple[float, float, float]) -> list[int]:
    """Choose fields by their mean colours, (N, 3) uint8: the brownest, some from pale to dark, and glass."""
    density = np.log10(np.array(white_rgb) / np.maximum(colours, 1).astype(np.float64)).clip(0)
    brown, stain = density[:, 2] - density[:, 0], density.sum(axis=1)
    by_stain = np.argsort(-stain)
    tissue = by_stain[: max(np.count_nonzero(stain > STAINED_OD / 2), FIELDS)]
    spread = tissue[np.linspace(0, len(tissue) - 1, FIELDS // 2).astype(int)]
    scanned = colours.min(axis=1) < WHITE  # a scanner writes 255 where it did not look
    glass = np.argsort(np.where(scanned, stain, np.inf))[: FIELDS // 4]
    return list(dict.fromkeys([*np.argsort(-brown)[: FIELDS // 2].tolist(), *spread.tolist(), *glass.tolist()]))


def _read_field(image: SlideImage, index: int, rows: int, columns: int) -> np.ndarray:
    """Read the field in the middle of a cell of a grid over the slide, up to (FIELD_PX, FIELD_PX, 3)."""
    height, width = min(FIELD_PX, image.height), min(FIELD_PX, image.width)
    row, column = divmod(index, columns)
    y = int(np.clip((row + 0.5) * image.height / rows - height / 2, 0, image.height - height))
    x = int(np.clip((column + 0.5) * image.width / columns - width / 2, 0, image.width - width))
    return image.read(y, x, height, width)
