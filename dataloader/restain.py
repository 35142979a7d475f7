"""Re-staining: turns an H&E patch into one of haematoxylin and DAB, whose positive nuclei are known.

The stains are unmixed (Ruifrok and Johnston, see `misc.ihc.stain`). A pale shadow of eosin stays, haematoxylin is drawn
again as a counterstain, and a part of the nuclei, clustered as in tissue, gets DAB with the texture of its own
chromatin. A network that trains on such patches learns immunohistochemistry without any label of it. Everything outside
nuclei is drawn by `dataloader.restain_scene`.

Only its own DAB makes a nucleus positive, not haze or the brown of its cytoplasm.
"""

from __future__ import annotations

import cv2
import numpy as np

from misc.ihc.scores import DAB, MODERATE, NEGATIVE, STRONG, WEAK
from misc.ihc.stain import unmixing

from .restain_scene import LEAST_OD, MUCH, SOME, Patch, brown_cells, debris, glass, haze, ink, photograph, unfocused

# Classes of nuclei by how many there are: negative and positive, or negative, weak, moderate and strong.
CLASS_COUNTS = (2, 4)
# Range of the mean DAB density of a nucleus of each class: within the limits of `misc.ihc.scores.THRESHOLDS_OD`, with a
# gap around each. Strong nuclei get a random amount on top.
DAB_OD = {WEAK: (0.25, 0.36), MODERATE: (0.43, 0.56), STRONG: (0.65, 0.85)}
STRONG_EXTRA_OD = (0.05, 0.7)  # range, over images, of the mean of that amount: up to nearly black
# Parameters of the Dirichlet distribution from which each image draws its shares of weak, moderate and strong nuclei:
# the median DAB of real positive nuclei is 0.3 to 0.6.
CLASS_WEIGHTS = (1.2, 1.2, 1.6)
# Grey-brown negative nuclei: the chance that an image has some, and the mean of their own DAB.
GREYISH_CHANCE = 0.4
GREYISH_OD = 0.06
# The most DAB, of all kinds together, over a negative nucleus, by the extent of brown outside nuclei. With much, the
# eye expects it (see `restain_scene.VEIL`).
MOST_NEGATIVE_OD = {0: 0.15, SOME: 0.15, MUCH: 0.55}
# Chances of brown outside nuclei: none, some, much (membrane and cytoplasm markers; all nuclei are then negative).
EXTENTS = (0, SOME, MUCH)
EXTENT_CHANCES = (0.55, 0.3, 0.15)
# Mean amount of haematoxylin in nuclei of counterstains, from hardly visible to strong (real images: 0.09 to 0.5 above
# the ground); the share of it in the ground; the least amount that leaves a nucleus visible.
COUNTERSTAIN_OD = (0.09, 0.5)
GROUND_SHARE = (0.0, 0.12)
LEAST_NUCLEUS_OD = 0.06
# Colours of real counterstains, bluer than haematoxylin in H&E, and of DAB: optical densities of red, green and blue,
# and their spread from lab to lab. DAB ranges from orange-brown (glioma) to black-brown (bladder).
COUNTERSTAIN_RGB = (0.72, 0.61, 0.32)
DAB_RGB = ((0.28, 0.58, 0.77), (0.44, 0.57, 0.69))
COLOUR_SD = 0.02
SPECK_RGB = (1.0, 1.1, 1.2)  # of dark debris
# Optical density of slide, mounting and light, and the scanner's white as a share of all light: the ground of real
# images, pale tissue included, has .05 to .13 in each colour.
TINT_OD = (0.0, 0.05)
LIGHT = (0.9, 1.0)
LIGHT_COLOUR = (0.97, 1.0)  # further factor of each of red, green and blue
# Share of positive nuclei: none, few (as Ki-67), or up to nearly all (as a receptor); the chance of each.
SHARES = ((0.0, 0.0), (0.02, 0.3), (0.1, 0.9))
SHARE_CHANCES = (0.1, 0.45, 0.45)
# Of each nucleus: the factor of its counterstain, how pale the middle of a hollow nucleus is, and the share of the
# counterstain that is visible under weak DAB (its square under moderate, its cube under strong DAB).
NUCLEUS_FACTOR = (0.5, 1.3)
HOLLOWNESS = (0.0, 0.9)
LEFT_UNDER_DAB = (0.35, 0.8)
CLUSTER_UM = (30, 120)  # size of clusters of positive nuclei
# Texture of DAB: the chromatin of haematoxylin to this power, and amplitude of clumps (standard deviation within real
# positive nuclei: 0.14 to 0.27 at a mean of 0.5).
DAB_CONTRAST = (0.8, 3.0)
CLUMPS = (0.1, 0.8)
# Chances of features that only some images have.
HOLLOW_CHANCE = 0.6  # pale, vesicular nuclei with a rim
BLEED_CHANCE = 0.25  # DAB that has spread around its nucleus
DEEP_CHANCE = 0.35  # positive nuclei above or below the focus
BLEED_SHARE = (0.05, 0.3)
DEEP_SHARE = 0.4  # largest share of such nuclei
# Lengths, um.
EDGE_UM = (0.2, 0.7)  # blur between nucleus and ground
RIM_UM = (0.5, 1.2)
CLUMP_UM = 0.9
BLEED_UM = (1.0, 3.0)
DEEP_UM = 1.0

