"""The network: names, shapes, windows, widths, freezing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models.hovernet.net_desc import PATCH_SHAPES, create_model, output_size, to_inference
from models.hovernet.net_utils import TFSamepaddingLayer, UpSample2x, crop_op, crop_to_shape


def test_names_and_counts_are_the_file_format():
    typed = create_model("original", nr_types=5, width=0.125).state_dict()
    untyped = create_model("fast", width=0.125).state_dict()
    assert len(typed) == 798  # what the published typed checkpoints hold, counters of the batch norms included
    assert len(untyped) == 632
    for name in (
        "conv0./.weight",
        "d0.units.0.conv1/bn.weight",
        "d2.units.5.preact/bn.running_var",
        "d1.shortcut.weight",
        "decoder.np.u3.dense.units.0.preact_bna/bn.weight",
        "decoder.tp.u0.conv.bias",
        "upsample2x.unpool_mat",
    ):
        assert name in typed
    assert list(create_model("fast", nr_types=3, width=0.125).decoder) == ["tp", "np", "hv"]


def test_width_one_is_hovernet():
    net = create_model("original", nr_types=5)
    assert sum(p.numel() for p in net.parameters()) == 54_744_457  # the original repository's network has as many
    assert net.conv_bot.weight.shape == (1024, 2048, 1, 1)


def test_output_shapes(subtests):
    for nr_types, mode in itertools.product([None, 4], ["original", "fast"]):
        with subtests.test(nr_types=nr_types, mode=mode):
            net = to_inference(create_model(mode, nr_types=nr_types, width=0.125), "cpu")
            size, out_size = PATCH_SHAPES[mode]
            out = net(torch.zeros(1, 3, size, size))
            assert {name: tuple(v.shape[1:]) for name, v in out.items()} == {
                **({"tp": (4, out_size, out_size)} if nr_types else {}),
                "np": (2, out_size, out_size),
                "hv": (2, out_size, out_size),
            }


def test_a_larger_window_gives_the_same_pixels():
    """The middle of a large window sees what a patch sees; the zeros that pad the encoder reach only its rim."""
    torch.manual_seed(0)
    net = to_inference(create_model("fast", width=0.125), "cpu")
    image = torch.rand(1, 3, 320, 320) * 255
    large, patch = net(image)["hv"], net(image[:, :, 32:-32, 32:-32])["hv"]
    assert large.shape[-1] == output_size("fast", 320) == 228
    middle = slice(60, 164 - 60)
    torch.testing.assert_close(
        large[..., 32:196, 32:196][..., middle, middle], patch[..., middle, middle], atol=2e-3, rtol=0
    )


def test_output_size(subtests):
    cases = [("fast", 256, 164), ("fast", 600, 508), ("original", 270, 80), ("original", 350, 160)]
    for mode, size, out in [*cases, ("two_scales", 264, 124), ("two_scales", 912, 772)]:
        with subtests.test(mode=mode, size=size, out=out):
            assert output_size(mode, size) == out


def test_output_size_names_what_fits(subtests):
    for mode, size in [("fast", 257), ("fast", 88), ("original", 272), ("original", 190)]:
        with subtests.test(mode=mode, size=size):
            with pytest.raises(ValueError, match="try") as error:
                output_size(mode, size)
            suggested = int(str(error.value).split("try ")[1].split(" or ")[0])
            net = to_inference(create_model(mode, width=0.125), "cpu")
            assert net(torch.zeros(1, 3, suggested, suggested))["np"].shape[-1] == output_size(mode, suggested)


def test_impossible_widths_are_refused(subtests):
    for width in [0, -0.5, 0.3]:
        with subtests.test(width=width):
            with pytest.raises(ValueError, match="multiple of 0.125"):
                create_model("fast", width=width)


def test_unknown_mode_is_refused():
    for mode in ("slow", None):
        with pytest.raises(ValueError, match="original"):
            create_model(mode)


def test_upsampling_is_the_product_with_ones():
    x = torch.arange(6, dtype=torch.float32).reshape(1, 1, 2, 3)
    expected = torch.tensor(np.kron(x[0, 0].numpy(), np.ones((2, 2), np.float32)))
    assert torch.equal(UpSample2x()(x)[0, 0], expected)


def test_tensorflow_padding_puts_the_odd_row_last():
    x = torch.ones(1, 1, 4, 4)
    assert TFSamepaddingLayer(3, 2)(x)[0, 0, :, 0].tolist() == [1, 1, 1, 1, 0]
    assert TFSamepaddingLayer(3, 1)(x)[0, 0, :, 1].tolist() == [0, 1, 1, 1, 1, 0]
    assert TFSamepaddingLayer(3, 2)(torch.ones(1, 1, 5, 5)).shape[-1] == 7


def test_crops_are_centred():
    x = torch.arange(7).reshape(1, 1, 1, 7).expand(1, 1, 7, 7)
    assert crop_op(x, (3, 3))[0, 0, 0].tolist() == [1, 2, 3, 4]
    assert crop_op(x, (0, 0)).shape == x.shape
    assert crop_to_shape(x, torch.zeros(1, 1, 3, 3))[0, 0, 0].tolist() == [2, 3, 4]


def test_freeze_trains_decoders_but_not_the_residual_units():
    net = create_model("fast", width=0.125, freeze=True).train()
    sum(v.square().mean() for v in net(torch.rand(2, 3, 112, 112) * 255).values()).backward()
    trained = {name for name, p in net.named_parameters() if p.grad is not None}
    assert "decoder.np.u3.conva.weight" in trained
    assert "conv_bot.weight" in trained
    assert not any(name.startswith(("d0.units", "d1", "d2", "d3")) for name in trained)
