import itertools

import numpy as np

from misc.runs import Runs, find_mask_runs, find_regions, find_runs, pack_boxes, paint_runs

IMAGE = np.array(
    [
        [0, 2, 2, 0, 7],
        [7, 7, 2, 2, 7],
        [0, 0, 0, 0, 0],
        [2, 0, 0, 0, 2],
    ],
    np.int32,
)


def test_runs_of_a_small_image():
    runs = find_runs(IMAGE)
    found = list(zip(runs.y, runs.x0, runs.x1, runs.value, strict=True))
    assert found == [(0, 1, 3, 2), (0, 4, 5, 7), (1, 0, 2, 7), (1, 2, 4, 2), (1, 4, 5, 7), (3, 0, 1, 2), (3, 4, 5, 2)]


def test_a_run_ends_with_its_row():
    runs = find_runs(np.ones((3, 4), bool))
    assert runs.y.tolist() == [0, 1, 2]
    assert runs.x0.tolist() == [0, 0, 0]
    assert runs.x1.tolist() == [4, 4, 4]


def test_regions_of_a_small_image():
    regions = find_regions(find_runs(IMAGE))
    assert regions.ids.tolist() == [2, 7]
    assert regions.boxes.tolist() == [[0, 0, 4, 5], [0, 0, 2, 5]]
    assert regions.areas.tolist() == [6, 4]
    # 2: x 1 2 2 3 0 4, y 0 0 1 1 3 3; 7: x 4 0 1 4, y 0 1 1 1
    assert regions.centroids_xy.tolist() == [[12 / 6, 8 / 6], [9 / 4, 3 / 4]]


def test_pixels_are_all_pixels_of_the_runs():
    pixels = find_runs(IMAGE).pixels(IMAGE.shape[1])
    assert pixels.tolist() == np.flatnonzero(IMAGE).tolist()


def test_paint_is_the_inverse_of_find(subtests):
    for density, shape in itertools.product([0.0, 0.5, 1.0], [(1, 1), (1, 9), (9, 1), (0, 5), (5, 0), (31, 47)]):
        with subtests.test(density=density, shape=shape):
            rng = np.random.default_rng(1)
            image = (rng.integers(1, 4, shape) * (rng.random(shape) < density)).astype(np.int32)
            runs = find_runs(image)
            painted = paint_runs(runs, shape)
            assert painted.dtype == np.int32
            assert np.array_equal(painted, image)
            assert find_regions(runs).areas.sum() == np.count_nonzero(image)


def test_memory_layout_does_not_matter():
    straight, turned = find_runs(IMAGE), find_runs(np.asfortranarray(IMAGE))
    assert all(np.array_equal(a, b) for a, b in zip(straight, turned, strict=True))
    assert np.array_equal(find_runs(IMAGE[:2, 1:4]).value, [2, 7, 2])


def test_no_runs_no_regions():
    regions = find_regions(find_runs(np.zeros((4, 4), np.int32)))
    assert [len(column) for column in regions] == [0, 0, 0, 0]
    assert regions.boxes.shape == (0, 4)
    assert isinstance(find_runs(np.zeros((4, 4), np.int32)), Runs)


def test_runs_of_a_mask_are_runs():
    rng = np.random.default_rng(2)
    for shape in ((1, 1), (1, 9), (9, 1), (0, 5), (5, 0), (31, 47)):
        for density in (0.0, 0.5, 1.0):
            mask = (rng.random(shape) < density).astype(np.uint8)
            for found, expected in zip(find_mask_runs(mask), find_runs(mask), strict=True):
                assert np.array_equal(found, expected)


def test_moved_runs_are_those_of_the_moved_image():
    moved = find_runs(np.pad(IMAGE, ((2, 0), (3, 0))))
    for found, expected in zip(find_runs(IMAGE).moved(2, 3), moved, strict=True):
        assert np.array_equal(found, expected)


def test_packed_boxes_lie_apart():
    rng = np.random.default_rng(3)
    for count, largest in ((0, 5), (1, 5), (7, 2), (200, 40), (2000, 9)):
        sizes = rng.integers(1, largest, (count, 2))
        places, shape = pack_boxes(sizes)
        covered = np.zeros(shape, int)
        for (y, x), (height, width) in zip(places, sizes, strict=True):
            covered[y : y + height, x : x + width] += 1
        assert covered.max(initial=0) <= 1
        assert covered.sum() == sizes.prod(axis=1).sum()
    assert covered.size < 1.3 * covered.sum()
