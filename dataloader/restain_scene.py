"""The surroundings of nuclei in a re-stained patch: brown cytoplasm and membranes, glass, debris, ink, the scanner.

`dataloader.restain` draws the nuclei. The amounts were chosen by comparison with real images: Ki-67 of bladder, lung
and glioma, and a membrane and cytoplasm stain of colon (scikit-image's `immunohistochemistry`). None of these images is
in the training set.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from misc.ihc.stain import DENSITY_OF_VALUE, WHITE, unmixing

# Brown outside nuclei: an image has some, or so much that it hides nuclei. Ranges of the amount of DAB in cytoplasm
# (colon: 0.4 to 0.9 in brown glands) and in membranes, of the share of brown cells, and of the share of the cytoplasm's
# brown that lies above and below a nucleus, in the thickness of the section (colon: 0.2 to 0.6 of DAB are measured over
# nuclei that have none).
SOME, MUCH = 1, 2
CYTOPLASM_OD = {SOME: (0.05, 0.35), MUCH: (0.25, 0.75)}
MEMBRANE_OD = {SOME: (0.1, 0.5), MUCH: (0.3, 1.0)}
CELL_SHARE = {SOME: (0.05, 0.6), MUCH: (0.3, 1.0)}
VEIL = {SOME: (0.1, 0.5), MUCH: (0.3, 0.65)}
MOST_OVER_NUCLEI = 0.8
CELL_FACTOR = (0.5, 1.2)  # factor of each cell's brown
NO_CYTOPLASM_CHANCE = 0.25  # only membranes are brown
NO_MEMBRANE_CHANCE = 0.35
GAPS_CHANCE = 0.5  # incomplete membranes
# Unspecific brown of the whole tissue, and its chance.
HAZE_OD = (0.0, 0.1)
HAZE_CHANCE = 0.5
# Nuclei above or below the focus, pale and blurred: nobody counts them. Their chance, share of the patch's nuclei,
# amount of stain, blur (um), and the most of them that are brown.
UNFOCUSED_CHANCE = 0.5
UNFOCUSED_SHARE = (0.1, 0.7)
UNFOCUSED_OD = (0.02, 0.12)
UNFOCUSED_UM = (0.8, 2.2)
UNFOCUSED_BROWN = 0.3
# Glass, light and grain.
UNEVENNESS = 0.12  # standard deviation of the tint's strength
GREY_OD = (0.0, 0.03)  # of unstained tissue
GRAIN_OD = (0.0, 0.1)
# Debris: the mean number of pieces in 100 x 100 um of a typical image; pigment lies in heaps.
DEBRIS_MEAN = 0.7
HEAP_CHANCE = 0.35
HEAP_SIZE = 14  # mean number of granules
CRYSTAL_CHANCE = 0.35
INK_CHANCE = 0.02
INK_OD = (0.1, 0.5)
# Scanner.
BLUR_CHANCE = 0.4  # out of focus
SHARPEN_CHANCE = 0.35
SHARPEN = (0.3, 1.2)
JPEG_CHANCE = 0.35
JPEG_QUALITY = (40, 95)
# Lengths, um.
CHROMATIN_UM = 3.0
MATTER_UM = 0.4
UNEVEN_UM = 60
CELL_UM = (4.5, 12.0)  # largest distance of cytoplasm from its nucleus
EXTENT_FACTOR = (0.7, 1.2)  # factor of that distance for each cell
LONE_MEMBRANE_UM = (2.0, 5.0)  # distance from the nucleus of membranes that touch no other cell
MEMBRANE_UM = (0.3, 0.7)  # half of its width
GAP_UM = 5
GRANULE_UM = 0.6
SPECK_UM = (0.4, 1.4)  # half axes of crushed debris: smaller than nuclei
CRYSTAL_UM = (0.5, 2.5)
PIGMENT_UM = (0.2, 0.7)
HEAP_UM = 3.0  # standard deviation
INK_WIDTH_UM = (10, 60)
DEFOCUS_UM = (0.15, 0.5)
FINE_UM = 2.0  # finer noise is interpolated linearly
LEAST_OD = 0.02  # added before dividing by a density

_UNMIX = unmixing("he").T  # (2, 3), as OpenCV takes it


@dataclass(frozen=True)
class Patch:
    """Measurements of the H&E patch.

    Attributes:
        instances: (H, W) ids.
        areas: (N,) px of each id; 0 for the background.
        places, place_ids: (P,) flat indices of the pixels of nuclei, and their ids.
        hematoxylin: (H, W) float32 amount, 0 and more.
        matter: (H, W) float32 amount of tissue, measured by the eosin: about 1 on average.
        texture: (H, W) float32 contrast of the chromatin, about 1.
        mpp: um/px.
    """

    instances: np.ndarray
    areas: np.ndarray
    places: np.ndarray
    place_ids: np.ndarray
    hematoxylin: np.ndarray
    matter: np.ndarray
    texture: np.ndarray
    mpp: float

    @classmethod
    def of(cls, image: np.ndarray, instances: np.ndarray, mpp: float) -> Patch:
        """Measure a patch, (H, W, 3) uint8, with instances (H, W)."""
        stains = np.maximum(cv2.transform(cv2.LUT(image, DENSITY_OF_VALUE), _UNMIX), 0)
        hematoxylin, eosin = cv2.split(stains)
        side = 2 * round(CHROMATIN_UM / mpp) + 1
        local = cv2.blur(hematoxylin, (side, side))
        texture = np.clip((hematoxylin + LEAST_OD) / (local + LEAST_OD), 0.4, 1.8)
        matter = cv2.GaussianBlur(eosin, (0, 0), MATTER_UM / mpp)
        matter /= matter.mean() + LEAST_OD
        places = np.flatnonzero(instances)
        ids = instances.ravel()[places]
        return cls(instances, np.bincount(ids, minlength=1), places, ids, hematoxylin, matter, texture, mpp)

    @property
    def inside(self) -> np.ndarray:
        """(H, W) bool: pixels of nuclei."""
        return self.instances > 0

    @property
    def ids(self) -> np.ndarray:
        """Existing ids, without the background."""
        return np.flatnonzero(self.areas)

    def means(self, plane: np.ndarray) -> np.ndarray:
        """(N,) mean of a plane in each nucleus, 0 for the background."""
        sums = np.bincount(self.place_ids, plane.take(self.places), len(self.areas))
        return sums / np.maximum(self.areas, 1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(H, W) float32: (N,) values of the nuclei, in their pixels."""
        return values.astype(np.float32).take(self.instances)  # takes half the time of indexing

    def blur(self, plane: np.ndarray, um: float) -> np.ndarray:
        """Blur an (H, W) float32 plane with a Gaussian."""
        return cv2.GaussianBlur(plane, (0, 0), max(um / self.mpp, 0.3))

    def noise(self, um: float, rng: np.random.Generator) -> np.ndarray:
        """(H, W) float32 noise of variance about 1, with structures of about `um`."""
        height, width = self.instances.shape
        noise = rng.standard_normal([int(side * self.mpp / um) + 2 for side in (height, width)], np.float32)
        if um > FINE_UM:  # the smooth interpolation is slow
            noise = cv2.resize(noise, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_CUBIC)
        return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) float32 distance to the nearest nucleus, um, and (H, W) its id."""
        inside = self.inside
        away_px, nearest = cv2.distanceTransformWithLabels(
            (~inside).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        id_of_pixel = np.zeros(int(nearest.max()) + 1, self.instances.dtype)
        id_of_pixel[nearest[inside]] = self.instances[inside]
        return away_px * self.mpp, id_of_pixel.take(nearest)


def brown_cells(patch: Patch, likeness: np.ndarray, extent: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 DAB of cytoplasm and membranes in a part of the cells, those of the highest `likeness`.

    Args:
        likeness: (N,) random value of each nucleus, similar in neighbours.
        extent: `SOME` or `MUCH`.
    """
    if not len(patch.ids):
        return np.zeros(patch.instances.shape, np.float32)
    away_um, cells = patch.cells()
    cutoff = np.quantile(likeness[patch.ids], 1 - rng.uniform(*CELL_SHARE[extent]))
    factor = ((likeness >= cutoff) * rng.uniform(*CELL_FACTOR, len(likeness))).astype(np.float32).take(cells)
    above = 1 - (1 - np.float32(rng.uniform(*VEIL[extent]))) * patch.blur(patch.inside.astype(np.float32), 0.4)
    matter = np.clip(1.3 * patch.matter - 0.15, 0, 1.4)  # none in lumina
    matter[patch.inside] = np.minimum(matter[patch.inside], MOST_OVER_NUCLEI)  # eosin there is not cytoplasm
    brown = np.zeros(patch.instances.shape, np.float32)
    if rng.random() > NO_CYTOPLASM_CHANCE:
        granules = np.clip(1 + np.float32(rng.uniform(0, 0.35)) * patch.noise(GRANULE_UM, rng), 0.2, 2.2)
        extent_um = rng.uniform(*CELL_UM) * rng.uniform(*EXTENT_FACTOR, len(likeness))
        fade = np.clip((extent_um.astype(np.float32).take(cells) - away_um) / 2, 0, 1)
        brown += np.float32(rng.uniform(*CYTOPLASM_OD[extent])) * matter * fade * granules
    if rng.random() > NO_MEMBRANE_CHANCE or not brown.any():
        line = _membranes(patch, away_um, cells, rng)
        brown = np.maximum(brown, np.float32(rng.uniform(*MEMBRANE_OD[extent])) * line * np.clip(matter, 0.5, 1.4))
    return patch.blur(factor, 0.6) * brown * above


