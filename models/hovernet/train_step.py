"""One training step, one validation step, and what they report.

Batches are what `FileLoader` makes: `img` (B, H, W, 3) uint8, `np_map` (B, h, w), `hv_map` (B, h, w, 2), and for a
    typed network `tp_map` (B, h, w), whose pixels of `UNKNOWN_TYPE` do not count in loss and scores. `run_info` is
`(nets, where)` as `RunEngine` passes it.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from misc.type_info import UNKNOWN_TYPE, default_type_info
from misc.utils import cropping_center
from misc.viz_utils import colorize, colorize_types

from .devices import has_precision
from .losses import LOSSES, any_type_loss
from .net_utils import unwrapped

# Probability above which validation counts a pixel as nuclear (upstream), unless the run has another one.
NP_THRESHOLD = 0.5
# How many samples of a training batch, and of a validation run, are drawn.
NR_TRAIN_PICTURES = 2
NR_VALID_PICTURES = 8
_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Precisions that a recipe may ask for, by the name of its entry.
PRECISIONS = {"amp": ("bf16", "fp16"), "amp_cpu": ("bf16",)}
_DICE_EPSILON = 1e-8


def autocast(device: torch.device, extra: dict):
    """Return the context for a forward pass in the recipe's precision.

    Args:
        device: where the network is.
        extra: `amp` on CUDA and `amp_cpu` on a CPU: `bf16`, `fp16` (CUDA only) or `None`. Processors without bfloat16
            instructions compute in float32, which is faster there.

    Raises:
        ValueError: unknown precision.
    """
    name = "amp" if device.type == "cuda" else "amp_cpu"
    check_precision(name, extra)
    amp = extra.get(name)
    if amp is None or (device.type == "cpu" and not has_precision(device, amp)):
        return nullcontext()
    return torch.autocast(device.type, _AMP_DTYPES[amp])


def check_precision(name: str, extra: dict) -> None:
    """Check `amp` or `amp_cpu` of a recipe.

    Raises:
        ValueError: unknown precision.
    """
    if extra.get(name) not in (None, *PRECISIONS[name]):
        raise ValueError(f"{name} must be one of {', '.join(PRECISIONS[name])} or None, got `{extra[name]}`")


def train_step(batch_data: dict, run_info) -> dict:
    """Update the weights with one batch.

    Returns:
        `EMA`: each loss term as `loss_<branch>_<term>` (unweighted) and `overall_loss` (weighted sum), floats;
        `raw`: the first samples of the batch, for `viz_step_output`.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    nets, where = run_info
    net_info = nets["net"]
    model, optimizer, extra = net_info["desc"], net_info["optimizer"], net_info["extra_info"]
    net = unwrapped(model)
    device = next(net.parameters()).device
    imgs, true = _to_device(batch_data, device, net.nr_types)

    model.train()
    optimizer.zero_grad(set_to_none=True)
    with autocast(device, extra):
        pred = model(imgs)
    pred = _activate(pred)
    loss, terms = weighted_loss(true, pred, extra)
    _update(model, optimizer, loss, net_info.get("scaler"), extra.get("clip_grad_norm"))

    # one transfer for all terms, so that the program waits for the GPU once a step
    values = torch.stack([*terms.values(), loss]).detach().tolist()
    tracked = dict(zip([*terms, "overall_loss"], values, strict=True))
    if not math.isfinite(tracked["overall_loss"]):
        raise FloatingPointError(
            f"the loss is not finite at epoch {where['epoch'] + 1}, step {where['step'] + 1} ({tracked}); "
            "lower the learning rate, or set `clip_grad_norm` in the recipe"
        )
    return {"EMA": tracked, "raw": _first_samples(batch_data["img"], true, pred, NR_TRAIN_PICTURES, net_info)}


