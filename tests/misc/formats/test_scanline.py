"""Filling rings row by row, against the plain definition."""

from __future__ import annotations

import numpy as np
from skimage.draw import polygon

from misc.formats.contours import Contour
from misc.formats.masks import paint_contours
from misc.formats.scanline import Box, box_of, fill_ring


def test_random_rings_are_filled_as_scikit_image_fills_them():
    """Corners between pixel centres, self-crossing, partly outside; and within any box the same pixels."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        ring = rng.uniform(-10, 60, (rng.integers(3, 30), 2))
        expected = np.zeros((50, 45), bool)
        expected[polygon(ring[:, 1], ring[:, 0], expected.shape)] = True
        np.testing.assert_array_equal(fill_ring(ring, Box(0, 0, 50, 45)), expected)
        np.testing.assert_array_equal(fill_ring(ring, Box(7, 5, 31, 40)), expected[7:31, 5:40])
        box = box_of([ring], expected.shape)
        assert fill_ring(ring, box).sum() == expected.sum()


def test_corners_and_edges_on_pixel_centres_belong_to_the_ring():
    diamond = np.array([[4, 0], [8, 4], [4, 8], [0, 4]], float)
    y, x = np.mgrid[:9, :9]
    np.testing.assert_array_equal(fill_ring(diamond, Box(0, 0, 9, 9)), abs(x - 4) + abs(y - 4) <= 4)
    line = np.array([[1, 1], [7, 4], [1, 1]], float)  # out and back: the pixel centres on it
    assert np.argwhere(fill_ring(line, Box(0, 0, 9, 9))).tolist() == [[1, 1], [2, 3], [3, 5], [4, 7]]
    flat = np.array([[2, 3], [6, 3], [4, 3]], float)
    assert np.argwhere(fill_ring(flat, Box(0, 0, 9, 9))).tolist() == [[3, x] for x in range(2, 7)]


def test_an_outline_of_400_000_points_is_painted():
    """Its area to the pixel row; the cost of the old way was side squared times points: hours."""
    angle = np.linspace(0, 2 * np.pi, 400_000, endpoint=False)
    radius = 700 * (1 + 0.2 * np.sin(40 * angle))
    ring = np.column_stack([1000 + radius * np.cos(angle), 1000 + radius * np.sin(angle)])
    found = np.count_nonzero(paint_contours([Contour([ring])], [1], (2000, 2000)).inst_map)
    assert abs(found / (np.pi * 700**2 * (1 + 0.2**2 / 2)) - 1) < 1e-3


def test_a_star_of_long_edges_far_out_of_the_image():
    ring = np.array([[-1e9, 5], [1e9, 5], [1e9, 9], [-1e9, 9]])
    assert fill_ring(ring, Box(0, 0, 20, 20)).sum() == 5 * 20
