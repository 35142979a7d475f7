"""The steps for one batch: inference, and training under upstream's names."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .train_step import proc_valid_step_output, train_step, valid_step, viz_step_output

__all__ = [
    "infer_step",
    "prediction_planes",
    "proc_valid_step_output",
    "to_prediction_map",
    "train_step",
    "valid_step",
    "viz_step_output",
]


def prediction_planes(out: dict[str, Tensor], type_probs: bool = False) -> Tensor:
    """Turn the network's output into prediction maps, channels first.

    Args:
        out: what `HoVerNet.forward` returns, each (B, C, h, w).
        type_probs: append the softmax of the TP branch, one channel a type.

    Returns:
        (B, C, h, w) float32: type id (typed networks only), probability of nucleus, horizontal and vertical
        distance, then the type probabilities where asked for, then `ink` where the network returns it.
    """
    channels = [F.softmax(out["np"].float(), dim=1)[:, 1:], out["hv"].float()]
    if "tp" in out:
        logits = out["tp"].float()
        channels.insert(0, torch.argmax(logits, dim=1, keepdim=True).float())
        if type_probs:
            channels.append(F.softmax(logits, dim=1))
    if "ink" in out:
        channels.append(out["ink"].float())
    return torch.cat(channels, dim=1)


def to_prediction_map(out: dict[str, Tensor], type_probs: bool = False) -> Tensor:
    """Return `prediction_planes` as post-processing reads them, (B, h, w, C)."""
    return prediction_planes(out, type_probs).permute(0, 2, 3, 1)


def infer_step(batch_data: Tensor | np.ndarray, model: nn.Module, type_probs: bool = False) -> np.ndarray:
    """Predict one batch.

    Args:
        batch_data: (B, H, W, 3) images, RGB, 0-255, any number type.
        model: the network, wrapped or not, on any device.
        type_probs: see `to_prediction_map`.

    Returns:
        (B, h, w, C) float32 prediction maps, channels as in `to_prediction_map`.
    """
    device = next(model.parameters()).device
    batch = torch.as_tensor(batch_data).to(device, non_blocking=True)
    imgs = batch.permute(0, 3, 1, 2).to(torch.float32)  # NHWC in memory, so this is channels-last without a copy
    model.eval()
    with torch.inference_mode():
        prediction = to_prediction_map(model(imgs), type_probs)
    return prediction.contiguous().cpu().numpy()
