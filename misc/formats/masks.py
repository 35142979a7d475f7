"""From contours to label maps: every pixel whose centre lies in or on a contour belongs to it.

Where a contour crosses itself even-odd decides, as in the programs that drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
from skimage.draw import polygon

from misc.files import atomic_path
from misc.formats.annotations import Contour
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


def _rasterise(contour: Contour, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pixels in a contour; of several rings, of those in an odd number of them."""
    found = [_ring_pixels(ring, shape) for ring in contour.rings]
    if len(found) == 1:
        return np.divmod(found[0], shape[1])
    flat, count = np.unique(np.concatenate(found), return_counts=True)
    return np.divmod(flat[count % 2 == 1], shape[1])


def _ring_pixels(ring_xy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels in or on a ring as flat indices, each once."""
    rows, cols = polygon(ring_xy[:, 1], ring_xy[:, 0], shape)
    x, y = doubled_pixels(ring_xy, longest=sum(shape)).T  # which `polygon` takes for outside: two crossings
    inside = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    return np.unique(np.concatenate([rows * shape[1] + cols, y[inside] * shape[1] + x[inside]]))


def doubled_pixels(ring_xy: np.ndarray, longest: int) -> np.ndarray:
    """Return the pixel centres on edges that a ring runs along twice, as it does where a nucleus is one pixel wide.

    Args:
        ring_xy: (M, 2), x then y, px.
        longest: edges with more pixel centres than this are left out: they lead far out of the image.

    Returns:
        (K, 2) int64, some more than once; nothing for a ring with a corner between pixel centres.
    """
    with np.errstate(invalid="ignore"):  # what is no int64 is no pixel centre, either
        corners = np.rint(ring_xy).astype(np.int64)
    if not np.array_equal(corners, ring_xy):
        return np.zeros((0, 2), np.int64)
    step = np.roll(corners, -1, axis=0) - corners
    count = np.gcd(step[:, 0], step[:, 1])  # pixel centres on the way to the next corner
    count[count > longest] = 0
    stride = np.repeat(step // np.maximum(count, 1)[:, None], count, axis=0)
    along = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    start = np.repeat(corners, count, axis=0) + stride * along[:, None]
    backwards = ((stride[:, 0] < 0) | ((stride[:, 0] == 0) & (stride[:, 1] < 0)))[:, None]
    pieces = np.column_stack([np.where(backwards, start + stride, start), np.where(backwards, -stride, stride)])
    pieces, times = np.unique(pieces, axis=0, return_counts=True)
    twice = pieces[times > 1]
    return np.concatenate([twice[:, :2], twice[:, :2] + twice[:, 2:]])


def _reaches_out(contour: Contour, shape: tuple[int, int]) -> bool:
    points = np.concatenate(contour.rings)
    # half a pixel over the edge is the edge itself, in the coordinates of most programs
    return bool((points < -0.5).any() or (points > np.array(shape[::-1]) - 0.5).any())
