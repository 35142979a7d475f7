"""The threshold that is chosen is the one that suits all sets alike."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.np_threshold import choose, cross_validated, markdown


def test_all_sets_count_alike_whatever_their_number_of_images():
    many, few = np.full((2, 10), [[0.6], [0.5]]), np.full((2, 2), [[0.3], [0.5]])
    assert choose({"many": many}) == 0
    assert choose({"many": many, "few": few}) == 1


def test_each_image_is_scored_at_what_is_best_on_the_others():
    """Two images that each like another threshold: each gets that of the other one."""
    assert cross_validated({"a": np.array([[0.9, 0.1], [0.2, 0.8]])}, 2) == pytest.approx((0.2 + 0.1) / 2)
    assert cross_validated({"a": np.array([[0.9, 0.8], [0.2, 0.1]])}, 4) == pytest.approx(0.85)


def test_table_has_a_row_a_threshold():
    table = markdown({"x/kumar": np.array([[[0.5, 0.9], [0.7, 1.1]], [[0.1, 1.0], [0.3, 1.4]]])}, [0.4, 0.5])
    assert table.splitlines()[2:] == ["| 0.4 | 0.600 | 1.00 | 0.600 |", "| 0.5 | 0.200 | 1.20 | 0.200 |"]
