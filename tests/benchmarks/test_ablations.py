"""What the ablations change must change that, and nothing else."""

from __future__ import annotations

import numpy as np

from benchmarks import ablations, accuracy
from benchmarks.synthetic import network_like_map, nuclei_labels
from metrics.folders import INSTANCE_SCORES, Scores
from models.hovernet import post_proc


def maps_and_ranges():
    maps = network_like_map(nuclei_labels(200))
    plain = post_proc.segment(maps)
    ranges = ablations.typical_ranges(lambda: post_proc.segment(maps))
    return maps, plain, ranges


def test_fixed_numbers_that_are_the_extremes_change_nothing():
    maps, plain, ranges = maps_and_ranges()
    assert len(ranges) == 4
    with ablations.fixed_normalisation(ranges):
        fixed = post_proc.segment(maps)
    assert (plain > 0).any()
    assert np.array_equal(fixed > 0, plain > 0)
    assert len(np.unique(fixed)) == len(np.unique(plain))
    assert np.array_equal(post_proc.segment(maps), plain)  # and afterwards all is as before


def test_other_fixed_numbers_change_the_nuclei():
    maps, plain, ranges = maps_and_ranges()
    with ablations.fixed_normalisation([(10 * low, 10 * high) for low, high in ranges]):
        assert not np.array_equal(post_proc.segment(maps), plain)


def test_a_row_shows_the_means_and_the_paired_difference():
    first = np.full((len(INSTANCE_SCORES), 3), 0.5)
    better = first + 0.1
    assert ablations.row("a", first, first, 1.0, 100) == "| a | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 |  | 1.0 |"
    assert "| 0.600 | +0.100 (+0.100 to +0.100) | 2.0 |" in ablations.row("b", better, first, 2.0, 100)


def test_groups_gather_images_over_splits():
    splits = {"x": Scores(names=["a", "b"], values=np.array([[1.0, 2.0]])), "y": Scores(["c"], np.array([[3.0]]))}
    groups = accuracy.values_by_group(splits, {"one": ["a", "c"], "none": ["z"]})
    assert {name: values.tolist() for name, values in groups.items()} == {"one": [[1.0, 3.0]]}
    assert accuracy.values_by_split(splits)["all"].tolist() == [[1.0, 2.0, 3.0]]
