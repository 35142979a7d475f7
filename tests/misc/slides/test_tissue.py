"""Where tissue is: on real slides and painted ones, in masks that are given, and boxes against a mask."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from misc.slides.handler import get_file_handler
from misc.slides.tissue import TissueMask, find_tissue, load_mask, otsu_mask, thumbnail, whole_mask


def mask_of(path, mag=None):
    with get_file_handler(path, mag=mag) as handler:
        rgb = thumbnail(handler)
    return rgb, otsu_mask(rgb)


def test_a_slide_that_is_mostly_glass(shared):
    """It was tissue from edge to edge: holes up to 1 mm2 were filled, and all was widened by 128 um."""
    rgb, tissue = mask_of(shared / "data" / "slides" / "CMU-1-Small-Region.svs")
    assert rgb.shape == (185, 138, 3)
    assert 0.38 < tissue.share < 0.44
    for y, x in ((10, 20), (120, 15), (31, 77), (150, 130)):  # glass beside the tissue, and a fold that encloses it
        assert not tissue.mask[y - 2 : y + 3, x - 2 : x + 3].any(), (y, x)
    for y, x in ((150, 45), (65, 20), (125, 75), (170, 105)):
        assert tissue.mask[y, x], (y, x)


def test_pale_counterstain_is_tissue(shared):
    """A DAB field, paler than it is, on a slide of glass: grey values alone did not part the two."""
    rgb = cv2.imread(str(shared / "data" / "ihc" / "Images" / "Lung1.png"))[..., ::-1].astype(np.float64)
    white, glass = np.quantile(rgb.reshape(-1, 3), 0.999, axis=0), np.array([242, 243, 241])
    pale = glass * (np.clip(rgb, 1, white) / white) ** 0.6
    slide = np.tile(glass.astype(np.float64), (1200, 1600, 1))
    slide[300:812, 500:1012] = pale
    slide += np.random.default_rng(0).normal(0, 3, slide.shape)
    tissue = find_tissue(np.clip(slide, 0, 255).astype(np.uint8), (0.5, 0.5)).mask
    assert tissue.shape == (75, 100)
    field = np.s_[300 // 16 + 1 : 812 // 16, 500 // 16 + 1 : 1012 // 16]
    assert tissue[field].mean() > 0.97
    tissue[300 // 16 - 1 : 812 // 16 + 2, 500 // 16 - 1 : 1012 // 16 + 2] = False
    assert not tissue.any()


def test_pen_ink_is_no_tissue_and_the_tissue_beside_it_stays(shared):
    slides = shared / "data" / "slides"
    for name, mag in (("slide_with_ink.jpeg", 2.5), ("small_dicom.dcm", 5)):
        rgb, tissue = mask_of(slides / name, mag)
        red, green, blue = np.moveaxis(rgb.astype(int), 2, 0)
        pen = (np.maximum(green, blue) > red + 60) | (rgb.max(axis=2) < 60)  # green or blue, or black
        pen = cv2.morphologyEx(pen.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) > 0
        assert pen.sum() > 1000
        assert tissue.mask[pen].mean() < 0.01, name
        pink = (red > green + 40) & (red > blue + 10)
        assert tissue.mask[pink].mean() > 0.97, name
        assert 0.28 < tissue.share < 0.46


def test_fields_that_are_all_tissue(shared, subtests):
    """Pale stroma, lumens of a gland and DAB on grey: no threshold may part tissue where there is no glass."""
    data = shared / "data"
    folders = ("kumar/Test_diff", "kumar/Test_same", "ihc", "ki67_glioma")
    for path in (path for folder in folders for path in sorted((data / folder / "Images").glob("*.png"))):
        with subtests.test(path.name):
            assert mask_of(path, 40)[1].share > 0.95


def test_pale_tissue_holes_and_glass_of_two_kinds():
    rng = np.random.default_rng(0)
    rgb = rng.normal(238, 1.5, (200, 300, 3))
    rgb[:, :27] = 255  # 9 %: nothing was scanned
    rgb[20:80, 60:160] = rng.normal((230, 215, 228), 3, (60, 100, 3))  # pale fat, grey-blue IHC, eosin
    rgb[100:180, 60:160] = rng.normal((208, 214, 222), 3, (80, 100, 3))
    rgb[60:180, 200:280] = rng.normal((215, 130, 175), 9, (120, 80, 3))
    rgb[100:110, 230:240] = 238  # glass in it, and a gap of a nucleus
    rgb[150:152, 230:232] = 238
    tissue = otsu_mask(np.clip(rgb, 0, 255).astype(np.uint8)).mask
    drawn = np.zeros_like(tissue)
    drawn[20:80, 60:160] = drawn[100:180, 60:160] = drawn[60:180, 200:280] = True
    inner = cv2.erode(drawn.astype(np.uint8), np.ones((3, 3))) > 0
    outer = cv2.dilate(drawn.astype(np.uint8), np.ones((7, 7))) > 0
    inner[98:112, 228:242] = False
    assert tissue[inner].all()
    assert not tissue[~outer].any()
    assert not tissue[103:107, 233:237].any()


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
