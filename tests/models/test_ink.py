"""Ink and dark pigment are told from haematoxylin and eosin by their colour alone."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from stubs import StubNet

import run_infer
from models.hovernet.ink import InkSeen, ink_map
from models.hovernet.post_proc import PostProc, process_nuclei

# Optical densities in red, green and blue of the stains (Ruifrok and Johnston 2001).
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)


def painted(*densities) -> torch.Tensor:
    """Return the map of an image with one pixel of each optical density, (N,)."""
    rgb = 256 * np.exp(-np.array(densities)) - 1
    return ink_map(torch.from_numpy(np.rint(rgb).clip(0, 255).T[None, :, :, None].astype(np.uint8)))[0, 0, :, 0]


def test_haematoxylin_and_eosin_in_any_amount_are_no_ink():
    amounts = [(h, e) for h in (0.5, 1, 2, 3) for e in (0, 0.3, 1)]
    mixed = [h * np.array(HAEMATOXYLIN) + e * np.array(EOSIN) for h, e in amounts]
    assert painted(*mixed).max() < 0


def test_ink_and_brown_pigment_are_beyond_and_glass_is_not():
    for density in ((1, 1, 1), (3, 3, 3), DAB, (0.9, 1.0, 0.9), (1.5, 0.7, 0.2), (1.2, 0.5, 0.9)):
        assert painted(density).item() > 0, density
    assert painted((0, 0, 0)).item() == 0


def test_the_map_lies_on_the_networks_other_maps():
    images = torch.full((2, 3, 256, 256), 200.0)
    images[1, :, 100:110, 120:140] = 20  # black
    out = InkSeen(StubNet())(images)
    assert out["ink"].shape == (2, 1, 164, 164)
    expected = torch.zeros(2, 164, 164, dtype=torch.bool)
    expected[1, 100 - 46 : 110 - 46, 120 - 46 : 140 - 46] = True
    assert torch.equal(out["ink"][:, 0] > 0.5, expected)
    assert torch.equal(out["np"], StubNet()(images)["np"])


def test_nuclei_that_are_mostly_ink_are_left_out_of_map_and_list():
    y, x = np.mgrid[-20:21, -20:21]
    disc = np.hypot(y, x) < 15
    maps = np.tile(np.dstack([disc, disc * x / 15, disc * y / 15]).astype(np.float32), (1, 3, 1))
    ink = np.full(maps.shape[:2], -0.1, np.float32)
    ink[:, :41] = 0.2
    ink[:21, 41:] = 0.05  # half of the others: their mean stays below 0
    inst_map, nuclei = process_nuclei(maps, how=PostProc(ink="drop"), ink_map=ink)
    whole, all_nuclei = process_nuclei(maps, how=PostProc(ink="keep"), ink_map=ink)
    assert len(all_nuclei) == 3
    assert nuclei.ids.tolist() == all_nuclei.ids[1:].tolist()
    assert not inst_map[:, :41].any()
    assert np.array_equal(inst_map[:, 41:], whole[:, 41:])


def test_dropping_needs_the_map():
    with pytest.raises(ValueError, match="ink `drop` needs a map of the ink"):
        process_nuclei(np.zeros((9, 9, 3), np.float32), how=PostProc(ink="drop"))


def test_outlines_in_blue_ink_vanish_and_all_others_stay(shared, tmp_path, monkeypatch):
    """A margin of a specimen, painted blue by the pathologist: CoNSeP's train_12, which is a training image."""
    monkeypatch.chdir(tmp_path)
    image = cv2.imread(str(shared / "data" / "consep" / "Train" / "Images" / "train_12.png"))[:500, 200:700]
    (tmp_path / "in").mkdir()
    cv2.imwrite("in/a.png", image)
    model = run_infer.__file__.replace("run_infer.py", "pretrained/hovernet_he_fast_w025_30x.tar")
    found = {}
    for ink in ("keep", "drop"):
        options = [f"--ink={ink}", "--mpp=0.25", "--input_dir=in", f"--output_dir={ink}", "--no_report"]
        assert run_infer.main(["--gpu=", f"--model_path={model}", "tile", *options]) == 0
        nuclei = json.loads((tmp_path / ink / "json" / "a.json").read_text())["nuc"]
        found[ink] = {tuple(nucleus["centroid"]): nucleus for nucleus in nuclei.values()}
    assert set(found["drop"]) < set(found["keep"])
    _, green, red = np.moveaxis(-np.log((image + 1.0) / 256), -1, 0)
    for centroid, nucleus in found["keep"].items():
        inside = np.zeros(image.shape[:2], np.uint8)
        cv2.fillPoly(inside, [np.array(nucleus["contour"])], 1)
        excess = (red - green)[inside > 0].mean()
        if abs(excess) > 0.05:  # the network reads the image smaller
            assert (centroid in found["drop"]) == (excess < 0)
    assert len(found["drop"]) > 10
    assert len(found["keep"]) - len(found["drop"]) >= 5
