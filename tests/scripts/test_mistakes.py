"""The likeliest mistakes, as whole command lines: one line each, which says what to do."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.io import savemat

import compute_stats
import extract_patches
import run_infer
from misc.files import MAX_NAME_BYTES
from models.hovernet.net_desc import create_model

SHIPPED = sorted((ROOT / "pretrained").glob("*.tar"))[0]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A typed 40x network, as the original's are, one image, and its label."""
    root = tmp_path_factory.mktemp("mistakes")
    torch.save({"desc": create_model("fast", nr_types=3, width=0.125).state_dict()}, root / "typed.tar")
    for folder in ("images", "labels", "predictions"):
        (root / folder).mkdir()
    cv2.imwrite(str(root / "images" / "a.png"), np.full((300, 300, 3), 230, np.uint8))
    label = {"inst_map": np.eye(300, dtype=np.int32), "inst_type": np.ones((1, 1)), "inst_centroid": np.ones((1, 2))}
    savemat(root / "labels" / "a.mat", label)
    with tarfile.open(root / "archive.tar", "w") as archive:
        archive.add(root / "typed.tar", "typed.tar")
    with zipfile.ZipFile(root / "typed.tar") as unpacked:
        unpacked.extractall(root)
    (root / "two.json").write_text(json.dumps({"1": ["Positive", [255, 0, 0]]}))
    return root


def infer(root, *common, tile=(), model="typed.tar"):
    """Run on the images, on the CPU."""
    options = [f"--model_path={root / model}", "--gpu=", "--nr_post_proc_workers=0", "--nr_inference_workers=0"]
    common = [option for option in options if option.split("=")[0] not in {o.split("=")[0] for o in common}] + [*common]
    folders = [f"--input_dir={root / 'images'}", f"--output_dir={root / 'out'}"]
    own = [option for option in folders if option.split("=")[0] not in {o.split("=")[0] for o in tile}]
    return run_infer.main([*common, "tile", *own, *tile])


def test_a_wrong_checkpoint_or_option_is_one_line(places, capsys, subtests):
    for common, tile, said in (
        (["--model_path=nowhere.tar"], [], "no such checkpoint: nowhere.tar"),
        ([], ["--input_dir=nowhere"], "no such folder: nowhere"),
        (
            [],
            [f"--input_dir={places / 'archive.tar'}"],
            "archive.tar is a file: give its folder and, for it alone, --pat",
        ),
        (["--nr_types=5"], [], "predicts 3 types (background included), --nr_types=5 was asked for; leave"),
        (["--model_mode=original"], [], "is a `fast` network, --model_mode=original was asked for; leave the option"),
        ([f"--model_path={places / 'typed'}"], [], "is a folder: a checkpoint named .tar is one file"),
        ([f"--model_path={places / 'typed' / 'data.pkl'}"], [], "is one file of an unpacked checkpoint"),
        ([f"--model_path={places / 'archive.tar'}"], [], "is a tar archive; a HoVer-Net checkpoint is a file of torch"),
        ([f"--type_info_path={places / 'two.json'}"], [], "the network has 3 types (0 included), the file lacks"),
        (["--gpu=first"], [], "--gpu takes comma-separated ids such as 0,1, or mps; got `first`"),
    ):
        with subtests.test(common=common, tile=tile):
            assert infer(places, *common, tile=tile) == 1
            error = capsys.readouterr().err
            assert error.startswith("run_infer.py: ")
            assert said in error
            assert error.count("\n") == 1
            assert not (places / "out").exists()


def test_a_gpu_that_is_not_there(places, capsys, caplog, monkeypatch):
    """Where there is none at all, as on a laptop, the run goes on and its first line says so."""
    caplog.set_level("INFO")
    assert infer(places, "--gpu=7", tile=["--pattern=none"]) == 1
    if not torch.cuda.is_available():
        said = "(`fast`, 3 types, width 0.125) on cpu (no CUDA device here, --gpu=7 has no effect) in fp32"
        assert caplog.messages[0] == f"HoVer-Net toolkit 1.0.0: typed.tar {said}"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    capsys.readouterr()
    assert infer(places, "--gpu=7") == 1
    assert capsys.readouterr().err == "run_infer.py: --gpu=7: no GPU [7]; this machine has 1 (0 to 0)\n"


def test_swapped_folders(places, capsys):
    folders = [f"--img_dir={places / 'labels'}", f"--ann_dir={places / 'images'}", f"--save_root={places / 'out'}"]
    assert extract_patches.main(["--dataset=mat", "--no_type", *folders]) == 1
    assert capsys.readouterr().err.endswith("labels none (0); are the two folders swapped?\n")
    assert compute_stats.main([f"--pred_dir={places / 'labels'}", f"--true_dir={places / 'images'}"]) == 1
    assert capsys.readouterr().err.endswith(
        "no *.mat in " + f"{places / 'images'}; --ext says how labels and predictions end\n"
    )
    assert infer(places, tile=["--pattern=*.png"], model=SHIPPED) == 0
    shutil.move(places / "out", places / "found")
    capsys.readouterr()
    assert compute_stats.main([f"--pred_dir={places / 'labels'}", f"--true_dir={places / 'found' / 'mat'}"]) == 1
    error = capsys.readouterr().err
    assert "prediction" in error
    assert error.count("\n") == 1


def test_a_name_too_long_for_its_results_is_refused_before_the_network_runs(places, capsys, monkeypatch):
    """A name may have 255 bytes: the image's has, and that of its JSON or GeoJSON file would have more."""
    (places / "long").mkdir()
    shutil.copy(places / "images" / "a.png", places / "long" / f"{'x' * (MAX_NAME_BYTES - 4)}.png")
    monkeypatch.setattr("infer.predictor.Predictor.forward", lambda *_: pytest.fail("the network ran"))
    folders = [f"--input_dir={places / 'long'}", f"--output_dir={places / 'out_long'}"]
    for options, own, suffix, length in (([], [], "json", 256), (["--overwrite"], ["--save_qupath"], "geojson", 259)):
        assert infer(places, *options, tile=[*folders, *own]) == 1
        assert f"its .{suffix} file would have a name of {length} bytes, not 255; rename it" in capsys.readouterr().err