def _membranes(patch: Patch, away_um: np.ndarray, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32, 1 in a membrane: half way to the neighbour, or at a distance around the nucleus."""
    between = np.zeros(cells.shape, np.float32)
    between[:-1] += cells[:-1] != cells[1:]
    between[:, :-1] += cells[:, :-1] != cells[:, 1:]
    half_um, lone_um = rng.uniform(*MEMBRANE_UM), np.float32(rng.uniform(*LONE_MEMBRANE_UM))
    line = np.minimum(patch.blur(between, half_um) * np.float32(2.5 * max(half_um / patch.mpp, 0.5)), 1)
    line *= away_um < 2 * lone_um
    lone = cv2.exp(-(((away_um - lone_um) / np.float32(1.4 * half_um)) ** 2))
    line = np.maximum(line, np.float32(rng.uniform(0.2, 1)) * lone)
    if rng.random() < GAPS_CHANCE:
        line *= np.clip(patch.noise(GAP_UM, rng) + np.float32(rng.uniform(0, 1.0)), 0, 1)
    return line


def haze(patch: Patch, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 unspecific DAB of all tissue, nuclei included."""
    if rng.random() > HAZE_CHANCE:
        return np.zeros(patch.instances.shape, np.float32)
    uneven = np.clip(1 + np.float32(0.5) * patch.noise(UNEVEN_UM, rng), 0, 2)
    return np.float32(rng.uniform(*HAZE_OD)) * uneven * np.clip(patch.matter, 0.2, 1.5)


def unfocused(patch: Patch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) float32 amounts of haematoxylin and of DAB of nuclei out of focus, which no label has.

    They have the shapes of the patch's own nuclei, turned by 180 degrees, so that most lie beside these.
    """
    count, none = len(patch.areas), np.zeros(patch.instances.shape, np.float32)
    if rng.random() > UNFOCUSED_CHANCE:
        return none, none
    amount = (
        rng.uniform(*UNFOCUSED_OD) * rng.uniform(0.5, 1.5, count) * (rng.random(count) < rng.uniform(*UNFOCUSED_SHARE))
    )
    amount[0] = 0
    brown = rng.random(count) < rng.uniform(0, UNFOCUSED_BROWN)
    blur_um = rng.uniform(*UNFOCUSED_UM)
    blue, dab = (patch.blur(patch.spread(amount * stain)[::-1, ::-1], blur_um) for stain in (~brown, brown))
    return blue, dab


def glass(patch: Patch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) strength of the tint of slide and light, about 1, and (H, W) grey optical density of tissue and grain."""
    shape = patch.instances.shape
    noise = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape).astype(np.float32) / 255 - 0.5
    grain = cv2.GaussianBlur(noise, (0, 0), 0.7) * np.float32(rng.uniform(*GRAIN_OD))
    grain += patch.matter * np.float32(rng.uniform(*GREY_OD))
    return 1 + UNEVENNESS * patch.noise(UNEVEN_UM, rng), grain


