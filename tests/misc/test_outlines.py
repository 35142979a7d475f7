"""Moments from borders alone, against the same nuclei drawn."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.io import loadmat

from misc.nuclei import Nuclei
from misc.nuclei_features import touches_itself
from misc.outlines import Border, nucleus_mask, second_moments
from models.hovernet.post_proc import measure


def drawn_moments(nuclei: Nuclei) -> list[list[float]]:
    moments = []
    for i in range(len(nuclei)):
        found = cv2.moments(nucleus_mask(nuclei.contour(i))[0], binaryImage=True)
        moments.append([found[key] / found["m00"] for key in ("mu20", "mu11", "mu02")])
    return moments


def from_contours(contours: list[np.ndarray]) -> Nuclei:
    count = len(contours)
    return Nuclei.from_contours(range(count), np.zeros((count, 2, 2)), np.zeros((count, 2)), contours)


def test_moments_are_those_of_the_pixels(kumar, subtests):
    label = loadmat(kumar / "Train" / "Labels" / "TCGA-HE-7130-01Z-00-DX1.mat")["inst_map"].astype(np.int32)
    real = measure(label)
    assert touches_itself(real).any()
    contours = [real.contour(i) for i in range(len(real))]
    kinds = {
        "traced": real,
        "the other way round": from_contours([contour[::-1] for contour in contours]),
        "slanted edges": from_contours([np.rint(contour * (1.7, 1.3)).astype(np.int32) for contour in contours]),
        "far from the corner": real.shift(90_000, 80_000),
    }
    for kind, nuclei in kinds.items():
        with subtests.test(kind):
            np.testing.assert_allclose(second_moments(nuclei), drawn_moments(nuclei), rtol=1e-9, atol=1e-9)


def test_small_and_missing_contours():
    pixel, none, line = np.array([[5, 5]]), np.zeros((0, 2)), np.array([[1, 1], [5, 5]])
    moments = second_moments(from_contours([none, pixel, line, none, pixel, none]))
    np.testing.assert_array_equal(moments, [[0, 0, 0], [0, 0, 0], [2, 2, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert second_moments(Nuclei.empty()).shape == (0, 3)


def test_a_border_pixel_by_pixel():
    border = Border.of(from_contours([np.array([[7, 7]]), np.array([[3, 4], [5, 4], [5, 5]])]))
    assert np.stack([border.x, border.y]).T.tolist() == [[0, 0], [1, 0], [2, 0], [2, 1]]
    assert np.stack([border.dx, border.dy]).T.tolist() == [[1, 0], [1, 0], [0, 1], [-2, -1]]
    assert border.offsets.tolist() == [0, 0, 4]
    assert border.owners().tolist() == [1, 1, 1, 1]
