"""Building blocks of HoVer-Net. Attribute names are part of the checkpoint format and never change."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# TensorPack's default, which the published weights were trained with.
BN_EPS = 1e-5


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside a DataParallel or DistributedDataParallel wrapper, or the network itself."""
    return getattr(model, "module", model)


def crop_op(x: Tensor, cropping, data_format: str = "NCHW") -> Tensor:
    """Cut `cropping` = (rows, columns) off an image batch in all, half on either side (the odd one at the end)."""
    top, left = cropping[0] // 2, cropping[1] // 2
    height_axis = 2 if data_format == "NCHW" else 1
    height, width = x.shape[height_axis] - cropping[0], x.shape[height_axis + 1] - cropping[1]
    return x.narrow(height_axis, top, height).narrow(height_axis + 1, left, width)


def crop_to_shape(x: Tensor, y: Tensor, data_format: str = "NCHW") -> Tensor:
    """Crop the centre of `x` to the height and width of `y`."""
    axis = 2 if data_format == "NCHW" else 1
    return crop_op(x, (x.shape[axis] - y.shape[axis], x.shape[axis + 1] - y.shape[axis + 1]), data_format)


def grad_if(enabled: bool):
    """Context that turns gradients off when `enabled` is false, and leaves them as they are otherwise."""
    return nullcontext() if enabled else torch.no_grad()


class Net(nn.Module):
    """Base class with the weight initialisation of every HoVer-Net module."""

    def weights_init(self) -> None:
        if next(self.parameters()).is_meta:  # there is nothing to fill, and for PyTorch it is slow work
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1)
                nn.init.constant_(module.bias, 0)


class TFSamepaddingLayer(nn.Module):
    """Zero padding as TensorFlow's `same`: the odd row and column of padding go to the bottom and right."""

    def __init__(self, ksize: int, stride: int):
        super().__init__()
        self.ksize = ksize
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        def pad(length: int) -> tuple[int, int]:
            over = length % self.stride
            total = max(self.ksize - (over or self.stride), 0)
            return total // 2, total - total // 2

        return F.pad(x, (*pad(x.shape[3]), *pad(x.shape[2])))


def _entry(preact: str, in_ch: int, out_ch: int, ksize: int) -> list[tuple[str, nn.Module]]:
    """Return the layers that every unit begins with, by name; `preact` names those before the convolution."""
    return [
        (f"{preact}/bn", nn.BatchNorm2d(in_ch, eps=BN_EPS)),
        (f"{preact}/relu", nn.ReLU(inplace=True)),
        ("conv1", nn.Conv2d(in_ch, out_ch, ksize, bias=False)),
        ("conv1/bn", nn.BatchNorm2d(out_ch, eps=BN_EPS)),
        ("conv1/relu", nn.ReLU(inplace=True)),
    ]


class DenseBlock(Net):
    """Densely connected units, `valid` convolutions only (Huang et al., CVPR 2017)."""

    def __init__(self, in_ch: int, unit_ksize, unit_ch, unit_count: int, split: int = 1):
        super().__init__()
        self.nr_unit = unit_count
        self.in_ch = in_ch
        self.unit_ch = unit_ch
        self.units = nn.ModuleList()
        channels = in_ch
        for _ in range(unit_count):
            layers = [
                *_entry("preact_bna", channels, unit_ch[0], unit_ksize[0]),
                ("conv2", nn.Conv2d(unit_ch[0], unit_ch[1], unit_ksize[1], groups=split, bias=False)),
            ]
            self.units.append(nn.Sequential(OrderedDict(layers)))
            channels += unit_ch[1]
        bna = [("bn", nn.BatchNorm2d(channels, eps=BN_EPS)), ("relu", nn.ReLU(inplace=True))]
        self.blk_bna = nn.Sequential(OrderedDict(bna))

    def out_ch(self) -> int:
        return self.in_ch + self.nr_unit * self.unit_ch[-1]

    def forward(self, prev_feat: Tensor) -> Tensor:
        for unit in self.units:
            new_feat = unit(prev_feat)  # (B, unit_ch[1], h - k + 1, w - k + 1)
            prev_feat = torch.cat([crop_to_shape(prev_feat, new_feat), new_feat], dim=1)
        return self.blk_bna(prev_feat)


class ResidualBlock(Net):
    """Pre-activation residual units (He et al., ECCV 2016); the first unit has none, `blk_bna` ends the block."""

    def __init__(self, in_ch: int, unit_ksize, unit_ch, unit_count: int, stride: int = 1):
        super().__init__()
        self.nr_unit = unit_count
        self.in_ch = in_ch
        self.unit_ch = unit_ch
        self.units = nn.ModuleList()
        channels = in_ch
        for idx in range(unit_count):
            unit_stride = stride if idx == 0 else 1
            layers = [
                *_entry("preact", channels, unit_ch[0], unit_ksize[0]),
                ("conv2/pad", TFSamepaddingLayer(unit_ksize[1], unit_stride)),
                ("conv2", nn.Conv2d(unit_ch[0], unit_ch[1], unit_ksize[1], stride=unit_stride, bias=False)),
                ("conv2/bn", nn.BatchNorm2d(unit_ch[1], eps=BN_EPS)),
                ("conv2/relu", nn.ReLU(inplace=True)),
                ("conv3", nn.Conv2d(unit_ch[1], unit_ch[2], unit_ksize[2], bias=False)),
            ]
            self.units.append(nn.Sequential(OrderedDict(layers if idx else layers[2:])))
            channels = unit_ch[-1]
        needs_shortcut = in_ch != unit_ch[-1] or stride != 1
        self.shortcut = nn.Conv2d(in_ch, unit_ch[-1], 1, stride=stride, bias=False) if needs_shortcut else None
        bna = [("bn", nn.BatchNorm2d(channels, eps=BN_EPS)), ("relu", nn.ReLU(inplace=True))]
        self.blk_bna = nn.Sequential(OrderedDict(bna))

    def out_ch(self) -> int:
        return self.unit_ch[-1]

    def forward(self, prev_feat: Tensor, freeze: bool = False) -> Tensor:
        shortcut = prev_feat if self.shortcut is None else self.shortcut(prev_feat)
        for unit in self.units:
            with grad_if(not (freeze and self.training)):
                new_feat = unit(prev_feat)
            prev_feat = shortcut = new_feat.add_(shortcut)
        return self.blk_bna(prev_feat)


class UpSample2x(nn.Module):
    """Repeat every pixel 2x2 (TensorPack's FixedUnPooling).

    The buffer is part of the checkpoint format only; multiplying by its ones would change nothing.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("unpool_mat", torch.from_numpy(np.ones((2, 2), dtype="float32")))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")