def weighted_loss(true: dict[str, Tensor], pred: dict[str, Tensor], extra: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the loss terms that a recipe names.

    Args:
        true: `np` (B, h, w), `hv` (B, h, w, 2), maybe `tp` (B, h, w), and `known` (B, h, w) where types are unknown.
        pred: `np` (B, h, w, 2), `hv` (B, h, w, 2), maybe `tp` (B, h, w, T): probabilities, and HV as it is.
        extra: `loss` {branch: {term: weight}}, of which terms of weight 0 are not computed; maybe `msge_axis`,
            `tp_class_weights`.

    Returns:
        The weighted sum, and `{"loss_<branch>_<term>": unweighted term}`.
    """
    focus = (true["np"] > 0).float()
    total, terms = 0.0, {}
    if "known" in true:  # the TP branch gets a row of the pixels with a known type, (1, 1, M)
        known = true["known"]
        weight = extra["loss"]["tp"].get("any_type", 0)
        if weight:
            term = any_type_loss(pred["tp"][~known])
            terms["loss_tp_any_type"] = term.detach()
            total = weight * term
        true = {**true, "tp": true["tp"][known][None, None]}
        pred = {**pred, "tp": pred["tp"][known][None, None]}
    targets = {name: F.one_hot(true[name], pred[name].shape[-1]).float() for name in pred if name != "hv"}
    targets["hv"] = true["hv"]
    for branch in pred:
        weights = {name: w for name, w in extra["loss"][branch].items() if w != 0 and name != "any_type"}
        if not pred[branch].numel():  # not one known type in the batch
            weights = {}
        if not weights:  # DistributedDataParallel needs gradients of every branch
            total = total + 0.0 * pred[branch].sum()
        for name, weight in weights.items():
            options = {}
            if name == "msge":
                options = {"focus": focus, "axis": extra.get("msge_axis", "upstream")}
            elif branch == "tp" and name != "mse" and extra.get("tp_class_weights") is not None:
                options = {"class_weights": torch.as_tensor(extra["tp_class_weights"], device=focus.device).float()}
            term = LOSSES[name](targets[branch], pred[branch], **options)
            terms[f"loss_{branch}_{name}"] = term.detach()
            total = total + weight * term
    return total, terms


def valid_step(batch_data: dict, run_info) -> dict:
    """Predict one batch and count; keeps no images but a few samples.

    Returns:
        `raw`: lists with one entry an image, to be appended over the batches: pixel counts of NP and TP, summed squared
        error of HV, and `sample` (one of each of the first batches) for the picture.
    """
    nets, where = run_info
    net_info = nets["net"]
    model = net_info["desc"]
    net = unwrapped(model)
    device = next(net.parameters()).device
    imgs, true = _to_device(batch_data, device, net.nr_types)

    # DistributedDataParallel does nothing without gradients; DataParallel splits the batch
    forward = model if isinstance(model, nn.DataParallel) else net
    forward.eval()
    with torch.no_grad(), autocast(device, net_info["extra_info"]):
        pred = _activate(forward(imgs))
        raw = _count(true, pred, net_info.get("np_threshold", NP_THRESHOLD))
    raw = {name: list(value.cpu().numpy()) for name, value in raw.items()}
    raw["sample"] = []
    if where.get("epoch_step", where["step"]) < NR_VALID_PICTURES:
        raw["sample"].append(_to_numpy(_first_samples(batch_data["img"], true, pred, 1, net_info)))
    return {"raw": raw}


def proc_valid_step_output(raw_data: dict, nr_types: int | None = None) -> dict:
    """Turn the counts of `valid_step` over a data set into scores.

    Returns:
        `scalar`: `np_acc`, `np_dice`, `tp_dice_<type>` for every type (0 included; none where all nuclei are of unknown
        type), `hv_mse` (sum over both maps, mean over pixels), as upstream; `image`: `output`, a picture, where there
        are samples.
    """
    total = {name: np.sum(value, axis=0) for name, value in raw_data.items() if name != "sample"}

    def dice(branch: str):
        return 2 * total[f"{branch}_overlap"] / (total[f"{branch}_area"] + _DICE_EPSILON)

    scalar = {"np_acc": float(total["np_correct"] / total["pixels"]), "np_dice": float(dice("np"))}
    # no nucleus has a type: nothing to score
    is_untyped = total.get("tp_unknown", 0) > 0 and total["tp_nuclear"] == 0
    if nr_types is not None and not is_untyped:
        scalar.update({f"tp_dice_{type_id}": float(value) for type_id, value in enumerate(dice("tp"))})
    scalar["hv_mse"] = float(total["hv_squared_error"] / total["pixels"])
    samples = raw_data.get("sample", [])[:NR_VALID_PICTURES]
    image = {"output": np.concatenate([viz_step_output(s, nr_types) for s in samples])} if samples else {}
    return {"scalar": scalar, "image": image}


def viz_step_output(raw_data: dict, nr_types: int | None = None) -> np.ndarray:
    """Draw samples: per sample one row of the truth and one of the prediction; image, NP, HV x, HV y, TP.

    Args:
        raw_data: `img` (N, H, W, 3), and `np`, `hv`, maybe `tp`, each `(true, pred)`; arrays or tensors. Maybe
            `type_info`, colours of the types; a default palette if left out.
        nr_types: number of types; TP is drawn where `raw_data` has it.

    Returns:
        (N * 2 * h, 4 or 5 * w, 3) uint8, RGB.
    """
    raw_data = _to_numpy(raw_data)
    rows = []
    for index, img in enumerate(raw_data["img"]):
        shape = raw_data["np"][0][index].shape[:2]
        for side in (0, 1):  # truth, prediction
            hv = raw_data["hv"][side][index]
            tiles = [
                cropping_center(img, shape),
                colorize(raw_data["np"][side][index], 0, 1),
                colorize(hv[..., 0], -1, 1),
                colorize(hv[..., 1], -1, 1),
            ]
            if "tp" in raw_data:
                tp = raw_data["tp"][side][index]
                info = raw_data.get("type_info") or default_type_info(nr_types or int(tp.max()) + 1)
                tiles.append(colorize_types(tp, info))
            rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _to_device(batch_data: dict, device: torch.device, nr_types: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    imgs = batch_data["img"].to(device, non_blocking=True).permute(0, 3, 1, 2).float()  # (B, 3, H, W)
    imgs = imgs.contiguous(memory_format=torch.channels_last)
    hv = batch_data["hv_map"].to(device, non_blocking=True).float()  # (B, h, w, 2)
    # `reshape`, not `squeeze`: a batch of one stays a batch
    plane = hv.shape[:3]
    true = {"np": batch_data["np_map"].to(device, non_blocking=True).long().reshape(plane), "hv": hv}
    if nr_types is not None:
        true["tp"] = batch_data["tp_map"].to(device, non_blocking=True).long().reshape(plane)
        if (batch_data["tp_map"] == UNKNOWN_TYPE).any():  # checked before the copy to the GPU, so nothing waits for it
            true["known"] = true["tp"] != UNKNOWN_TYPE
    return imgs, true


def _activate(pred: dict[str, Tensor]) -> dict[str, Tensor]:
    """Channels last, float32, softmax on NP and TP; float32 also where the network ran in half precision."""
    pred = {name: value.permute(0, 2, 3, 1).float() for name, value in pred.items()}
    return {name: value if name == "hv" else F.softmax(value, dim=-1) for name, value in pred.items()}


def _update(model: nn.Module, optimizer, loss: Tensor, scaler, clip_grad_norm: float | None) -> None:
    """Back-propagate and step; `scaler` scales the loss for fp16, `clip_grad_norm` bounds the gradient's norm."""
    (loss if scaler is None else scaler.scale(loss)).backward()
    if clip_grad_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _count(true: dict[str, Tensor], pred: dict[str, Tensor], np_threshold: float) -> dict[str, Tensor]:
    """Per image (first axis): pixels, right ones, overlap and area of NP and of each type, squared error of HV."""
    positive, truth = pred["np"][..., 1] > np_threshold, true["np"] == 1
    plane = (1, 2)
    counts = {
        "pixels": torch.full_like(true["np"][:, 0, 0], truth[0].numel()),
        "np_correct": (positive.long() == true["np"]).sum(plane),
        "np_overlap": (positive & truth).sum(plane),
        "np_area": positive.sum(plane) + truth.sum(plane),
        "hv_squared_error": (pred["hv"] - true["hv"]).double().square().sum((1, 2, 3)),
    }
    if "tp" in pred:
        nr_types = pred["tp"].shape[-1]
        known = true["tp"] != UNKNOWN_TYPE
        # (B, h, w, T), 0 where the type is unknown
        chosen, wanted = (
            F.one_hot(types * known, nr_types) * known[..., None] for types in (pred["tp"].argmax(-1), true["tp"])
        )
        counts["tp_overlap"] = (chosen * wanted).sum(plane)
        counts["tp_area"] = chosen.sum(plane) + wanted.sum(plane)
        counts["tp_unknown"] = (~known).sum(plane)
        counts["tp_nuclear"] = wanted[..., 1:].sum((1, 2, 3))
    return counts


def _first_samples(imgs: Tensor, true: dict[str, Tensor], pred: dict[str, Tensor], count: int, net_info: dict) -> dict:
    shown = {name: value[:count].detach() for name, value in pred.items()}
    shown["np"] = shown["np"][..., 1]
    if "tp" in shown:
        shown["tp"] = shown["tp"].argmax(-1)
    pairs = {name: (true[name][:count], value) for name, value in shown.items()}
    return {"img": imgs[:count], **pairs, "type_info": net_info.get("type_info")}


def _to_numpy(raw: dict) -> dict:
    def convert(value):
        return value.cpu().numpy() if isinstance(value, Tensor) else value

    return {name: tuple(map(convert, v)) if isinstance(v, tuple) else convert(v) for name, v in raw.items()}
