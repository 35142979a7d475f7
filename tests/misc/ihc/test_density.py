"""Binning, smoothing and the search for hot spots, against loops that are too slow and too simple to be wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import count_calls

from misc.ihc import density
from misc.ihc.density import bin_counts, bin_index, boxes_to_px, find_hot_spots, grid_shape, smooth, window_sums


def greedy(counts, top_k, window):
    """Every position, every time: the first largest window that shares no bin with those taken."""
    height, width = min(window[0], counts.shape[0]), min(window[1], counts.shape[1])
    boxes, taken = [], np.zeros(counts.shape, bool)
    while len(boxes) < top_k:
        best, where = 0, None
        for row in range(counts.shape[0] - height + 1):
            for column in range(counts.shape[1] - width + 1):
                cut = np.s_[row : row + height, column : column + width]
                if not taken[cut].any() and counts[cut].sum() > best:
                    best, where = counts[cut].sum(), (row, column)
        if where is None:
            break
        row, column = where
        taken[row : row + height, column : column + width] = True
        boxes.append([column, row, column + width, row + height])
    return np.array(boxes).reshape(-1, 4)


def test_bins_by_eye():
    xy = [[0, 0], [49.9, 49.9], [50, 0], [119, 99], [119.5, 99.5]]
    assert grid_shape(120, 100, 50) == (2, 3)
    assert bin_counts(xy, 120, 100, 50).tolist() == [[2, 1, 0], [0, 0, 2]]


def test_p45_bins_sum_to_the_number_of_nuclei(subtests):
    sizes = [(1, 1), (50, 50), (51, 99), (100, 101), (499, 500)]
    for (width, height), tile_size in itertools.product(sizes, [1, 7, 50, 64, 1000]):
        with subtests.test(width=width, height=height, tile_size=tile_size):
            rng = np.random.default_rng(width * height + tile_size)
            inside = rng.uniform(0, [width, height], (200, 2))
            corners = [[0, 0], [width - 1, height - 1], [width - 0.5, height - 0.5], [width - 1, 0], [0, height - 1]]
            xy = np.concatenate([inside, corners])
            counts = bin_counts(xy, width, height, tile_size)
            assert counts.sum() == len(xy)
            assert counts.shape == (-(-height // tile_size), -(-width // tile_size))
            slow = np.zeros_like(counts)
            for x, y in xy:
                slow[int(y // tile_size), int(x // tile_size)] += 1
            assert np.array_equal(counts, slow)


def test_rounding_outside_the_slide_counts_at_the_edge_and_more_is_refused():
    assert bin_counts([[-0.25, 100.9]], 100, 100, 50).tolist() == [[0, 0], [1, 0]]
    for xy in ([[101, 5]], [[5, -1.1]], [[np.nan, 5]], [[np.inf, 5]]):
        with pytest.raises(ValueError, match="1 of 1 nucleus outside the slide of 100 x 100 px"):
            bin_index(xy, 100, 100, 50)


def test_sizes_that_make_no_sense_are_refused():
    for sizes in ((0, 10, 5), (10, 0, 5), (10, 10, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            grid_shape(*sizes)
    with pytest.raises(ValueError, match="larger tile size"):
        grid_shape(10**6, 10**6, 50)


def test_smoothing_keeps_the_sum_and_sigma_0_changes_nothing():
    counts = np.random.default_rng(0).integers(0, 9, (13, 7))
    assert smooth(counts, 0.8).sum() == pytest.approx(counts.sum(), rel=1e-12)
    assert np.array_equal(smooth(counts, 0), counts)
    assert smooth(counts, 0.8).std() < counts.std()


def test_window_sums_by_eye():
    counts = np.arange(6).reshape(2, 3)
    assert window_sums(counts, (2, 2)).tolist() == [[0 + 1 + 3 + 4, 1 + 2 + 4 + 5]]
    assert window_sums(counts, (1, 1)).tolist() == counts.tolist()


def test_hot_spots_are_those_of_a_greedy_search_ties_included(subtests):
    for seed in range(40):
        with subtests.test(seed=seed):
            rng = np.random.default_rng(seed)
            most = rng.choice([2, 3, 50])  # many ties where the counts are small
            counts = rng.integers(0, most, rng.integers(1, 14, 2))
            window = tuple(rng.integers(1, 6, 2))
            boxes, sums = find_hot_spots(counts, 6, window)
            assert np.array_equal(boxes, greedy(counts, 6, window))
            for (x0, y0, x1, y1), total in zip(boxes, sums, strict=True):
                assert 0 <= x0 < x1 <= counts.shape[1]
                assert 0 <= y0 < y1 <= counts.shape[0]
                assert counts[y0:y1, x0:x1].sum() == total > 0
            covered = np.zeros(counts.shape, int)
            for x0, y0, x1, y1 in boxes:
                covered[y0:y1, x0:x1] += 1
            assert covered.max(initial=0) <= 1
            assert (np.diff(sums) <= 0).all()


def test_ties_of_densities_are_those_of_the_counts(subtests):
    """counts / 50^2, as upstream passes them: rounding makes no order among equals, whatever large sums are about."""
    for seed in range(40):
        with subtests.test(seed=seed):
            rng = np.random.default_rng(seed)
            counts = rng.integers(0, rng.choice([2, 3, 4]), rng.integers(6, 30, 2))
            counts[-1, -1] = rng.choice([0, 10**6])
            window = tuple(rng.integers(1, 6, 2))
            boxes, sums = find_hot_spots(counts / 2500, 8, window)
            assert np.array_equal(boxes, greedy(counts, 8, window))
            assert sums * 2500 == pytest.approx([counts[y0:y1, x0:x1].sum() for x0, y0, x1, y1 in boxes])


def test_p44_a_second_hot_spot_in_the_same_rows_is_found():
    counts = np.zeros((4, 12), int)
    counts[1, 1], counts[1, 9], counts[2, 5] = 9, 8, 7
    boxes, sums = find_hot_spots(counts, 3, (2, 2))
    assert boxes.tolist() == [[0, 0, 2, 2], [8, 0, 10, 2], [4, 1, 6, 3]]
    assert sums.tolist() == [9, 8, 7]


def test_hot_spots_may_touch():
    boxes, _ = find_hot_spots(np.ones((2, 6), int), 5, (2, 2))
    assert boxes.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2], [4, 0, 6, 2]]


def test_empty_maps_small_maps_and_fractions():
    assert find_hot_spots(np.zeros((5, 5)), 3, (2, 2))[0].shape == (0, 4)
    assert find_hot_spots(np.zeros((0, 0)), 3, (2, 2))[0].shape == (0, 4)
    assert find_hot_spots([[0, 1], [0, 0]], 3, (20, 20))[0].tolist() == [[0, 0, 2, 2]]
    thirds = np.zeros((1, 9))
    thirds[0, [0, 1, 4]] = 1 / 3
    boxes, sums = find_hot_spots(thirds, 9, (1, 2))
    assert boxes.tolist() == [[0, 0, 2, 1], [3, 0, 5, 1]]
    assert sums == pytest.approx([2 / 3, 1 / 3])
    for bad in (np.zeros(3), [[-1.0]], [[np.nan]]):
        with pytest.raises(ValueError, match="expected a map"):
            find_hot_spots(bad, 3, (2, 2))
    for top_k, window in ((0, (2, 2)), (1, (0, 2))):
        with pytest.raises(ValueError, match="must be positive"):
            find_hot_spots(np.ones((3, 3)), top_k, window)


def test_the_last_box_ends_with_the_slide():
    assert boxes_to_px([[1, 0, 3, 2]], 50, 120, 90).tolist() == [[50, 0, 120, 90]]


def test_no_nucleus_and_no_position_of_a_large_slide_is_looked_at_by_itself():
    """How long a million nuclei take is measured by `benchmarks/hotspots.py`."""
    side, rng = 100_000, np.random.default_rng(0)
    xy = rng.uniform(0, side, (100_000, 2))
    counts = bin_counts(xy, side, side, 50)
    boxes, sums = find_hot_spots(counts, 5, (20, 20))
    assert counts.sum() == len(xy)
    assert [counts[y0:y1, x0:x1].sum() for x0, y0, x1, y1 in boxes] == sums.tolist()
    assert counts.size < density.MAX_BINS
    assert count_calls(bin_counts, xy, side, side, 50) == count_calls(bin_counts, xy[:10], side, side, 50)
    small = counts[:40, :40] + 1
    assert len(find_hot_spots(small, 5, (10, 10))[0]) == len(boxes) == 5
    assert count_calls(find_hot_spots, counts, 5, (20, 20)) == count_calls(find_hot_spots, small, 5, (10, 10))
