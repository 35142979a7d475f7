"""Painting contours: which pixel belongs to whom, and what is counted."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.io
from scipy import ndimage

from misc.formats.contours import Contour
from misc.formats.masks import paint_contours
from misc.nuclei_features import nucleus_mask
from models.hovernet.post_proc import measure


def square(x: float, y: float, side: float) -> Contour:
    return Contour([np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)])


def test_pixels_in_or_on_the_contour():
    mask = paint_contours([square(2, 3, 4)], [5], (12, 10))
    expected = np.zeros((12, 10), np.int32)
    expected[3:8, 2:7] = 1
    np.testing.assert_array_equal(mask.inst_map, expected)
    assert mask.types.tolist() == [5]
    assert mask.centroids_xy.tolist() == [[4, 5]]
    # between pixel centres: those inside alone
    assert paint_contours([square(2.4, 3.4, 2)], [1], (12, 10)).inst_map.sum() == 4


@pytest.mark.parametrize("reverse", [False, True])
def test_p14_the_smaller_nucleus_is_on_top_whatever_the_order(reverse):
    contours = [square(1, 1, 9), square(4, 4, 3)]
    mask = paint_contours(contours[::-1] if reverse else contours, [2, 1] if reverse else [1, 2], (20, 20))
    large, small = (2, 1) if reverse else (1, 2)
    assert (mask.inst_map == small).sum() == 16
    assert (mask.inst_map == large).sum() == 100 - 16
    assert mask.types[small - 1] == 2
    assert (mask.hidden_px, mask.buried) == (16, 0)


def test_p14_what_is_wholly_hidden_is_counted():
    mask = paint_contours([square(1, 1, 9), square(1, 1, 9), square(12, 12, 4)], [1, 2, 3], (20, 20))
    assert mask.buried == 1
    assert mask.hidden_px == 100
    assert mask.inst_map.max() == 2  # no gap in the ids
    assert mask.source.tolist() == [1, 2]
    assert mask.types.tolist() == [2, 3]


def test_contours_at_the_edge_and_beyond():
    mask = paint_contours([square(-3, 5, 6), square(50, 50, 4), square(-0.5, -0.5, 2)], [1, 1, 1], (20, 20))
    assert (mask.clipped, mask.outside) == (1, 1)
    assert (mask.inst_map == 1).sum() == 4 * 7


def test_contours_between_pixel_centres_are_not_outside():
    mask = paint_contours([square(5.3, 5.3, 0.4), square(8.3, 8.3, 0.4), square(-3, 5, 6)], [1, 1, 1], (20, 20))
    assert (mask.too_small, mask.outside, mask.clipped) == (2, 0, 1)
    assert mask.source.tolist() == [2]


def test_a_ring_in_a_ring_is_a_hole():
    contour = Contour([*square(2, 2, 10).rings, *square(4.5, 4.5, 4).rings])
    mask = paint_contours([contour], [1], (20, 20))
    assert mask.inst_map.sum() == 121 - 16


def test_no_contours():
    mask = paint_contours([], [], (5, 6))
    assert mask.inst_map.shape == (5, 6)
    assert len(mask.types) == len(mask.centroids_xy) == 0


def test_outer_borders_come_back_to_the_pixel(kumar):
    """A contour as OpenCV gives it, of every nucleus of a real image that is one piece without holes."""
    labels = scipy.io.loadmat(kumar / "Train" / "Labels" / "TCGA-18-5592-01Z-00-DX1.mat")["inst_map"]
    contours, whole = [], np.zeros(labels.shape, bool)
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        mask = (labels[box] == index).astype(np.uint8)
        rings, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        if len(rings) == 1 and len(rings[0]) > 2 and (ndimage.binary_fill_holes(mask) == mask).all():
            contours.append(Contour([rings[0][:, 0].astype(float) + (box[1].start, box[0].start)]))
            whole[box] |= mask > 0
    painted = paint_contours(contours, [1] * len(contours), labels.shape)
    assert len(contours) > 400
    np.testing.assert_array_equal(painted.inst_map > 0, whole)
    assert painted.hidden_px == 0


def test_parts_one_pixel_wide_come_back():
    """A square with a spur of six pixels, and a line: the contour runs out and back on the same pixels."""
    true = np.zeros((14, 20), np.uint8)
    true[3:8, 2:7] = true[5, 7:13] = 1
    true[9:13, 15] = 1
    rings, _ = cv2.findContours(true, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours = [Contour([ring[:, 0].astype(float)]) for ring in rings]
    np.testing.assert_array_equal(paint_contours(contours, [1] * 2, true.shape).inst_map > 0, true > 0)
    # the spur leaves the image, whose last columns are not there
    np.testing.assert_array_equal(paint_contours(contours, [1] * 2, (14, 10)).inst_map > 0, true[:, :10] > 0)


def test_a_spur_far_out_of_the_image_takes_no_memory():
    ring = np.array([[2, 2], [6, 2], [6, 4], [1e12, 4], [6, 4], [6, 6], [2, 6]], float)
    # the square, and of the spur, which is on the contour, what lies in the image
    assert (paint_contours([Contour([ring])], [1], (20, 20)).inst_map > 0).sum() == 25 + 13


@pytest.mark.parametrize("name", ["Test_same/Labels/TCGA-B0-5710-01Z-00-DX1", "Train/Labels/TCGA-HE-7130-01Z-00-DX1"])
def test_every_real_nucleus_comes_back_whole(kumar, name):
    """Each by itself, holes filled, other pieces left out: what its outer contour says."""
    nuclei = measure(scipy.io.loadmat(kumar / f"{name}.mat")["inst_map"].astype(np.int32))
    assert len(nuclei) > 300
    for index in range(len(nuclei)):
        whole, (top, left) = nucleus_mask(nuclei.contour(index))
        contour = Contour([nuclei.contour(index) - np.array([left, top], float)])
        np.testing.assert_array_equal(paint_contours([contour], [1], whole.shape).inst_map, whole)


def test_what_is_saved(tmp_path):
    paint_contours([square(1, 1, 3), square(8, 8, 4)], [2, 7], (20, 20)).save(tmp_path / "a.mat")
    content = scipy.io.loadmat(tmp_path / "a.mat")
    assert content["inst_map"].dtype == content["type_map"].dtype == np.int32
    assert content["inst_type"].tolist() == [[2], [7]]
    assert content["inst_centroid"].tolist() == [[2.5, 2.5], [10, 10]]
    assert set(np.unique(content["type_map"])) == {0, 2, 7}
