"""Augmentation: imgaug pipelines with upstream's ranges and order, and the functions they are made of.

`train_shape_augs` transforms image and labels together; `train_input_augs` changes only the colours of the image. Edit
them by hand. The functions take imgaug's `(images, random_state, parents, hooks)`; `images` are (H, W, 3) uint8.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from misc.ihc.stain import DAB_RGB, DENSITY_OF_VALUE, EOSIN_RGB, HEMATOXYLIN_RGB, WHITE
from models.hovernet.targets import fix_mirror_padding

__all__ = ["fix_mirror_padding", "iaa", "reach", "train_input_augs", "train_shape_augs", "valid_shape_augs"]


@contextlib.contextmanager
def _numpy_with_sctypes() -> Iterator[None]:
    """Restore, for the import, the one name that imgaug 0.4.0 reads and NumPy 2 dropped."""
    missing = not hasattr(np, "sctypes")
    if missing:
        np.sctypes = {
            "int": [np.int8, np.int16, np.int32, np.int64],
            "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
            "float": [np.float16, np.float32, np.float64],
        }
    try:
        yield
    finally:
        if missing:
            del np.sctypes


with _numpy_with_sctypes():
    from imgaug import augmenters as iaa

# Upstream's ranges: factors, degrees, shares of the side, 8-bit values.
SCALE = (0.8, 1.2)  # of each axis
TRANSLATE_SHARE = (-0.01, 0.01)
SHEAR_DEG = (-5, 5)
ROTATE_DEG = (-179, 179)
ROUNDING_PX = 2  # rounding of shift and pixels adds this to the reach
MAX_BLUR = 3  # kernels of 1, 3 and 5 px
NOISE_SD = (0.0, 0.05 * 255)
HUE = (-8, 8)  # of 180
SATURATION = (-0.2, 0.2)  # added to a factor of 1
BRIGHTNESS = (-26, 26)
CONTRAST = (0.75, 1.25)  # factor of the distance to the mean
# Ours: factor of the amount of each stain, and what is added to it; after Tellez et al. (2018), "Whole-slide mitosis
# detection in H&E breast histology using PHH3 as a reference to train distilled stain-invariant convolutional
# networks", IEEE Transactions on Medical Imaging 37.
STAIN_FACTOR = (0.75, 1.25)
STAIN_OFFSET = (-0.03, 0.03)  # optical density
# Ours: share of the images whose haematoxylin turns partly brown and whose eosin turns blue or brown, as if H&E were
# haematoxylin and DAB; and the factor of that eosin.
RECOLOURED_SHARE = 0.35
COUNTERSTAIN_FACTOR = (0.2, 1.0)
# Ours: share of the images that are drawn out of focus, and the standard deviation of their blur.
DEFOCUSED_SHARE = 0.4
DEFOCUS_SIGMA_PX = (0.5, 2.5)

_STAINS = np.array([v / np.linalg.norm(v) for v in (HEMATOXYLIN_RGB, EOSIN_RGB, DAB_RGB)], np.float32)
_UNMIX = np.linalg.inv(_STAINS).astype(np.float32)


def train_shape_augs(input_shape: Sequence[int]) -> iaa.Sequential:
    """Return an augmenter that rotates, scales, shears and flips, then crops the centre of `input_shape` (h, w) px."""
    return iaa.Sequential(
        [
            iaa.Affine(
                scale={"x": SCALE, "y": SCALE},
                translate_percent={"x": TRANSLATE_SHARE, "y": TRANSLATE_SHARE},
                shear=SHEAR_DEG,
                rotate=ROTATE_DEG,
                order=0,  # nearest: labels are not mixed
                backend="cv2",
            ),
            iaa.CropToFixedSize(input_shape[1], input_shape[0], position="center"),
            iaa.Fliplr(0.5),
            iaa.Flipud(0.5),
        ]
    )


def reach(input_shape: Sequence[int]) -> int:
    """Return the side, px, of the smallest square patch that fills `input_shape` whatever `train_shape_augs` draws.

    It must hold the input's diagonal at any angle, enlarged by the smallest scale and the largest shear. The shift is a
    share of the side itself, so it stands in the divisor.
    """
    shrink = min(SCALE) * math.cos(math.radians(max(map(abs, SHEAR_DEG))))
    shift = 2 * math.sqrt(2) * max(map(abs, TRANSLATE_SHARE))  # of the side: both directions, both axes
    return math.ceil((math.hypot(*input_shape) / shrink + ROUNDING_PX) / (1 - shift / shrink))


def valid_shape_augs(input_shape: Sequence[int]) -> iaa.Sequential:
    """Return an augmenter that only crops the centre of `input_shape` (h, w) px."""
    return iaa.Sequential([iaa.CropToFixedSize(input_shape[1], input_shape[0], position="center")])


def train_input_augs(stain_jitter: bool | dict = False, defocus: bool | dict = False) -> iaa.Sequential:
    """Return an augmenter that changes the colours of the image.

    Args:
        stain_jitter: also change the amounts of the stains, which upstream's recipe does not; or the options of
            `jitter_stains` that differ from its defaults.
        defocus: also blur as a slide out of focus is blurred, more than upstream's recipe does; or the options of
            `draw_out_of_focus`, as above.
    """
    blur_or_noise = iaa.OneOf(
        [
            _function(gaussian_blur, max_ksize=MAX_BLUR),
            _function(median_blur, max_ksize=MAX_BLUR),
            iaa.AdditiveGaussianNoise(loc=0, scale=NOISE_SD, per_channel=0.5),
        ]
    )
    colours = iaa.Sequential(
        [
            _function(add_to_hue, range=HUE),
            _function(add_to_saturation, range=SATURATION),
            _function(add_to_brightness, range=BRIGHTNESS),
            _function(add_to_contrast, range=CONTRAST),
        ],
        random_order=True,
    )
    ours = [
        _function(function, **(options if isinstance(options, dict) else {}))
        for function, options in ((jitter_stains, stain_jitter), (draw_out_of_focus, defocus))
        if options is not False
    ]
    return iaa.Sequential([*ours, blur_or_noise, colours])


class _Function(iaa.Augmenter):
    """Runs one of the functions below. (`iaa.Lambda` holds closures, which cannot be sent to another process.)"""

    def __init__(self, function, **options):
        super().__init__()
        self.function = function
        self.options = options

    def _augment_batch_(self, batch, random_state, parents, hooks):
        if batch.images is not None:
            batch.images = self.function(batch.images, random_state, parents, hooks, **self.options)
        return batch

    def get_parameters(self) -> list:
        return [self.function, self.options]


_function = _Function


def gaussian_blur(images, random_state, parents, hooks, max_ksize: int = 3) -> list[np.ndarray]:
    """Blur with a Gaussian of a random odd width and height, up to 2 * `max_ksize` - 1 px."""
    width, height = (int(size) * 2 + 1 for size in random_state.integers(0, max_ksize, size=(2,)))
    return [cv2.GaussianBlur(img, (width, height), 0, borderType=cv2.BORDER_REPLICATE) for img in images]


def median_blur(images, random_state, parents, hooks, max_ksize: int = 3) -> list[np.ndarray]:
    """Take the median of a random odd square, up to 2 * `max_ksize` - 1 px."""
    size = int(random_state.integers(0, max_ksize)) * 2 + 1
    return [cv2.medianBlur(img, size) for img in images]


def add_to_hue(images, random_state, parents, hooks, range=HUE) -> list[np.ndarray]:
    """Shift the hue; `range` in OpenCV's units, 180 to the circle."""
    hue = random_state.uniform(*range)
    turned = []
    for img in images:
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = ((np.arange(256) + hue) % 180).astype(np.uint8)[hsv[..., 0]]
        turned.append(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    return turned


def add_to_saturation(images, random_state, parents, hooks, range=SATURATION) -> list[np.ndarray]:
    """Move every pixel away from its grey value, or towards it, by the factor 1 + `range`."""
    value = 1 + random_state.uniform(*range)
    # value * img + (1 - value) * grey is linear in red, green, blue
    grey = np.array([0.299, 0.587, 0.114])
    matrix = value * np.eye(3) + (1 - value) * np.ones((3, 1)) * grey
    return [cv2.transform(img, matrix) for img in images]


def add_to_contrast(images, random_state, parents, hooks, range=CONTRAST) -> list[np.ndarray]:
    """Multiply the distance of every value to the channel's mean by a factor (upstream's function changes nothing)."""
    value = random_state.uniform(*range)
    changed = []
    for img in images:
        mean = np.array(cv2.mean(img)[: img.shape[2]])
        table = np.arange(256)[:, None] * value + mean * (1 - value)  # (256, C)
        changed.append(_by_table(img, table))
    return changed


def add_to_brightness(images, random_state, parents, hooks, range=BRIGHTNESS) -> list[np.ndarray]:
    """Add a number to all values."""
    value = random_state.uniform(*range)
    return [_by_table(img, np.arange(256)[:, None] + np.full(img.shape[2], value)) for img in images]


def jitter_stains(
    images, random_state, parents, hooks, factor=STAIN_FACTOR, offset=STAIN_OFFSET, recoloured_share=RECOLOURED_SHARE
) -> list[np.ndarray]:
    """Change the amounts of haematoxylin, eosin and DAB in every pixel (colour deconvolution, see `misc.ihc.stain`).

    Args:
        factor: range of the factors of the three optical densities.
        offset: range of what is added to them.
        recoloured_share: share of the images whose haematoxylin turns partly brown, and whose eosin turns blue or
            brown.
    """
    factors = random_state.uniform(*factor, size=3)
    offsets = random_state.uniform(*offset, size=3)
    colours = _STAINS
    if random_state.uniform() < recoloured_share:
        colours = _recoloured(*random_state.uniform(size=3))
        factors[1] *= random_state.uniform(*COUNTERSTAIN_FACTOR)
    # unmix, scale and mix in one matrix; the mixed offsets are added
    matrix = (_UNMIX * factors @ colours).T  # for column vectors
    affine = np.concatenate([matrix, (offsets @ colours)[:, None]], axis=1).astype(np.float32)
    jittered = []
    for img in images:
        density = cv2.transform(DENSITY_OF_VALUE[img], affine)
        light = cv2.exp(density * np.float32(-np.log(10)))
        jittered.append(cv2.convertScaleAbs(light, alpha=WHITE))
    return jittered


def draw_out_of_focus(
    images, random_state, parents, hooks, share=DEFOCUSED_SHARE, sigma_px=DEFOCUS_SIGMA_PX
) -> list[np.ndarray]:
    """Blur, in a `share` of the cases, with a Gaussian; its standard deviation is drawn from the range `sigma_px`.

    Raises:
        ValueError: `share` is not from 0 to 1, or `sigma_px` no rising range above 0.
    """
    lowest, highest = sigma_px
    if not (0 <= share <= 1 and 0 < lowest <= highest):
        raise ValueError(f"share is from 0 to 1 and sigma_px a rising range above 0, got {share} and {sigma_px}")
    if random_state.uniform() >= share:
        return images
    sigma = random_state.uniform(lowest, highest)
    return [cv2.GaussianBlur(img, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) for img in images]


def _recoloured(brown: float, turned: float, turned_brown: float) -> np.ndarray:
    """Return stain colours, (3, 3) as `_STAINS`: haematoxylin moved towards DAB, eosin towards both others.

    Args:
        brown: how far haematoxylin moves towards DAB, 0 to 1.
        turned: how far eosin moves from its own colour, 0 to 1.
        turned_brown: share of DAB in eosin's new colour; the rest is haematoxylin.
    """
    hematoxylin, eosin, dab = _STAINS
    nuclear = (1 - brown) * hematoxylin + brown * dab
    other = (1 - turned_brown) * hematoxylin + turned_brown * dab
    return np.stack([nuclear, (1 - turned) * eosin + turned * other, dab])


def _by_table(img: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Map the values of an (H, W, C) uint8 image through a (256, C) table, clipped and truncated to uint8."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(img, table[None])
