"""CZI that OpenSlide refuses: written by pylibCZIrw, read by region."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import openslide
import pytest

from misc.slides.handler import SlideError, get_file_handler


def test_czi_with_a_dimension_that_openslide_does_not_know(shared, tmp_path, monkeypatch):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="pip install -r requirements-czi.txt")
    rgb = cv2.imread(str(next((shared / "data" / "kumar" / "Train" / "Images").iterdir())))[:601, :, ::-1]
    rgb = np.concatenate([rgb, rgb], axis=1)
    height, width = rgb.shape[:2]
    path = tmp_path / "a.czi"
    with czi.create_czi(str(path), compression_options="zstd1:") as file:
        file.write(np.ascontiguousarray(rgb[..., ::-1]), location=(-70, 30), plane={"C": 0})
        file.write_metadata(document_name="a", scale_x=0.25e-6, scale_y=0.25e-6)
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path)
    with get_file_handler(path) as slide:
        assert slide.metadata["base_shape"].tolist() == [width, height]
        np.testing.assert_allclose(slide.metadata["base_mpp"], 0.25)
        np.testing.assert_array_equal(slide.read_region((10, 20), (300, 200)), rgb[20:220, 10:310])
        np.testing.assert_array_equal(slide.read_region((width - 9, height - 7), (9, 7)), rgb[-7:, -9:])
        slide.prepare_reading(read_mpp=0.5)
        half = slide.read_region((0, 0), (width // 2, height // 2))
        wanted = cv2.resize(rgb[:600], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        assert np.abs(half.astype(int) - wanted).mean() < 1
    monkeypatch.setitem(sys.modules, "pylibCZIrw.czi", None)
    with pytest.raises(SlideError, match="pip install -r requirements-czi.txt"):
        get_file_handler(path)
