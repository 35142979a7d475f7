"""The folder that is carried to a GPU gives the patches that the recipe's own commands give."""

from __future__ import annotations

import numpy as np
import torch

import extract_patches
from benchmarks import gpu_train
from models.hovernet.checkpoint import load_checkpoint, save_weights
from models.hovernet.net_desc import create_model


def test_carried_images_give_the_patches_of_the_recipe(tmp_path, shared):
    sources = {"kumar": "kumar/Train", "consep": "consep/Train", "others": "pannuke_breast"}
    firsts = {
        name: gpu_train.first_images(shared / "data" / folder, tmp_path / name) for name, folder in sources.items()
    }
    gpu_train.prepare({**{f"--{name}": str(path) for name, path in firsts.items()}, "--out": str(tmp_path / "carried")})

    cut = gpu_train.cut_patches(tmp_path / "carried" / "consep", tmp_path / "cut", rehearse=False)
    folders = [f"--img_dir={firsts['consep'] / 'Images'}", f"--ann_dir={firsts['consep'] / 'Labels'}"]
    options = ["--dataset=consep", "--type", "--type_info=pretrained/he_types.json", "--scale=0.75", "--mode=fast"]
    assert extract_patches.main([*options, "--step_size=164", f"--save_root={tmp_path}", *folders]) == 0

    wanted = sorted((tmp_path / "consep" / "train" / "540x540_164x164").iterdir())
    assert len(wanted) == 25
    for path in wanted:
        assert np.array_equal(np.load(path), np.load(cut / path.name))
    (other,) = gpu_train.cut_patches(tmp_path / "carried" / "others", tmp_path / "cut", rehearse=False).iterdir()
    assert np.load(other).shape == (192, 192, 4)


def test_what_comes_back_is_a_checkpoint_in_half_precision_with_the_recipes_advice(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    (log / "stats.json").write_text("{}")
    save_weights(log / "net_epoch=3.tar", create_model("fast", nr_types=5, width=0.125).state_dict(), {"mpp": 0.3333})
    gpu_train.ship(log, tmp_path / "out")
    assert (tmp_path / "out" / "he_stats.json").exists()
    shipped = tmp_path / "out" / gpu_train.NAME
    assert torch.load(shipped, weights_only=True)["desc"]["decoder.np.u0.conv.weight"].dtype == torch.float16
    meta = load_checkpoint(shipped).meta
    assert (meta["mpp"], meta["edges"], meta["ink"]) == (0.3333, "directions", "drop")
