"""Re-staining: an H&E patch becomes one of haematoxylin and DAB, whose positive nuclei are known.

The stains are unmixed (Ruifrok and Johnston, see `misc.ihc.stain`); eosin is dropped but for a shadow, haematoxylin is
drawn anew as a counterstain, and a part of the nuclei, clustered as in tissue, gets DAB with the texture of its own
chromatin. A network that trains on such patches learns immunohistochemistry without one label of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from misc.ihc.scores import DAB, MODERATE, NEGATIVE, STRONG, WEAK
from misc.ihc.stain import DENSITY_OF_VALUE, EOSIN_RGB, HEMATOXYLIN_RGB, WHITE, unmixing

# Classes of nuclei by how many there are: negative and positive, or negative, weak, moderate and strong.
CLASS_COUNTS = (2, 4)
# Range of the mean DAB density of a nucleus of each class: within the limits of `misc.ihc.scores.THRESHOLDS_OD`, with a
# gap around each. Of the strong ones it is the low end, to which a random amount comes.
DAB_OD = {WEAK: (0.23, 0.36), MODERATE: (0.43, 0.56), STRONG: (0.65, 0.85)}
STRONG_EXTRA_OD = 0.3  # mean of that amount
# Mean amount of haematoxylin in nuclei of counterstains, from pale to strong (real images: 0.2 to 0.5), and of it in
# their ground, as a share.
COUNTERSTAIN_OD = (0.17, 0.5)
GROUND_SHARE = (0.0, 0.12)
# Colours of counterstain and DAB as labs have them: bluer than haematoxylin beside eosin. Optical densities of red,
# green and blue, and the spread from lab to lab.
COUNTERSTAIN_RGB = (0.72, 0.61, 0.32)
DAB_RGB = (0.30, 0.57, 0.76)
COLOUR_SD = 0.03
# Share of positive nuclei: none, few (as Ki-67), or up to nearly all (as a receptor); the chance of each.
SHARES = ((0.0, 0.0), (0.02, 0.3), (0.1, 0.9))
SHARE_CHANCES = (0.15, 0.45, 0.4)
# Of each nucleus: its counterstain beside that of others, how pale the middle of a hollow one is, and what share of the
# counterstain is still seen under weak DAB (under moderate DAB its square, under strong DAB its cube).
NUCLEUS_FACTOR = (0.6, 1.3)
HOLLOWNESS = (0.0, 0.75)
LEFT_UNDER_DAB = (0.35, 0.8)
CLUSTER_UM = (30, 120)  # over which neighbours are alike
# Chances of what only some images have.
CYTOPLASM_CHANCE = 0.3  # brown around positive nuclei
MEMBRANE_CHANCE = 0.08  # brown between cells, and nuclei negative
HOLLOW_CHANCE = 0.5  # pale, vesicular nuclei with a rim
BLUR_CHANCE = 0.4  # out of focus
DEBRIS_MEAN = 0.6  # specks in 100 x 100 um
TINT_OD = (0.01, 0.09)  # of slide, mounting and light
UNEVENNESS = 0.12  # standard deviation of the tint's strength
GRAIN_OD = 0.1
GREY_OD = 0.04  # of unstained tissue
SPECK_RGB = (1.0, 1.1, 1.2)  # optical densities, as of DAB_RGB
# Geometry, um.
EDGE_UM = (0.25, 0.7)  # blur between nucleus and ground
CHROMATIN_UM = 3.0
MATTER_UM = 0.4
UNEVEN_UM = 60
RIM_UM = 1.1
CYTOPLASM_UM = 2.5
MEMBRANE_UM = 4.0  # farthest from its nucleus
SPECK_UM = (0.7, 2.5)
DEFOCUS_UM = (0.15, 0.4)
LEAST_OD = 0.02  # added before dividing by a density

_UNMIX = np.linalg.inv(
    np.stack([v / np.linalg.norm(v) for v in (HEMATOXYLIN_RGB, EOSIN_RGB, np.cross(HEMATOXYLIN_RGB, EOSIN_RGB))])
).T.astype(np.float32)
_DAB_OF_RGB = unmixing("hdab")[:, DAB]


@dataclass(frozen=True)
class _Patch:
    """What is read off the H&E patch.

    Attributes:
        instances: (H, W) ids.
        areas: (N,) px of each id, background first.
        hematoxylin: (H, W) float32 amount, 0 and more.
        matter: (H, W) float32 how much there is outside nuclei, by the eosin: about 1 on average.
        texture: (H, W) float32 chromatin, about 1.
        mpp: um/px.
    """

    instances: np.ndarray
    areas: np.ndarray
    hematoxylin: np.ndarray
    matter: np.ndarray
    texture: np.ndarray
    mpp: float

    @classmethod
    def of(cls, image: np.ndarray, instances: np.ndarray, mpp: float) -> _Patch:
        stains = np.maximum(cv2.transform(DENSITY_OF_VALUE[image], _UNMIX[:2]), 0)
        hematoxylin, eosin = cv2.split(stains)
        side = 2 * round(CHROMATIN_UM / mpp) + 1
        local = cv2.blur(hematoxylin, (side, side))
        texture = np.clip((hematoxylin + LEAST_OD) / (local + LEAST_OD), 0.4, 1.8)
        matter = cv2.GaussianBlur(eosin, (0, 0), MATTER_UM / mpp)
        matter /= matter.mean() + LEAST_OD
        return cls(instances, np.bincount(instances.ravel()), hematoxylin, matter, texture, mpp)

    @property
    def inside(self) -> np.ndarray:
        """(H, W) bool."""
        return self.instances > 0

    def means(self, plane: np.ndarray) -> np.ndarray:
        """(N,) mean of a plane in each nucleus."""
        return np.bincount(self.instances.ravel(), plane.ravel(), len(self.areas)) / np.maximum(self.areas, 1)

    def blur(self, plane: np.ndarray, um: float) -> np.ndarray:
        """Blur an (H, W) float32 plane with a Gaussian."""
        return cv2.GaussianBlur(plane, (0, 0), max(um / self.mpp, 0.3))


def restain(
    image: np.ndarray, instances: np.ndarray, rng: np.random.Generator, nr_classes: int = 2, mpp: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Turn an H&E patch into one of haematoxylin and DAB.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: (H, W) integers, 0 background.
        rng: all that is random; the same state, the same patch.
        nr_classes: 2 (negative, positive) or 4 (negative, weak, moderate, strong).
        mpp: um/px.

    Returns:
        A new (H, W, 3) uint8 image, and the (N,) int32 class of each id up to the largest: 0 background and ids that
        are not there, 1 negative, 2 and more positive.

    Raises:
        ValueError: another number of classes.
    """
    if nr_classes not in CLASS_COUNTS:
        raise ValueError(f"re-stained nuclei have {' or '.join(map(str, CLASS_COUNTS))} classes, got {nr_classes}")
    patch = _Patch.of(image, instances, mpp)
    has_membranes = rng.random() < MEMBRANE_CHANCE
    likeness = _likeness(patch, rng)
    classes = _draw_classes(patch, likeness, 0.0 if has_membranes else _draw_share(rng), rng)
    blue, rim = _counterstain(patch, classes, rng)
    ground = _brown_ground(patch, classes, rng)
    if has_membranes:
        ground += _membranes(patch, likeness, rng)
    uneven, grey = _background(patch, rng)
    dark, clear = _debris(patch, rng)
    colours = _draw_colours(rng)
    # what a measurement of DAB in a nucleus finds without the DAB that is still to come
    in_blue, in_brown, in_tint = _DAB_OF_RGB @ colours[:, :3]
    found = patch.means(in_blue * blue + in_tint * uneven)
    brown = ground + _nuclear_dab(patch, classes, found / in_brown, rim, rng)
    density = cv2.transform(cv2.merge([blue, brown, uneven, grey, dark]), colours)
    if clear is not None:
        density *= 1 - clear[..., None]
    return _photograph(density, mpp, rng), classes if nr_classes == 4 else np.minimum(classes, WEAK)


