"""The way to find nuclei that is chosen is the one that suits all sets alike."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.post_proc import choose, cross_validated, markdown, ways_of
from models.hovernet.post_proc import PostProc


def test_all_sets_count_alike_whatever_their_number_of_images():
    many, few = np.full((2, 10), [[0.6], [0.5]]), np.full((2, 2), [[0.3], [0.5]])
    assert choose({"many": many}) == 0
    assert choose({"many": many, "few": few}) == 1


def test_each_image_is_scored_at_what_is_best_on_the_others():
    """Two images that each like another way: each gets that of the other one."""
    assert cross_validated({"a": np.array([[0.9, 0.1], [0.2, 0.8]])}, 2) == pytest.approx((0.2 + 0.1) / 2)
    assert cross_validated({"a": np.array([[0.9, 0.8], [0.2, 0.1]])}, 4) == pytest.approx(0.85)


def test_all_combinations_are_scored_and_what_cannot_be_is_named():
    assert ways_of([".4", "0.5"], ["axes"], ["0", ".7"], ["keep", "drop"]) == [
        PostProc(t, "axes", p, ink) for t in (0.4, 0.5) for p in (0, 0.7) for ink in ("keep", "drop")
    ]
    for wrong in (
        (["0"], ["axes"], ["0"], ["keep"]),
        (["0.5"], ["all"], ["0"], ["keep"]),
        (["0.5"], ["axes"], ["1"], ["keep"]),
        (["0.5"], ["axes"], ["0"], ["black"]),
        (["x"], ["axes"], ["0"], ["keep"]),
    ):
        with pytest.raises(ValueError, match=r"np_threshold|edges|min_prob|ink|could not convert"):
            ways_of(*wrong)


def test_table_has_a_row_for_each_way():
    scores = np.array([[[0.5, 0.6, 0.9], [0.7, 0.8, 1.1]], [[0.1, 0.2, 1.0], [0.3, 0.4, 1.4]]])
    table = markdown({"kumar/Train": scores}, [PostProc(0.4), PostProc(0.5, "directions", 0.7)])
    head, _, *rows = table.splitlines()
    assert head.startswith("| edges | NP threshold | least probability | ink | kumar/Train: PQ | AJI |")
    assert rows == [
        "| axes | 0.4 | 0 | keep | 0.600 | 0.700 | 1.00 | 0.600 |",
        "| directions | 0.5 | 0.7 | keep | 0.200 | 0.300 | 1.20 | 0.200 |",
    ]
