"""Edges between nuclei in any direction: numbers on paper, and properties that the edges along the axes do not have."""

from pathlib import Path

import numpy as np
import pytest

from models.hovernet.edges import FALL_THRESHOLD, MARKER_THRESHOLD, axis_edges, direction_edges
from models.hovernet.post_proc import PostProc, process_nuclei, segment

DIRECTIONS = PostProc(edges="directions")


def pair(angle: float, size: int = 120, radius: float = 24) -> np.ndarray:
    """Maps (H, W, 3) of two nuclei that touch at the centre; `angle` is that of the line between their centres."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    u = np.array([np.cos(angle), np.sin(angle)])
    side = np.where(x * u[0] + y * u[1] < 0, -1, 1)
    h, v = ((place - side * radius * part) / radius for place, part in ((x, u[0]), (y, u[1])))
    inside = np.hypot(h, v) <= 1.02  # so that the border is a few px long
    return np.dstack([inside, h * inside, v * inside]).astype(np.float32)


def axes_of(maps: np.ndarray) -> np.ndarray:
    shape = maps.shape[:2]
    return axis_edges(maps[..., 1], maps[..., 2], None, np.zeros(shape), np.zeros(shape, np.float32))


def edges_of(maps: np.ndarray) -> np.ndarray:
    return direction_edges(maps[..., 1], maps[..., 2])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_slope_on_paper(order, dtype):
    """The steepest fall of (h, v) = (-0.02 x, 0.01 y) is 0.02 a px, and of (-0.02 y, -0.02 x) as much, obliquely."""
    y, x = np.mgrid[:60, :80].astype(np.float64)
    expected = MARKER_THRESHOLD + 3 * (0.02 - FALL_THRESHOLD)
    for h, v in ((-0.02 * x, 0.01 * y), (-0.02 * y, -0.02 * x)):
        found = direction_edges(np.asarray(h, dtype, order), np.asarray(v, dtype, order))
        assert found.dtype == np.float32
        inner = found[12:-12, 12:-12]
        assert np.allclose(inner, expected, atol=2e-3 if dtype == np.float16 else 1e-5)


def test_turned_nuclei_have_turned_edges():
    maps = pair(0.6)
    h, v = maps[..., 1], maps[..., 2]
    turned = direction_edges(np.rot90(v), np.rot90(-h))  # a quarter turn takes x to -y, and y to x
    assert np.allclose(turned, np.rot90(direction_edges(h, v)), atol=1e-5)


def test_an_oblique_border_is_as_strong_as_an_upright_one():
    both = np.concatenate([pair(0), pair(np.pi / 4)])
    for way, least, most in ((edges_of, -0.03, 0.03), (axes_of, 0.2, 1)):
        upright, oblique = (way(both)[row : row + 2, 59:61].mean() for row in (59, 179))
        assert least < upright - oblique < most


def test_other_nuclei_of_a_tile_do_not_count():
    """A pair that touches strongly elsewhere changes which edges along the axes are cut, and nothing here."""
    weak = pair(0) * np.float32([1, 0.3, 0.3])
    both = np.concatenate([weak, pair(0)])
    here = np.s_[:100]
    assert np.abs(edges_of(both)[here] - edges_of(weak)[here]).max() < 1e-6
    assert np.abs(axes_of(both)[here] - axes_of(weak)[here]).max() > 0.1


def test_touching_nuclei_are_parted_at_any_angle():
    for angle in np.arange(0, np.pi, 0.2):
        assert len(process_nuclei(pair(angle), how=DIRECTIONS)[1]) == 2, angle
    assert segment(np.zeros((0, 7, 3), np.float32), how=DIRECTIONS).shape == (0, 7)
    assert segment(np.ones((1, 1, 3), np.float32), how=DIRECTIONS).tolist() == [[0]]


def test_nuclei_inside_a_part_are_those_of_the_whole():
    """A block of a slide finds what a tile with the same pixels finds; edges along the axes depend on all the rest."""
    golden = np.load(Path(__file__).parent / "golden" / "post_proc.npz")
    part = golden["network_maps"][..., 1:]
    whole = np.concatenate([part, np.zeros_like(part[:30]), pair(0)[:, : part.shape[1]] * np.float32([1, 3, 3])])
    found, expected = (segment(maps, how=DIRECTIONS) for maps in (part, whole))
    assert (found > 0).sum() > 1000
    inner = np.s_[: part.shape[0] - 20]
    pairs = np.unique(np.stack([found[inner].ravel(), expected[inner].ravel()]), axis=1)
    assert len(pairs.T) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
    assert len(np.unique(segment(part)[inner])) != len(np.unique(segment(whole)[inner]))


def test_maps_with_nan_are_refused():
    maps = pair(0)
    maps[5, 5, 2] = np.nan
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        segment(maps, how=DIRECTIONS)


@pytest.mark.parametrize("edges", ["axes", "directions"])
def test_nuclei_of_low_probability_are_left_out(edges):
    """Mean probabilities 0.6 and exactly 0.75: the limit belongs to those that stay."""
    y, x = np.mgrid[-20:21, -20:21]
    disc = np.hypot(y, x) < 15
    maps = np.zeros((41, 90, 3), np.float32)
    for left, prob in ((0, 0.6), (45, 0.75)):
        maps[:, left : left + 41] = np.dstack([disc * prob, disc * x / 15, disc * y / 15])
    for least, expected in ((0, 2), (0.6, 2), (0.75, 1), (0.76, 0)):
        inst_map, nuclei = process_nuclei(maps, how=PostProc(edges=edges, min_prob=least))
        assert len(nuclei) == expected == len(np.unique(inst_map)) - 1
    assert set(np.unique(process_nuclei(maps, how=PostProc(edges=edges, min_prob=0.75))[0][:, :44])) == {0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"edges": "diagonal"}, "edges must be `axes` or `directions`, got 'diagonal'"),
        ({"ink": "black"}, "ink must be `keep` or `drop`, got 'black'"),
        ({"min_prob": 1}, "min_prob is a probability from 0 and below 1, got 1"),
        ({"min_prob": True}, "min_prob is a probability"),
        ({"np_threshold": 0}, "np_threshold is a probability above 0 and below 1"),
    ],
)
def test_values_that_cannot_be(values, said):
    with pytest.raises(ValueError, match=said):
        PostProc(**values)
    with pytest.raises(ValueError, match=said.replace(" ", " in a.tar ", 1)):
        PostProc.from_meta(values | {"mpp": 0.25}, "a.tar")
