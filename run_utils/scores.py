"""Scores of types in `stats.json`: their names, their weight beside the scores of nuclei, and the best epoch.

A score of a type is `<engine>-<score>_<type>`, as `valid-tp_dice_3`. Type 0 is background, never a nucleus' type, and
is in no mean.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from misc.type_info import TypeInfo, type_name

_OF_TYPE = re.compile(r"(.*(?:tp_dice|img_f1))_(\d+)")


def labelled(name: str, type_info: TypeInfo | None) -> str:
    """Return the name of a score, followed by the name of its type, if it has one."""
    match = _OF_TYPE.fullmatch(name)
    if not match or not type_info:
        return name
    called = type_name(int(match[2]), type_info) if int(match[2]) else "background"
    return name if called == match[2] else f"{name} {called}"


def type_scores(stats: dict[str, float], prefix: str) -> list[float]:
    """Return the finite scores `<prefix>_<type>` of an epoch, of types 1, 2, ..."""
    found = {int(match[2]): stats[name] for name in stats if (match := _OF_TYPE.fullmatch(name)) and match[1] == prefix}
    return [value for key, value in sorted(found.items()) if key > 0 and math.isfinite(value)]


def combined(stats: dict[str, float], metric: str, types: str | None) -> float:
    """Return a score of an epoch; with `types`, the mean of it and of the types' mean score. NaN if one is missing."""
    value = stats.get(metric, math.nan)
    if types is None:
        return value
    values = type_scores(stats, types)
    return (value + sum(values) / len(values)) / 2 if values else math.nan


def first_known(names: Sequence[str], stats: dict[str, dict[str, float]]) -> str | None:
    """Return the first of these scores that any epoch has."""
    return next((name for name in names if any(name in epoch for epoch in stats.values())), None)


def first_known_types(prefixes: Sequence[str], stats: dict[str, dict[str, float]]) -> str | None:
    """Return the first of these scores of types that any epoch has."""
    return next((p for p in prefixes if any(type_scores(epoch, p) for epoch in stats.values())), None)


def describe_best(path: Path, best: dict, stats: dict[str, dict[str, float]], type_info, on_cpu: bool) -> list[str]:
    """Return lines that name the best epoch, its scores, and how to use it.

    Args:
        path: of the checkpoint.
        best: `{"metric", "value", "epoch"}` of its `meta`.
        stats: of the phase, `{epoch: {name: value}}`.
        type_info: names of the types; `None` without types.
        on_cpu: whether the run was on a CPU.
    """
    shown = {labelled(n, type_info): v for n, v in stats.get(str(best["epoch"]), {}).items() if n.startswith("valid-")}
    width = max(map(len, shown), default=0)
    gpu = "--gpu= " if on_cpu else ""
    return [
        f"best of {len(stats)} epochs: {best['epoch']}, by {best['metric']} ({best['value']:.4f}):",
        *(f"  {name.ljust(width)} : {value:.5f}" for name, value in shown.items()),
        f"to use it: python run_infer.py {gpu}--model_path={shlex.quote(str(path))} tile --input_dir=<images> "
        "--output_dir=<results> --mpp=<um/px of the images>",
    ]
