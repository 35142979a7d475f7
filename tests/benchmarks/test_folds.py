"""Folds share out the images, and a training gets no patch of the images that it is scored on."""

from __future__ import annotations

import pytest
import torch

from benchmarks import folds
from models.hovernet.checkpoint import load_checkpoint, parts_of, save_weights
from models.hovernet.net_desc import create_model


def test_folds_are_runs_of_numbers_and_hold_every_image_once():
    names = [f"train_{number}" for number in range(1, 28)]
    parts = folds.split(sorted(names), 4)
    assert [len(part) for part in parts] == [7, 7, 7, 6]
    assert [name for part in parts for name in part] == names
    with pytest.raises(ValueError, match="--folds must be from 2 to the number of images, 27"):
        folds.split(names, 28)


def test_patches_of_held_images_are_left_out_and_their_images_found(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("train_1_000", "train_1_001", "train_11_000"):
        (source / f"{name}.npy").touch()
    for part in ("Images", "Labels"):
        (tmp_path / part).mkdir()
        for name in ("train_1", "train_11"):
            (tmp_path / part / f"{name}.x").touch()
    for _ in range(2):  # a second run finds its links and keeps them
        linked = folds.patches_without(source, {"train_1"}, tmp_path / "linked")
        held = folds.images_of(tmp_path, ["train_1"], tmp_path / "held")
    assert [path.name for path in linked.iterdir()] == ["train_11_000.npy"]
    assert sorted(path.relative_to(held).as_posix() for path in held.glob("*/*")) == [
        "Images/train_1.x",
        "Labels/train_1.x",
    ]


def test_the_mean_of_a_folds_phases_is_scored(tmp_path):
    nets = [create_model("fast", nr_types=3, width=0.125).state_dict() for _ in range(2)]
    paths = [tmp_path / f"{number}.tar" for number in range(2)]
    for path, weights in zip(paths, nets, strict=True):
        save_weights(path, weights, {"mpp": 0.4})
    assert folds.mean_of(paths[1:], tmp_path / "mean.tar") == paths[1]
    mean = load_checkpoint(folds.mean_of(paths, tmp_path / "mean.tar"))
    assert mean.meta["mpp"] == 0.4
    name = "decoder.np.u0.conv.weight"
    assert torch.allclose(mean.state_dict[name], (nets[0][name] + nets[1][name]) / 2)


def test_two_networks_of_a_fold_are_scored_as_one(tmp_path):
    for name, types, mpp in (("fine", 3, 0.4), ("coarse", 5, 0.6)):
        net = create_model("fast", nr_types=types, width=0.125)
        save_weights(tmp_path / f"{name}.tar", net.state_dict(), {"mpp": mpp})
    path = folds.join(tmp_path / "fine.tar", tmp_path / "coarse.tar", tmp_path / "both.tar")
    both = load_checkpoint(path)
    assert (both.mode, both.nr_types, both.meta["mpp"]) == ("two_scales", 5, 0.4)
    parts = [load_checkpoint(tmp_path / f"{name}.tar").state_dict for name in ("fine", "coarse")]
    for found, given in zip(parts_of(both.state_dict), parts, strict=True):
        assert found
        assert all(torch.equal(value, given[name]) for name, value in found.items())


def test_a_mean_of_no_phase_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "Images").mkdir()
    for number in range(4):
        (tmp_path / "Images" / f"{number}.png").touch()
    monkeypatch.setattr("sys.argv", ["folds.py", "--average=0", str(tmp_path)])
    assert folds.main() == 1
    assert "--average must be 1 or more, got 0" in capsys.readouterr().err
