"""OME-Zarr: a pyramid of a real image, written by ome-zarr, read by region and segmented."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import tifffile
from conftest import ROOT

import run_infer
from misc.slides.folder import find_slides, slide_files
from misc.slides.handler import SlideError, get_file_handler

MPP = 0.25


@pytest.fixture(scope="module")
def rgb(kumar) -> np.ndarray:
    return cv2.imread(str(next((kumar / "Train" / "Images").iterdir())))[:512, :600, ::-1]


def halved(rgb: np.ndarray) -> np.ndarray:
    return cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def write(path, rgb: np.ndarray, version: str, axes: str = "cyx") -> None:
    """Write two levels, 0.25 and 0.5 um/px, the unit of x and y said as micrometer and nanometer."""
    pytest.importorskip("zarr", reason="pip install -r requirements-zarr.txt")
    writer = pytest.importorskip("ome_zarr.writer", reason="pip install ome-zarr")
    formats = pytest.importorskip("ome_zarr.format")
    shape = [{"y": -2, "x": -1, "c": 0}.get(name) for name in axes]
    levels = []
    for level in (rgb, halved(rgb)):
        array = level.transpose(2, 0, 1)
        sizes = [1 if axis is None else array.shape[axis] for axis in shape]
        levels.append(np.ascontiguousarray(array).reshape(sizes))
    unit = {"x": ("micrometer", MPP), "y": ("nanometer", MPP * 1000)}
    kinds = {"t": "time", "c": "channel"}
    said = [
        {"name": name, "type": kinds.get(name, "space"), **({"unit": unit[name][0]} if name in unit else {})}
        for name in axes
    ]
    steps = [
        [{"type": "scale", "scale": [unit[name][1] * factor if name in unit else 1.0 for name in axes]}]
        for factor in (1, 2)
    ]
    chosen = {"0.4": formats.FormatV04, "0.5": formats.FormatV05}[version]()
    writer.write_multiscale(levels, str(path), axes=said, coordinate_transformations=steps, fmt=chosen)


@pytest.mark.parametrize(("version", "axes"), [("0.4", "tczyx"), ("0.5", "cyx")])
def test_regions_of_both_levels(rgb, tmp_path, version, axes):
    write(tmp_path / "a.ome.zarr", rgb, version, axes)
    with get_file_handler(tmp_path / "a.ome.zarr") as slide:
        assert slide.metadata["base_shape"].tolist() == [600, 512]
        np.testing.assert_allclose(slide.metadata["base_mpp"], MPP)
        assert (slide.metadata["base_mag"], slide.metadata["available_mag"]) == (40, [40, 20])
        np.testing.assert_array_equal(slide.read_region((10, 20), (300, 200)), rgb[20:220, 10:310])
        np.testing.assert_array_equal(slide.read_region((591, 505), (9, 7)), rgb[-7:, -9:])
        slide.prepare_reading(read_mpp=0.5)
        np.testing.assert_array_equal(slide.read_region((3, 4), (90, 80)), halved(rgb)[4:84, 3:93])


def test_folders_of_them(rgb, tmp_path, monkeypatch):
    write(tmp_path / "a.ome.zarr", rgb, "0.5")
    write(tmp_path / "series.zarr" / "0", rgb, "0.4")
    (tmp_path / "series.zarr" / ".zattrs").write_text(json.dumps({"bioformats2raw.layout": 3}))
    (tmp_path / "table.zarr").mkdir()
    (tmp_path / "table.zarr" / "zarr.json").write_text(json.dumps({"attributes": {"spatialdata": 1}}))
    write(tmp_path / "five.zarr", np.concatenate([rgb, rgb], axis=2)[..., :5], "0.5")
    slides = ["a.ome.zarr", "five.zarr", "series.zarr"]
    for recursive in (False, True):
        found = find_slides(tmp_path, recursive=recursive)
        assert ([path.name for path in found.slides], found.others, found.unusable) == (slides, [], {})
    assert {path.name for path in slide_files(tmp_path / "a.ome.zarr")} == {"zarr.json"}
    with get_file_handler(tmp_path / "series.zarr") as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), (600, 512)), rgb)
    with pytest.raises(SlideError, match="3 channels c are read"):
        get_file_handler(tmp_path / "five.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(SlideError, match="pip install -r requirements-zarr.txt"):
        get_file_handler(tmp_path / "a.ome.zarr")


def test_its_nuclei_are_those_of_the_same_pixels_in_a_tiff(rgb, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.ome.zarr", rgb, "0.5")
    with tifffile.TiffWriter(tmp_path / "in" / "b.tif") as file:
        for nr, level in enumerate((rgb, halved(rgb))):
            per_cm = 1e4 / MPP / (nr + 1)
            options = {"resolution": (per_cm, per_cm), "resolutionunit": 3, "subfiletype": nr, "metadata": None}
            file.write(level, photometric="rgb", tile=(128, 128), **options)
    model = f"--model_path={ROOT / 'pretrained' / 'hovernet_he_fast_w025_20x.tar'}"
    options = ["--gpu=", "--nr_post_proc_workers=0", "--nr_inference_workers=1", "--no_report", model]
    folders = [f"--input_dir={tmp_path / 'in'}", f"--output_dir={tmp_path}"]
    assert run_infer.main([*options, "wsi", *folders]) == 0
    zarr, tiff = (json.loads((tmp_path / "json" / f"{name}.json").read_text()) for name in "ab")
    assert len(zarr["nuc"]) > 50
    assert zarr["nuc"] == tiff["nuc"]
    assert zarr["slide"]["name"] == "a.ome.zarr"
