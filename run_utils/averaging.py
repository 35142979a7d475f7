"""Averages of weights: the exponential moving average of a training, and the mean of several trainings.

The moving average is what validation scores and what inference loads. `extra_info` of the recipe has `"ema": 0.999`.
After a step the average keeps that share of itself and takes the rest from the weights. In the first steps it takes
more, so that the random start is soon forgotten. Batch-norm statistics are averaged together with their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

# The average of n steps keeps no more of itself than (1 + n) / (10 + n) (TensorFlow's rule for `num_updates`).
_WARMUP = (1, 10)


def make_average(net: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return the average of an unwrapped network, on its device; `None` without `decay`, the share kept per step."""
    if decay is None:
        return None

    @torch.no_grad()
    def update(averages: list[torch.Tensor], values: list[torch.Tensor], nr_averaged: torch.Tensor) -> None:
        if not averages[0].is_floating_point():  # batch norm's counts of batches
            torch._foreach_copy_(averages, values)
            return
        count = int(nr_averaged)
        kept = min(decay, (_WARMUP[0] + count) / (_WARMUP[1] + count))
        torch._foreach_lerp_(averages, values, 1 - kept)

    average = AveragedModel(net, multi_avg_fn=update, use_buffers=True)
    return average.eval().requires_grad_(False)


def scored_network(net_info: dict) -> nn.Module:
    """Return the network to validate: the average, or without one the network that is trained."""
    average = net_info.get("average")
    return net_info["desc"] if average is None else average.module


def mean_weights(networks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the weights of trained networks; batch norm's counts of batches are those of the first.

    It is often better than each of them where they went on from one checkpoint (Wortsman et al. (2022), "Model soups",
    ICML).

    Args:
        networks: `state_dict` of each, float32, from the same mode, types and width.

    Raises:
        ValueError: they differ in mode, types or width.
    """
    first, *others = networks
    for other in others:
        shapes = [{name: value.shape for name, value in network.items()} for network in (first, other)]
        if unlike := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
            raise ValueError(f"networks that differ in mode, types or width have no mean; see `{unlike[0]}`")
    return {
        name: torch.stack([each[name] for each in networks]).mean(0) if value.is_floating_point() else value
        for name, value in first.items()
    }
