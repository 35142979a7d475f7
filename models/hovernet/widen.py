"""Widen a trained network: the wider HoVer-Net predicts the same, and has new channels for further training.

After Chen et al. (2016), Net2Net, with random new channels instead of copies: the weights from a new channel to an old
one start at 0, so the prediction does not change until training uses the new channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .net_desc import HoVerNet, create_model
from .net_utils import DenseBlock

_GROUPS = 4  # of the second convolution of a dense unit: each group's channels stay in their group


def widened(narrow: HoVerNet, width: float) -> HoVerNet:
    """Return a network of `width` that predicts what `narrow` predicts; the new weights are random.

    Raises:
        ValueError: `width` is below the width of `narrow`.
    """
    if width < narrow.width:
        raise ValueError(f"a network of width {narrow.width} cannot be widened to {width}")
    wide = create_model(mode=narrow.mode, nr_types=narrow.nr_types, freeze=narrow.freeze, width=width)
    dense = {}  # names of the layers that read or write channels of a dense block: (inputs, outputs)
    for name, block in narrow.named_modules():
        if isinstance(block, DenseBlock):
            dense.update(_dense_channels(name, block, wide.get_submodule(name)))
    with torch.no_grad():
        for name, old in narrow.named_modules():
            inputs, outputs = dense.get(name, (None, None))
            if isinstance(old, nn.Conv2d):
                _copy_convolution(old, wide.get_submodule(name), inputs, outputs)
            elif isinstance(old, nn.BatchNorm2d):
                _copy_norm(old, wide.get_submodule(name), inputs)
    return wide


def _dense_channels(name: str, old: DenseBlock, new: DenseBlock) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Return the places, in the wide network, of the channels of a dense block's layers and of the layer after it."""
    found = {}
    middle = _in_groups(old.unit_ch[0], new.unit_ch[0])
    grown = _in_groups(old.unit_ch[1], new.unit_ch[1])
    channels = torch.arange(old.in_ch)
    for index in range(old.nr_unit):
        unit = f"{name}.units.{index}"
        found[f"{unit}.preact_bna/bn"] = (channels, None)
        found[f"{unit}.conv1"] = (channels, middle)
        found[f"{unit}.conv1/bn"] = (middle, None)
        found[f"{unit}.conv2"] = (None, grown)
        channels = torch.cat([channels, new.in_ch + index * new.unit_ch[1] + grown])
    found[f"{name}.blk_bna.bn"] = (channels, None)
    found[f"{name.removesuffix('dense')}convf"] = (channels, None)
    return found


def _in_groups(old: int, new: int) -> Tensor:
    """Return the places of `old` channels among `new` ones, when both are split into the same groups."""
    index = torch.arange(old)
    group = old // _GROUPS
    return index // group * (new // _GROUPS) + index % group


def _copy_convolution(old: nn.Conv2d, new: nn.Conv2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    rows, columns = old.weight.shape[:2]
    outputs = torch.arange(rows) if outputs is None else outputs
    inputs = torch.arange(columns) if inputs is None else inputs
    kept = torch.zeros_like(new.weight[:rows])  # (rows, all inputs, k, k): 0 from new channels to old ones
    kept[:, inputs] = old.weight
    new.weight[outputs] = kept
    if old.bias is not None:
        new.bias[outputs] = old.bias


def _copy_norm(old: nn.BatchNorm2d, new: nn.BatchNorm2d, channels: Tensor | None) -> None:
    channels = torch.arange(old.num_features) if channels is None else channels
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name)[channels] = getattr(old, name)
    new.num_batches_tracked.copy_(old.num_batches_tracked)
