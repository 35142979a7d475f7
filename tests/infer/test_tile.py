"""Runs over images: every nucleus of every image, whatever the memory, the workers, the window or the faults."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import cv2
import image_runs
import numpy as np
import pytest
import scipy.io
import torch
from conftest import ROOT
from image_runs import paint, read_nuclei, run
from PIL import Image
from stubs import StubNet, disc_labels, painted_image, write_rgb

from infer.options import TileOptions
from infer.tile import InferManager
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model

loaded, manager, weights = image_runs.loaded, image_runs.manager, image_runs.weights  # fixtures

SIZES = [1, 2, 12, 163, 164, 165, 328, 329]


def test_cut_and_paste_is_the_identity(manager, tmp_path):
    """What the network says of a pixel arrives at that pixel, on sizes around every boundary."""
    images = {}
    for height, width in zip(SIZES, reversed(SIZES), strict=True):
        images[f"{height}"] = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
        write_rgb(tmp_path / "in" / f"{height}.png", images[f"{height}"])
    for window in (None, 320):
        run(manager, tmp_path, save_raw_map=True, overwrite=True, patch_input_shape=window)
        for name, image in images.items():
            raw = scipy.io.loadmat(tmp_path / "out" / "mat" / f"{name}.mat")["raw"]
            assert raw.shape == image.shape
            np.testing.assert_allclose(raw[..., 1:], (image[..., 1:].astype(np.float32) - 128) / 120, atol=1e-6)
            assert np.array_equal(raw[..., 0] > 0.5, image[..., 0] < 128)


@pytest.mark.parametrize("window", [None, 320])
def test_p07_every_nucleus_is_found_where_it_is(manager, tmp_path, window):
    labels = paint(tmp_path, "a.png", (411, 345))
    report = run(manager, tmp_path, patch_input_shape=window)
    found = scipy.io.loadmat(tmp_path / "out" / "mat" / "a.mat")["inst_map"]
    assert report.done == ["a"]
    assert np.array_equal(found > 0, labels > 0)
    assert len(read_nuclei(tmp_path, "a")) == report.found.total() == len(np.unique(labels)) - 1
    for nucleus in read_nuclei(tmp_path, "a").values():
        (rmin, cmin), (rmax, cmax) = nucleus["bbox"]
        xs, ys = np.array(nucleus["contour"]).T
        assert (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) == (rmin, rmax, cmin, cmax)  # P07: box = contour
        x, y = nucleus["centroid"]
        assert found[round(y), round(x)] > 0


def test_types_names_and_files(tmp_path):
    path = tmp_path / "typed.tar"
    save_weights(path, create_model("fast", nr_types=4, width=0.125).state_dict())
    manager = InferManager({"model_path": path, "model_args": {"nr_types": 4, "mode": "fast"}}, gpu="")
    manager.net = StubNet(nr_types=4)
    labels = disc_labels((120, 120))
    types = 1 + np.arange(labels.max() + 1) % 3
    write_rgb(tmp_path / "in" / "a.b.png", painted_image(labels, types))
    report = run(manager, tmp_path, save_qupath=True, save_type_probs=True)
    nuclei = read_nuclei(tmp_path, "a.b")
    for nucleus in nuclei.values():
        x, y = (round(v) for v in nucleus["centroid"])
        assert nucleus["type"] == types[labels[y, x]]
        assert len(nucleus["type_probs"]) == 4
        assert np.argmax(nucleus["type_probs"]) == nucleus["type"]
    mat = scipy.io.loadmat(tmp_path / "out" / "mat" / "a.b.mat")
    assert mat["inst_type"].shape == mat["inst_uid"].shape == (len(nuclei), 1)
    assert mat["inst_centroid"].shape == (len(nuclei), 2)
    assert "raw" not in mat
    assert report.found == {t: list(n["type"] for n in nuclei.values()).count(t) for t in (1, 2, 3)}
    tsv = (tmp_path / "out" / "qupath" / "a.b.tsv").read_text().splitlines()
    assert len(tsv) == len(nuclei) + 1
    features = json.loads((tmp_path / "out" / "qupath" / "a.b.geojson").read_text())["features"]
    assert len(features) == len(nuclei)


def test_overlay_is_the_image_with_outlines(manager, tmp_path):
    labels = disc_labels((150, 150))
    image = painted_image(labels)
    image[:20, :20] = (255, 10, 200)  # a corner that tells mirrored and swapped pictures apart
    write_rgb(tmp_path / "in" / "a.png", image)
    run(manager, tmp_path, line_thickness=1)
    overlay = cv2.imread(str(tmp_path / "out" / "overlay" / "a.png"))[..., ::-1]
    outline = (overlay == (0, 230, 0)).all(-1)
    assert outline.sum() > 500
    assert (labels[outline] > 0).all()
    assert np.array_equal(overlay[~outline], image[~outline])


@pytest.mark.parametrize(("mem_usage", "readers", "workers"), [(1e-6, 0, 0), (1e-6, 2, 1), (0.2, 8, 2), (1e-6, 1, 3)])
def test_p01_inputs_are_outputs_and_reported_failures(manager, tmp_path, mem_usage, readers, workers):
    for number in range(9):
        paint(tmp_path, f"image {number}.png", (90 + 40 * number, 130))
    (tmp_path / "in" / "text.png").write_text("no image")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    report = run(manager, tmp_path, mem_usage=mem_usage, nr_inference_workers=readers, nr_post_proc_workers=workers)
    assert sorted(report.done) == [f"image {n}" for n in range(9)]
    assert set(report.failed) == {"text.png", "empty.png"}
    assert "not an image" in report.failed["text.png"]
    assert report.exit_code == 1
    assert {p.stem for p in (tmp_path / "out" / "json").iterdir()} == set(report.done)
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_p03_a_failed_write_is_reported(manager, tmp_path):
    for name in ("a", "b", "c"):
        paint(tmp_path, f"{name}.png")
    (tmp_path / "out" / "json" / "b.json").mkdir(parents=True)  # nothing can be renamed onto a folder
    (tmp_path / "out" / "json" / "b.json" / "x").write_text("")
    report = run(manager, tmp_path, nr_post_proc_workers=1)
    assert sorted(report.done) == ["a", "c"]
    assert "b.json" in report.failed["b"]
    assert report.exit_code == 1


def test_p05_p04_a_rerun_skips_what_is_whole_and_deletes_nothing(manager, tmp_path):
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png")
    (tmp_path / "out" / "json").mkdir(parents=True)
    (tmp_path / "out" / "json" / "mine.json").write_text("keep")
    run(manager, tmp_path)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.*")}
    (tmp_path / "out" / "json" / "b.json").unlink()  # as a killed run leaves it: the JSON file is the last one
    again = run(manager, tmp_path)
    assert (again.done, again.skipped) == (["b"], ["a"])
    assert (tmp_path / "out" / "json" / "a.json").stat().st_mtime_ns == times[tmp_path / "out" / "json" / "a.json"]
    assert (tmp_path / "out" / "json" / "mine.json").read_text() == "keep"
    assert sorted(run(manager, tmp_path, overwrite=True).done) == ["a", "b"]


def test_p06_two_inputs_with_one_name_are_refused_before_any_work(manager, tmp_path):
    paint(tmp_path, "a.png")
    paint(tmp_path, "a.tif")
    with pytest.raises(ValueError, match=r"a\.png.*a\.tif"):
        run(manager, tmp_path)
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "a.tif").unlink()
    paint(tmp_path, "x/a.png")
    assert run(manager, tmp_path).done == ["a"]  # the sub-folder is not looked into
    with pytest.raises(ValueError, match="same results"):
        run(manager, tmp_path, recursive=True)


def test_p06_side_files_of_an_image_stop_nothing_and_are_listed(manager, tmp_path, caplog):
    paint(tmp_path, "a.png")
    for name in ("rois.csv", "README.txt", "a.XML", "a.geojson"):
        (tmp_path / "in" / name).write_text("{}")
    scipy.io.savemat(tmp_path / "in" / "a.mat", {"inst_map": np.ones((3, 3))})
    (tmp_path / "in" / "a.docx").write_text("{}")
    with caplog.at_level("INFO"):
        report = run(manager, tmp_path)
    assert (report.done, set(report.failed)) == (["a"], {"a.docx"})
    assert "5 files left out, no images: README.txt, a.XML, a.geojson, ..." in caplog.text
    again = run(manager, tmp_path)
    assert (again.skipped, set(again.failed)) == (["a"], {"a.docx"})
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="no image matches"):
        run(manager, tmp_path, pattern="*.csv")


def test_a_name_that_is_no_utf8_fails_alone(manager, tmp_path):
    """OpenCV ended the run with a segmentation fault."""
    paint(tmp_path, "a.png")
    try:
        os.symlink(tmp_path / "in" / "a.png", os.fsencode(tmp_path / "in") + b"/Pr\xe4p.png")
    except OSError:
        pytest.skip("this file system has no such names")
    report = run(manager, tmp_path)
    assert (report.done, report.exit_code) == (["a"], 1)
    assert list(report.failed) == ["'Pr\\udce4p.png'"]
    assert report.failed["'Pr\\udce4p.png'"].endswith("/in/Pr\\udce4p.png': its name is not valid UTF-8; rename it")
    with pytest.raises(ValueError, match=r"--input_dir='.*Pr\\udce4p': its name is not valid UTF-8"):
        run(manager, tmp_path, input_dir=Path(os.fsdecode(os.fsencode(tmp_path) + b"/Pr\xe4p")))


@pytest.mark.parametrize("out", [".", "results", "../out"])
def test_results_that_lie_in_the_input_folder_are_no_input(manager, tmp_path, out):
    paint(tmp_path, "x/a.png")
    places = {"output_dir": tmp_path / "in" / out, "recursive": True, "save_qupath": True}
    assert run(manager, tmp_path, **places).done == ["a"]
    again = run(manager, tmp_path, **places)
    assert (again.skipped, again.done, again.failed) == (["a"], [], {})


def test_an_image_far_too_large_for_the_network_is_one_line(manager, tmp_path):
    paint(tmp_path, "a.png")
    report = run(manager, tmp_path, mpp=250.0)  # nanometres
    assert report.done == []
    assert "300 x 200 px" in report.failed["a"]
    assert "use `wsi`" in report.failed["a"]
    assert "\n" not in report.failed["a"]


def test_p12_an_image_without_nuclei_has_empty_results(manager, tmp_path):
    write_rgb(tmp_path / "in" / "blank.png", np.full((100, 100, 3), 255, np.uint8))
    report = run(manager, tmp_path, save_qupath=True)
    assert report.done == ["blank"]
    assert read_nuclei(tmp_path, "blank") == {}
    mat = scipy.io.loadmat(tmp_path / "out" / "mat" / "blank.mat")
    assert not mat["inst_map"].any()
    assert mat["inst_centroid"].shape == (0, 2)


def test_finer_images_are_read_coarser_and_their_nuclei_mapped_back(weights, tmp_path):
    """A network at 0.5 um/px and an image at 0.25: results are on the image's grid, all nuclei in their places."""
    manager = InferManager({"model_path": weights}, gpu="")
    manager.checkpoint.meta["mpp"] = 0.5
    manager.net = StubNet()
    labels = paint(tmp_path, "a.png", (400, 500), spacing=60, radius=20)
    run(manager, tmp_path, mpp=0.25)
    found = scipy.io.loadmat(tmp_path / "out" / "mat" / "a.mat")["inst_map"]
    assert found.shape == labels.shape
    inter, union = ((found > 0) & (labels > 0)).sum(), ((found > 0) | (labels > 0)).sum()
    assert inter / union > 0.93
    # corner and border discs are cut to slivers at half the size; whole ones are all there
    assert len(read_nuclei(tmp_path, "a")) == len(np.unique(labels)) - 1
    assert json.loads((tmp_path / "out" / "json" / "a.json").read_text())["mpp"] == 0.25


