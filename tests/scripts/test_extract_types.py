"""Types of one data set as the ids of another: matched by name when patches are extracted."""

from __future__ import annotations

import json

import numpy as np
import pytest

import extract_patches
from dataset import get_dataset
from misc.type_info import UNKNOWN_TYPE

TYPES = {"0": ["none", [0, 0, 0]], "1": ["Epithelial", [1, 1, 1]], "2": ["immune", [2, 2, 2]]}


@pytest.fixture
def folder(tmp_path, shared):
    """One image of CoNSeP, and the types of a network that has two."""
    for kind, ending in (("Images", "png"), ("Labels", "mat")):
        (tmp_path / kind).mkdir()
        name = f"train_1.{ending}"
        (tmp_path / kind / name).symlink_to(shared / "data" / "consep" / "Train" / kind / name)
    (tmp_path / "types.json").write_text(json.dumps(TYPES))
    return tmp_path


def run(folder, *options: str) -> int:
    places = [f"--img_dir={folder / 'Images'}", f"--ann_dir={folder / 'Labels'}", f"--save_root={folder / 'out'}"]
    return extract_patches.main([*places, "--extract_type=whole", *options])


def test_types_get_the_ids_of_their_names(folder, capsys):
    options = (f"--type_info={folder / 'types.json'}", "--rename_types=inflammatory:immune")
    assert run(folder, "--dataset=consep", "--type", *options) == 0
    header = capsys.readouterr().out.splitlines()[0].split("  ")
    assert [name for name in header if name][-3:] == ["1 Epithelial", "2 immune", "255 unknown"]
    patch = np.load(folder / "out" / "consep" / "train" / "whole" / "train_1_000.npy")
    label = get_dataset("consep").load_ann(folder / "Labels" / "train_1.mat", True)
    for old, new in {0: 0, 1: UNKNOWN_TYPE, 2: 2, 3: 1, 4: UNKNOWN_TYPE}.items():
        wanted = (label[..., 1] == old) & (label[..., 0] > 0) if old else label[..., 0] == 0
        assert np.unique(patch[..., 4][wanted]).tolist() == [new] * bool(wanted.any())
    assert extract_patches.main([f"--check={folder / 'out' / 'consep' / 'train' / 'whole'}", "--nr_types=3"]) == 0
    assert any(line.startswith("unknown ") for line in capsys.readouterr().out.splitlines())


def test_options_that_do_not_fit_are_named(folder, capsys):
    info = f"--type_info={folder / 'types.json'}"
    for options, message in (
        (("--dataset=consep", "--rename_types=a:b"), "--rename_types goes with --type_info"),
        (("--dataset=mat", "--type", info), "`mat` has none in dataset.py, or none are extracted"),
        (("--dataset=consep", "--no_type", info), "`consep` has none in dataset.py, or none are extracted"),
        (("--dataset=consep", "--type", info, "--rename_types=a"), "--rename_types is theirs:ours"),
        (("--dataset=consep", "--type", info, "--rename_types=a:immune"), "no type `a` to rename"),
    ):
        assert run(folder, *options) == 1
        assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_folder_without_types_says_so(folder, capsys):
    assert run(folder, "--dataset=consep", "--no_type") == 0
    assert extract_patches.main([f"--check={folder / 'out' / 'consep' / 'train' / 'whole'}"]) == 0
    assert "treats the types of these nuclei as unknown" in capsys.readouterr().out
