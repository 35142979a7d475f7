"""Two networks in one: maps lie where they belong, files hold both, and nothing else takes them for one network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.hovernet.checkpoint import (
    CheckpointError,
    build_model,
    check_options,
    load_checkpoint,
    parts_of,
    save_weights,
)
from models.hovernet.encoder_init import load_pretrained
from models.hovernet.net_desc import PATCH_SHAPES, create_model, crop_op
from models.hovernet.two_scales import TwoScales

SIDE, OUT = PATCH_SHAPES["two_scales"]


class Reader(nn.Module):
    """Returns the image as its maps, cut as a `fast` network cuts it."""

    mode, output_ch = "fast", 3

    def __init__(self, nr_types: int | None = None):
        super().__init__()
        self.nr_types = nr_types

    def forward(self, imgs):
        seen = crop_op(imgs, (92, 92))
        return {"np": seen[:, :2], "hv": seen[:, :2]} | ({"tp": seen} if self.nr_types else {})


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    fine, coarse = create_model("fast", width=0.125), create_model("fast", nr_types=3, width=0.125)
    return TwoScales(fine, coarse).eval()


def test_both_maps_lie_where_the_image_does():
    """The maps of x and y are x and y again, but for a ninth of a px: where a pixel is cut, a ramp has steps."""
    y, x = np.mgrid[:SIDE, : SIDE + 24].astype(np.float32)
    out = TwoScales(Reader(), Reader(3))(torch.from_numpy(np.stack([x, y, x + y])[None]))
    assert list(out) == ["np", "hv", "tp"]
    margin = (SIDE - OUT) // 2
    for name, channels in (("hv", 2), ("tp", 3)):
        expected = np.stack([x, y, x + y])[:channels, margin:-margin, margin:-margin]
        assert out[name].shape == (1, channels, OUT, OUT + 24)
        np.testing.assert_allclose(out[name][0].numpy(), expected, atol=1 / 9 + 1e-3)


def test_types_are_the_coarse_networks_and_nuclei_the_mean_of_both(net):
    image = torch.from_numpy(np.random.default_rng(1).uniform(0, 255, (1, 3, SIDE, SIDE)).astype(np.float32))
    other = TwoScales(create_model("fast", width=0.125), net.coarse).eval()
    with torch.inference_mode():
        one, two = net(image), other(image)
        fines = [each.fine(crop_op(image, (48, 48))) for each in (net, other)]
    assert torch.equal(one["tp"], two["tp"])
    torch.testing.assert_close(2 * (one["hv"] - two["hv"]), fines[0]["hv"] - fines[1]["hv"], atol=1e-2, rtol=1e-3)
    probability = [maps["np"].softmax(1) for maps in (one, two, *fines)]
    torch.testing.assert_close(2 * (probability[0] - probability[1]), probability[2] - probability[3])


def test_a_file_holds_both(net, tmp_path):
    path = tmp_path / "two.tar"
    save_weights(path, net.state_dict(), {"mpp": 0.3333})
    checkpoint = load_checkpoint(path)
    assert (checkpoint.mode, checkpoint.nr_types, checkpoint.width) == ("two_scales", 3, 0.125)
    loaded = build_model(checkpoint).state_dict()
    assert loaded.keys() == net.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())
    for mode in (None, "fast", "two_scales"):
        check_options(checkpoint, mode, 3)
    with pytest.raises(CheckpointError, match="--model_mode=original"):
        check_options(checkpoint, "original")
    with pytest.raises(CheckpointError, match="two networks, and a training goes on from one"):
        load_pretrained(create_model("fast", nr_types=3, width=0.125), path)


def test_files_with_other_networks_are_refused(net, tmp_path, subtests):
    weights = net.state_dict()
    fine, coarse = parts_of(weights)
    typed = {f"fine.{name}": value for name, value in coarse.items()}
    wide = create_model("original", width=0.125).state_dict()
    others = {
        "no tensor `conv0./.weight`": {name: value for name, value in weights.items() if name.startswith("fine.")},
        "the fine one without types": typed | {f"coarse.{name}": value for name, value in coarse.items()},
        "two `fast` networks are needed": weights | {f"fine.{name}": value for name, value in wide.items()},
        "1 unknown": weights | {"more.weight": torch.ones(1)},
        "1 missing": {name: value for name, value in weights.items() if name != "fine.conv0.bn.weight"},
    }
    assert fine.keys() < coarse.keys()
    for message, content in others.items():
        with subtests.test(message):
            save_weights(tmp_path / "a.tar", content)
            with pytest.raises(CheckpointError, match=message):
                build_model(load_checkpoint(tmp_path / "a.tar"))