def test_each_image_says_its_own_pixel_size(weights, tmp_path, caplog):
    """Fields of slides of several resolutions in one folder, and one that says nothing; without --mpp."""
    manager = InferManager({"model_path": weights}, gpu="")
    manager.checkpoint.meta["mpp"] = 0.5
    manager.net = StubNet()
    for name, mpp in (("fine", 0.25), ("same", 0.499), ("silent", None)):
        labels = paint(tmp_path, f"{name}.png", (400, 500), spacing=60, radius=20)
        if mpp:
            path = tmp_path / "in" / f"{name}.png"
            Image.open(path).save(path, dpi=(25400 / mpp,) * 2)
    report = run(manager, tmp_path)
    assert report.failed == {}
    said = {name: json.loads((tmp_path / "out" / "json" / f"{name}.json").read_text()) for name in report.done}
    assert {name: content["mpp"] for name, content in said.items()} == {
        "fine": pytest.approx(0.25),
        "same": pytest.approx(0.499),
        "silent": None,
    }
    assert said["fine"]["mpp_from"] == "the PNG's pHYs"
    assert said["silent"]["mpp_from"] == "nothing; assumed 0.5"
    found = scipy.io.loadmat(tmp_path / "out" / "mat" / "fine.mat")["inst_map"]
    assert ((found > 0) & (labels > 0)).sum() > 0.93 * ((found > 0) | (labels > 0)).sum()
    assert report.warning.startswith("1 of 3 images do not say their pixel size (silent.png): assumed to be 0.5 um/px")
    assert caplog.messages.count(report.warning) == 1  # the other time is when the run ends
    # as it was read before, it cannot stay where an option says otherwise
    again = run(manager, tmp_path, mpp=0.499)
    assert (again.skipped, sorted(again.failed)) == ([], ["fine", "same", "silent"])


