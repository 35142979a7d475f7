"""Fields worth annotating."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile

from dataloader.rois import choose_fields, extract_rois
from misc.slides.handler import get_file_handler
from misc.slides.images import probe_mpp
from misc.slides.tissue import TissueMask


def test_fields_of_a_real_slide(shared, tmp_path):
    path = shared / "data" / "slides" / "CMU-1-Small-Region.svs"
    rois = extract_rois(path, tmp_path / "a", 400, 4, seed=1)
    assert len(rois) == 4
    with get_file_handler(path) as handler:
        for roi in rois:
            written = cv2.cvtColor(cv2.imread(str(roi.file)), cv2.COLOR_BGR2RGB)
            np.testing.assert_array_equal(written, handler.read_region((roi.x, roi.y), (400, 400)))
            assert roi.mpp == pytest.approx(0.499)
    again = extract_rois(path, tmp_path / "b", 400, 4, seed=1)
    assert [(roi.x, roi.y) for roi in again] == [(roi.x, roi.y) for roi in rois]


def test_fields_at_another_resolution_lie_where_they_say(shared, tmp_path):
    path = shared / "data" / "slides" / "CMU-1-Small-Region.svs"
    for roi in extract_rois(path, tmp_path, 200, 3, mpp=0.998):
        assert roi.mpp == pytest.approx(0.998, rel=0.01)
        with get_file_handler(path) as handler:
            level_0 = handler.read_region((roi.x, roi.y), (400, 400))
        small = cv2.resize(level_0, (200, 200), interpolation=cv2.INTER_AREA).astype(int)
        written = cv2.cvtColor(cv2.imread(str(roi.file)), cv2.COLOR_BGR2RGB).astype(int)
        assert np.abs(small - written).mean() < 8


def test_fields_are_tissue_spread_and_apart():
    mask = np.zeros((20, 20), bool)
    mask[:, :10] = True
    corners = choose_fields(TissueMask(mask, "otsu"), (2000, 2000), 100, 6, seed=0)
    assert len(corners) == 6
    assert (corners[:, 1] < 1000).all()
    distance = np.abs(corners[:, None] - corners[None]).max(axis=2)
    assert distance[~np.eye(6, dtype=bool)].min() >= 500  # six fields on 1000 x 2000 px


def test_fewer_fields_than_asked_for_and_none():
    mask = np.zeros((10, 10), bool)
    mask[2, 3] = True
    assert choose_fields(TissueMask(mask, "otsu"), (1000, 1000), 100, 6, seed=0).tolist() == [[200, 300]]
    assert len(choose_fields(TissueMask(mask & False, "otsu"), (1000, 1000), 100, 6, seed=0)) == 0


def test_a_slide_smaller_than_a_field(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.png is 60 x 50 px: no field of 100 px fits"):
        extract_rois(tmp_path / "a.png", tmp_path / "out", 100, 3)


def test_fields_of_slides_of_any_resolution_carry_their_own(tmp_path):
    """In one folder, at the slides' own resolutions, only the PNG itself can say what its px measure."""
    rgb = np.random.default_rng(0).integers(90, 180, (300, 300, 3), np.uint8)
    for name, mpp in (("a", 0.2527), ("b", 0.4990)):
        tifffile.imwrite(tmp_path / f"{name}.tif", rgb, resolution=(1e4 / mpp,) * 2, resolutionunit="CENTIMETER")
    for name, mpp in (("a.tif", 0.2527), ("b.tif", 0.4990)):
        (roi,) = extract_rois(tmp_path / name, tmp_path / "fields", 200, 1)
        assert probe_mpp(roi.file) == (pytest.approx(mpp, rel=1e-4), "the PNG's pHYs")
        assert roi.mpp == pytest.approx(mpp, rel=1e-4)
    (coarse,) = extract_rois(tmp_path / "a.tif", tmp_path / "coarse", 100, 1, mpp=0.5054)
    assert probe_mpp(coarse.file)[0] == pytest.approx(0.5054, rel=0.01)
    with get_file_handler(coarse.file) as handler:  # so that it can be read as a slide, too
        assert handler.metadata["base_mpp"].tolist() == pytest.approx([0.5054] * 2, rel=0.01)


def test_a_slide_of_glass_has_no_fields_and_that_is_said(tmp_path, caplog):
    rgb = np.full((2000, 2000, 3), 243, np.uint8)
    rgb[:600, :1000] = (200, 120, 170)
    tifffile.imwrite(tmp_path / "a.tif", rgb, resolution=(40000, 40000), resolutionunit="CENTIMETER")
    assert {(roi.x, roi.y) for roi in extract_rois(tmp_path / "a.tif", tmp_path / "out", 500, 9)} == {(0, 0), (500, 0)}
    assert "2 of 9 fields: the rest is glass" in caplog.text
