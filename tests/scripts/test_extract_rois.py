"""The command line of `extract_patches.py rois`: fields of slides, and the table that says where they lie."""

from __future__ import annotations

import csv
import shutil

import cv2
import numpy as np
import pytest
from dicom_series import write_instance, write_series

import extract_patches
from misc.slides.handler import get_file_handler


def test_rois_are_listed_where_they_lie(tmp_path, shared, capsys):
    """A real slide among files that are none, and one that cannot be opened."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("CMU-1-Small-Region.svs", "broken.svs"):
        (slides / name).symlink_to(shared / "data" / "slides" / name)
    (slides / "notes.txt").write_text("side file")
    options = [f"--wsi_dir={slides}/", f"--output_dir={tmp_path / 'rois'}", "--size=300", "--per_slide=3"]
    assert extract_patches.main(["rois", *options]) == 1
    out, err = capsys.readouterr()
    assert "failed: broken.svs: " in err
    assert f"no slide, skipped: {slides / 'notes.txt'}" in err
    assert "3 fields of 300 px from 1 slide, 0 there already, 1 failed, 1 other file skipped" in out
    with open(tmp_path / "rois" / "rois.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["slide", "file", "x_level0_px", "y_level0_px", "size_px", "mpp_um"]
    with get_file_handler(slides / "CMU-1-Small-Region.svs") as slide:
        for row in rows:
            assert (row["slide"], row["size_px"]) == ("CMU-1-Small-Region.svs", "300")
            assert float(row["mpp_um"]) == pytest.approx(0.499, abs=1e-3)
            cropped = cv2.imread(str(tmp_path / "rois" / row["file"]))[..., ::-1]
            corner = (int(float(row["x_level0_px"])), int(float(row["y_level0_px"])))
            assert np.array_equal(cropped, slide.read_region(corner, (300, 300)))
    (slides / "broken.svs").unlink()
    (slides / "b.svs").symlink_to(shared / "data" / "slides" / "CMU-1-Small-Region.svs")
    before = (tmp_path / "rois" / "rois.csv").read_text()
    assert extract_patches.main(["rois", *options]) == 0  # goes on with the slide that is not listed
    assert "3 fields of 300 px from 1 slide, 1 there already, 0 failed" in capsys.readouterr().out
    after = (tmp_path / "rois" / "rois.csv").read_text().splitlines()
    assert len(after) == 7
    assert set(before.splitlines()) < set(after)
    assert extract_patches.main(["rois", *options]) == 1
    assert "rois.csv has all slides; --overwrite" in capsys.readouterr().err


def test_rois_of_dicom_series(tmp_path, shared):
    """Five files are one slide, which is called by its folder or by its first level; so is one without its kind."""
    with get_file_handler(shared / "data" / "slides" / "CMU-1-Small-Region.svs") as slide:
        rgb = slide.read_region((500, 800), (600, 500))
    write_series(tmp_path / "in" / "case.1", rgb)
    write_series(tmp_path / "in", rgb, prefix="b")
    write_instance(tmp_path / "in" / "c.dcm", rgb, "1.2.3", "", 64, 0.5, ImageType=["ORIGINAL", "PRIMARY"])
    argv = ["rois", f"--wsi_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}", "--size=200", "--per_slide=1"]
    assert extract_patches.main(argv) == 0
    assert {path.name.split("_x")[0] for path in (tmp_path / "out").glob("*.png")} == {"b1", "c", "case.1"}


def test_rois_of_a_slide_that_does_not_say_its_own_mpp(tmp_path, shared, capsys):
    (tmp_path / "in" / "case").mkdir(parents=True)
    shutil.copy(shared / "data" / "slides" / "small_dicom.dcm", tmp_path / "in" / "case")
    argv = ["rois", f"--wsi_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}", "--size=100", "--per_slide=1"]
    assert extract_patches.main([*argv, "--recursive", "--mpp=0.5"]) == 1
    assert "--slide_mpp" in capsys.readouterr().err
    assert extract_patches.main([*argv, "--recursive", "--mpp=0.5", "--slide_mpp=0.25"]) == 0
    with open(tmp_path / "out" / "rois.csv", newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert float(row["mpp_um"]) == pytest.approx(0.5, rel=0.01)


def test_rois_without_slides(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("side file")
    assert extract_patches.main(["rois", f"--wsi_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}"]) == 1
    assert "no slide among the 1 file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
