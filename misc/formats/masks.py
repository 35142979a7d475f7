"""From contours to label maps: every pixel whose centre lies in or on a contour belongs to it.

Contours that cross themselves are filled by the even-odd rule, as in the programs that drew them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

from misc.files import atomic_path
from misc.formats.contours import Contour
from misc.formats.labels import TYPES_KEY, types_text
from misc.formats.scanline import Box, box_of, fill_ring
from misc.machine import check_fits
from misc.runs import find_regions, find_runs
from misc.type_info import TypeInfo

# Peak memory of painting and saving: maps of ids and types, and copies for counting and finding regions.
_BYTES_PER_PX = 24


@dataclass(frozen=True)
class LabelMask:
    """A label map, and the fate of each contour.

    Attributes:
        inst_map: (H, W) int32, 0 background, 1..N without gaps.
        types: (N,) int32, type of each instance.
        centroids_xy: (N, 2) float64, px.
        source: (N,) int64, which contour each instance is.
        hidden_px: px of contours that lie under smaller ones.
        buried: contours without a visible pixel, since smaller ones cover them or they equal another.
        outside: contours that reach over the image's edge, without a pixel in it.
        clipped: contours that reach over the image's edge, with pixels in it.
        too_small: contours within the image that no centre of a pixel lies in.
    """

    inst_map: np.ndarray
    types: np.ndarray
    centroids_xy: np.ndarray
    source: np.ndarray
    hidden_px: int
    buried: int
    outside: int
    clipped: int
    too_small: int

    def save(self, path: str | Path, type_info: TypeInfo | None = None) -> None:
        """Write the `.mat` that `dataset.py`, `extract_patches.py` and `compute_stats.py` read.

        Args:
            path: the file.
            type_info: names of the types, which go into the file; `None` where they have none.
        """
        content = {
            "inst_map": self.inst_map,
            "type_map": np.append(np.int32(0), self.types)[self.inst_map],
            "inst_type": self.types[:, None],
            "inst_centroid": self.centroids_xy,
        }
        if type_info is not None:
            content[TYPES_KEY] = types_text(type_info)
        with atomic_path(path) as temporary:
            scipy.io.savemat(temporary, content, do_compression=True)


def paint_contours(contours: Sequence[Contour], types: Sequence[int], shape: tuple[int, int]) -> LabelMask:
    """Paint contours, the smaller ones on top, each within its own box.

    Args:
        contours: what to paint.
        types: type of each.
        shape: (H, W) of the image, px.

    Raises:
        ValueError: memory does not hold the label map, or an outline.
    """
    boxes = [box_of(contour.rings, shape) for contour in contours]
    nr_bytes = shape[0] * shape[1] * _BYTES_PER_PX + sum(box.shape[0] * box.shape[1] for box in boxes)
    check_fits(nr_bytes, f"a label map of {shape[1]} x {shape[0]} px with {len(contours)} outlines")
    masks = [rasterise(contour, box) for contour, box in zip(contours, boxes, strict=True)]
    areas = np.array([np.count_nonzero(mask) for mask in masks], np.int64)
    canvas = np.zeros(shape, np.int32)
    for index in np.argsort(-areas, kind="stable"):
        box = boxes[index]
        canvas[box.y0 : box.y1, box.x0 : box.x1][masks[index]] = index + 1
    visible = np.bincount(canvas.ravel(), minlength=len(contours) + 1)[1:]
    source = np.flatnonzero(visible)
    new_ids = np.zeros(len(contours) + 1, np.int32)
    new_ids[source + 1] = np.arange(1, len(source) + 1)
    inst_map = new_ids[canvas]
    reaches_out = np.array([_reaches_out(contour, shape) for contour in contours], bool)
    return LabelMask(
        inst_map=inst_map,
        types=np.asarray(types, np.int32).reshape(-1)[source],
        centroids_xy=find_regions(find_runs(inst_map)).centroids_xy,
        source=source,
        hidden_px=int((areas - visible).sum()),
        buried=int(((areas > 0) & (visible == 0)).sum()),
        outside=int((reaches_out & (areas == 0)).sum()),
        clipped=int((reaches_out & (areas > 0)).sum()),
        too_small=int((~reaches_out & (areas == 0)).sum()),
    )


def rasterise(contour: Contour, box: Box) -> np.ndarray:
    """Return the (h, w) bool mask of a contour in a box; of several rings, the pixels in an odd number of them."""
    mask = np.zeros(box.shape, bool)
    for ring in contour.rings:
        mask ^= fill_ring(ring, box)
    for ring in contour.holes:
        mask &= ~fill_ring(ring, box)
    return mask


def _reaches_out(contour: Contour, shape: tuple[int, int]) -> bool:
    points = np.concatenate(contour.rings)
    # half a pixel over the edge is the edge itself, in the coordinates of most programs
    return bool((points < -0.5).any() or (points > np.array(shape[::-1]) - 0.5).any())
