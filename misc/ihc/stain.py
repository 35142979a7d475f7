"""Colour deconvolution: how much of each stain lies in a pixel, after Ruifrok and Johnston.

Light that passes a stained section is weakened by the factor 10^-(amount * density): in optical densities, log10(I0 /
I), the stains of a pixel add up. With the colour of each pure stain known, three densities (red, green, blue) give
the amounts of two stains and a rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Optical density of pure stains in red, green and blue, measured by Ruifrok and Johnston (2001), "Quantification of
# histochemical staining by color deconvolution", Anal Quant Cytol Histol 23:291-299. Edit for other stains or scanners.
HEMATOXYLIN_RGB = (0.650, 0.704, 0.286)
EOSIN_RGB = (0.072, 0.990, 0.105)
DAB_RGB = (0.268, 0.570, 0.776)
# The stain pairs one can measure: column name -> optical density vector.
STAINS: dict[str, dict[str, tuple[float, float, float]]] = {
    "he": {"hematoxylin": HEMATOXYLIN_RGB, "eosin": EOSIN_RGB},
    "hdab": {"hematoxylin": HEMATOXYLIN_RGB, "dab": DAB_RGB},
}
# Value of an unstained pixel. Zero light has no logarithm: the darkest pixel counts as 1.
WHITE = 255
DARKEST = 1

# Optical density of each of the 256 values, log10(I0 / I).
DENSITY_OF_VALUE = np.log10(WHITE / np.maximum(np.arange(256), DARKEST)).astype(np.float32)


def _unit(vector) -> tuple[float, float, float]:
    return tuple((np.array(vector, np.float64) / np.linalg.norm(vector)).tolist())


DEFAULT, AUTO, GIVEN = "default", "auto", "given"


@dataclass(frozen=True)
class StainModel:
    """Colours of haematoxylin and DAB of one slide, and of its glass.

    Attributes:
        hematoxylin_rgb, dab_rgb: optical densities in red, green and blue, unit vectors.
        white_rgb: value of an unstained pixel.
        source: `DEFAULT`, `AUTO` (estimated on the slide) or `GIVEN`.
        warnings: what a person should know, e.g. that vectors fell back to the default and why.
    """

    hematoxylin_rgb: tuple[float, float, float] = _unit(HEMATOXYLIN_RGB)
    dab_rgb: tuple[float, float, float] = _unit(DAB_RGB)
    white_rgb: tuple[float, float, float] = (WHITE, WHITE, WHITE)
    source: str = DEFAULT
    warnings: tuple[str, ...] = ()

    @property
    def angle_deg(self) -> float:
        """Angle between the two stains; 37 degrees by default."""
        return angle_deg(self.hematoxylin_rgb, self.dab_rgb)

    def densities(self, rgb: np.ndarray) -> np.ndarray:
        """Return haematoxylin and DAB of each pixel, (..., 3) uint8 -> (..., 2) float32."""
        if not rgb.size:
            return np.zeros((*rgb.shape[:-1], 2), np.float32)
        matrix = unmix_vectors(self.hematoxylin_rgb, self.dab_rgb).T
        # of DENSITY_OF_VALUE, which is above WHITE; glass that is darker than that has this density
        glass = matrix @ np.log10(WHITE / np.array(self.white_rgb, np.float32))
        channels = cv2.LUT(np.ascontiguousarray(rgb).reshape(-1, 1, 3), np.dstack([DENSITY_OF_VALUE] * 3))
        affine = np.column_stack([matrix, -glass]).astype(np.float32)
        return cv2.transform(channels, affine).reshape(*rgb.shape[:-1], 2)

    def words(self) -> str:
        """Say the model in a line, for tables and pictures; the vectors are as `parse_stain` takes them."""
        vectors = ":".join(",".join(f"{x:.3f}" for x in v) for v in (self.hematoxylin_rgb, self.dab_rgb))
        white = ",".join(f"{x:.0f}" for x in self.white_rgb)
        return f"{self.source} {vectors} ({self.angle_deg:.0f} degrees), white {white}"


def angle_deg(first: tuple[float, float, float], second: tuple[float, float, float]) -> float:
    """Return the angle between two vectors, degrees."""
    return float(np.degrees(np.arccos(np.clip(np.dot(_unit(first), _unit(second)), -1, 1))))


def unmixing(stain: str) -> np.ndarray:
    """Return the (3, 2) float32 matrix that turns red, green, blue densities into those of two stains.

    Args:
        stain: a key of `STAINS`.

    Raises:
        ValueError: there is no such stain pair.
    """
    if stain not in STAINS:
        raise ValueError(f"no such stain pair: {stain!r}; there are {', '.join(STAINS)}")
    return unmix_vectors(*STAINS[stain].values())


def unmix_vectors(first, second) -> np.ndarray:
    """Return the (3, 2) float32 matrix of two stains, given as densities in red, green, blue.

    As Ruifrok and Johnston: unit vectors; the third one, at right angles to both, takes what neither explains.
    """
    first, second = (np.array(_unit(v)) for v in (first, second))
    rest = np.cross(first, second)
    matrix = np.stack([first, second, rest / np.linalg.norm(rest)])
    return np.linalg.inv(matrix)[:, :2].astype(np.float32)


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """Return log10(I0 / I) of each value: 0 for white, 2.41 for black; (...) uint8 gives (...) float32."""
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8:
        raise ValueError(f"expected an 8-bit image, got {rgb.dtype}")
    return DENSITY_OF_VALUE[rgb]


def stain_densities(rgb: np.ndarray, stain: str) -> np.ndarray:
    """Split the colours of an image into the optical densities of two stains.

    Args:
        rgb: (..., 3) uint8.
        stain: a key of `STAINS`.

    Returns:
        (..., 2) float32, one density a stain in the order of `STAINS[stain]`; about 0 where there is none, below 0
        where the colour lies outside what the two stains can mix.
    """
    return optical_density(rgb) @ unmixing(stain)


def label_densities(rgb: np.ndarray, inst_map: np.ndarray, stain: str = "hdab") -> tuple[np.ndarray, np.ndarray]:
    """Measure the mean optical density of each stain in each nucleus of a label map, in one pass over its pixels.

    For nuclei that are contours rather than a label map: `misc.nuclei_features.nuclear_densities`.

    Args:
        rgb: (H, W, 3) uint8.
        inst_map: (H, W) integers, 0 background.
        stain: a key of `STAINS`.

    Returns:
        (N,) int64 ids in rising order, and (N, 2) float64 densities in the order of `STAINS[stain]`.

    Raises:
        ValueError: the shapes differ.
    """
    if rgb.shape != (*inst_map.shape, 3):
        raise ValueError(f"image {rgb.shape} and label map {inst_map.shape} do not belong together")
    inside = inst_map > 0
    ids, which = np.unique(inst_map[inside], return_inverse=True)
    density = optical_density(rgb[inside])
    area = np.bincount(which, minlength=len(ids))
    # the mean of the mixture, unmixed, is the mean of each stain: deconvolution is linear in the densities
    sums = np.stack([np.bincount(which, density[:, c], minlength=len(ids)) for c in range(3)], axis=1)
    return ids.astype(np.int64), (sums / area[:, None]) @ unmixing(stain)
