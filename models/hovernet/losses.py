"""The loss terms of HoVer-Net (Graham et al., 2019, section 2.1.3), with upstream's numbers.

All maps are channels-last, (B, H, W, C) float32; `true` comes first, as in upstream.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

# Probabilities are kept this far from 0 and 1 before the logarithm (upstream writes it as 10e-8).
XENTROPY_EPSILON = 1e-7
# Added to both sides of the Dice fraction, in px; an empty map predicted as empty has loss 0.
DICE_SMOOTH = 1e-3
# Side of the gradient kernel of `msge`, px (upstream).
SOBEL_SIZE = 5
_SOBEL_EPSILON = 1e-15
_FOCUS_EPSILON = 1e-8
# Smallest divisor of a weighted mean: if all pixels of a batch have weight 0, the loss is 0.
_LEAST_WEIGHT = 1e-12
# Along which axis `msge` differentiates channel 0 (x, grows to the right) and channel 1 (y, grows downwards).
MSGE_AXES = ("upstream", "paper")


def xentropy_loss(true: Tensor, pred: Tensor, reduction: str = "mean", class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy of class probabilities.

    Args:
        true: (..., C) one-hot.
        pred: (..., C) probabilities, not necessarily normalised.
        reduction: `mean` or `sum` over the pixels.
        class_weights: (C,); with `mean`, the sum is divided by the weights of the pixels: equal ones change nothing.
    """
    pred = pred / torch.sum(pred, -1, keepdim=True)
    pred = torch.clamp(pred, XENTROPY_EPSILON, 1.0 - XENTROPY_EPSILON)
    weighted = true if class_weights is None else true * class_weights
    loss = -(weighted * torch.log(pred)).sum(-1)
    if reduction == "sum":
        return loss.sum()
    return loss.mean() if class_weights is None else loss.sum() / weighted.sum().clamp(min=_LEAST_WEIGHT)


def dice_loss(true: Tensor, pred: Tensor, smooth: float = DICE_SMOOTH, class_weights: Tensor | None = None) -> Tensor:
    """One minus soft Dice over the whole batch, summed over the classes.

    Args:
        true: (B, H, W, C) one-hot.
        pred: (B, H, W, C) probabilities.
        smooth: added to numerator and denominator, px.
        class_weights: (C,), scaled to a mean of 1.
    """
    overlap = torch.sum(pred * true, (0, 1, 2))
    total = torch.sum(pred, (0, 1, 2)) + torch.sum(true, (0, 1, 2))
    loss = 1.0 - (2.0 * overlap + smooth) / (total + smooth)  # (C,)
    if class_weights is not None:
        loss = loss * class_weights / class_weights.mean()
    return loss.sum()


def mse_loss(true: Tensor, pred: Tensor) -> Tensor:
    """Mean squared error of the HV maps (equation 2)."""
    return (pred - true).square().mean()


def msge_loss(true: Tensor, pred: Tensor, focus: Tensor, axis: str = "upstream") -> Tensor:
    """Mean squared error of the gradients of the HV maps inside nuclei (equation 3).

    Args:
        true: (B, H, W, 2) x map, y map.
        pred: (B, H, W, 2) likewise.
        focus: (B, H, W), 1 inside nuclei, 0 outside.
        axis: `paper` differentiates the x map along x and the y map along y; `upstream` the x map along y and the y map
            along x, as the original repository does.
    """
    # the gradient is linear, so the difference of the gradients is the gradient of the difference
    difference = (pred - true).permute(0, 3, 1, 2)  # (B, 2, H, W)
    kernels = sobel_kernels(SOBEL_SIZE, axis, difference.device)
    gradient = F.conv2d(difference, kernels, padding=SOBEL_SIZE // 2, groups=2)  # (B, 2, H, W)
    focus = focus.float()[:, None]  # (B, 1, H, W)
    return (focus * gradient.square()).sum() / (2.0 * focus.sum() + _FOCUS_EPSILON)


def any_type_loss(pred: Tensor) -> Tensor:
    """Cross entropy of "some type, not background", for pixels of nuclei whose type nobody labelled.

    The probabilities of the types are summed, as in the marginal loss of Shi et al. (2021) for partly labelled data.

    Args:
        pred: (..., C) probabilities, background first.
    """
    background = pred[..., 0] / pred.sum(-1)
    return -torch.log((1.0 - background).clamp(min=XENTROPY_EPSILON)).mean()


@functools.cache
def sobel_kernels(size: int, axis: str, device: torch.device) -> Tensor:
    """Return the (2, 1, size, size) kernels that differentiate channel 0 and channel 1; made once per device.

    Raises:
        ValueError: `size` is even, or `axis` is none of `MSGE_AXES`.
    """
    if size % 2 != 1:
        raise ValueError(f"a gradient kernel has an odd side, got {size}")
    if axis not in MSGE_AXES:
        raise ValueError(f"msge axis must be one of {MSGE_AXES}, got `{axis}`")
    steps = torch.arange(-(size // 2), size // 2 + 1, dtype=torch.float32, device=device)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    norm = down * down + right * right + _SOBEL_EPSILON
    along_y, along_x = down / norm, right / norm
    kernels = (along_x, along_y) if axis == "paper" else (along_y, along_x)
    return torch.stack(kernels)[:, None]


LOSSES = {"bce": xentropy_loss, "dice": dice_loss, "mse": mse_loss, "msge": msge_loss}
# The possible terms of each branch. `any_type` is for nuclei without a type, the others are for all other pixels.
BRANCH_LOSSES = {"np": ("bce", "dice", "mse"), "hv": ("mse", "msge"), "tp": ("bce", "dice", "mse", "any_type")}
