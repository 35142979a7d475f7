"""Staining classes and scores: arithmetic that can be checked by eye."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from misc.ihc.markers import marker
from misc.ihc.scores import (
    THRESHOLDS_OD,
    allred,
    classes_of_types,
    classify,
    cohort_thresholds,
    h_score,
    kmeans3,
    score,
    score_marker,
    wilson_interval,
)


def test_classes_by_thresholds():
    dab = [-0.1, 0.19, 0.2, 0.39, 0.4, 0.59, 0.6, 2.0, np.nan]
    assert classify(dab, (0.2, 0.4, 0.6)).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 0]
    assert THRESHOLDS_OD == (0.2, 0.4, 0.6)


def test_a_persons_word_on_negative_goes_before_the_first_threshold():
    negative = np.array([True, True, False, False, False])
    assert classify([0.1, 0.9, 0.1, 0.5, 0.9], negative=negative).tolist() == [1, 1, 2, 3, 4]


def test_thresholds_that_do_not_rise_are_refused(subtests):
    for bad in [(0.2, 0.4), (0.4, 0.2, 0.6), (0.2, 0.2, 0.6), (0.2, 0.4, np.nan)]:
        with subtests.test(bad=bad):
            with pytest.raises(ValueError, match="three rising DAB densities"):
                classify([0.1], bad)


def test_h_score_by_eye():
    assert h_score({1: 40, 2: 30, 3: 20, 4: 10}) == 30 + 2 * 20 + 3 * 10
    assert h_score({1: 0, 2: 0, 3: 0, 4: 7}) == 300
    assert h_score({1: 7}) == 0
    assert np.isnan(h_score({}))


def test_score_leaves_out_what_was_not_measured():
    scored = score(np.array([0, 0, 1, 1, 1, 4]))
    assert scored.counts == {1: 3, 2: 0, 3: 0, 4: 1}
    assert scored.measured == 4
    assert scored.index == 0.25
    assert scored.h_score == 75
    assert scored.index_low < 0.25 < scored.index_high


def test_p12_no_nucleus_scores_as_undefined():
    scored = score(np.zeros(0, int))
    assert scored.measured == 0
    assert np.isnan([scored.h_score, scored.index, scored.index_low, scored.index_high]).all()


def test_wilson_interval_of_the_textbooks():
    # 81 of 263 (Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3)
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_interval_holds_its_share_and_stays_between_0_and_1():
    for total in (1, 2, 3, 10, 1000):
        for positive in range(0, total + 1, max(1, total // 7)):
            low, high = wilson_interval(positive, total)
            assert 0 <= low <= positive / total <= high <= 1
            assert wilson_interval(total - positive, total) == pytest.approx((1 - high, 1 - low))
    with pytest.raises(ValueError, match="5 of 4 is no share"):
        wilson_interval(5, 4)


def squares(values, weights):
    mean = np.average(values, weights=weights)
    return (weights * (values - mean) ** 2).sum(), mean


def test_kmeans_is_the_best_of_all_splits(subtests):
    for seed in range(10):
        with subtests.test(seed=seed):
            rng = np.random.default_rng(seed)
            values = np.sort(rng.choice(1000, rng.integers(3, 12), replace=False)) / 1000
            weights = rng.integers(1, 5, len(values))
            splits = [
                [squares(values[part], weights[part]) for part in (slice(i), slice(i, j), slice(j, None))]
                for i, j in itertools.combinations(range(1, len(values)), 2)
            ]
            best = min(splits, key=lambda parts: sum(s for s, _ in parts))
            assert kmeans3(values, weights) == pytest.approx([mean for _, mean in best])


def test_cohort_thresholds_lie_half_way_between_the_clusters():
    rng = np.random.default_rng(0)
    slides = [rng.normal(centre, 0.02, 300) for centre in (0.05, 0.3, 0.6, 1.2)]
    weak, moderate, strong = cohort_thresholds([*slides, np.array([np.nan])])
    assert weak == 0.2
    assert moderate == pytest.approx(0.45, abs=0.01)
    assert strong == pytest.approx(0.9, abs=0.01)
    assert np.bincount(classify(np.concatenate(slides), (weak, moderate, strong))).tolist() == [0, 300, 300, 300, 300]


def test_cohort_of_nuclei_that_a_person_called_positive():
    weak, moderate, strong = cohort_thresholds([[0.1, 0.1], [0.5, 0.9]], positive_from=None)
    assert (weak, moderate, strong) == pytest.approx((0.1, 0.3, 0.7))


def test_too_few_positive_nuclei_for_kmeans_is_said():
    for dab in ([], [[0.1, 0.1]], [[0.5, 0.5, 0.7, 0.01]]):
        with pytest.raises(ValueError, match="give the thresholds"):
            cohort_thresholds(dab)


def test_scores_of_a_selection_are_those_of_a_loop(subtests):
    one = marker("er", few_nuclei=(20, 60))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        classes, which = rng.integers(0, 5, 80).astype(np.uint8), rng.random(80) < rng.choice([0.0, 0.2, 0.6, 1.0])
        with subtests.test(seed=seed):
            own = [int(c) for c, chosen in zip(classes, which, strict=True) if chosen and c]
            found = score_marker(classes, one, which)
            assert found.score.counts == {c: own.count(c) for c in (1, 2, 3, 4)}
            if not own:
                assert found.flags == ("no nuclei",)
                assert found.allred is None
                continue
            positive = [c for c in own if c > 1]
            assert found.score.index == len(positive) / len(own)
            assert found.score.h_score == pytest.approx(sum({1: 0, 2: 1, 3: 2, 4: 3}[c] for c in own) / len(own) * 100)
            few = [f"fewer than {limit} nuclei" for limit in (20, 60) if len(own) < limit]
            assert [f for f in found.flags if "fewer" in f] == few[:1]
            across = [x for x in (0.01, 0.1) if found.score.index_low < x < found.score.index_high]
            assert len([f for f in found.flags if "across" in f]) == len(across)


def test_allred_by_eye(subtests):
    for counts, wanted in (
        ({1: 100}, (0, 0)),
        ({1: 199, 4: 1}, (1, 3)),
        ({1: 99, 2: 1}, (2, 1)),
        ({1: 90, 3: 10}, (2, 2)),
        ({1: 89, 3: 11}, (3, 2)),
        ({1: 60, 2: 20, 4: 20}, (4, 2)),
        ({1: 10, 3: 45, 4: 45}, (5, 3)),
    ):
        with subtests.test(counts=counts):
            assert allred(score(np.repeat(list(counts), list(counts.values())))) == wanted


def test_classes_by_what_the_network_calls_its_types():
    four = {None: ("nucleus", (0, 0, 0)), 1: ("Negative", (0, 0, 0)), 2: ("weak", (0, 0, 0)), 3: ("Strong", (0, 0, 0))}
    assert classes_of_types([0, 1, 2, 3, 9], four).tolist() == [0, 1, 2, 4, 0]
    two = {0: ("background", (0, 0, 0)), 1: ("negative", (0, 0, 0)), 2: ("positive", (0, 0, 0))}
    dab = np.array([0.9, 0.05, 0.5, 0.9, np.nan])
    assert classes_of_types([1, 2, 2, 2, 2], two, dab, (0.2, 0.4, 0.6)).tolist() == [1, 2, 3, 4, 2]
    with pytest.raises(ValueError, match=r"no type of the network says negative or positive \(lymphocyte\)"):
        classes_of_types([1], {1: ("lymphocyte", (0, 0, 0))})