def test_checkpoints_that_do_not_say_what_they_were_trained_at_read_images_as_they_are(manager, tmp_path):
    """The original's, whatever the file says; and no warning."""
    paint(tmp_path, "a.png", (120, 300), spacing=40, radius=12)
    run(manager, tmp_path)
    before = read_nuclei(tmp_path, "a")
    path = tmp_path / "in" / "a.png"
    Image.open(path).save(path, dpi=(25400 / 0.5,) * 2)
    report = run(manager, tmp_path, overwrite=True)
    assert read_nuclei(tmp_path, "a") == before
    assert report.warning == ""
    assert run(manager, tmp_path).skipped == ["a"]


def test_coarser_images_are_read_finer_and_their_nuclei_mapped_back(manager, tmp_path):
    """A network at 0.25 um/px and an image at 0.5, or at a pixel size that differs by little."""
    for mpp in (0.5, 0.2503, 0.2497):
        labels = paint(tmp_path, "a.png", (120, 1000), spacing=40, radius=12)
        run(manager, tmp_path, mpp=mpp, overwrite=True)
        found = scipy.io.loadmat(tmp_path / "out" / "mat" / "a.mat")["inst_map"]
        assert found.shape == labels.shape
        inter, union = ((found > 0) & (labels > 0)).sum(), ((found > 0) | (labels > 0)).sum()
        assert inter / union > 0.85
        nuclei = read_nuclei(tmp_path, "a")
        assert len(nuclei) == len(np.unique(labels)) - 1
        for number, nucleus in nuclei.items():
            ys, xs = np.nonzero(found == int(number))
            extent = [[ys.min(), xs.min()], [ys.max() + 1, xs.max() + 1]]
            assert np.abs(np.array(nucleus["bbox"]) - extent).max() <= 1


