"""Test-time flips: the predictions for an image and its three mirror images, mirrored back and averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Axes of (B, C, H, W) that are mirrored: none, left and right, up and down, both.
_FLIPS = ((), (3,), (2,), (2, 3))


class Flipped(nn.Module):
    """A network that averages the predictions of `net` for an image and its three mirror images.

    It returns the same maps as `net`. `tp` and `np` are logarithms of the mean probabilities, so that their softmax is
    the mean.

    Args:
        net: a `HoVerNet`, or anything that returns the same.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, imgs: Tensor) -> dict[str, Tensor]:
        return mean_maps([_turn_back(self.net(imgs.flip(axes)), axes) for axes in _FLIPS])


def mean_maps(several: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the means of the maps that the first has; of `tp` and `np`, logarithms of the mean probabilities."""
    return {
        name: sum(maps[name].float() for maps in several) / len(several)
        if name == "hv"
        else torch.logsumexp(torch.stack([F.log_softmax(maps[name].float(), dim=1) for maps in several]), dim=0)
        for name in several[0]
    }


def _turn_back(out: dict[str, Tensor], axes: tuple[int, ...]) -> dict[str, Tensor]:
    """Mirror maps back; the distance along a mirrored axis, `hv` x then y, changes its sign."""
    out = {name: value.float().flip(axes) for name, value in out.items()}
    signs = [-1.0 if axis in axes else 1.0 for axis in (3, 2)]
    return out | {"hv": out["hv"] * out["hv"].new_tensor(signs)[:, None, None]}
