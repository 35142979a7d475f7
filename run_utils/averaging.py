"""The exponential moving average of the weights: what validation scores, what inference loads.

`extra_info` of the recipe has `"ema": 0.999`. After a step the average keeps that share of itself and takes the rest
from the weights. In the first steps it takes more, so that the random start is soon forgotten. Batch-norm statistics
are averaged together with their weights.
"""

from __future__ import annotations

import torch
from torch import nn
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
