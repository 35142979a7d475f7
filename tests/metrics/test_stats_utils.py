"""Scores: by hand, against the original's numbers, and on maps with nothing in them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.io
from conftest import count_calls

from benchmarks.synthetic import nuclei_labels
from metrics import overlap as overlap_module
from metrics.overlap import Overlap, ids_and_areas
from metrics.stats_utils import (
    get_dice_1,
    get_dice_2,
    get_fast_aji,
    get_fast_aji_plus,
    get_fast_dice_2,
    get_fast_pq,
    pair_coordinates,
    remap_label,
)

# Two true nuclei of 4 and 2 px; the prediction covers 3 px of the first and 1 px beside it, and misses the second.
TRUE = np.array([[1, 1, 0, 2], [1, 1, 0, 2]])
PRED = np.array([[1, 1, 0, 0], [1, 0, 1, 0]])
SCORES = (get_dice_1, get_dice_2, get_fast_dice_2, get_fast_aji, get_fast_aji_plus)


def test_scores_by_hand():
    assert get_dice_1(TRUE, PRED) == 2 * 3 / (6 + 4)
    assert get_dice_2(TRUE, PRED) == get_fast_dice_2(TRUE, PRED) == 2 * 3 / (4 + 4)
    assert get_fast_aji(TRUE, PRED) == get_fast_aji_plus(TRUE, PRED) == 3 / (5 + 2)
    (dq, sq, pq), (paired_true, paired_pred, lone_true, lone_pred) = get_fast_pq(TRUE, PRED)
    assert dq == 1 / (1 + 0.5)
    assert sq == pytest.approx(3 / 5, abs=1e-6)
    assert pq == dq * sq
    assert (list(paired_true), list(paired_pred), lone_true, lone_pred) == ([1], [1], [2], [])


def test_aji_uses_a_prediction_twice_and_aji_plus_does_not():
    true = np.array([[1, 1, 1, 2, 2]])
    pred = np.array([[1, 1, 1, 1, 0]])
    assert get_fast_aji(true, pred) == pytest.approx((3 + 1) / (4 + 5))
    assert get_fast_aji_plus(true, pred) == pytest.approx(3 / (4 + 2))


@pytest.fixture(scope="module")
def real_pair(kumar):
    """A real label, and itself shifted by (3, 5) px with a band and every seventh nucleus gone."""
    path = kumar / "Train" / "Labels" / "TCGA-18-5592-01Z-00-DX1.mat"
    true = scipy.io.loadmat(path)["inst_map"][:300, :300].astype(np.int32)
    pred = np.roll(true, (3, 5), (0, 1))
    pred[100:130] = 0
    pred[pred % 7 == 0] = 0
    return remap_label(true), remap_label(pred)


def test_values_of_the_original_on_real_nuclei(real_pair):
    """Numbers printed by the original repository's metrics/stats_utils.py on the same two maps."""
    expected = (0.6831226808905381, 0.5158769250976916, 0.5158769250976916, 0.4435340967551398, 0.5032574354504848)
    for function, value in zip(SCORES, expected, strict=True):
        assert function(*real_pair) == pytest.approx(value, abs=1e-9), function.__name__
    scores, pairing = get_fast_pq(*real_pair)
    assert scores == pytest.approx([0.5151515151515151, 0.6826010196279045, 0.35164294950528413], abs=1e-9)
    assert [len(part) for part in pairing] == [17, 17, 20, 12]
    assert list(pairing[0][:6]) == [2, 3, 5, 6, 7, 16]
    assert list(pairing[1][:6]) == [2, 3, 5, 6, 7, 13]
    scores, pairing = get_fast_pq(*real_pair, match_iou=0.3)
    assert scores == pytest.approx([0.696969696969697, 0.6182356491332427, 0.4308915130322601], abs=1e-9)
    assert [len(part) for part in pairing] == [23, 23, 14, 6]


def test_scores_do_not_depend_on_the_numbers_of_the_instances(real_pair):
    true, pred = real_pair
    renamed = (true * 17 + 3 * (true > 0), np.where(pred > 0, 10**9 + 5 * pred, 0))
    for function in SCORES:
        assert function(*renamed) == pytest.approx(function(true, pred), abs=1e-12)
    paired = get_fast_pq(*renamed)[1]
    assert list(paired[0]) == [17 * k + 3 for k in get_fast_pq(true, pred)[1][0]]


def test_large_tables_give_the_same(real_pair, monkeypatch):
    """Above MAX_DENSE_CELLS pairs are counted by sorting, and matched group by group."""
    dense = [function(*real_pair) for function in SCORES], get_fast_pq(*real_pair, match_iou=0.2)
    monkeypatch.setattr(overlap_module, "MAX_DENSE_CELLS", 0)
    assert [function(*real_pair) for function in SCORES] == pytest.approx(dense[0], abs=1e-12)
    sparse = get_fast_pq(*real_pair, match_iou=0.2)
    assert sparse[0] == pytest.approx(dense[1][0], abs=1e-12)
    assert [list(part) for part in sparse[1]] == [list(part) for part in dense[1][1]]


