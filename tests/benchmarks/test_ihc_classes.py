"""Classes of nuclei against labels: rules, pairs, and labels that hold a nucleus, by small arithmetic."""

from __future__ import annotations

import numpy as np

from benchmarks.ihc_classes import count_found, pair, rules_of


def test_rules_differ_only_where_network_and_density_disagree():
    by_network = np.array([True, False, True, False])
    density = np.array([0.05, 0.05, 0.12, 0.3])
    rules = {name: positive.tolist() for name, positive in rules_of(by_network, density, 0.1, [0.03, 0.06]).items()}
    assert rules == {
        "network": [True, False, True, False],
        "DAB": [False, False, True, True],
        "network in 0.03": [False, False, True, True],
        "network in 0.06": [True, False, True, True],
        "both": [False, False, True, False],
        "either": [True, False, True, True],
    }
    assert list(rules_of(None, density, 0.1, [0.03])) == ["DAB"]


def test_pairs_are_one_to_one_and_near():
    labels, drawn = np.array([[10.0, 10.0], [50.0, 50.0], [90.0, 10.0]]), np.array([True, False, True])
    nucleus, truth = pair(labels, drawn, np.array([[52.0, 50.0], [10.0, 14.0], [90.0, 30.0], [12.0, 10.0]]))
    assert dict(zip(nucleus.tolist(), truth.tolist(), strict=True)) == {0: False, 3: True}  # (90, 30) is 20 px off


def test_a_label_that_holds_two_nuclei_is_found_once():
    inst_map = np.zeros((20, 40), np.int32)
    inst_map[2:10, 2:10], inst_map[2:10, 20:30], inst_map[12:18, 2:10] = 3, 5, 9
    xy = np.array([[4.0, 4.0], [8.0, 8.0], [25.0, 5.0], [35.0, 15.0], [60.0, -3.0]])  # the last one lies outside
    positive = np.array([True, True, False, True, False])
    counts = count_found(inst_map, np.array([True, False, True]), xy, positive, pairs=2)
    assert counts.tolist() == [[2, 3, 1], [2, 2, 1], [1, 1, 1], [1, 1, 0]]