_DAB_OF_RGB = unmixing("hdab")[:, DAB]


def restain(
    image: np.ndarray, instances: np.ndarray, rng: np.random.Generator, nr_classes: int = 2, mpp: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Turn an H&E patch into one of haematoxylin and DAB.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: (H, W) integers, 0 background.
        rng: source of all random numbers; the same state gives the same patch.
        nr_classes: 2 (negative, positive) or 4 (negative, weak, moderate, strong).
        mpp: um/px.

    Returns:
        A new (H, W, 3) uint8 image, and the (N,) int32 class of each id up to the largest: 0 for background and missing
        ids, 1 negative, 2 and more positive.

    Raises:
        ValueError: `nr_classes` is neither 2 nor 4.
    """
    if nr_classes not in CLASS_COUNTS:
        raise ValueError(f"re-stained nuclei have {' or '.join(map(str, CLASS_COUNTS))} classes, got {nr_classes}")
    patch = Patch.of(image, instances, mpp)
    extent = int(rng.choice(EXTENTS, p=EXTENT_CHANCES))
    share = 0.0 if extent == MUCH else _draw_share(rng)
    classes = _draw_classes(patch, _likeness(patch, rng.uniform(0, 0.95), rng), share, rng)
    colours = _draw_colours(rng)
    blue, rim = _counterstain(patch, classes, rng)
    unfocused_blue, unfocused_brown = unfocused(patch, rng)
    blue += unfocused_blue
    uneven, grey = glass(patch, rng)
    # DAB that a measurement finds per unit of each of them
    in_blue, in_brown, in_tint, in_grey, _, in_light = _DAB_OF_RGB @ colours
    found = patch.means(in_blue * blue + in_tint * uneven + in_grey * grey) + in_light
    ground = _brown_ground(patch, extent, found, in_brown, unfocused_brown, rng)
    found += in_brown * patch.means(ground)
    dark, specks, clear = debris(patch, rng)
    brown = ground + specks + _nuclear_dab(patch, classes, found / in_brown, rim, rng)
    density = cv2.transform(cv2.merge([blue, brown, uneven, grey, dark]), colours)
    stroke = ink(patch, rng)
    if stroke is not None:
        density += stroke
    if clear is not None:
        density *= 1 - clear[..., None]
    return photograph(density, mpp, rng), classes if nr_classes == 4 else np.minimum(classes, WEAK)


def _draw_share(rng: np.random.Generator) -> float:
    return float(rng.uniform(*SHARES[rng.choice(len(SHARES), p=SHARE_CHANCES)]))


def _draw_colours(rng: np.random.Generator) -> np.ndarray:
    """(3, 6) float32 optical densities of red, green, blue, for counterstain, DAB, tint, grey, dark specks, light."""
    orange, black = np.array(DAB_RGB)
    dab = orange + rng.random() ** 2 * (black - orange)
    stains = [mean + rng.normal(0, COLOUR_SD, 3) for mean in (np.array(COUNTERSTAIN_RGB), dab)]
    stains = [colour / np.linalg.norm(colour) for colour in stains]
    tint = rng.uniform(*TINT_OD) * rng.uniform(0.75, 1.25, 3)
    light = -np.log10(rng.uniform(*LIGHT) * rng.uniform(*LIGHT_COLOUR, 3))
    return np.stack([*stains, tint, np.ones(3), SPECK_RGB, light], axis=1).astype(np.float32)


def _likeness(patch: Patch, shared: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) random value of each nucleus, similar in neighbours: nuclei with the highest values become positive.

    Args:
        shared: 0 (neighbours are independent) to 1 (a smooth field).
    """
    field = patch.noise(rng.uniform(*CLUSTER_UM), rng)
    return shared * patch.means(field) + np.sqrt(1 - shared**2) * rng.standard_normal(len(patch.areas))


def _draw_classes(patch: Patch, likeness: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) class of each nucleus, negative to strong; a `share` of them is positive."""
    ids = patch.ids
    positive = ids[np.argsort(-likeness[ids])][: round(share * len(ids))]
    classes = np.zeros(len(patch.areas), np.int32)
    classes[ids] = NEGATIVE
    classes[positive] = rng.choice((WEAK, MODERATE, STRONG), len(positive), p=rng.dirichlet(CLASS_WEIGHTS))
    return classes


def _counterstain(patch: Patch, classes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) amount of haematoxylin, and an (H, W) factor of stain: 1, but lower in the middle of hollow nuclei."""
    inside, count = patch.inside.astype(np.float32), len(classes)
    edge_um, stain = rng.uniform(*EDGE_UM), np.exp(rng.uniform(*np.log(COUNTERSTAIN_OD)))
    own = patch.means(patch.hematoxylin) + LEAST_OD
    typical = own[classes > 0].mean() if (classes > 0).any() else 1.0
    hidden = rng.uniform(*LEFT_UNDER_DAB) ** np.maximum(classes - NEGATIVE, 0)
    level = stain * np.sqrt(own / typical) * rng.uniform(*NUCLEUS_FACTOR, count)
    level = np.maximum(level, LEAST_NUCLEUS_OD) * hidden
    rim = np.ones(patch.instances.shape, np.float32)
    if rng.random() < HOLLOW_CHANCE:
        hollow = rng.uniform(*HOLLOWNESS, count) * (rng.random(count) < rng.random())
        rim -= patch.spread(hollow) * _depth(patch, rng.uniform(*RIM_UM))
    nuclear = patch.blur(patch.spread(level) * patch.texture * rim, edge_um)
    ground = patch.matter * np.float32(stain * rng.uniform(*GROUND_SHARE))
    return nuclear + ground * (1 - patch.blur(inside, edge_um)), rim


def _depth(patch: Patch, rim_um: float) -> np.ndarray:
    """(H, W) float32, 0 at the rim of each nucleus, 1 in its middle; nuclei that touch have a rim between them."""
    core, ids = patch.inside.astype(np.float32), patch.instances
    core[:-1] *= ids[:-1] == ids[1:]
    core[:, :-1] *= ids[:, :-1] == ids[:, 1:]
    return np.clip(2 * patch.blur(core, rim_um) - 1, 0, 1)


def _nuclear_dab(
    patch: Patch, classes: np.ndarray, found: np.ndarray, rim: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(H, W) amount of DAB in and around nuclei: the mean of each nucleus fits its class.

    Args:
        found: (N,) DAB that a measurement finds in each nucleus before this DAB is added.
    """
    wanted = _wanted_dab(classes, rng)
    wanted = np.where(classes > NEGATIVE, np.maximum(wanted - found, LEAST_OD), wanted)
    wanted = np.where(classes == NEGATIVE, np.minimum(wanted, np.maximum(MOST_NEGATIVE_OD[0] - found, 0)), wanted)
    if not wanted.any():
        return np.zeros(rim.shape, np.float32)
    clumps = 1 + np.float32(rng.uniform(*CLUMPS)) * patch.noise(CLUMP_UM, rng)
    texture = cv2.pow(patch.texture, rng.uniform(*DAB_CONTRAST)) * np.clip(clumps, 0.1, 3) * (0.4 + 0.6 * rim)
    shape = patch.spread(wanted > 0) * texture
    edge_um, deep = rng.uniform(*EDGE_UM), None
    if rng.random() < DEEP_CHANCE:
        deep = patch.spread(rng.random(len(classes)) < rng.uniform(0, DEEP_SHARE))
    gain = wanted / np.maximum(patch.means(_focused(patch, shape, edge_um, deep)), LEAST_OD)
    dab = _focused(patch, patch.spread(gain) * shape, edge_um, deep)
    if rng.random() < BLEED_CHANCE:
        dab += np.float32(rng.uniform(*BLEED_SHARE)) * patch.blur(dab, rng.uniform(*BLEED_UM)) * ~patch.inside
    return dab


def _focused(patch: Patch, plane: np.ndarray, edge_um: float, deep: np.ndarray | None) -> np.ndarray:
    """Blur an (H, W) plane; more where `deep`, (H, W) float32, is 1."""
    if deep is None:
        return patch.blur(plane, edge_um)
    return patch.blur(plane * (1 - deep), edge_um) + patch.blur(plane * deep, DEEP_UM)


def _wanted_dab(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) mean DAB of each nucleus by its class; in some images a little in negative ones."""
    wanted = np.zeros(len(classes))
    for value, limits in DAB_OD.items():
        chosen = classes == value
        wanted[chosen] = rng.uniform(*limits, np.count_nonzero(chosen))
    wanted += (classes == STRONG) * rng.exponential(rng.uniform(*STRONG_EXTRA_OD), len(classes))
    if rng.random() < GREYISH_CHANCE:
        wanted += (classes == NEGATIVE) * (rng.random(len(classes)) < 0.5) * rng.exponential(GREYISH_OD, len(classes))
    return wanted


def _brown_ground(
    patch: Patch, extent: int, found: np.ndarray, in_brown: float, unfocused: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(H, W) amount of DAB that no labelled nucleus has; over nuclei it is limited so that negative ones stay negative.

    Args:
        extent: a key of `MOST_NEGATIVE_OD`.
        found: (N,) DAB that a measurement finds in each nucleus without it.
        in_brown: DAB that a measurement finds per unit of drawn DAB.
        unfocused: (H, W) DAB of nuclei out of focus.
    """
    ground = unfocused if extent == MUCH else unfocused + haze(patch, rng)
    if extent:
        ground = ground + brown_cells(patch, _likeness(patch, rng.uniform(0.7, 1), rng), extent, rng)
    over = np.maximum(in_brown * patch.means(ground), LEAST_OD)
    kept = np.clip((MOST_NEGATIVE_OD[extent] - found) / over, 0, 1)
    kept[0] = 1
    return ground * patch.blur(patch.spread(kept), 0.3) if kept.min() < 1 else ground
