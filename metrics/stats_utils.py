"""Scores of nuclear segmentation and detection: Dice, AJI, AJI+, DQ, SQ, PQ, matching of centroids.

Functions, argument order (true, pred) and values are the original repository's. Maps are (H, W), 0 is background. If
truth and prediction are empty, a score is undefined and `nan`; if only one of them is empty, it is 0.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from .overlap import Overlap, ids_and_areas, whole_numbers

# Added by the original to the union before dividing (AJI) and to the number of matches (SQ).
EPS = 1.0e-6


def get_dice_1(true: np.ndarray, pred: np.ndarray) -> float:
    """Dice coefficient of nuclear pixels, 2 |A and B| / (|A| + |B|)."""
    inter = np.count_nonzero((true > 0) & (pred > 0))
    return _ratio(2.0 * inter, np.count_nonzero(true > 0) + np.count_nonzero(pred > 0))


def get_dice_2(true: np.ndarray, pred: np.ndarray) -> float:
    """Ensemble Dice: each overlapping pair is weighted by the sum of its areas (Computational Precision Medicine)."""
    return dice_2(Overlap.of(true, pred))


def get_fast_dice_2(true: np.ndarray, pred: np.ndarray) -> float:
    """The same as `get_dice_2`; the original has two implementations of it."""
    return dice_2(Overlap.of(true, pred))


def get_fast_aji(true: np.ndarray, pred: np.ndarray) -> float:
    """Aggregated Jaccard index (Kumar et al., IEEE TMI 2017): each true nucleus with the prediction of highest IoU."""
    return aji(Overlap.of(true, pred))


def get_fast_aji_plus(true: np.ndarray, pred: np.ndarray) -> float:
    """AJI with a one-to-one matching of maximal total IoU, instead of the best prediction for each true nucleus."""
    return aji_plus(Overlap.of(true, pred))


def get_fast_pq(true: np.ndarray, pred: np.ndarray, match_iou: float = 0.5):
    """Panoptic quality (Kirillov et al., CVPR 2019).

    Args:
        true, pred: (H, W) label maps; any ids.
        match_iou: instances match if their IoU is above it. From 0.5 on, matches are unique; below, they are chosen
            one to one with maximal total IoU.

    Returns:
        `[dq, sq, pq]` and `[paired_true, paired_pred, unpaired_true, unpaired_pred]`, ids.

    Raises:
        ValueError: `match_iou` is negative.
    """
    return panoptic_quality(Overlap.of(true, pred), match_iou)


def dice_2(overlap: Overlap) -> float:
    total = (overlap.true_areas[overlap.rows] + overlap.pred_areas[overlap.cols]).sum()
    if not total:
        return np.nan if overlap.both_empty else 0.0
    return float(2 * overlap.inter.sum() / total)


def aji(overlap: Overlap) -> float:
    iou = overlap.inter / (overlap.union + EPS)
    # the best pair of every true nucleus; in a tie the prediction with the lowest id
    order = np.lexsort((overlap.cols, -iou, overlap.rows))
    best = order[np.flatnonzero(np.diff(overlap.rows[order], prepend=-1))]
    return _aggregated_jaccard(overlap, best)


def aji_plus(overlap: Overlap) -> float:
    return _aggregated_jaccard(overlap, overlap.best_assignment(overlap.inter / (overlap.union + EPS)))


def _aggregated_jaccard(overlap: Overlap, pairs: np.ndarray) -> float:
    """Shared pixels of the chosen pairs, divided by their unions plus the areas of all instances not chosen."""
    lone_true, lone_pred = overlap.true_areas.copy(), overlap.pred_areas.copy()
    lone_true[overlap.rows[pairs]] = 0
    lone_pred[overlap.cols[pairs]] = 0
    return _ratio(overlap.inter[pairs].sum(), overlap.union[pairs].sum() + lone_true.sum() + lone_pred.sum())


def panoptic_quality(overlap: Overlap, match_iou: float = 0.5):
    if match_iou < 0:
        raise ValueError(f"match_iou must not be negative, got {match_iou}")
    iou = overlap.inter / overlap.union
    candidates = np.arange(len(iou)) if match_iou >= 0.5 else overlap.best_assignment(iou)
    pairs = candidates[iou[candidates] > match_iou]
    paired_true, paired_pred = overlap.true_ids[overlap.rows[pairs]], overlap.pred_ids[overlap.cols[pairs]]
    unpaired_true = list(np.setdiff1d(overlap.true_ids, paired_true, assume_unique=True))
    unpaired_pred = list(np.setdiff1d(overlap.pred_ids, paired_pred, assume_unique=True))
    nr_pairs = len(pairs)
    dq = _ratio(nr_pairs, nr_pairs + 0.5 * len(unpaired_pred) + 0.5 * len(unpaired_true))
    sq = np.nan if overlap.both_empty else float(iou[pairs].sum() / (nr_pairs + EPS))
    return [dq, sq, dq * sq], [paired_true, paired_pred, unpaired_true, unpaired_pred]


def remap_label(pred: np.ndarray, by_size: bool = False) -> np.ndarray:
    """Number the instances 1..N without gaps.

    Args:
        pred: (H, W) label map; whole numbers of any type.
        by_size: larger instances get the smaller ids; otherwise the order of the ids stays.

    Returns:
        (H, W) int32; `pred` itself where it holds no instance.

    Raises:
        ValueError: fractions or negative numbers.
    """
    labels = whole_numbers(pred)
    ids, areas = ids_and_areas(labels)
    if not len(ids):
        return pred
    order = np.argsort(-areas, kind="stable") if by_size else np.arange(len(ids))
    new_ids = np.empty(len(ids), np.int32)
    new_ids[order] = np.arange(1, len(ids) + 1)
    if ids[-1] <= 4 * pred.size:
        table = np.zeros(int(ids[-1]) + 1, np.int32)
        table[ids] = new_ids
        return table[labels]
    return np.where(labels > 0, new_ids[np.searchsorted(ids, labels).clip(0, len(ids) - 1)], 0).astype(np.int32)


def pair_coordinates(set_a: np.ndarray, set_b: np.ndarray, radius: float):
    """Pair points one to one with the smallest total distance (Munkres), then drop pairs farther than `radius`.

    Args:
        set_a, set_b: (N, 2), (M, 2) coordinates, x then y, px.
        radius: px, inclusive.

    Returns:
        (K, 2) indices of the pairs, and the indices of `set_a` and of `set_b` without a partner.
    """
    distance = cdist(set_a, set_b, metric="euclidean")
    rows, cols = linear_sum_assignment(distance)
    near = distance[rows, cols] <= radius
    rows, cols = rows[near], cols[near]
    pairing = np.stack([rows, cols], axis=-1)
    return pairing, np.delete(np.arange(len(set_a)), rows), np.delete(np.arange(len(set_b)), cols)


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else np.nan
