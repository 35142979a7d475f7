"""One table of overlaps for each pair of label maps; the scores of `stats_utils` are computed from it.

The reference implementations compare the whole image once for every nucleus; one pass over the pixels is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Up to this number of cells, all pairs are counted in a dense table; above, only the pairs that occur are sorted.
MAX_DENSE_CELLS = 1 << 22


def whole_numbers(labels: np.ndarray) -> np.ndarray:
    """Return a label map as integers; the published .mat files of Kumar and CoNSeP hold whole numbers as floats.

    Raises:
        ValueError: it holds fractions, numbers beyond int64, or no numbers.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"a label map holds integers, got {labels.dtype}")
    if labels.dtype.kind == "f" or labels.dtype == np.uint64:
        with np.errstate(invalid="ignore"):
            whole = labels.astype(np.int64)
        if not np.array_equal(whole, labels) or (labels.dtype == np.uint64 and (whole < 0).any()):
            wrong = labels[(whole != labels) | (whole < 0)][0]
            raise ValueError(f"a label map holds integers up to {np.iinfo(np.int64).max}, got {wrong}")
        return whole
    return labels


def ids_and_areas(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of a map of integers in ascending order, without the background, and their areas in px.

    Raises:
        ValueError: the map holds a negative label.
    """
    if labels.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {labels.min()}")
    if int(labels.max()) <= 4 * labels.size:
        counts = np.bincount(labels.ravel())
        ids = np.flatnonzero(counts)
        areas = counts[ids]
    else:  # few, huge numbers
        ids, areas = np.unique(labels, return_counts=True)
        ids = ids.astype(np.int64)
    keep = ids > 0
    return ids[keep], areas[keep]


@dataclass(frozen=True)
class Overlap:
    """Overlaps of T true and P predicted instances.

    Attributes:
        true_ids, pred_ids: (T,), (P,) labels, ascending.
        true_areas, pred_areas: (T,), (P,) px.
        rows, cols: (K,) positions in `true_ids` and `pred_ids` of the pairs that share pixels, in row-major order.
        inter: (K,) shared px.
    """

    true_ids: np.ndarray
    pred_ids: np.ndarray
    true_areas: np.ndarray
    pred_areas: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    inter: np.ndarray

    @property
    def union(self) -> np.ndarray:
        """(K,) px of the union of each pair."""
        return self.true_areas[self.rows] + self.pred_areas[self.cols] - self.inter

    @property
    def both_empty(self) -> bool:
        """No instance in truth and prediction: no score is defined."""
        return not len(self.true_ids) and not len(self.pred_ids)

    @classmethod
    def of(cls, true: np.ndarray, pred: np.ndarray) -> Overlap:
        """Count the overlaps of two label maps.

        Raises:
            ValueError: they differ in shape, or are not label maps.
        """
        true, pred = whole_numbers(true), whole_numbers(pred)
        if true.shape != pred.shape:
            raise ValueError(f"truth is {true.shape} and prediction {pred.shape}; they must be of one image")
        true_ids, true_areas = ids_and_areas(true)
        pred_ids, pred_areas = ids_and_areas(pred)
        nr_true, nr_pred = int(true_ids[-1]) + 1 if len(true_ids) else 1, int(pred_ids[-1]) + 1 if len(pred_ids) else 1
        if nr_true * nr_pred <= MAX_DENSE_CELLS:
            cells = np.bincount((true.astype(np.int64) * nr_pred + pred).ravel(), minlength=nr_true * nr_pred)
            table = cells.reshape(nr_true, nr_pred)
            rows, cols = np.nonzero(table[1:, 1:])
            inter = table[rows + 1, cols + 1]
            rows, cols = np.searchsorted(true_ids, rows + 1), np.searchsorted(pred_ids, cols + 1)
        else:
            both = (true > 0) & (pred > 0)
            rows = np.searchsorted(true_ids, true[both])
            cols = np.searchsorted(pred_ids, pred[both])
            pairs, inter = np.unique(rows * len(pred_ids) + cols, return_counts=True)
            rows, cols = np.divmod(pairs, max(len(pred_ids), 1))
        return cls(true_ids, pred_ids, true_areas, pred_areas, rows, cols, inter)

    def best_assignment(self, iou: np.ndarray) -> np.ndarray:
        """Pair instances one to one so that the sum of `iou` is largest (Munkres).

        Args:
            iou: (K,) value of each overlapping pair.

        Returns:
            Positions, 0..K-1, of the chosen pairs, ascending.
        """
        shape = len(self.true_ids), len(self.pred_ids)
        if shape[0] * shape[1] <= MAX_DENSE_CELLS:
            return self._assign(np.arange(len(iou)), iou)
        # Pairs compete only if shared instances link them, so each linked group is solved alone.
        graph = coo_array((iou, (self.rows, self.cols + shape[0])), shape=(sum(shape), sum(shape)))
        group = connected_components(graph, directed=False)[1][self.rows]
        order = np.argsort(group, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []
        chosen = [self._assign(part, iou[part]) for part in parts]
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)

    def _assign(self, pairs: np.ndarray, iou: np.ndarray) -> np.ndarray:
        whole = len(pairs) == len(self.rows)
        rows, cols = self.rows[pairs], self.cols[pairs]
        if whole:
            shape = len(self.true_ids), len(self.pred_ids)
        else:
            (row_ids, rows), (col_ids, cols) = (np.unique(a, return_inverse=True) for a in (rows, cols))
            shape = len(row_ids), len(col_ids)
        cost, index = np.zeros(shape), np.full(shape, -1)
        cost[rows, cols], index[rows, cols] = -iou, pairs
        taken = index[linear_sum_assignment(cost)]
        return taken[taken >= 0]
