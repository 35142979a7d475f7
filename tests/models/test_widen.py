"""A grown network predicts what the narrow one did, and its new channels learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.hovernet.encoder_init import load_pretrained
from models.hovernet.net_desc import create_model
from models.hovernet.widen import widened

SIDES = {"fast": 112, "original": 270}
SMALL = 1e-5  # of the largest value: sums in float32 run over more, added zeros


def trained(mode: str, nr_types: int | None, width: float):
    """A network whose batch norms are not the identity."""
    torch.manual_seed(3)
    net = create_model(mode, nr_types=nr_types, width=width)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.bias.data):
            values.normal_()
        for values in (norm.running_var, norm.weight.data):
            values.uniform_(0.5, 1.5)
    return net.eval()


def assert_same_prediction(narrow, wide, mode: str) -> None:
    imgs = torch.rand(1, 3, SIDES[mode], SIDES[mode]) * 255
    with torch.no_grad():
        before, after = narrow(imgs), wide.eval()(imgs)
    for name, value in before.items():
        assert (after[name] - value).abs().max() <= SMALL * value.abs().max(), name


def test_a_wider_network_predicts_the_same(subtests):
    for mode, nr_types, width in (("fast", 5, 0.25), ("fast", None, 0.375), ("original", 3, 0.25)):
        with subtests.test(mode=mode, nr_types=nr_types, width=width):
            narrow = trained(mode, nr_types, 0.125)
            wide = widened(narrow, width)
            assert wide.width == width
            assert_same_prediction(narrow, wide, mode)


def test_new_channels_get_a_gradient():
    wide = widened(trained("fast", None, 0.125), 0.25)
    wide(torch.rand(1, 3, SIDES["fast"], SIDES["fast"]) * 255)["np"].square().sum().backward()
    last = wide.decoder["np"].u0.conv.weight
    new = last.shape[1] // 2
    assert not last[:, new:].any()
    assert last.grad[:, new:].any()


def test_a_narrower_network_is_refused():
    with pytest.raises(ValueError, match=r"width 0\.25 cannot be widened to 0\.125"):
        widened(create_model("fast", width=0.25), 0.125)


def test_training_starts_from_a_narrower_checkpoint(tmp_path):
    narrow = trained("fast", None, 0.125)
    torch.save({"desc": narrow.state_dict()}, tmp_path / "narrow.tar")
    wide, said = create_model("fast", width=0.25), []
    load_pretrained(wide, tmp_path / "narrow.tar", say=said.append)
    assert "grown from width 0.125 to 0.25; every tensor loaded" in said[0]
    assert_same_prediction(narrow, wide, "fast")
