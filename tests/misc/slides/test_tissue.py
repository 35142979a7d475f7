"""Where tissue is: Otsu as upstream does it, masks that are given, and boxes against a mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from misc.slides.handler import get_file_handler
from misc.slides.tissue import TissueMask, load_mask, otsu_mask, thumbnail, whole_mask


def test_otsu_is_upstreams_on_a_real_slide(shared):
    with get_file_handler(shared / "data" / "slides" / "CMU-1-Small-Region.svs") as handler:
        rgb = thumbnail(handler)
        assert rgb.shape == (185, 138, 3)
    # scikit-image's Otsu, SciPy's components: the documented steps by other means
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    mask = grey <= threshold_otsu(grey)
    pieces, _ = ndimage.label(mask, np.ones((3, 3)))
    mask = (np.bincount(pieces.ravel()) >= 256)[pieces] & mask
    holes, _ = ndimage.label(~mask)
    mask |= (np.bincount(holes.ravel()) < 128 * 128)[holes] & ~mask
    y, x = np.mgrid[-16:17, -16:17]
    mask = ndimage.binary_dilation(mask, y**2 + x**2 <= 256)
    np.testing.assert_array_equal(otsu_mask(rgb).mask, mask)


@pytest.mark.parametrize(("value", "share"), [(255, 0.0), (240, 0.0), (120, 1.0), (0, 1.0)])
def test_a_slide_of_one_colour(value, share):
    assert otsu_mask(np.full((40, 50, 3), value, np.uint8)).share == share
    assert otsu_mask(np.full((1, 1, 3), value, np.uint8)).share == share


def test_p22_transparent_glass_is_no_tissue(tmp_path):
    rgba = np.zeros((640, 640, 4), np.uint8)  # black, but nothing is there
    rgba[200:500, 200:500] = (120, 40, 130, 255)
    cv2.imwrite(str(tmp_path / "a.png"), rgba)
    with get_file_handler(tmp_path / "a.png", mag=2.5) as handler:
        assert handler.read_region((0, 0), (1, 1)).tolist() == [[[255, 255, 255]]]
        tissue = otsu_mask(thumbnail(handler))
    assert 0.15 < tissue.share < 0.45
    assert not tissue.mask[:30, :30].any()


def test_boxes_that_touch_tissue():
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True  # px 100 to 199 of rows, 200 to 299 of columns, on a plane of 400 x 500
    boxes = [[0, 0, 100, 500], [0, 0, 101, 201], [199, 299, 200, 300], [200, 0, 400, 500], [-50, -50, 900, 900]]
    found = TissueMask(mask, "given").covers(np.array(boxes), (400, 500))
    assert found.tolist() == [False, True, True, False, True]


def test_boxes_against_brute_force():
    rng = np.random.default_rng(0)
    mask = rng.random((23, 31)) < 0.1
    shape = (2311, 3105)
    corners = np.stack([rng.integers(0, shape[0], 300), rng.integers(0, shape[1], 300)], axis=1)
    boxes = np.hstack([corners, corners + rng.integers(1, 400, (300, 2))])
    expected = []
    for y0, x0, y1, x1 in boxes:
        rows = slice(int(y0 * 23 / shape[0]), int(np.ceil(min(y1, shape[0]) * 23 / shape[0])))
        cols = slice(int(x0 * 31 / shape[1]), int(np.ceil(min(x1, shape[1]) * 31 / shape[1])))
        expected.append(mask[rows, cols].any())
    assert TissueMask(mask, "given").covers(boxes, shape).tolist() == expected
    assert whole_mask().covers(boxes, shape).all()


@pytest.mark.parametrize(
    ("size", "good"), [((100, 200), True), ((101, 200), True), ((7, 14), True), ((100, 190), False)]
)
def test_p26_masks_of_another_aspect_are_refused(tmp_path, size, good):
    cv2.imwrite(str(tmp_path / "m.png"), np.full(size, 255, np.uint8))
    if good:
        assert load_mask(tmp_path / "m.png", (5000, 10000)).share == 1
    else:
        with pytest.raises(ValueError, match=r"190 x 100 px, the slide 10000 x 5000 px"):
            load_mask(tmp_path / "m.png", (5000, 10000))


def test_masks_that_are_none(tmp_path):
    (tmp_path / "m.png").write_text("no image")
    with pytest.raises(ValueError, match="no image that can be read"):
        load_mask(tmp_path / "m.png", (10, 10))
    with pytest.raises(FileNotFoundError, match="no such mask"):
        load_mask(tmp_path / "other.png", (10, 10))


def test_a_mask_comes_back(tmp_path):
    mask = TissueMask(np.random.default_rng(0).random((30, 40)) < 0.5, "otsu")
    mask.save(tmp_path / "m.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "m.png", (300, 400)).mask, mask.mask)


MASKS = {
    "grey": np.uint8([[0, 1], [255, 0]]),
    "16 bits": np.uint16([[0, 1], [300, 0]]),
    "blue is dark": np.uint8([[[0, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 0]]]),
    "opaque": np.uint8([[[0, 0, 0, 255], [9, 0, 0, 255]], [[0, 0, 9, 0], [0, 0, 0, 0]]]),
    "16 bits in colour": np.uint16([[[0, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 0, 0]]]),
}


@pytest.mark.parametrize("kind", MASKS)
def test_whatever_is_not_black_is_tissue(tmp_path, kind):
    """Turned to 8 bits of grey, a mask of 1 of 65535, or of (0, 0, 1), was no tissue at all."""
    cv2.imwrite(str(tmp_path / "m.png"), MASKS[kind])
    assert load_mask(tmp_path / "m.png", (20, 20)).mask.tolist() == [[False, True], [True, False]]