def test_the_window_that_the_checkpoint_recommends_is_cut_to_what_an_image_needs(manager, tmp_path, monkeypatch):
    manager.checkpoint.meta["window"] = 600
    sides, forward = set(), manager.net.forward
    monkeypatch.setattr(manager.net, "forward", lambda imgs: sides.add(imgs.shape[-1]) or forward(imgs))
    paint(tmp_path, "a.png", (532, 532))
    paint(tmp_path, "b.png", (300, 120))
    assert sorted(run(manager, tmp_path).done) == ["a", "b"]
    assert sides == {360, 392}  # two patches a side, and one
    assert len(read_nuclei(tmp_path, "a")) == len(np.unique(disc_labels((532, 532)))) - 1
    header = json.loads((tmp_path / "out" / "json" / "a.json").read_text())
    assert header["run"]["window"] == 600
    sides.clear()
    assert run(manager, tmp_path, patch_input_shape=256, overwrite=True).exit_code == 0
    assert sides == {256}


def test_senseless_options_are_one_line(manager, tmp_path):
    paint(tmp_path, "a.png")
    for options, said in [
        ({"mem_usage": 0}, "--mem_usage"),
        ({"batch_size": 0}, "--batch_size"),
        ({"nr_post_proc_workers": -1}, "--nr_post_proc_workers"),
        ({"mpp": -1.0}, "--mpp"),
        ({"mpp": math.nan}, "--mpp"),
        ({"mpp": math.inf}, "--mpp"),
        ({"patch_input_shape": 257}, "window"),
        ({"patch_output_shape": 80}, "164"),
        ({"save_type_probs": True}, "no types|has none"),
        ({"colour": 1}, "unknown run options"),
        ({"pattern": "*.czi"}, "no image matches"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
            run(manager, tmp_path, **options)
        assert "\n" not in str(error.value)


def test_missing_folder_is_named(manager, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(manager, tmp_path, input_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="input_dir"):
        TileOptions.from_dict({"output_dir": tmp_path})


def test_real_image_with_the_shipped_network(shared, tmp_path):
    """On real H&E tissue, nuclei are where the pathologists drew them (not a score: these were training images)."""
    source = sorted((shared / "data" / "kumar" / "Train" / "Images").glob("*.png"))[0]
    image = cv2.imread(str(source))[:512, :512]
    label = scipy.io.loadmat(source.parents[1] / "Labels" / f"{source.stem}.mat")["inst_map"][:512, :512]
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "he.png"), image)
    model = sorted((ROOT / "pretrained").glob("*.tar"))[0]
    torch.manual_seed(0)
    report = run(InferManager({"model_path": model}, gpu=""), tmp_path, mpp=0.25)
    found = scipy.io.loadmat(tmp_path / "out" / "mat" / "he.mat")["inst_map"]
    assert report.done == ["he"]
    dice = 2 * ((found > 0) & (label > 0)).sum() / ((found > 0).sum() + (label > 0).sum())
    assert dice > 0.7
    assert 0.6 < len(np.unique(found)) / len(np.unique(label)) < 1.6
