"""From contours to label maps: every pixel whose centre lies in or on a contour belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from skimage.draw import polygon

from misc.annotations import Contour
from misc.files import atomic_path
from misc.runs import find_regions, find_runs


@dataclass(frozen=True)
class LabelMask:
    """A label map, and what became of the contours.

    Attributes:
        inst_map: (H, W) int32, 0 background, 1..N without gaps.
        types: (N,) int32, type of each instance.
        centroids_xy: (N, 2) float64, px.
        source: (N,) int64, which contour each instance is.
        hidden_px: px of contours that lie under smaller ones.
        buried: contours of which nothing is left, since smaller ones cover them or they equal another.
        outside: contours without a pixel in the image.
        clipped: contours that reach over the image's edge.
    """

    inst_map: np.ndarray
    types: np.ndarray
    centroids_xy: np.ndarray
    source: np.ndarray
    hidden_px: int
    buried: int
    outside: int
    clipped: int

    def save(self, path: str | Path) -> None:
        """Write the `.mat` that `dataset.py`, `extract_patches.py` and `compute_stats.py` read."""
        content = {
            "inst_map": self.inst_map,
            "type_map": np.append(np.int32(0), self.types)[self.inst_map],
            "inst_type": self.types[:, None],
            "inst_centroid": self.centroids_xy,
        }
        with atomic_path(path) as temporary:
            scipy.io.savemat(temporary, content, do_compression=True)


def paint_contours(contours: Sequence[Contour], types: Sequence[int], shape: tuple[int, int]) -> LabelMask:
    """Paint contours, the smaller ones on top (P14), each within its own box.

    Args:
        contours: what to paint.
        types: type of each.
        shape: (H, W) of the image, px.
    """
    pieces = [_rasterise(contour, shape) for contour in contours]
    areas = np.array([len(rows) for rows, _ in pieces], np.int64)
    canvas = np.zeros(shape, np.int32)
    for index in np.argsort(-areas, kind="stable"):
        canvas[pieces[index]] = index + 1
    visible = np.bincount(canvas.ravel(), minlength=len(contours) + 1)[1:]
    source = np.flatnonzero(visible)
    new_ids = np.zeros(len(contours) + 1, np.int32)
    new_ids[source + 1] = np.arange(1, len(source) + 1)
    inst_map = new_ids[canvas]
    return LabelMask(
        inst_map=inst_map,
        types=np.asarray(types, np.int32).reshape(-1)[source],
        centroids_xy=find_regions(find_runs(inst_map)).centroids_xy,
        source=source,
        hidden_px=int((areas - visible).sum()),
        buried=int(((areas > 0) & (visible == 0)).sum()),
        outside=int((areas == 0).sum()),
        clipped=sum(_reaches_out(contour, shape) for contour in contours) - int((areas == 0).sum()),
    )


def _rasterise(contour: Contour, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pixels in a contour; of several rings, of those in an odd number of them."""
    found = [polygon(ring[:, 1], ring[:, 0], shape) for ring in contour.rings]
    if len(found) == 1:
        return found[0]
    flat, count = np.unique(np.concatenate([rows * shape[1] + cols for rows, cols in found]), return_counts=True)
    return np.divmod(flat[count % 2 == 1], shape[1])


def _reaches_out(contour: Contour, shape: tuple[int, int]) -> bool:
    points = np.concatenate(contour.rings)
    # half a pixel over the edge is the edge itself, in the coordinates of most programs
    return bool((points < -0.5).any() or (points > np.array(shape[::-1]) - 0.5).any())
