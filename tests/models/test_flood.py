"""The flooding of some components must equal the flooding of the whole map, or say that it cannot."""

import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage

from misc.runs import find_runs
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
    """Flood all components that hold a marker, packed; the map and whether it was done."""
    labels = labelled(mask)
    marked = np.unique(labels[markers > 0])
    runs = find_runs(labels)
    runs = runs.where(np.isin(runs.value, marked))
    inst_map = np.zeros_like(labels)
    done = flood.flood_regions(inst_map, runs, mask, markers, edges)
    return inst_map, done


@pytest.mark.parametrize("levels", [8, 64, 256, 1024, 2**20])
@pytest.mark.parametrize("batch", [1, 500, 2**16])
def test_packed_flood_equals_the_flood_of_the_whole_map(levels, batch, monkeypatch):
    monkeypatch.setattr(flood, "_BATCH_PX", batch)
    rng = np.random.default_rng(levels)
    done = 0
    for _ in range(60):
        case = random_case(rng, levels)
        if not case[1].any():
            continue
        inst_map, equal = flood_marked(*case)
        if equal:
            assert np.array_equal(inst_map, flood.flood_all(*case))
        done += equal
    assert done > {8: -1, 64: 0, 256: 5}.get(levels, 20)


def test_equal_heights_are_not_always_harmless(monkeypatch):
    """Without the check some maps come out different: the check is needed."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(flood, "_order_matters", lambda *_: False)
    cases = [case for case in (random_case(rng, 8) for _ in range(600)) if case[1].any()]
    assert any(not np.array_equal(flood_marked(*case)[0], flood.flood_all(*case)) for case in cases)


def strip(heights, markers):
    """One component, one row: `_order_matters` for these heights and markers."""
    height, marker = np.zeros((3, len(heights) + 2)), np.zeros((3, len(heights) + 2), np.int32)
    height[1, 1:-1], marker[1, 1:-1] = heights, markers
    component = np.zeros_like(marker)
    component[1, 1:-1] = 1
    free = (component > 0) & (marker == 0)
    beside = ndimage.binary_dilation(free)
    return flood._order_matters(height, component, marker, free, np.flatnonzero((marker > 0) & beside))


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


def test_a_component_at_the_border_is_blurred_as_in_the_whole_map():
    """A pixel diagonal to a component and the mirrored border both count in the relief."""
    mask = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1]], np.uint8)
    edges = np.linspace(0, 1, 15, dtype=np.float32).reshape(3, 5)
    boxes = np.array([[0, 0, 1, 4]])
    packed, shape = flood._pack(np.array([[3, 6]]))
    part = flood._packed_relief(edges, mask, boxes, packed, shape)
    assert np.array_equal(part[1:2, 1:5], flood._relief(edges, mask)[0:1, 0:4])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (7, 5)])
def test_every_box_of_a_small_map_has_the_relief_of_the_whole(shape):
    rng = np.random.default_rng(5)
    edges, mask = rng.random(shape, np.float32), rng.integers(0, 2, shape).astype(np.uint8)
    whole = flood._relief(edges, mask)
    for y0, y1 in itertools.combinations(range(shape[0] + 1), 2):
        for x0, x1 in itertools.combinations(range(shape[1] + 1), 2):
            packed, packed_shape = flood._pack(np.array([[y1 - y0 + 2, x1 - x0 + 2]]))
            part = flood._packed_relief(edges, mask, np.array([[y0, x0, y1, x1]]), packed, packed_shape)
            assert np.array_equal(part[1 : y1 - y0 + 1, 1 : x1 - x0 + 1], whole[y0:y1, x0:x1])


def test_pack_keeps_boxes_apart():
    sizes = np.random.default_rng(3).integers(1, 40, (200, 2))
    places, shape = flood._pack(sizes)
    covered = np.zeros(shape, int)
    for y0, x0, y1, x1 in places:
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    assert covered.sum() == sizes.prod(axis=1).sum()
    assert shape[0] * shape[1] < 1.6 * covered.sum()
