"""Weights to start from: timm's and the original encoder, and checkpoints of other numbers of types.

timm itself is not needed: `TimmStage` below is its `resnetv2_50` (pre-activation bottlenecks) in plain torch, with its
names; `test_names_are_timms` compares them with the real thing where timm is installed.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.hovernet.checkpoint import CheckpointError
from models.hovernet.encoder_init import (
    convert_timm,
    fold_normalisation,
    load_encoder,
    load_for_finetuning,
    load_pretrained,
)
from models.hovernet.net_desc import create_model

DEPTHS = (3, 4, 6, 3)
WIDTH = 0.125


class TimmBlock(nn.Module):
    """timm's PreActBottleneck, padded as TensorFlow does where it strides (0 before, 1 after)."""

    def __init__(self, in_ch: int, mid: int, out: int, stride: int, first: bool):
        super().__init__()
        self.stride = stride
        if first:
            self.downsample = nn.Sequential()
            self.downsample.conv = nn.Conv2d(in_ch, out, 1, stride, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(in_ch), nn.Conv2d(in_ch, mid, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(mid), nn.Conv2d(mid, mid, 3, stride, bias=False)
        self.norm3, self.conv3 = nn.BatchNorm2d(mid), nn.Conv2d(mid, out, 1, bias=False)

    def forward(self, x):
        pre = F.relu(self.norm1(x))
        shortcut = self.downsample.conv(pre) if hasattr(self, "downsample") else x
        y = F.relu(self.norm2(self.conv1(pre)))
        y = self.conv2(F.pad(y, (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1)))
        return self.conv3(F.relu(self.norm3(y))) + shortcut


class TimmNet(nn.Module):
    """timm's `resnetv2_50` at a fraction of its width."""

    def __init__(self, width: float = WIDTH):
        super().__init__()

        def ch(count):
            return int(count * width)

        self.stem = nn.Sequential()
        self.stem.conv = nn.Conv2d(3, ch(64), 7, 2, 3, bias=False)
        self.stages = nn.ModuleList()
        in_ch = ch(64)
        for stage, depth in enumerate(DEPTHS):
            out, mid, stride = ch(256 * 2**stage), ch(64 * 2**stage), 1 if stage == 0 else 2
            blocks = [
                TimmBlock(in_ch if i == 0 else out, mid, out, stride if i == 0 else 1, i == 0) for i in range(depth)
            ]
            self.stages.append(nn.Module())
            self.stages[stage].blocks = nn.Sequential(*blocks)
            in_ch = out
        self.norm = nn.BatchNorm2d(in_ch)
        self.head = nn.Module()
        self.head.fc = nn.Conv2d(in_ch, 10, 1)


@pytest.fixture(scope="module")
def timm_net() -> TimmNet:
    """Random weights and random batch-norm statistics."""
    torch.manual_seed(0)
    net = TimmNet().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return net


@torch.no_grad()
def test_mapped_encoder_computes_what_timm_computes(timm_net):
    net = create_model("fast", width=WIDTH).eval()
    load_encoder(net, convert_timm(timm_net.state_dict()))
    following = [timm_net.stages[i].blocks[0].norm1 for i in (1, 2, 3)] + [timm_net.norm]
    for stage, norm in enumerate(following):
        blocks = timm_net.stages[stage].blocks
        x = torch.randn(1, blocks[0].norm1.num_features, 24, 24)
        expected = F.relu(norm(blocks(x)))
        ours = getattr(net, f"d{stage}")(F.relu(blocks[0].norm1(x)))
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_normalisation_is_folded_into_the_first_convolution(timm_net):
    mean, std = (0.2, 0.5, 0.7), (0.3, 0.5, 0.25)
    net = create_model("original", width=WIDTH).eval()
    load_encoder(net, fold_normalisation(convert_timm(timm_net.state_dict()), mean, std))
    x = torch.rand(1, 3, 20, 20)  # RGB from 0 to 1
    normalised = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    expected = F.relu(timm_net.stages[0].blocks[0].norm1(F.conv2d(normalised, timm_net.stem.conv.weight)))
    torch.testing.assert_close(net.conv0(x), expected, rtol=1e-5, atol=1e-5)


def test_files_of_timm_are_recognised(timm_net, tmp_path, subtests):
    for suffix in [".pth", ".bin", ".safetensors"]:
        with subtests.test(suffix=suffix):
            path = tmp_path / f"weights{suffix}"
            if suffix == ".safetensors":
                from safetensors.torch import save_file

                save_file({name: value.contiguous() for name, value in timm_net.state_dict().items()}, path)
            else:
                torch.save(timm_net.state_dict(), path)
            net, said = create_model("fast", nr_types=3, width=WIDTH), []
            before = net.conv_bot.weight.clone()
            load_pretrained(net, path, say=said.append)
            assert torch.equal(net.d1.units[2].conv1.weight, timm_net.stages[1].blocks[2].conv1.weight)
            # half of 255 is what timm's mean of 0.5 makes of nothing: conv0 is doubled by its standard deviation of 0.5
            torch.testing.assert_close(net.state_dict()["conv0./.weight"], timm_net.stem.conv.weight * 2)
            assert torch.equal(net.conv_bot.weight, before)
            assert len(said) == 1
            assert "decoders start from random weights" in said[0]


def encoder_file(tmp_path, **changes):
    """The original recipe's file: our names, no decoders, no counters (it came from TensorFlow)."""
    torch.manual_seed(1)
    state = create_model("fast", width=WIDTH).state_dict()
    left_out = ("decoder.", "conv_bot.", "upsample2x.")
    encoder = {n: v for n, v in state.items() if not n.startswith(left_out) and "num_batches" not in n}
    path = tmp_path / "encoder.tar"
    torch.save({"desc": {**encoder, **changes}}, path)
    return path, encoder


def test_original_encoder_file_loads_as_it_is(tmp_path):
    path, encoder = encoder_file(tmp_path)
    net = create_model("original", nr_types=5, width=WIDTH)
    load_pretrained(net, path, say=lambda text: None)
    state = net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in encoder.items())


def test_anything_else_missing_or_left_over_is_an_error(tmp_path):
    path, encoder = encoder_file(tmp_path, surprise=torch.zeros(1))
    net = create_model("fast", width=WIDTH)
    with pytest.raises(CheckpointError, match="1 unknown \\(surprise\\)"):
        load_pretrained(net, path, say=lambda text: None)
    del encoder["d3.blk_bna.bn.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing \(d3.blk_bna.bn.weight\)"):
        load_encoder(net, encoder)
    with pytest.raises(CheckpointError, match="of another shape.*width 0.25"):
        load_pretrained(create_model("fast", width=0.25), encoder_file(tmp_path)[0])


def test_timms_encoder_with_group_norm_is_refused(timm_net, tmp_path):
    """BiT's `resnetv2_50x1` has the same names, but no running statistics."""
    path = tmp_path / "bit.pth"
    torch.save({n: v for n, v in timm_net.state_dict().items() if "running" not in n and "tracked" not in n}, path)
    with pytest.raises(CheckpointError, match=r"bit\.pth is no encoder .* missing \(conv0\.bn\.running_mean"):
        load_pretrained(create_model("fast", width=WIDTH), path)


def test_damaged_safetensors_are_one_line(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\x10" * 100)
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: is damaged") as caught:
        load_pretrained(create_model("fast", width=WIDTH), path)
    assert "\n" not in str(caught.value)


def test_p38_a_missing_file_names_the_ways_on(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_pretrained(create_model("fast", width=WIDTH), tmp_path / "ImageNet.tar")
    message = str(caught.value)
    assert "\n" not in message
    for way in ("ImageNet.tar", "timm", "HoVer-Net checkpoint", "pretrained: None"):
        assert way in message


def test_p39_only_the_type_head_is_new(subtests):
    cases = [
        (3, 3, (), "every tensor"),
        (3, 6, ("decoder.tp.u0.conv.",), "3 types, this network has 6"),
        (None, 4, ("decoder.tp.",), "without types"),
        (3, None, (), "left out"),
    ]
    for old_types, new_types, new_tensors, said in cases:
        with subtests.test(old_types=old_types, new_types=new_types, new_tensors=new_tensors, said=said):
            torch.manual_seed(2)
            old = create_model("fast", nr_types=old_types, width=WIDTH).state_dict()
            net = create_model("fast", nr_types=new_types, width=WIDTH)
            before = {name: value.clone() for name, value in net.state_dict().items()}
            assert said in load_for_finetuning(net, old)
            for name, value in net.state_dict().items():
                source = before if new_tensors and name.startswith(new_tensors) else old
                assert torch.equal(value, source[name]), name


def test_p39_other_differences_are_refused():
    old = create_model("original", nr_types=3, width=WIDTH).state_dict()
    with pytest.raises(CheckpointError, match="another network.*mode `fast`"):
        load_for_finetuning(create_model("fast", nr_types=3, width=WIDTH), old)


def test_names_are_timms():
    try:
        import timm
    except (ImportError, RuntimeError):  # timm, or the torchvision that it imports, is not usable here
        pytest.skip("timm is not installed")
    real = {name: value.shape for name, value in timm.create_model("resnetv2_50").state_dict().items()}
    ours = {name: value.shape for name, value in TimmNet(1.0).state_dict().items() if "head" not in name}
    assert ours == {name: shape for name, shape in real.items() if "head" not in name}
