"""Stains read off the slide: colours that were put in come out, real images are told apart, nonsense is refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import ndimage

from misc.formats.labels import read_label
from misc.ihc.markers import marker
from misc.ihc.measure import measure
from misc.ihc.scores import NEGATIVE, classify
from misc.ihc.stain import AUTO, GIVEN, StainModel, angle_deg
from misc.ihc.stain_estimate import estimate_stains, find_white, parse_stain, tissue_sample
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage, open_image


def painted(hematoxylin, dab, white, noise=2):
    """Paint blue and brown discs on pale ground."""
    rng = np.random.default_rng(0)
    density = np.zeros((400, 400, 3))
    for i, (y, x) in enumerate(np.argwhere(np.ones((8, 8))) * 50 + 25):
        disc = cv2.circle(np.zeros((400, 400), np.uint8), (int(x), int(y)), 14, 1, -1).astype(bool)
        density[disc] = 0.5 * np.array(hematoxylin) if i % 4 else 0.8 * np.array(dab)
    values = np.array(white) * 10**-density + rng.normal(0, noise, density.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def test_the_colours_that_were_painted_are_found(subtests):
    for hematoxylin, dab, white in (
        ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78), (250, 250, 250)),
        ((0.76, 0.60, 0.25), (0.40, 0.56, 0.72), (205, 218, 205)),
    ):
        with subtests.test(hematoxylin=hematoxylin):
            model = estimate_stains(painted(hematoxylin, dab, white))
            assert model.source == AUTO
            assert not model.warnings
            assert angle_deg(model.hematoxylin_rgb, hematoxylin) < 2
            assert angle_deg(model.dab_rgb, dab) < 2
            assert np.abs(np.array(model.white_rgb) - white).max() < 3


def test_colours_that_are_no_stains_are_not_believed_and_said(subtests):
    default = StainModel()
    for hematoxylin, dab, words in (
        ((0.65, 0.70, 0.29), (0.65, 0.70, 0.29), "too little DAB"),
        ((0.95, 0.30, 0.05), (0.27, 0.57, 0.78), "degrees off the default"),
    ):
        with subtests.test(words=words):
            model = estimate_stains(painted(hematoxylin, dab, (245, 245, 245)))
            assert any(words in text for text in model.warnings)
            attribute = "dab_rgb" if "DAB" in words else "hematoxylin_rgb"
            assert getattr(model, attribute) == pytest.approx(getattr(default, attribute))
    flat = estimate_stains(np.full((50, 50, 3), 255, np.uint8))
    assert (flat.hematoxylin_rgb, flat.dab_rgb) == (default.hematoxylin_rgb, default.dab_rgb)


def test_white_is_not_what_a_scanner_left_out():
    picture = np.full((100, 100, 3), 255, np.uint8)
    picture[:, 40:] = (238, 235, 240)
    picture[20:60, 60:90] = (120, 90, 150)
    assert find_white(picture)[0] == pytest.approx((238, 235, 240), abs=1)
    white, notes = find_white(np.full((100, 100, 3), (200, 110, 150), np.uint8))
    assert white == (255, 255, 255)
    assert "no glass" in notes[0]


def test_a_slide_is_looked_at_in_fields_of_its_tissue():
    """A tenth of it is tissue, the rest glass, and half of that was never scanned."""
    hematoxylin, dab, white = (0.76, 0.60, 0.25), (0.40, 0.56, 0.72), (225, 228, 222)
    slide = np.full((2400, 3200, 3), white, np.uint8)
    slide[:, :1600] = 255
    slide[800:1600, 2000:2800] = np.tile(painted(hematoxylin, dab, white), (2, 2, 1))
    read = []

    def read_region(y, x, height, width):
        read.append(height * width)
        return slide[y : y + height, x : x + width]

    image = SlideImage("a.svs", 3200, 2400, None, None, read_region, lambda: cv2.resize(slide, (400, 300)))
    model = estimate_stains(tissue_sample(image))
    assert sum(read) < slide.size / 3 / 2
    assert angle_deg(model.hematoxylin_rgb, hematoxylin) < 2
    assert angle_deg(model.dab_rgb, dab) < 2
    assert model.white_rgb == pytest.approx(white, abs=3)


def test_option(subtests):
    assert parse_stain("auto") is None
    assert parse_stain("default") == StainModel()
    given = parse_stain("0.65,0.7,0.29:0.3,0.6,0.8")
    assert given.source == GIVEN
    assert np.linalg.norm(given.dab_rgb) == pytest.approx(1)
    assert parse_stain(given.words().split()[1]).dab_rgb == pytest.approx(given.dab_rgb, abs=1e-3)
    for text in (
        "best",
        "1,2:3,4",
        "0.6,0.7,0.3",
        "0.6,0.7,x:1,1,1",
        "0,0,0:1,1,1",
        "1,2,3:2,4,6",
        "1,2,3:4,5,6:7,8,9",
    ):
        with subtests.test(text=text), pytest.raises(ValueError, match="--stain"):
            parse_stain(text)


def test_given_vectors_are_kept_and_white_is_the_slides():
    rgb = painted((0.76, 0.60, 0.25), (0.40, 0.56, 0.72), (205, 218, 205))
    model = estimate_stains(rgb, StainModel())
    assert model.source == "default"
    assert model.dab_rgb == StainModel().dab_rgb
    assert model.white_rgb == pytest.approx((205, 218, 205), abs=3)
    # the densities are the amounts that were painted, whatever the light
    own = estimate_stains(rgb).densities(rgb)
    assert np.median(own[11:39, 11:39, 1][own[11:39, 11:39, 1] > 0.4]) == pytest.approx(0.8, abs=0.03)
    assert np.abs(np.median(own[:10, :10].reshape(-1, 2), axis=0)).max() < 0.02


def test_h_and_e_is_flagged_and_a_dark_ground_refused(shared):
    for name in ("kumar/Train/Images/TCGA-HE-7130-01Z-00-DX1.png", "slides/HE_example.tif"):
        model = estimate_stains(tissue_sample(open_image(shared / "data" / name)))
        assert any("looks like H&E" in text for text in model.warnings), name
    bright = cv2.imread(str(shared / "data" / "ihc" / "Images" / "Lung1.png"), cv2.IMREAD_COLOR_RGB)
    assert not estimate_stains(bright).warnings
    with pytest.raises(ValueError, match="fluorescence"):
        estimate_stains((255 - bright) // 4)


def outline(inst_map, value, box):
    mask = (inst_map[box] == value).astype(np.uint8)
    rings, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return max(rings, key=len)[:, 0] + np.array([box[1].start, box[0].start], np.int32)


def test_positive_and_negative_nuclei_of_another_lab_are_told_apart(shared):
    """Outlines are the labels' own, so that what is tested is the staining alone."""
    right = []
    for name in ("1309620-A2-27", "1309620-A2-28"):
        folder = shared / "data" / "ki67_glioma"
        image, label = open_image(folder / "Images" / f"{name}.png"), read_label(folder / "Labels" / f"{name}.mat")
        inst_map = label["inst_map"]
        contours = [outline(inst_map, i, box) for i, box in enumerate(ndimage.find_objects(inst_map), 1)]
        count = len(contours)
        nuclei = Nuclei.from_contours(range(count), np.zeros((count, 2, 2)), np.zeros((count, 2)), contours)
        model = estimate_stains(tissue_sample(image))
        found = measure(nuclei, image.read, (image.height, image.width), model, 0.25)
        classes = classify(found.dab_median, [t + found.ground() for t in marker("ki67").thresholds])
        right.append((classes > NEGATIVE) == (label["inst_type"].ravel() == 1))
        assert not found.lies_around(classes > NEGATIVE)
    assert np.concatenate(right).mean() >= 0.97
