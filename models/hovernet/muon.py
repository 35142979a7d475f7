"""The optimizer of `opt_scratch`: Muon for filters, AdamW for all other weights. It needs fewer steps than AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn, optim

# Coefficients of the Newton-Schulz iteration by Keller Jordan et al. (2024): steep at 0, so that few steps are enough.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS = 5
# The root mean square of an update of AdamW, relative to its learning rate (Liu et al. 2025, arXiv 2502.16982).
_RMS = 0.2
# Convolutions with fewer channels than this, in or out, are the first and last of the network: AdamW trains them.
_MIN_CHANNELS = 8


class MuonAdamW(optim.AdamW):
    """AdamW whose updates of convolution filters are made orthogonal (Muon).

    The momentum of a filter bank, as a matrix (output channels, all else), is replaced by the nearest matrix whose
    singular values are all about 1. So rare directions of the gradient count as much as common ones, and a training
    needs fewer steps. K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024);
    https://kellerjordan.github.io/posts/muon

    Args:
        params: of the network, in one group.
        lr: learning rate of AdamW: biases, batch norms, and convolutions with fewer than 8 channels in or out.
        filter_lr: learning rate of all other convolutions, on the scale of AdamW's.
        momentum: share of the running mean of the gradients that stays each step.
        weight_decay: of both.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1.0e-3,
        filter_lr: float = 3.0e-3,
        momentum: float = 0.95,
        weight_decay: float = 1.0e-4,
    ):
        filters: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for param in params:
            (filters if _is_filter_bank(param) else others).append(param)
        groups = [{"params": others}, {"params": filters, "lr": filter_lr, "momentum": momentum}]
        super().__init__([group for group in groups if group["params"]], lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all weights once; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        filters = [group for group in self.param_groups if "momentum" in group]
        gradients = {param: param.grad for group in filters for param in group["params"] if param.grad is not None}
        for param in gradients:
            param.grad = None  # so AdamW passes it by
        super().step()
        for group in filters:
            for param in group["params"]:
                if param in gradients:
                    param.grad = gradients[param]
                    self._step_filters(param, group)
        return loss

    def _step_filters(self, param: nn.Parameter, group: dict) -> None:
        """Update one filter bank."""
        state = self.state[param]
        if not state:  # with the names that AdamW looks for when it loads a state
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(param)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(param.grad, 1 - group["momentum"])
        update = orthogonal(param.grad.lerp(mean, group["momentum"]).flatten(1))  # as Nesterov: one step ahead
        scale = _RMS * max(update.shape) ** 0.5  # an orthogonal matrix has a root mean square of max(shape) ** -0.5
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(update.view_as(param), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with orthogonal rows (or columns, if it has fewer), by Newton-Schulz iteration.

    Args:
        matrix: (R, C) float.

    Returns:
        (R, C): singular values that are not tiny beside the largest become 0.7 to 1.2.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)  # no singular value above 1
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def _is_filter_bank(param: nn.Parameter) -> bool:
    return param.ndim == 4 and min(param.shape[0], param.shape[1]) >= _MIN_CHANNELS
