"""`run_infer.py wsi` as a user calls it."""

from __future__ import annotations

import csv
import json
import re
import subprocess

import cv2
import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT

import run_infer
from infer.options import COMMON_TEXT, WSI_TEXT
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model

FIRST = ("--gpu=", "--nr_post_proc_workers=0", "--nr_inference_workers=1")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """An eighth-width network that says it was trained at 20x."""
    torch.manual_seed(1)  # one that finds nuclei in noise
    path = tmp_path_factory.mktemp("weights") / "net.tar"
    save_weights(path, create_model("fast", width=0.125).state_dict(), {"mpp": 0.5})
    return path


@pytest.fixture
def slides(tmp_path):
    """A folder with one slide at 20x, with a dark square on glass; its name has a dot and a space."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "TCGA-1.2 x.tif")
    return folder


def write_slide(path, mpp=0.5, shape=(250, 400)):
    image = np.full((*shape, 3), 245, np.uint8)
    image[40:210, 60:300] = np.random.default_rng(0).integers(60, 200, (170, 240, 3))
    per_cm = 1e4 / mpp
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 128), resolution=(per_cm, per_cm), resolutionunit=3)


def call(slides, weights, *wsi, first=FIRST, out="out"):
    argv = [*first, f"--model_path={weights}", "wsi", f"--input_dir={slides}"]
    return run_infer.main([*argv, f"--output_dir={slides.parent / out}", *wsi])


def rows(slides, out="out"):
    with open(slides.parent / out / "summary.csv", newline="", encoding="utf-8") as handle:
        return {row["slide"]: row for row in csv.DictReader(handle)}


def test_a_run_writes_what_it_says(slides, weights, capsys):
    assert call(slides, weights, "--save_thumb", "--save_mask", "--save_qupath") == 0
    out, name = slides.parent / "out", "TCGA-1.2 x"
    content = json.loads((out / "json" / f"{name}.json").read_text())
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"{len(content['nuc'])} nuclei")
    assert str(out / "summary.csv") in line
    assert content["mag"] == 20
    assert content["mpp"] == pytest.approx(0.5)
    assert content["slide"]["scale"] == 1
    features = json.loads((out / "qupath" / f"{name}.geojson").read_text())["features"]
    assert len(features) == len(content["nuc"])
    thumb, mask = (cv2.imread(str(out / kind / f"{name}.png")) for kind in ("thumb", "mask"))
    assert thumb.shape == mask.shape
    assert thumb.shape[1] / thumb.shape[0] == pytest.approx(1.6, abs=0.1)
    row = rows(slides)[f"{name}.tif"]
    assert (row["status"], row["nuclei"]) == ("done", str(len(content["nuc"])))
    assert not [path for path in out.rglob("*") if path.name.endswith((".lock", ".npz", ".part"))]


def test_the_original_run_book_parses(slides, tmp_path):
    """Every option of the original, by its name, as its run_wsi.sh writes them."""
    path, masks = tmp_path / "typed.tar", tmp_path / "msk"
    save_weights(path, create_model("fast", nr_types=6, width=0.125).state_dict())
    masks.mkdir()
    cv2.imwrite(str(masks / "TCGA-1.2 x.png"), np.full((20, 32), 255, np.uint8))
    common = ["--gpu=0,1", "--nr_types=6", f"--type_info_path={ROOT / 'type_info.json'}", "--batch_size=64"]
    common += ["--model_mode=fast", "--nr_inference_workers=8", "--nr_post_proc_workers=0"]
    wsi = [f"--cache_path={tmp_path / 'cache'}", f"--input_mask_dir={masks}/", "--proc_mag=20", "--ambiguous_size=128"]
    wsi += ["--chunk_shape=10000", "--tile_shape=2048", "--save_thumb", "--save_mask"]
    assert call(slides, path, *wsi, first=common) == 0
    content = json.loads((tmp_path / "out" / "json" / "TCGA-1.2 x.json").read_text())
    assert content["types"]["1"] == ["neopla", [255, 0, 0]]
    assert not list(tmp_path.glob("cache/*"))


def test_p24_a_20x_slide_at_40x_is_warned_of_with_both_numbers(slides, tmp_path, caplog):
    """A checkpoint that does not say what it was trained at reads at --proc_mag, 40 when left out."""
    save_weights(tmp_path / "silent.tar", create_model("fast", width=0.125).state_dict())
    assert call(slides, tmp_path / "silent.tar") == 0
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("20x" in text and "40x" in text and "--proc_mag=20" in text for text in warned)
    content = json.loads((tmp_path / "out" / "json" / "TCGA-1.2 x.json").read_text())
    assert content["mag"] == 40
    assert content["slide"]["scale"] == 0.5


def test_nuclei_are_outlined_at_the_magnification_asked_for_and_the_network_reads_at_its_own(slides, weights, caplog):
    """Nothing is enlarged for a network that was trained at 20x."""
    assert call(slides, weights, "--proc_mag=40") == 0
    assert not any("enlarged" in record.message for record in caplog.records)
    content = json.loads((slides.parent / "out" / "json" / "TCGA-1.2 x.json").read_text())
    assert content["mag"] == 40
    assert content["slide"]["scale"] == 0.5
    assert content["mpp"] == pytest.approx(0.25)
    boxes = np.array([nucleus["bbox"] for nucleus in content["nuc"].values()])
    assert len(boxes) > 0
    assert boxes.min() >= 0
    assert (boxes.max(axis=(0, 1)) <= (500, 800)).all()
    assert (boxes.max(axis=(0, 1)) > (250, 400)).all()


def test_p26_p29_a_mask_of_another_aspect_names_both_sizes(slides, weights, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "TCGA-1.2 x.png"), np.full((33, 33), 255, np.uint8))
    for option in ("--mask_dir", "--input_mask_dir"):
        assert call(slides, weights, f"{option}={tmp_path / 'masks'}", out=option) == 1
        error = capsys.readouterr().err
        assert "33 x 33" in error
        assert "400 x 250" in error


def test_p25_a_folder_with_side_files_and_bad_slides_does_the_good_ones(slides, weights, capsys, caplog):
    (slides / "notes.txt").write_text("no slide")
    (slides / "Slidedat.ini").write_text("[x]")
    (slides / "dir.mrxs.files").mkdir()
    (slides / "broken.svs").write_bytes(b"nothing of a slide")
    (slides / "empty [1].tif").write_bytes(b"")
    write_slide(slides / "größe 日本.tif")
    caplog.set_level("INFO")
    assert call(slides, weights) == 1
    error = capsys.readouterr().err
    assert re.search(r"failed: broken: .*broken\.svs", error)
    assert re.search(r"failed: empty \[1\]: .*0 bytes", error)
    assert {name: row["status"] for name, row in rows(slides).items()} == {
        "TCGA-1.2 x.tif": "done",
        "broken.svs": "failed",
        "empty [1].tif": "failed",
        "größe 日本.tif": "done",
    }
    listed = [record.message for record in caplog.records if "left out, no slide" in record.message]
    assert len(listed) == 1
    assert listed[0].startswith("2 files")
    assert "notes.txt" in listed[0]
    assert "Slidedat.ini" in listed[0]


def test_the_summary_of_a_second_run_keeps_what_the_first_one_found(slides, weights):
    assert call(slides, weights) == 0
    first = rows(slides)
    write_slide(slides / "later.tif")
    assert call(slides, weights) == 0
    second = rows(slides)
    assert second.keys() == {"TCGA-1.2 x.tif", "later.tif"}
    assert second["TCGA-1.2 x.tif"] == first["TCGA-1.2 x.tif"]


def test_bad_input_is_one_line_and_exit_code_1(slides, weights, capsys):
    for wsi, said in [
        (["--proc_mag=0"], "--proc_mag"),
        (["--proc_mag=big"], "--proc_mag takes a number"),
        (["--tile_shape=0"], "--tile_shape"),
        (["--ambiguous_size=-1"], "--ambiguous_size"),
        (["--chunk_shape=ten"], "--chunk_shape takes a whole number"),
        (["--mask_dir=a", "--input_mask_dir=b"], "--mask_dir"),
        (["--pattern=*.svs"], "no slide matches *.svs"),
        (["--mpp=-1"], "--mpp"),
    ]:
        assert call(slides, weights, *wsi) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("run_infer.py: ")
        assert said in error
        assert not (slides.parent / "out").exists()


def test_the_run_book_names_only_options_that_exist():
    text = (ROOT / "run_wsi.sh").read_text()
    options = re.findall(r"(--[a-z_]+)", text)
    known = COMMON_TEXT + WSI_TEXT
    assert len(options) > 20
    assert not [option for option in options if not re.search(rf"{option}\b", known)]
    assert subprocess.run(["bash", "-n", str(ROOT / "run_wsi.sh")]).returncode == 0
