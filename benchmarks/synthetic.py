"""Made-up nuclei for benchmarks: as many and as large as in tissue, without any real data."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

# Semi-axes of nuclei at 40x, px (3 to 5 um across at 0.25 um/px are lymphocytes, 10 um are epithelial nuclei).
SEMI_AXES_PX = (6.0, 14.0)


def nuclei_labels(size: int, per_mpx: float = 700, seed: int = 0) -> np.ndarray:
    """Paint ellipses, later ones over earlier ones, so that many touch as they do in tissue.

    Args:
        size: side of the image, px.
        per_mpx: nuclei per million px.

    Returns:
        (size, size) int32, 1..N without gaps.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    for index in range(1, round(per_mpx * size * size / 1e6 * 1.12) + 1):  # one in ten gets covered or cut in two
        centre = tuple(rng.integers(0, size, 2).tolist())
        axes = tuple(np.rint(rng.uniform(*SEMI_AXES_PX, 2)).astype(int).tolist())
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, index, -1)
    whole = np.zeros_like(labels)
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == index)
        if count:
            largest = np.argmax(np.bincount(parts.ravel())[1:]) + 1
            if (parts == largest).sum() >= 30:
                whole[box][parts == largest] = index
    present = np.unique(whole)
    return np.searchsorted(present, whole).astype(np.int32)


def periodic_map(period: int, per_mpx: float = 700, seed: int = 0) -> np.ndarray:
    """Make an untyped prediction map that repeats: nuclei over one edge continue at the opposite edge.

    So patches that all predict this map, `period` px a side, form one map without seams.

    Returns:
        (period, period, 3) float32 [np, h, v].
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((3 * period, 3 * period), np.int32)  # nine copies; the one in the middle is complete
    shifts = [(x * period, y * period) for x in range(3) for y in range(3)]
    for _ in range(round(per_mpx * period**2 / 1e6)):
        centre, axes = rng.integers(0, period, 2), np.rint(rng.uniform(*SEMI_AXES_PX, 2)).astype(int).tolist()
        angle = float(rng.uniform(0, 180))
        for shift in shifts:
            cv2.ellipse(labels, (centre + shift).tolist(), axes, angle, 0, 360, int(labels.max()) + 1, -1)
    return network_like_map(labels, seed=seed)[period : 2 * period, period : 2 * period]


def network_like_map(labels: np.ndarray, nr_types: int | None = None, seed: int = 0) -> np.ndarray:
    """Make the prediction map that a good network would give for these nuclei: soft edges, some noise.

    Returns:
        (H, W, 3) float32 [np, h, v], or (H, W, 4) with the type first.
    """
    rng = np.random.default_rng(seed)
    x_map, y_map = (np.zeros(labels.shape, np.float32) for _ in range(2))
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[box] == index
        for target, axis in ((x_map, 1), (y_map, 0)):
            position = np.broadcast_to(
                np.arange(inside.shape[axis])[:, None] if axis == 0 else np.arange(inside.shape[1]), inside.shape
            )
            offset = position - position[inside].mean()
            target[box][inside] = (offset / max(np.abs(offset[inside]).max(), 1))[inside]

    def soft(array: np.ndarray, noise: float) -> np.ndarray:
        grain = cv2.GaussianBlur(rng.normal(0, noise, labels.shape).astype(np.float32), (7, 7), 0)
        return cv2.GaussianBlur(array.astype(np.float32), (5, 5), 0) + grain

    maps = [np.clip(soft(labels > 0, 0.2), 0, 1), soft(x_map, 0.2), soft(y_map, 0.2)]
    if nr_types is not None:
        type_of = rng.integers(1, nr_types, labels.max() + 1)
        types = np.where(rng.random(labels.shape) < 0.85, type_of[labels], rng.integers(0, nr_types, labels.shape))
        maps.insert(0, np.where(labels > 0, types, 0).astype(np.float32))
    return np.stack(maps, axis=-1)


def tissue_like_image(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Colour the nuclei purple on pink, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = np.where(labels[..., None] > 0, (110, 70, 150), (225, 170, 205)).astype(np.float32)
    image += cv2.GaussianBlur(rng.normal(0, 60, image.shape).astype(np.float32), (5, 5), 0)
    return np.clip(image, 0, 255).astype(np.uint8)
