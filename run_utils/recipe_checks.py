"""Checks of a hand-edited recipe before the first step; every error is one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import optim

from dataloader.augs import draw_out_of_focus, jitter_stains
from dataloader.restain import CLASS_COUNTS
from models.hovernet.encoder_init import check_pretrained
from models.hovernet.losses import BRANCH_LOSSES, MSGE_AXES
from models.hovernet.net_desc import PATCH_SHAPES, output_size
from models.hovernet.train_step import PRECISIONS, check_precision

from .checkpoint_io import check_storable

_PHASE_KEYS = ("run_info", "target_info", "batch_size", "nr_epochs")
_NET_KEYS = ("desc", "optimizer", "lr_scheduler", "extra_info", "pretrained")
_ENGINE_KEYS = ("run_step", "nr_procs", "callbacks")
# Counts that callbacks divide by.
_PERIODS = ("per_n_epoch", "per_n_step", "keep_every")


def check_recipe(model_config: dict, nr_types: int | None, first_fresh: int = 0) -> None:
    """Check what a hand-edited recipe often gets wrong.

    Args:
        model_config: what `get_config` returned.
        nr_types: number of types with the background, or `None`.
        first_fresh: index of the first phase that starts at its beginning, and so needs its `pretrained` file.

    Raises:
        ValueError, FileNotFoundError: a value would stop the run later; the message names it.
    """
    engines = model_config["run_engine"]
    for name in ("train", "valid"):
        if name not in engines:
            raise ValueError(f"the recipe has no `{name}` engine in `run_engine`")
    for name, engine in engines.items():
        _check_engine(name, engine, engines, nr_types)
    for index, phase in enumerate(model_config["phase_list"]):
        where = f"phase {index}"
        _check_phase(phase, where, engines)
        for name, net_info in phase["run_info"].items():
            _need(net_info, _NET_KEYS, f"{where}: `{name}`")
            _check_start(net_info["pretrained"], index, first_fresh)
            _check_norm(net_info.get("pretrained_norm"), where)
            check_extra(net_info["extra_info"], nr_types, where)
            _check_optimizer(net_info, name, where)


def check_shapes(shape_info: dict, mode: str) -> None:
    """Check that the targets are as large as the output of a network of this mode.

    Args:
        shape_info: `{"train" or "valid": {"input_shape": (h, w), "mask_shape": (h, w)}}`, px.
        mode: of the network.

    Raises:
        ValueError: they are not.
    """
    for name, shapes in shape_info.items():
        got = tuple(shapes["mask_shape"])
        wanted = tuple(output_size(mode, side) for side in shapes["input_shape"])
        if got != wanted:
            raise ValueError(
                f"shape_info of `{name}`: a `{mode}` network turns {tuple(shapes['input_shape'])} into {wanted}, but "
                f"mask_shape is {got}; the usual ones are in SHAPES in models/hovernet/opt.py {PATCH_SHAPES[mode]}"
            )


def check_extra(extra: dict, nr_types: int | None, where: str) -> None:
    """Check losses, precision, average and clipping of one network.

    Args:
        extra: `extra_info` of the recipe.
        nr_types: number of types with the background, or `None`.
        where: the phase, for messages.

    Raises:
        ValueError: a training step cannot use a value.
    """
    _check_loss(extra.get("loss"), ("np", "hv") if nr_types is None else ("np", "hv", "tp"), where)
    axis = extra.get("msge_axis", MSGE_AXES[0])
    if axis not in MSGE_AXES:
        raise ValueError(f"{where}: msge_axis must be one of {', '.join(MSGE_AXES)}, got `{axis}`")
    for name in PRECISIONS:
        check_precision(name, extra)
    decay = extra.get("ema")
    if decay is not None and not (_is_weight(decay) and 0 < decay < 1):
        raise ValueError(f"{where}: ema must be a number between 0 and 1, e.g. 0.999, or None, got {decay!r}")
    clip = extra.get("clip_grad_norm")
    if clip is not None and not (_is_weight(clip) and clip > 0):
        raise ValueError(f"{where}: clip_grad_norm must be a number above 0, or None, got {clip!r}")
    weights = extra.get("tp_class_weights")
    if weights is None or nr_types is None:
        return
    weights = _as_list(weights)
    if weights is None:
        raise ValueError(
            f"{where}: tp_class_weights must be a list, one number a type, got {extra['tp_class_weights']}"
        )
    if len(weights) != nr_types:
        raise ValueError(f"{where}: tp_class_weights has {len(weights)} values for {nr_types} types (0 included)")
    if not all(map(_is_weight, weights)) or not any(weights):
        raise ValueError(f"{where}: tp_class_weights must be numbers from 0 up, not all of them 0, got {weights}")


def make_optimizer(net_info: dict, parameters: Iterable, nr_steps: int):
    """Make the optimizer and the schedule that a recipe describes.

    Args:
        net_info: `optimizer` is `[class, options]`; `lr_scheduler` takes the optimizer, and maybe the number of steps.
        parameters: of the network.
        nr_steps: steps of the whole phase.

    Returns:
        The optimizer and the schedule.
    """
    optimizer_class, options = net_info["optimizer"]
    optimizer = optimizer_class(parameters, **options)
    schedule = net_info["lr_scheduler"]
    by_step = len(inspect.signature(schedule).parameters) == 2
    return optimizer, schedule(optimizer, nr_steps) if by_step else schedule(optimizer)


def _check_engine(name: str, engine: dict, engines: dict, nr_types: int | None) -> None:
    _need(engine, _ENGINE_KEYS, f"engine `{name}`")
    if not isinstance(engine["nr_procs"], int) or engine["nr_procs"] < 0:
        raise ValueError(f"engine `{name}`: nr_procs must be a whole number from 0 up, got {engine['nr_procs']!r}")
    power = engine.get("type_sampling")
    if power is not None and not _is_weight(power):
        raise ValueError(f"engine `{name}`: type_sampling must be a number from 0 up, or None, got {power!r}")
    _check_restain(engine.get("restain"), nr_types, f"engine `{name}`")
    for key, function in (("stain_jitter", jitter_stains), ("defocus", draw_out_of_focus)):
        _check_augmentation(key, function, engine.get(key, False), f"engine `{name}`")
    for callback in (callback for callbacks in engine["callbacks"].values() for callback in callbacks):
        target = getattr(callback, "triggered_engine_name", None)
        if target is not None and target not in engines:
            raise ValueError(f"a callback of `{name}` triggers `{target}`, which `run_engine` does not have")
        for key in _PERIODS:
            value = getattr(callback, key, None)  # `per_n_step: None` saves by epoch
            if value is not None:
                _need_count(value, f"engine `{name}`: {key} of {type(callback).__name__}")


def _check_augmentation(key: str, function, options, where: str) -> None:
    """Check an augmentation by changing one pixel with it: its options are arguments of a function."""
    wanted = f"{where}: {key} must be True, False, or options of dataloader.augs.{function.__name__}"
    if not isinstance(options, bool | dict):
        raise ValueError(f"{wanted}, got {options!r}")
    if isinstance(options, dict):
        try:
            function([np.zeros((1, 1, 3), np.uint8)], np.random.default_rng(0), None, None, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{wanted}, got {options!r}: {error}") from error


def _check_restain(options, nr_types: int | None, where: str) -> None:
    if options is None:
        return
    numbers = [options.get(key) for key in ("share", "mpp")] if isinstance(options, dict) else [None]
    right = all(map(_is_weight, numbers)) and numbers[0] <= 1 and numbers[1] > 0
    if not right or options.get("classes") not in (None, *CLASS_COUNTS) or options.keys() - {"share", "classes", "mpp"}:
        wanted = '{"share": 0 to 1, "classes": 2, 4 or None, "mpp": um/px}'
        raise ValueError(f"{where}: restain must be {wanted}, or None, got {options!r}")
    classes = options.get("classes")
    if classes and nr_types not in (None, classes + 1):
        raise ValueError(
            f"{where}: restain makes {classes} classes, so nr_type is {classes + 1} with the background, got {nr_types}"
        )


def _check_phase(phase: dict, where: str, engines: dict) -> None:
    _need(phase, _PHASE_KEYS, where)
    sizes = phase["batch_size"]
    if not isinstance(sizes, dict):
        raise ValueError(
            f"{where}: batch_size must be {{engine: number}}, e.g. {{'train': 4, 'valid': 8}}, got {sizes!r}"
        )
    for name in engines:
        _need_count(sizes.get(name), f"{where}: batch_size of `{name}`")
    _need_count(phase["nr_epochs"], f"{where}: nr_epochs")


def _check_start(pretrained, index: int, first_fresh: int) -> None:
    if pretrained == -1 and index == 0:
        raise ValueError("phase 0 has `pretrained: -1`, but there is no phase before it; name a file, or None")
    if pretrained not in (None, -1) and index >= first_fresh:
        check_pretrained(pretrained)


def _check_norm(norm, where: str) -> None:
    if norm is None:
        return
    parts = [_as_list(part) or [] for part in _as_list(norm) or []]
    right = [len(part) for part in parts] == [3, 3] and all(map(_is_weight, (*parts[0], *parts[1]))) and all(parts[1])
    if not right:
        raise ValueError(
            f"{where}: pretrained_norm must be (mean, std), three numbers each, std above 0, or None; got {norm!r}"
        )


def _check_optimizer(net_info: dict, name: str, where: str) -> None:
    """Make optimizer and schedule once: this checks their options, and that a checkpoint can hold them."""
    weight = torch.nn.Parameter(torch.zeros(1))
    try:
        optimizer, schedule = make_optimizer(net_info, [weight], nr_steps=100)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{where}: optimizer or lr_scheduler of `{name}`: {error}") from error
    if not isinstance(optimizer, optim.Optimizer):
        raise ValueError(f"{where}: optimizer of `{name}` is a {type(optimizer).__name__}, not a torch optimizer")
    check_storable({"optimizer": optimizer, "lr_scheduler": schedule}, f"{where}, `{name}`")


def _check_loss(loss, branches: tuple[str, ...], where: str) -> None:
    if not isinstance(loss, dict) or not all(isinstance(terms, dict) for terms in loss.values()):
        raise ValueError(f"{where}: extra_info needs `loss`: {{branch: {{term: weight}}}}, got {loss!r}")
    for branch, terms in loss.items():
        if branch not in BRANCH_LOSSES:
            raise ValueError(f"{where}: loss of an unknown branch `{branch}`; there is {', '.join(BRANCH_LOSSES)}")
        for term, weight in terms.items():
            if term not in BRANCH_LOSSES[branch]:
                known = ", ".join(BRANCH_LOSSES[branch])
                raise ValueError(f"{where}: loss of `{branch}` has no term `{term}`; there is {known}")
            if not _is_weight(weight):
                raise ValueError(
                    f"{where}: weight of `{term}` of `{branch}` must be a number from 0 up, got {weight!r}"
                )
    for branch in branches:
        if branch not in loss:
            raise ValueError(
                f"{where}: the network has a branch `{branch}`, but `loss` has none; "
                f'`"{branch}": {{}}` leaves it untrained'
            )
    if not any(weight for branch in branches for weight in loss[branch].values()):
        raise ValueError(f"{where}: no loss term has a weight above 0")


def _need(values: dict, keys: tuple[str, ...], where: str) -> None:
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(f"{where} of the recipe lacks {', '.join(missing)}")


def _need_count(value, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} must be a whole number, at least 1, got {value!r}")


def _as_list(value) -> list | None:
    """Return a list, tuple or array as a list, and `None` for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, list | tuple) else None


def _is_weight(value) -> bool:
    """Whether this is a finite number from 0 up."""
    try:
        return not isinstance(value, str | bool) and math.isfinite(value) and value >= 0
    except TypeError:
        return False
