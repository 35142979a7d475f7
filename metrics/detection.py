"""Scores of detection and classification: nuclei matched by centroids, as in section 4.2 of the HoVer-Net paper."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .stats_utils import pair_coordinates

# A detection matches a true nucleus within this distance (HoVer-Net paper, section 4.2; 12 px at 40x is 3 um).
MATCH_RADIUS_PX = 12
# Weights of the four errors of `type_counts` in the F1 score of a type: wrong type (twice), invented, missed (ibid.,
# equation 11).
TYPE_WEIGHTS = (2, 2, 1, 1)


class Matched(NamedTuple):
    """Types of nuclei: (M,) of matched nuclei in truth and in prediction, and those of missed and invented nuclei."""

    true: np.ndarray
    pred: np.ndarray
    missed: np.ndarray
    invented: np.ndarray

    @classmethod
    def nothing(cls) -> Matched:
        return cls(*[np.zeros(0, np.int64)] * len(cls._fields))


def match(true: tuple[np.ndarray, np.ndarray], pred: tuple[np.ndarray, np.ndarray]) -> Matched:
    """Pair the nuclei of one image, (N, 2) centroids in px and (N,) types on each side, by their centroids."""
    (true_xy, true_types), (pred_xy, pred_types) = true, pred
    pairing, lone_true, lone_pred = pair_coordinates(true_xy, pred_xy, MATCH_RADIUS_PX)
    return Matched(true_types[pairing[:, 0]], pred_types[pairing[:, 1]], true_types[lone_true], pred_types[lone_pred])


def detection_counts(matched: Matched) -> np.ndarray:
    """(3,) numbers of matched, invented and missed nuclei."""
    return np.array([len(matched.true), len(matched.invented), len(matched.missed)])


def type_counts(matched: Matched, type_id: int, exhaustive: bool = True) -> np.ndarray:
    """(5,) numbers of nuclei of a type: matched, with the type in both, in the prediction only, in the truth only; then
    invented; then missed.

    As in the original, matched nuclei without the type on either side (the paper's "true negatives") do not count.

    Args:
        matched: the nuclei.
        type_id: the type.
        exhaustive: every nucleus of the truth has a type; otherwise -1 is an unknown type, and any prediction fits it.
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
    """F1 of detection, Fd, from `detection_counts` or a sum of several; `nan` without any nucleus."""
    hits, invented, missed = counts.tolist()
    return ratio(2 * hits, 2 * hits + invented + missed)


def type_f1(counts: np.ndarray) -> float:
    """F1 of a type (equation 11) from `type_counts` or a sum of several; `nan` without any nucleus."""
    hits, *errors = counts.tolist()
    return ratio(2 * hits, 2 * hits + sum(weight * count for weight, count in zip(TYPE_WEIGHTS, errors, strict=True)))


def ratio(above: float, below: float) -> float:
    """Divide; `nan` if `below` is 0."""
    return above / below if below else np.nan
