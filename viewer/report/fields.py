"""Fields of a slide for the report: some at random, the densest, the most doubtful."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Side of a field, um; px if the pixel size is unknown.
FIELD_UM = 60.0
FIELD_UNKNOWN_PX = 256
HOW_MANY = {"at random": 2, "densest": 2, "most doubtful": 2}
# Fields with fewer nuclei do not show how sure the network is.
MIN_DOUBTFUL = 5


@dataclass(frozen=True)
class Field:
    """A square field; `corner_xy` and `side` in px of the nuclei's plane, `nuclei` is the number of centroids in it."""

    why: str
    corner_xy: tuple[float, float]
    side: float
    nuclei: int

    def near(self, centroids_xy: np.ndarray) -> np.ndarray:
        """Return which nuclei may reach into the field, even if it moves in from an edge of the slide: (N,) bool, those
        within one side of it."""
        low = np.array(self.corner_xy) - self.side
        return ((centroids_xy >= low) & (centroids_xy < low + 3 * self.side)).all(axis=1)


def choose(centroids_xy: np.ndarray, doubt: np.ndarray, side: float, seed: int = 0) -> list[Field]:
    """Choose fields of a grid, each at most once.

    Args:
        centroids_xy: (N, 2) px.
        doubt: (N,) of each nucleus; higher is more doubtful, NaN is unknown.
        side: of a field, px.
        seed: of the fields at random.
    """
    if not len(centroids_xy):
        return []
    cells, cell, counts = np.unique(
        np.floor(centroids_xy / side).astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    known = np.isfinite(doubt)
    sums = np.bincount(cell.ravel(), np.where(known, doubt, 0), len(cells))
    of_known = np.bincount(cell.ravel(), known, len(cells))
    doubts = np.where(of_known >= MIN_DOUBTFUL, sums / np.maximum(of_known, 1), -np.inf)
    ranks = {
        "densest": np.argsort(-counts, kind="stable"),
        "most doubtful": [i for i in np.argsort(-doubts, kind="stable") if np.isfinite(doubts[i])],
        "at random": np.random.default_rng(seed).permutation(len(cells)),
    }
    taken, fields = set(), {}
    for why, order in ranks.items():
        free = [i for i in order if i not in taken][: HOW_MANY[why]]
        taken.update(free)
        fields[why] = [Field(why, tuple((cells[i] * side).tolist()), side, int(counts[i])) for i in free]
    return [field for why in HOW_MANY for field in fields[why]]
