"""Shape and stain: numbers one can check by eye, scikit-image's, and real DAB."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.io import loadmat
from scipy.ndimage import binary_fill_holes
from skimage.measure import regionprops

from misc import nuclei_features
from misc.ihc.stain import stain_densities
from misc.nuclei import Nuclei
from misc.nuclei_features import (
    diameters_um,
    nuclear_densities,
    perimeters,
    pixel_areas,
    say_diameter,
    shapes,
    touches_itself,
)


def from_contours(*contours) -> Nuclei:
    contours = [np.array(c, np.int32).reshape(-1, 2) for c in contours]
    boxes = [[c.min(axis=0)[::-1], c.max(axis=0)[::-1] + 1] if len(c) else np.zeros((2, 2)) for c in contours]
    centroids = [c.mean(axis=0) if len(c) else (0, 0) for c in contours]
    return Nuclei.from_contours(range(1, len(contours) + 1), boxes, centroids, contours)


def from_labels(inst_map: np.ndarray) -> tuple[Nuclei, list]:
    """Outer contours of a label map, and scikit-image's word on each nucleus with its holes filled."""
    contours, expected = [], []
    for region in regionprops(inst_map):
        filled = binary_fill_holes(np.pad(region.image, 1))
        found = cv2.findContours(filled.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        if len(found) == 1:
            corner = np.array([region.bbox[1] - 1, region.bbox[0] - 1])
            contours.append(found[0].reshape(-1, 2) + corner)
            expected.append(regionprops(filled.astype(np.uint8))[0])
    return from_contours(*contours), expected


def test_shapes_by_eye():
    nuclei = from_contours(
        [[0, 0], [2, 0], [2, 1], [0, 1]],  # 3 x 2 px
        [[5, 5]],  # one pixel
        [[5, 5], [9, 5]],  # five pixels in a row
        [],
        [[0, 0], [4, 0], [4, 4], [8, 4], [4, 4], [0, 4]],  # 5 x 5 px and a line of 4 that sticks out
    )
    found = shapes(nuclei)
    assert found.area.tolist() == [6, 1, 5, 0, 29]
    assert found.perimeter.tolist() == [6, 0, 8, 0, 24]
    assert found.solidity[:4].tolist() == [1, 1, 1, 0]
    assert found.solidity[4] == pytest.approx(29 / (25 + 4 * (5 + 1) / 2))  # a trapezium beside the square
    assert found.minor_axis[2] == 0
    assert found.major_axis[2] == pytest.approx(4 * np.sqrt(2))  # variance of 0..4 is 2
    assert found.eccentricity[:4].tolist() == [pytest.approx(np.sqrt(1 - (1 / 4) / (2 / 3))), 0, 1, 0]


def test_a_disc_and_turning_it():
    y, x = np.mgrid[-30:31, -30:31]
    disc = (x**2 + y**2 <= 25**2).astype(np.int32)
    found = shapes(from_labels(disc)[0])
    assert found.area[0] == disc.sum()
    assert found.major_axis[0] == pytest.approx(50, rel=0.01)
    assert found.solidity[0] > 0.96
    ellipse = ((x / 25) ** 2 + (y / 10) ** 2 <= 1).astype(np.int32)
    lying, standing = shapes(from_labels(ellipse)[0]), shapes(from_labels(ellipse.T)[0])
    for name, values in vars(lying).items():
        np.testing.assert_allclose(values, getattr(standing, name), err_msg=name)
    assert lying.eccentricity[0] == pytest.approx(np.sqrt(1 - 0.4**2), abs=0.01)


def test_real_nuclei_as_scikit_image_measures_them(kumar):
    path = kumar / "Train" / "Labels" / "TCGA-HE-7130-01Z-00-DX1.mat"
    nuclei, expected = from_labels(loadmat(path)["inst_map"][:400, :400].astype(np.int32))
    assert len(nuclei) > 200
    found = shapes(nuclei)
    np.testing.assert_array_equal(found.area, [r.area for r in expected])
    np.testing.assert_allclose(found.major_axis, [r.axis_major_length for r in expected])
    np.testing.assert_allclose(found.minor_axis, [r.axis_minor_length for r in expected], atol=1e-6)
    np.testing.assert_allclose(found.eccentricity, [r.eccentricity for r in expected], atol=1e-6)
    np.testing.assert_allclose(found.solidity, [r.solidity for r in expected], atol=0.13)
    assert (found.solidity <= 1).all()
    contours = [nuclei.contour(i) for i in range(len(nuclei))]
    np.testing.assert_allclose(perimeters(nuclei), [cv2.arcLength(c, True) for c in contours], rtol=1e-5)


def test_contours_that_run_back_along_themselves(monkeypatch):
    nuclei = from_contours(
        [[0, 0], [2, 0], [2, 1], [0, 1]],
        [[5, 5], [9, 5]],  # there and back
        [],
        [[0, 0], [4, 0], [4, 4], [8, 4], [3, 4], [0, 4]],  # no point twice, but an edge
        [[5, 5]],
        [[0, 0], [3, 3], [6, 0], [6, 6], [0, 6]],
    )
    for max_cells in (nuclei_features.MAX_CELLS, 10):  # found in a table, by sorting
        monkeypatch.setattr(nuclei_features, "MAX_CELLS", max_cells)
        assert touches_itself(nuclei).tolist() == [False, True, False, True, False, False]
    assert touches_itself(Nuclei.empty()).tolist() == []


def test_the_median_diameter_and_whether_nuclei_can_be_so_large():
    square = np.array([[0, 0], [31, 0], [31, 31], [0, 31]])  # 1024 px: a disc 36.1 px across
    boxes, centroids = [[[0, 0], [32, 32]]] * 3, [[15.5, 15.5]] * 3
    nuclei = Nuclei.from_contours([1, 2, 3], boxes, centroids, [square, square, square // 31])
    assert diameters_um(nuclei, 0.25) == {9.0: 2, 0.6: 1}
    assert say_diameter(diameters_um(nuclei, 0.25)) == "median nucleus diameter 9.0 um"
    assert "36.1 um, implausible (nuclei have 4 to 20)" in say_diameter(diameters_um(nuclei, 1.0))
    assert "3.6 um, implausible" in say_diameter(diameters_um(nuclei, 0.1))
    assert say_diameter(diameters_um(Nuclei.empty(), 0.25)) == ""


def test_nothing_to_measure():
    found = shapes(Nuclei.empty())
    assert all(len(values) == 0 for values in vars(found).values())
    assert pixel_areas(Nuclei.empty()).tolist() == []


def test_densities_are_means_over_the_nucleus(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (70, 90, 3), np.uint8)
    square = np.array([[0, 0], [6, 0], [6, 4], [0, 4]])
    corners = [(0, 0), (29, 31), (83, 65), (40, 10), (-3, 20), (60, 67), (200, 200)]
    nuclei = from_contours(*(square + corner for corner in corners))
    read = lambda y, x, h, w: image[y : y + h, x : x + w]  # noqa: E731
    expected = []
    for x, y in corners[:-1]:
        part = image[max(y, 0) : y + 5, max(x, 0) : x + 7]  # the fifth and sixth lie partly outside
        expected.append(stain_densities(part, "he").mean(axis=(0, 1)))
    for side in (16, 2048):
        monkeypatch.setattr(nuclei_features, "READ_PX", side)
        found = nuclear_densities(nuclei, read, image.shape[:2], "he")
        np.testing.assert_allclose(found[:-1], expected, rtol=1e-4)
        assert np.isnan(found[-1]).all()  # beyond the image
    moved = replace(nuclei, boxes_yx=nuclei.boxes_yx + [2048, 0])  # as the original moves them on slides (P07)
    np.testing.assert_array_equal(nuclear_densities(moved, read, image.shape[:2], "he"), found)


def test_real_dab_tells_positive_from_negative(shared):
    for name in ("Bladder1", "Lung1"):
        labels = loadmat(shared / "data" / "ihc" / "Labels" / f"{name}.mat")
        image = cv2.imread(str(shared / "data" / "ihc" / "Images" / f"{name}.png"))[..., ::-1]
        inst_map = labels["inst_map"].astype(np.int32)
        nuclei, _ = from_labels(inst_map)
        at = np.rint(nuclei.centroids_xy).astype(int)
        types = labels["type_map"][at[:, 1], at[:, 0]]
        read = lambda y, x, h, w, image=image: image[y : y + h, x : x + w]  # noqa: E731
        dab = nuclear_densities(nuclei, read, inst_map.shape, "hdab")[:, 1]
        accuracy = max(((dab > limit) == (types == 1))[types > 0].mean() for limit in np.arange(0.05, 0.5, 0.01))
        assert accuracy > 0.9, name