def debris(patch: Patch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Draw debris that looks like nuclei, between the nuclei.

    Returns:
        (H, W) amounts of dark and of brown specks, and (H, W) share by which crystals reduce all density, or `None`.
    """
    height, width = patch.instances.shape
    dark, brown, clear = np.zeros((3, height, width), np.float32)
    mean = DEBRIS_MEAN * rng.exponential() * height * width * patch.mpp**2 / 100**2
    count = min(rng.poisson(mean), 60)
    for _ in range(count):
        centre_xy = rng.uniform(0, (width, height))
        if rng.random() < CRYSTAL_CHANCE:
            _ellipse(clear, centre_xy, rng.uniform(*CRYSTAL_UM, 2) / patch.mpp, 0.6, rng)
            continue
        plane, amount = (dark, rng.uniform(0.2, 0.9)) if rng.random() < 0.4 else (brown, rng.uniform(0.2, 1.2))
        if rng.random() < HEAP_CHANCE:  # pigment: granules of one colour
            places_xy = centre_xy + rng.normal(0, HEAP_UM / patch.mpp, (1 + rng.poisson(HEAP_SIZE), 2))
            for place_xy in places_xy:
                _ellipse(plane, place_xy, rng.uniform(*PIGMENT_UM, 2) / patch.mpp, amount, rng)
        else:  # crushed debris: a few smears over each other
            for place_xy in centre_xy + rng.normal(0, 1 / patch.mpp, (rng.integers(1, 4), 2)):
                _ellipse(plane, place_xy, rng.uniform(*SPECK_UM, 2) / patch.mpp, amount, rng)
    if not count:
        return dark, brown, None
    dark, brown, clear = (patch.blur(plane, 0.3) * ~patch.inside for plane in (dark, brown, clear))
    rim = np.maximum(patch.blur(clear, 0.4) - clear, 0)  # scatters the light that goes through a crystal
    return dark + 0.4 * rim, brown, clear


def _ellipse(plane: np.ndarray, centre_xy: np.ndarray, axes_px: np.ndarray, amount: float, rng: np.random.Generator):
    axes = [max(round(side), 1) for side in axes_px.tolist()]
    cv2.ellipse(plane, [int(x) for x in centre_xy], axes, rng.uniform(0, 180), 0, 360, amount, -1)


def ink(patch: Patch, rng: np.random.Generator) -> np.ndarray | None:
    """(H, W, 3) float32 optical density of a pen stroke; `None` in the many images without one."""
    if rng.random() > INK_CHANCE:
        return None
    height, width = patch.instances.shape
    stroke = np.zeros((height, width), np.float32)
    ends = rng.integers(0, (width, height), (2, 2)).tolist()
    cv2.line(stroke, *ends, 1.0, max(round(rng.uniform(*INK_WIDTH_UM) / patch.mpp), 1))
    stroke = patch.blur(stroke, 2.0) * np.clip(1 + 0.3 * patch.noise(GAP_UM, rng), 0.3, 2)
    return stroke[..., None] * (rng.uniform(*INK_OD) * rng.uniform(0.2, 1.5, 3)).astype(np.float32)


def photograph(density: np.ndarray, mpp: float, rng: np.random.Generator) -> np.ndarray:
    """Turn an (H, W, 3) optical density into a scanned image, (H, W, 3) uint8: maybe blurred, sharpened, JPEG."""
    if rng.random() < BLUR_CHANCE:
        density = cv2.GaussianBlur(density, (0, 0), max(rng.uniform(*DEFOCUS_UM) / mpp, 0.3))
    image = cv2.convertScaleAbs(cv2.exp(density * np.float32(-np.log(10))), alpha=WHITE)
    if rng.random() < SHARPEN_CHANCE:
        amount = rng.uniform(*SHARPEN)
        image = cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.0), -amount, 0)
    if rng.random() < JPEG_CHANCE:
        quality = int(rng.integers(*JPEG_QUALITY))
        blue_first = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        encoded = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return image