def test_perfect_prediction_scores_one(real_pair):
    true = real_pair[0]
    assert all(function(true, true) == pytest.approx(1, abs=1e-6) for function in SCORES)
    assert get_fast_pq(true, true)[0] == pytest.approx([1, 1, 1], abs=1e-6)


def test_small_integer_types_do_not_overflow(subtests):
    for dtype in [np.uint8, np.uint16, np.int32, np.int64]:
        with subtests.test(dtype=dtype):
            true = np.full((20, 30), 200, dtype)
            pred = true.copy()
            pred[:10] = 0
            assert get_dice_1(true, pred) == pytest.approx(2 * 300 / 900)
            assert get_fast_aji(true, pred) == pytest.approx(0.5)


def test_whole_numbers_of_any_type_are_labels(subtests):
    for dtype in [np.float32, np.float64, np.uint64]:
        with subtests.test(dtype=dtype):
            true, pred = TRUE.astype(dtype), PRED.astype(dtype)
            assert [function(true, pred) for function in SCORES] == [function(TRUE, PRED) for function in SCORES]
            assert get_fast_pq(true, pred)[0] == get_fast_pq(TRUE, PRED)[0]
            assert remap_label(3 * true).tolist() == TRUE.tolist()
            assert remap_label(np.array([[7, 10**12]]).astype(np.float64)).tolist() == [[1, 2]]


def test_p12_nothing_there_and_nothing_found_is_undefined():
    empty = np.zeros((4, 4), np.int32)
    assert all(math.isnan(function(empty, empty)) for function in SCORES)
    assert all(math.isnan(score) for score in get_fast_pq(empty, empty)[0])
    one = empty.copy()
    one[1, 1] = 1
    for pair in ((one, empty), (empty, one)):
        assert all(function(*pair) == 0 for function in SCORES)
        assert get_fast_pq(*pair)[0] == [0, 0, 0]


def test_remap_label():
    labels = np.array([[0, 9, 9], [4, 0, 30], [30, 30, 0]])
    assert remap_label(labels).tolist() == [[0, 2, 2], [1, 0, 3], [3, 3, 0]]
    assert remap_label(labels, by_size=True).tolist() == [[0, 2, 2], [3, 0, 1], [1, 1, 0]]
    assert remap_label(labels).dtype == np.int32
    assert remap_label(np.zeros((2, 2), np.int32)).tolist() == [[0, 0], [0, 0]]
    assert remap_label(np.array([[7, 10**12]])).tolist() == [[1, 2]]
    assert remap_label(np.array([[5, 5]])).tolist() == [[1, 1]]  # no background at all


def test_pair_coordinates():
    a = np.array([[0, 0], [10, 0], [100, 100]], np.float32)
    b = np.array([[11, 0], [1, 0]], np.float32)
    pairing, lone_a, lone_b = pair_coordinates(a, b, 12)
    assert pairing.tolist() == [[0, 1], [1, 0]]
    assert (lone_a.tolist(), lone_b.tolist()) == ([2], [])
    pairing, lone_a, lone_b = pair_coordinates(a, np.zeros((0, 2)), 12)
    assert (pairing.shape, lone_a.tolist(), lone_b.tolist()) == ((0, 2), [0, 1, 2], [])
    # total distance decides before the radius does, as in the original: both pairs are too far, so none is left
    pairing, *_ = pair_coordinates(np.array([[0, 0], [20, 0]]), np.array([[20, 0.0], [40, 0]]), 12)
    assert len(pairing) in (0, 1)


def test_bad_maps_are_one_line():
    with pytest.raises(ValueError, match="one image"):
        Overlap.of(np.zeros((2, 2), int), np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="negative"):
        ids_and_areas(np.array([[-1]]))
    for wrong in (np.array([[0.5]]), np.array([[np.nan]]), np.array([[2**63]], np.uint64), np.array([["1"]])):
        for function in (remap_label, lambda labels: get_dice_2(labels, labels)):
            with pytest.raises(ValueError, match="integers"):
                function(wrong)
    with pytest.raises(ValueError, match="match_iou"):
        get_fast_pq(TRUE, PRED, -0.1)


def test_p18_no_nucleus_is_looked_at_by_itself():
    """Comparing each nucleus with the map takes time that grows with nuclei times pixels."""
    small, large = nuclei_labels(200), nuclei_labels(600)
    few, many = (count_calls(get_fast_pq, true, np.roll(true, (2, 2), (0, 1))) for true in (small, large))
    assert small.max() < large.max() / 5
    assert many == few