def _draw_share(rng: np.random.Generator) -> float:
    return float(rng.uniform(*SHARES[rng.choice(len(SHARES), p=SHARE_CHANCES)]))


def _draw_colours(rng: np.random.Generator) -> np.ndarray:
    """(3, 6) float32 optical densities of red, green, blue: counterstain, DAB, tint, grey, dark specks, the light."""
    stains = [np.array(mean) + rng.normal(0, COLOUR_SD, 3) for mean in (COUNTERSTAIN_RGB, DAB_RGB)]
    stains = [colour / np.linalg.norm(colour) for colour in stains]
    tint = rng.uniform(*TINT_OD) * rng.uniform(0.75, 1.25, 3)
    light = -np.log10(rng.uniform(0.95, 1.0, 3))  # the scanner's white
    return np.stack([*stains, tint, np.ones(3), SPECK_RGB, light], axis=1).astype(np.float32)


def _smooth_noise(shape: tuple[int, ...], size_px: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 noise of variance about 1 that changes over `size_px`."""
    coarse = rng.standard_normal([int(side / size_px) + 2 for side in shape], np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _likeness(patch: _Patch, rng: np.random.Generator) -> np.ndarray:
    """(N,) number of each nucleus, alike in neighbours: those of the highest ones are positive."""
    field = _smooth_noise(patch.instances.shape, rng.uniform(*CLUSTER_UM) / patch.mpp, rng)
    shared = rng.uniform(0, 0.95)
    return shared * patch.means(field) + np.sqrt(1 - shared**2) * rng.standard_normal(len(patch.areas))


def _draw_classes(patch: _Patch, likeness: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) class of each nucleus, negative to strong; `share` of them is positive."""
    ids = np.flatnonzero(patch.areas[1:]) + 1
    positive = ids[np.argsort(-likeness[ids])][: round(share * len(ids))]
    classes = np.zeros(len(patch.areas), np.int32)
    classes[ids] = NEGATIVE
    classes[positive] = rng.choice((WEAK, MODERATE, STRONG), len(positive), p=rng.dirichlet((1, 1, 2)))
    return classes


def _counterstain(patch: _Patch, classes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) amount of haematoxylin, and (H, W) how much of a hollow nucleus' stain its place gets."""
    inside, count = patch.inside.astype(np.float32), len(classes)
    edge_um, stain = rng.uniform(*EDGE_UM), rng.uniform(*COUNTERSTAIN_OD)
    own = patch.means(patch.hematoxylin) + LEAST_OD
    typical = own[classes > 0].mean() if (classes > 0).any() else 1.0
    hidden = rng.uniform(*LEFT_UNDER_DAB) ** np.maximum(classes - NEGATIVE, 0)
    level = stain * np.sqrt(own / typical) * rng.uniform(*NUCLEUS_FACTOR, count) * hidden
    hollow = rng.uniform(*HOLLOWNESS, count) * (rng.random(count) < rng.random()) * (rng.random() < HOLLOW_CHANCE)
    depth = np.clip(2 * patch.blur(inside, RIM_UM) - 1, 0, 1)  # 0 at the rim, 1 in the middle
    rim = 1 - hollow.astype(np.float32)[patch.instances] * depth
    nuclear = patch.blur(level.astype(np.float32)[patch.instances] * patch.texture * rim, edge_um)
    ground = patch.matter * np.float32(stain * rng.uniform(*GROUND_SHARE))
    return nuclear + ground * (1 - patch.blur(inside, edge_um)), rim


def _nuclear_dab(
    patch: _Patch, classes: np.ndarray, found: np.ndarray, rim: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(H, W) amount of DAB in nuclei, so much that the mean of each is what its class has.

    Args:
        found: (N,) DAB that a measurement finds in each nucleus without any.
    """
    wanted = np.zeros(len(classes))
    for value, limits in DAB_OD.items():
        chosen = classes == value
        wanted[chosen] = rng.uniform(*limits, np.count_nonzero(chosen))
    wanted += (classes == STRONG) * rng.exponential(STRONG_EXTRA_OD, len(classes))
    wanted = np.where(classes > NEGATIVE, np.maximum(wanted - found, LEAST_OD), 0)
    shape = (classes > NEGATIVE).astype(np.float32)[patch.instances] * patch.texture * (0.5 + 0.5 * rim)
    edge_um = rng.uniform(*EDGE_UM)
    gain = wanted / np.maximum(patch.means(patch.blur(shape, edge_um)), LEAST_OD)
    return patch.blur(gain.astype(np.float32)[patch.instances] * shape, edge_um)


def _brown_ground(patch: _Patch, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) amount of DAB outside nuclei: unspecific, and in some images around positive nuclei."""
    brown = patch.matter * rng.uniform(0, 0.05) * (rng.random() < 0.5)
    if rng.random() < CYTOPLASM_CHANCE:
        positive = (classes > NEGATIVE).astype(np.float32)[patch.instances]
        around = np.clip(2.5 * patch.blur(positive, CYTOPLASM_UM), 0, 1)
        brown = brown + around * np.clip(patch.matter, 0.3, 2) * rng.uniform(0.03, 0.3)
    return brown * (1 - patch.blur(patch.inside.astype(np.float32), EDGE_UM[1]))


def _membranes(patch: _Patch, likeness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) amount of DAB in the membranes of a part of the cells: half way to the neighbour, or a little outside."""
    inside = patch.inside
    away_px, cells = cv2.distanceTransformWithLabels((~inside).astype(np.uint8), cv2.DIST_L2, 5)
    cell_likeness = np.full(int(cells.max()) + 1, -np.inf)
    cell_likeness[cells[inside]] = likeness[patch.instances[inside]]
    is_stained = cell_likeness > rng.normal()
    between = np.zeros(inside.shape, np.float32)
    between[:-1] += cells[:-1] != cells[1:]
    between[:, :-1] += cells[:, :-1] != cells[:, 1:]
    away_um = away_px * patch.mpp
    lone = np.exp(-(((away_um - MEMBRANE_UM) / 0.7) ** 2))
    line = np.clip(patch.blur(between * (away_um < MEMBRANE_UM), 0.4) * 3, 0, 1)
    matter = np.clip(patch.matter, 0.5, 1.5)
    return np.maximum(line, lone) * is_stained[cells] * ~inside * matter * np.float32(rng.uniform(0.2, 0.9))


def _background(patch: _Patch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) strength of the tint of slide and light, about 1, and (H, W) grey optical density of tissue and grain."""
    shape = patch.instances.shape
    noise = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape).astype(np.float32) / 255 - 0.5
    grain = cv2.GaussianBlur(noise, (0, 0), 1.0) * np.float32(rng.uniform(0, GRAIN_OD))
    grain += patch.matter * np.float32(rng.uniform(0, GREY_OD))
    return 1 + UNEVENNESS * _smooth_noise(shape, UNEVEN_UM / patch.mpp, rng), grain


def _debris(patch: _Patch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) amount of dark specks between the nuclei, and (H, W) share of light that goes through crystals, if any."""
    height, width = patch.instances.shape
    dark, clear = np.zeros((2, height, width), np.float32)
    count = rng.poisson(DEBRIS_MEAN * height * width * patch.mpp**2 / 100**2)
    for _ in range(count):
        plane, amount = (clear, 0.6) if rng.random() < 0.5 else (dark, rng.uniform(0.2, 0.9))
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = [max(round(side / patch.mpp), 1) for side in rng.uniform(*SPECK_UM, 2)]
        cv2.ellipse(plane, centre, axes, rng.uniform(0, 180), 0, 360, amount, -1)
    if not count:
        return dark, None
    dark, clear = (patch.blur(plane, 0.3) * ~patch.inside for plane in (dark, clear))
    rim = np.maximum(patch.blur(clear, 0.4) - clear, 0)  # scatters the light that goes through a crystal
    return dark + 0.4 * rim, clear


def _photograph(density: np.ndarray, mpp: float, rng: np.random.Generator) -> np.ndarray:
    """Turn an (H, W, 3) density into what a scanner makes of it, uint8."""
    if rng.random() < BLUR_CHANCE:
        density = cv2.GaussianBlur(density, (0, 0), max(rng.uniform(*DEFOCUS_UM) / mpp, 0.3))
    return cv2.convertScaleAbs(cv2.exp(density * np.float32(-np.log(10))), alpha=WHITE)
