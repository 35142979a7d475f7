"""`convert_chkpt_tf2pytorch.py`."""

from __future__ import annotations

import re
import sys

import numpy as np
import torch
from conftest import ROOT
from scipy.io import loadmat
from skimage.data import immunohistochemistry
from stubs import write_rgb

import convert_chkpt_tf2pytorch as script
import run_infer
from metrics.overlap import Overlap
from metrics.stats_utils import panoptic_quality
from misc.sample import as_he
from models.hovernet.checkpoint import load_checkpoint, save_weights
from models.hovernet.net_desc import create_model


def call(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["convert_chkpt_tf2pytorch.py", *map(str, argv)])
    return script.main()


def test_a_checkpoint_is_written_under_our_names(tmp_path, monkeypatch, capsys):
    net = create_model("original", nr_types=3, width=0.125)
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "a.pth")
    assert call(monkeypatch, f"--tf_path={tmp_path / 'a.pth'}", f"--pt_path={tmp_path / 'new' / 'a.tar'}") == 0
    assert "original, 3 types, width 0.125, 798 tensors" in capsys.readouterr().out
    desc = torch.load(tmp_path / "new" / "a.tar", weights_only=True)["desc"]
    assert desc.keys() == net.state_dict().keys()
    assert load_checkpoint(tmp_path / "new" / "a.tar").nr_types == 3


def test_the_mean_of_several_trainings(tmp_path, monkeypatch, capsys):
    nets = [create_model("fast", nr_types=types, width=0.125).state_dict() for types in (3, 3, 3, None)]
    paths = [tmp_path / f"{number}.tar" for number in range(4)]
    for number, (path, net) in enumerate(zip(paths, nets, strict=True)):
        torch.save({"desc": net, "meta": {"mpp": 0.25 + number}}, path)
    target = tmp_path / "mean.tar"
    given = [f"--tf_path={paths[0]}", f"--pt_path={target}"]
    assert call(monkeypatch, *given, f"--average={paths[1]},{paths[2]}") == 0
    mean = load_checkpoint(target)
    assert mean.meta["mpp"] == 0.25
    for name, value in mean.state_dict.items():
        expected = sum(net[name].double() for net in nets[:3]) / 3 if value.is_floating_point() else nets[0][name]
        torch.testing.assert_close(value.double(), expected.double(), atol=1e-6, rtol=1e-6)

    capsys.readouterr()
    assert call(monkeypatch, *given, "--overwrite", f"--average={paths[3]}") == 1
    assert "differ in mode, types or width" in capsys.readouterr().err
    assert load_checkpoint(target).meta["mpp"] == 0.25


def test_nothing_is_overwritten_unasked(tmp_path, monkeypatch, capsys):
    torch.save(create_model("fast", width=0.125).state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.tar").write_text("mine")
    argv = [f"--tf_path={tmp_path / 'a.pth'}", f"--pt_path={tmp_path / 'a.tar'}"]
    assert call(monkeypatch, *argv) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "a.tar").read_text() == "mine"
    assert call(monkeypatch, "--overwrite", *argv) == 0


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, f"--tf_path={tmp_path / 'no.npz'}", f"--pt_path={tmp_path / 'a.tar'}") == 1
    assert "no.npz" in capsys.readouterr().err
    assert not (tmp_path / "a.tar").exists()


def test_half_precision_and_what_the_checkpoint_says(tmp_path, monkeypatch, capsys):
    net = create_model("fast", width=0.125)
    training = {"desc": net.state_dict(), "optimizer": {"x": torch.ones(3)}, "meta": {"mpp": 0.5, "seed": 10}}
    torch.save(training, tmp_path / "a.tar")
    (tmp_path / "meta.json").write_text('{"scores": {"all": {"PQ": 0.5}}, "seed": 11}')
    argv = [f"--tf_path={tmp_path / 'a.tar'}", f"--pt_path={tmp_path / 'b.tar'}", "--half"]
    assert call(monkeypatch, *argv, f"--meta={tmp_path / 'meta.json'}") == 0
    assert (tmp_path / "b.tar").stat().st_size < 0.65 * (tmp_path / "a.tar").stat().st_size
    stored = torch.load(tmp_path / "b.tar", weights_only=True)
    assert stored.keys() == {"desc", "meta"}
    assert stored["desc"]["conv0./.weight"].dtype == torch.float16
    loaded = load_checkpoint(tmp_path / "b.tar")
    assert loaded.meta == {"mpp": 0.5, "seed": 11, "scores": {"all": {"PQ": 0.5}}}
    weight = net.state_dict()["conv0./.weight"]
    assert torch.equal(loaded.state_dict["conv0./.weight"], weight.half().float())
    (tmp_path / "list.json").write_text("[1]")
    assert call(monkeypatch, "--overwrite", *argv, f"--meta={tmp_path / 'list.json'}") == 1
    assert "a JSON object was expected" in capsys.readouterr().err


def test_two_networks_in_one_file_segment_images(tmp_path, monkeypatch, capsys):
    """The weights that ship, in one file, find nearly the nuclei that the fine one finds alone."""
    fine, coarse = (ROOT / f"pretrained/hovernet_he_fast_w025_{name}.tar" for name in ("30x", "20x"))
    target = tmp_path / "two.tar"
    argv = [f"--tf_path={fine}", f"--coarse={coarse}", f"--pt_path={target}", "--half"]
    assert call(monkeypatch, *argv) == 0
    assert "two_scales, 5 types, width 0.25" in capsys.readouterr().out
    two, one = load_checkpoint(target), load_checkpoint(fine)
    assert two.meta["types"] == one.meta["types"]
    assert (two.meta["mpp"], "window" in two.meta) == (one.meta["mpp"], False)
    images = tmp_path / "images"
    write_rgb(images / "a.png", as_he(immunohistochemistry()[:300, :300]))
    found = {}
    for name, path in (("one", fine), ("two", target)):
        given = f"--gpu= --model_path={path} tile --input_dir={images} --output_dir={tmp_path / name}"
        assert run_infer.main(given.split()) == 0
        found[name] = loadmat(tmp_path / name / "mat" / "a.mat")["inst_map"]
    overlap = Overlap.of(found["one"], found["two"])
    assert panoptic_quality(overlap)[0][2] > 0.6
    assert not np.array_equal(found["one"], found["two"])


def test_networks_that_do_not_belong_together_are_refused(tmp_path, monkeypatch, capsys, subtests):
    for name, mode, mpp in (("fine", "fast", 0.5), ("coarse", "fast", 0.25), ("original", "original", 0.75)):
        save_weights(tmp_path / f"{name}.tar", create_model(mode, width=0.125).state_dict(), {"mpp": mpp})
    cases = {
        "coarse": "coarse.tar reads 0.25 um/px, .*fine.tar 0.5: it must be 1.5 times as much",
        "original": "original.tar: --coarse joins two `fast` networks",
    }
    for name, message in cases.items():
        with subtests.test(name):
            argv = [f"--tf_path={tmp_path / 'fine.tar'}", f"--coarse={tmp_path / f'{name}.tar'}"]
            assert call(monkeypatch, *argv, f"--pt_path={tmp_path / 'two.tar'}") == 1
            assert re.search(message, capsys.readouterr().err)
            assert not (tmp_path / "two.tar").exists()
