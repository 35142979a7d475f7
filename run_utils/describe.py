"""The effective configuration as plain values: saved beside the checkpoints, and compared when a run resumes."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from misc.type_info import load_type_info

from .plain_values import plain_scalar, storable

# State of a schedule that is not configuration: a counter, and functions (`_describe_factor` describes those).
_SCHEDULE_STATE = ("last_epoch", "lr_lambdas")
# Not compared on a resume: functions (no checkpoint has them), what follows from the optimizer, an option of old torch.
_NOT_OF_COURSE = ("lr_lambdas", "base_lrs", "verbose")


def describe_config(config, phase: dict, nets: dict) -> dict:
    """Return the settings of a phase as values that JSON and a checkpoint can hold.

    Args:
        config: a `config.Config`.
        phase: an entry of the recipe's `phase_list`.
        nets: the networks as the run made them, with optimizer and schedule.
    """
    values = {name: plain(value) for name, value in vars(config).items() if name != "model_config"}
    return {
        **values,
        "batch_size": plain(phase["batch_size"]),
        "nr_epochs": phase["nr_epochs"],
        "target_info": plain(phase["target_info"]),
        "nets": {name: _describe_net(info, phase["run_info"][name]) for name, info in nets.items()},
        "engines": plain(config.model_config["run_engine"]),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def meta_of_config(config, nr_types: int | None) -> dict:
    """Return `meta` of the configuration, with names and colours of the types, as values that a checkpoint can hold.

    Raises:
        ValueError: `meta` is not a dictionary of plain values, or the file of types is wrong.
    """
    meta = storable(getattr(config, "meta", None) or {}, "meta in config.py")
    if not isinstance(meta, dict):
        raise ValueError(f"meta in config.py must be a dictionary, got {meta!r}")
    path = getattr(config, "type_info_path", None)
    if path and nr_types is not None:
        info = load_type_info(path, nr_types)
        meta["types"] = {str(key): [name, list(rgb)] for key, (name, rgb) in info.items() if key is not None}
    return meta


def _describe_net(info: dict, recipe: dict) -> dict:
    net = getattr(info["desc"], "module", info["desc"])
    schedule = info["lr_scheduler"]
    state = {
        name: plain(value)
        for name, value in schedule.state_dict().items()
        if not name.startswith("_") and name not in _SCHEDULE_STATE
    }
    if hasattr(schedule, "lr_lambdas"):
        state["lr_lambdas"] = [_describe_factor(function) for function in schedule.lr_lambdas]
    return {
        "network": {name: plain(getattr(net, name, None)) for name in ("mode", "nr_types", "width", "freeze")},
        "optimizer": plain(recipe["optimizer"]),
        "lr_scheduler": {"class": type(schedule).__name__, **state},
        "extra_info": plain(info["extra_info"]),
        "pretrained": plain(recipe["pretrained"]),
        "pretrained_norm": plain(recipe.get("pretrained_norm")),
    }


def _describe_factor(function: Callable) -> dict:
    """Return the name of a function that computes learning rates, and the plain values in its closure."""
    values = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    simple = {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
    return {"name": plain(function), **plain(simple)}


def check_same_course(old: dict, new: dict, path: Path) -> None:
    """Check that the recipe still has the optimizer and schedule of a checkpoint: a resume takes their values from it.

    Args:
        old: the configuration in the checkpoint; empty for upstream's.
        new: the configuration of the recipe now.
        path: of the checkpoint.

    Raises:
        ValueError: the recipe was edited; a resume would ignore the edit.
    """
    changed = differences(_course(old), _course(new))
    if changed:
        raise ValueError(
            f"a resume goes on with optimizer and schedule of {path}, but the recipe has changed ({'; '.join(changed)}"
            "): undo the edit, or name the checkpoint in `pretrained` and another log_dir to start with the new values"
        )


def _course(described: dict) -> dict:
    """Return optimizer and schedule of each network, as far as they are compared."""
    return {
        name: {
            "optimizer": dict(zip(("class", "options"), net["optimizer"], strict=True)),
            "lr_scheduler": {key: v for key, v in net["lr_scheduler"].items() if key not in _NOT_OF_COURSE},
        }
        for name, net in described.get("nets", {}).items()
    }


def plain(value):
    """Turn a value into None, bool, int, float, str, list or dict; functions and classes become their names."""
    value = plain_scalar(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {_key(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, torch.device):
        return str(value)
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    if hasattr(value, "__dict__"):  # callbacks: their class and their arguments
        given = {name: plain(v) for name, v in vars(value).items() if isinstance(v, bool | int | float | str | list)}
        return {"class": type(value).__name__, **{name: v for name, v in given.items() if not name.startswith("_")}}
    return str(value)


def differences(old: dict, new: dict) -> list[str]:
    """Return the changes between two described configurations as `name: old -> new`; an empty `old` has none."""
    if not old:
        return []
    before, after = _flat(old), _flat(new)
    names = sorted(before.keys() | after.keys())
    return [f"{n}: {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def _flat(value, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {name: v for key, entry in value.items() for name, v in _flat(entry, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def _key(key) -> str:
    return getattr(key, "value", None) or str(key)  # an event's name
