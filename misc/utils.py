"""Small array helpers under the names that downstream code imports."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import scipy


def get_bounding_box(img: np.ndarray) -> list[int]:
    """Return `[rmin, rmax, cmin, cmax]` of the non-zero pixels of a 2-D array, max exclusive.

    Raises:
        ValueError: nothing in `img` is non-zero.
    """
    rows = np.flatnonzero(np.any(img, axis=1))
    if rows.size == 0:
        raise ValueError("get_bounding_box: the array is empty (all zero)")
    cols = np.flatnonzero(np.any(img, axis=0))
    return [int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1]


def cropping_center(x: np.ndarray, crop_shape, batch: bool = False) -> np.ndarray:
    """Return a view of the centre of `x`.

    Args:
        x: (H, W, ...) array, or (N, H, W, ...) with `batch`.
        crop_shape: (h, w) of the crop; with an odd remainder the top and left margins are the smaller ones.
        batch: the first axis counts samples.
    """
    first = 1 if batch else 0
    h0 = int((x.shape[first] - crop_shape[0]) * 0.5)
    w0 = int((x.shape[first + 1] - crop_shape[1]) * 0.5)
    window = (slice(h0, h0 + crop_shape[0]), slice(w0, w0 + crop_shape[1]))
    return x[(slice(None), *window)] if batch else x[window]


def remove_small_objects(pred: np.ndarray, min_size: int = 64, connectivity: int = 1) -> np.ndarray:
    """Set objects of fewer than `min_size` pixels to 0, in place, and return the array.

    Args:
        pred: (H, W) label map, or a boolean mask whose connected components are the objects.
        min_size: smallest area that stays, px.
        connectivity: 1 joins pixels by edges, 2 by corners too; used for boolean input only.

    Raises:
        ValueError: a label is negative.
    """
    if min_size == 0:
        return pred
    labels = pred
    if pred.dtype == bool:
        labels = scipy.ndimage.label(pred, scipy.ndimage.generate_binary_structure(pred.ndim, connectivity))[0]
    elif pred.size and pred.min() < 0:
        raise ValueError("remove_small_objects: labels must not be negative")
    pred[(np.bincount(labels.ravel()) < min_size)[labels]] = 0
    return pred


def rm_n_mkdir(dir_path: str | Path) -> None:
    """Delete a folder with all it holds, and make an empty one.

    Kept for downstream code that calls it by name. The toolkit itself never does: it deletes nothing that
    the running process did not create.
    """
    if Path(dir_path).is_dir():
        shutil.rmtree(dir_path)
    Path(dir_path).mkdir(parents=True)
