"""What a px of an image measures, and who says it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from misc.slides.images import probe_mpp
from misc.slides.resolution import say_guessed, say_overruled

RGB = np.full((20, 30, 3), 128, np.uint8)


def test_who_says_the_pixel_size_of_an_image(tmp_path, subtests):
    image = Image.fromarray(RGB)
    image.save(tmp_path / "phys.png", dpi=(25400 / 0.25,) * 2)
    image.save(tmp_path / "inch.jpg", dpi=(50800, 50800))  # 0.5 um
    tifffile.imwrite(tmp_path / "tag.tif", RGB, resolution=(40000, 40000), resolutionunit="CENTIMETER")
    ome = {
        "axes": "YXS",
        "PhysicalSizeX": 325,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 325,
        "PhysicalSizeYUnit": "nm",
    }
    tifffile.imwrite(tmp_path / "ome.ome.tif", RGB, photometric="rgb", metadata=ome)
    right = {
        "phys.png": (0.25, "the PNG's pHYs"),
        "inch.jpg": (0.5, "the JPEG density"),
        "tag.tif": (0.25, "the TIFF resolution"),
        "ome.ome.tif": (0.325, "the OME metadata"),
    }
    for name, (mpp, said_by) in right.items():
        with subtests.test(name):
            assert probe_mpp(tmp_path / name) == (pytest.approx(mpp, rel=1e-4), said_by)


def test_what_no_microscope_has_is_not_believed_and_said(tmp_path, subtests):
    image = Image.fromarray(RGB)
    for dpi in (72, 96, 300):
        image.save(tmp_path / f"{dpi}.jpg", dpi=(dpi, dpi))
        image.save(tmp_path / f"{dpi}.png", dpi=(dpi, dpi))
    image.save(tmp_path / "zero.png", dpi=(0, 0))
    tifffile.imwrite(tmp_path / "zero.tif", RGB, resolution=((0, 1), (0, 1)), resolutionunit="INCH")
    ome = {"axes": "YXS", "PhysicalSizeX": float("nan"), "PhysicalSizeY": float("inf")}
    tifffile.imwrite(tmp_path / "nan.ome.tif", RGB, photometric="rgb", metadata=ome)
    for path in sorted(tmp_path.iterdir()):
        with subtests.test(path.name):
            mpp, reason = probe_mpp(path)
            assert mpp is None
            assert "um/px is not plausible for a slide and is ignored" in reason
    image.save(tmp_path / "silent.png")
    tifffile.imwrite(tmp_path / "unitless.tif", RGB, resolution=(1, 1), resolutionunit="NONE")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("silent.png", "unitless.tif", "broken.png"):
        assert probe_mpp(tmp_path / name) == (None, ""), name


def test_an_option_that_contradicts_a_file_is_said():
    said = {"a.png": None, "b.tif": 0.2527, "c.tif": 0.499}
    assert say_overruled(said, 0.25) == "--mpp=0.25 overrules 1 of 3 images that say otherwise (c.tif: 0.499 um/px)"
    assert say_overruled({"b.tif": 0.2527}, 0.25) == ""


def test_a_guess_is_said_with_the_way_out():
    text = say_guessed({"a.png": "", "b.jpg": "the JPEG density of 352.8 um/px"}, 3, 0.5)
    assert "2 of 3 images" in text
    assert "(b.jpg: the JPEG density of 352.8 um/px): assumed to be 0.5 um/px" in text
    assert "--mpp=<um per px>" in text
