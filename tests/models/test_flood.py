"""The flooding of some components must equal the flooding of the whole map, or say that it cannot."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from models.hovernet import flood


def labelled(mask):
    labels, _ = ndimage.label(mask)
    return labels.astype(np.int32)


def smooth(rng, shape, sigma):
    return cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), sigma)


def random_case(rng, levels):
    """Components, markers in them, and edges in a few levels: many pixels of equal height."""
    shape = tuple(rng.integers(20, 60, 2))
    mask = (smooth(rng, shape, 2.0) > -0.05).astype(np.uint8)
    edges = smooth(rng, shape, float(rng.uniform(0.3, 2.0)))
    edges = (edges - edges.min()) / np.ptp(edges)
    edges = (np.round(edges * levels) / levels).astype(np.float32)
    markers = labelled(mask & (smooth(rng, shape, 1.5) > 0.1))
    return mask, markers, edges


def flood_marked(mask, markers, edges):
    """Flood all components that hold a marker, the quick way; the map and whether it was done."""
    owner = np.pad(markers, 1)
    done = flood.flood_rest(owner, mask, labelled(mask), edges.copy(), np.zeros(owner.shape))
    return owner[1:-1, 1:-1], done


def flood_whole(mask, markers, edges):
    height = np.zeros(mask.shape)
    flood.write_relief(edges.copy(), mask, height)
    return flood.flood_all(mask, markers, height)


@pytest.mark.parametrize("levels", [8, 64, 256, 1024, 2**14, 2**20])
def test_quick_flood_equals_the_flood_of_the_whole_map(levels):
    rng = np.random.default_rng(levels)
    done = 0
    for _ in range(120):
        case = random_case(rng, levels)
        inst_map, equal = flood_marked(*case)
        if equal:
            assert np.array_equal(inst_map, flood_whole(*case))
        done += equal
    assert done > {8: -1, 64: 0, 256: 5}.get(levels, 20)


def test_equal_heights_are_not_always_harmless(monkeypatch):
    """Without the check some maps come out different: the check is needed."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(flood, "_order_matters", lambda *_: False)
    cases = [random_case(rng, 8) for _ in range(600)]
    assert any(not np.array_equal(flood_marked(*case)[0], flood_whole(*case)) for case in cases)


def test_most_pixels_need_no_queue_and_those_of_basins_without_a_marker_do(monkeypatch):
    """Two markers at the ends of a row; in between, at the fifth pixel, a basin that both reach."""
    mask, markers = np.ones((1, 9), np.uint8), np.zeros((1, 9), np.int32)
    markers[0, 0], markers[0, -1] = 1, 2
    edges = np.array([[0.0, 0.25, 0.5, 0.75, 0.25, 0.8125, 0.875, 0.5, 0.0]], np.float32)
    settled = []
    monkeypatch.setattr(flood, "_flood", lambda height, owner, *rest: settled.append(owner[1, 1:-1].tolist()))
    assert flood_marked(mask, markers, edges)[1]
    assert settled == [[1, 1, 1, 1, 0, 0, 2, 2, 2]]
    monkeypatch.undo()
    flooded, _ = flood_marked(mask, markers, edges)
    assert np.array_equal(flooded, flood_whole(mask, markers, edges))
    assert flooded.tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2]]


def test_without_the_private_function_the_whole_map_is_flooded(monkeypatch):
    monkeypatch.setattr(flood, "watershed_raveled", None)
    assert not flood_marked(*random_case(np.random.default_rng(1), 2**20))[1]


def strip(heights, markers):
    """One component, one row: `_order_matters` for these heights and markers."""
    height, owner = np.zeros((3, len(heights) + 2)), np.zeros((3, len(heights) + 2), np.int32)
    height[1, 1:-1], owner[1, 1:-1] = heights, markers
    free = np.zeros(owner.shape, bool)
    free[1, 1:-1] = owner[1, 1:-1] == 0
    seeds = np.flatnonzero((owner > 0) & ndimage.binary_dilation(free))
    seeds = seeds[np.argsort(height.ravel()[seeds])]
    return flood._order_matters(height, owner, free, seeds, np.ones(len(seeds), int))


@pytest.mark.parametrize(
    ("heights", "markers", "matters"),
    [
        ([-0.9, -0.5, -0.8], [1, 0, 2], False),  # no two markers of equal height
        ([-0.9, -0.5, -0.9], [1, 0, 2], True),  # both reach the one pixel between them
        ([-0.9, -0.5, -0.4, -0.9], [1, 0, 0, 2], False),  # what they reach is ordered by height
        ([-0.9, -0.5, -0.5, -0.9], [1, 0, 0, 2], True),  # what they reach is level
        ([-0.9, -0.95, -0.4, -0.9], [1, 0, 0, 2], True),  # one reaches down
        ([-0.9, -0.5, -0.9, -0.5, -0.8], [1, 0, 1, 0, 2], False),  # equal heights within one marker
    ],
)
def test_order_matters(heights, markers, matters):
    assert strip(heights, markers) is matters
