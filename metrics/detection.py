"""Detection and classification of nuclei: matched by centroids, scored as in section 4.2 of the HoVer-Net paper."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .stats_utils import pair_coordinates

# A detection matches a true nucleus within this distance (HoVer-Net paper, section 4.2; 12 px at 40x is 3 um).
MATCH_RADIUS_PX = 12
# Weights of misclassified (twice), wrongly detected and missed nuclei in the F1 score of a type (ibid., equation 11).
TYPE_WEIGHTS = (2, 2, 1, 1)


class Matched(NamedTuple):
    """Types of nuclei: of the M matched ones in truth and prediction, of those missed, and of those invented."""

    true: np.ndarray
    pred: np.ndarray
    missed: np.ndarray
    invented: np.ndarray

    @classmethod
    def nothing(cls) -> Matched:
        return cls(*[np.zeros(0, np.int64)] * len(cls._fields))


def match(true: tuple[np.ndarray, np.ndarray], pred: tuple[np.ndarray, np.ndarray]) -> Matched:
    """Pair the (N, 2) centroids, with their (N,) types, of one image."""
    (true_xy, true_types), (pred_xy, pred_types) = true, pred
    pairing, lone_true, lone_pred = pair_coordinates(true_xy, pred_xy, MATCH_RADIUS_PX)
    return Matched(true_types[pairing[:, 0]], pred_types[pairing[:, 1]], true_types[lone_true], pred_types[lone_pred])


def detection_counts(matched: Matched) -> np.ndarray:
    """(3,) nuclei that were matched, invented and missed."""
    return np.array([len(matched.true), len(matched.invented), len(matched.missed)])


def type_counts(matched: Matched, type_id: int, exhaustive: bool = True) -> np.ndarray:
    """(5,) matched nuclei of which both, only the prediction, only the truth has the type; invented and missed of it.

    Of the matched nuclei only those count of which truth or prediction has the type; so the paper's "true negatives",
    matched pairs that both have other types, are none, in the original's reading.

    Args:
        matched: the nuclei.
        type_id: the type.
        exhaustive: every nucleus of the truth has a type; otherwise type -1 is "not looked at".
    """
    is_true, is_pred = matched.true == type_id, matched.pred == type_id
    false_type = ~is_true & is_pred
    if not exhaustive:
        false_type &= matched.true != -1
    one_each = (
        is_true & is_pred,
        false_type,
        is_true & ~is_pred,
        matched.invented == type_id,
        matched.missed == type_id,
    )
    return np.array([np.count_nonzero(nuclei) for nuclei in one_each])


def detection_f1(counts: np.ndarray) -> float:
    """F1 of detection, Fd, from `detection_counts` or a sum of several; `nan` where nothing is there."""
    hits, invented, missed = counts.tolist()
    return ratio(2 * hits, 2 * hits + invented + missed)


def type_f1(counts: np.ndarray) -> float:
    """F1 of a type (equation 11) from `type_counts` or a sum of several; `nan` where nothing is there."""
    hits, *errors = counts.tolist()
    return ratio(2 * hits, 2 * hits + sum(weight * count for weight, count in zip(TYPE_WEIGHTS, errors, strict=True)))


def ratio(above: float, below: float) -> float:
    """Divide; `nan` by 0."""
    return above / below if below else np.nan
