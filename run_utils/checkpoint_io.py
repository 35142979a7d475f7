"""Training checkpoints: upstream's three parts, and what a resumed run needs besides.

`<net>_epoch=N.tar`: `desc` (weights without `module.` prefixes, so that upstream loads them strictly), `optimizer`,
`lr_scheduler`; ours add `meta` (what the network is, how it was made), `resume` (where the run was) and, for fp16,
`scaler`. Where weights are averaged, `desc` is the average, and training resumes from `raw` and `nr_averaged`.
"""

from __future__ import annotations

import pickle
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from misc.files import atomic_path

from .disk_full import SaveError, is_disk_full
from .plain_values import storable

_EPOCH_NAME = re.compile(r"_epoch=(\d+)\.tar$")
# The name, in torch's message, of the first object that it refuses to load.
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
# Temporary names of the files of a phase, which `misc.files.atomic_path` made.
_PARTS = (".*_*.part.tar", ".stats.*.part.json", ".config.*.part.json", ".steps.*.part.csv")
_MB = 1e6


@dataclass(frozen=True)
class Resume:
    """A moment that a run can resume from.

    Attributes:
        path: the file; `None` for the very beginning.
        epoch: epochs completed.
        epoch_step: steps completed in the next one.
        content: the whole file, tensors on the CPU.
    """

    path: Path | None = None
    epoch: int = 0
    epoch_step: int = 0
    content: dict = field(default_factory=dict)


def save_checkpoint(path: str | Path, net_info: dict, meta: dict, resume: dict) -> None:
    """Write one network with its optimizer, schedule and average; if that fails, an older file stays as it was.

    Args:
        path: the file.
        net_info: `desc`, `optimizer`, `lr_scheduler`, maybe `average` and `scaler`.
        meta: plain values that describe the network.
        resume: where the run is, plain values.

    Raises:
        SaveError: the file could not be written, e.g. the disk is full.
        ValueError: a value is not one that a checkpoint can hold.
    """
    path = Path(path)
    content = {**_states(net_info), "meta": meta, "resume": resume}
    content = {**_weights(net_info), **{key: storable(value, key) for key, value in content.items()}}
    # asked before saving: torch keeps an unfinished file open, and its space in use, while its error is handled
    needed, free = _size(content), shutil.disk_usage(path.parent).free
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        full = is_disk_full(error) or free < needed
        reason = "disk full" if full else getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SaveError(
            f"could not save {path} ({reason}; {needed / _MB:.1f} MB "
            f"needed, {free / _MB:.1f} MB free); {what_is_left(path.parent, path.name.split('_')[0])}"
        ) from error


def what_is_left(log_dir: Path, net_name: str = "net") -> str:
    """Return a text that names the last good checkpoint of a phase or of the phases before it, and how to go on."""
    is_phase = re.fullmatch(r"\d\d", log_dir.name)
    earlier = [path for path in log_dir.parent.glob("[0-9][0-9]") if is_phase and path.name < log_dir.name]
    for folder in (log_dir, *sorted(earlier, reverse=True)):
        try:
            last = read_resume(folder, net_name).path
        except ValueError:
            last = last_checkpoint(folder, net_name)
        if last is not None:
            return f"the last good checkpoint is {last}; make room and go on with --resume"
    return "none was saved yet; make room and go on with --resume"


def check_storable(net_info: dict, name: str) -> None:
    """Check that optimizer and schedule can be saved.

    Args:
        net_info: `optimizer` and `lr_scheduler`, before any step.
        name: of phase and network, for the message.

    Raises:
        ValueError: they hold a value that no checkpoint can hold.
    """
    for key, state in _states(net_info).items():
        storable(state, f"{name}: {key}")


def _network(net_info: dict) -> torch.nn.Module:
    return getattr(net_info["desc"], "module", net_info["desc"])


def _weights(net_info: dict) -> dict:
    raw, average = _network(net_info).state_dict(), net_info.get("average")
    if average is None:
        return {"desc": raw}
    return {"desc": average.module.state_dict(), "raw": raw, "nr_averaged": int(average.n_averaged)}


def _states(net_info: dict) -> dict:
    """Return the states of optimizer, schedule and loss scale."""
    parts = ("optimizer", "lr_scheduler", "scaler")
    return {name: net_info[name].state_dict() for name in parts if net_info.get(name) is not None}


def _size(content) -> int:
    """Return the bytes of the tensors in a checkpoint, which are nearly all of it."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        return sum(map(_size, content.values()))
    return sum(map(_size, content)) if isinstance(content, list | tuple) else 0


def last_checkpoint(log_dir: str | Path, net_name: str) -> Path | None:
    """Return `<net>_epoch=N.tar` with the largest N, or `None`."""
    files = [
        (int(match[1]), path) for path in Path(log_dir).glob(f"{net_name}_epoch=*.tar") if (match := _number(path))
    ]
    return max(files)[1] if files else None


def read_resume(log_dir: str | Path, net_name: str = "net") -> Resume:
    """Find and read the latest moment that a phase can resume from; its beginning if nothing was saved.

    Checkpoints of the original repository count too: the epoch is in their name.

    Raises:
        ValueError: the file is damaged, or lacks what a resume needs.
    """
    moments = []
    by_epoch, by_step = last_checkpoint(log_dir, net_name), Path(log_dir, f"{net_name}_step.tar")
    if by_epoch is not None:
        moments.append(_read(by_epoch, {"epoch": int(_number(by_epoch)[1]), "epoch_step": 0}))
    if by_step.is_file():
        moments.append(_read(by_step, {}))
    return max(moments, key=lambda moment: (moment.epoch, moment.epoch_step), default=Resume())


def restore(net_info: dict, resume: Resume) -> None:
    """Load weights, their average, optimizer, schedule and loss scale from a checkpoint.

    Raises:
        ValueError: the checkpoint is from another network or optimizer.
    """
    content, average = resume.content, net_info.get("average")
    weights = {name.removeprefix("module."): value for name, value in content["desc"].items()}
    try:
        _network(net_info).load_state_dict(content.get("raw", weights))
        if average is not None:
            average.module.load_state_dict(weights)
            average.n_averaged.fill_(content.get("nr_averaged", 0))  # 0: it begins here
        net_info["optimizer"].load_state_dict(content["optimizer"])
        net_info["lr_scheduler"].load_state_dict(content["lr_scheduler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{resume.path} does not fit this configuration ({str(error).splitlines()[0]}); set mode, number of types "
            "and optimizer as they were, or name the file in `pretrained` and another log_dir to start from its weights"
        ) from error
    # upstream saves before it steps the schedule of the epoch
    if content["lr_scheduler"].get("last_epoch") == resume.epoch - 1 and "resume" not in content:
        net_info["lr_scheduler"].step()
    if net_info.get("scaler") is not None and "scaler" in content:
        net_info["scaler"].load_state_dict(content["scaler"])


def remove_parts(log_dir: str | Path) -> None:
    """Remove the temporary files that a killed run left unfinished."""
    for pattern in _PARTS:
        for path in Path(log_dir).glob(pattern):
            path.unlink()


def remove_obsolete(resume: Resume) -> None:
    """Remove the checkpoints that this one replaced, in case a kill came between saving it and removing them."""
    callbacks = resume.content.get("resume", {}).get("callbacks", {})
    for name in (name for state in callbacks.values() for name in state.get("obsolete", [])):
        path = resume.path.parent / Path(name).name
        if path != resume.path and path.suffix == ".tar":
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict:
    """Read a training checkpoint, tensors on the CPU.

    Raises:
        ValueError: the file cannot be read; the message says why, and what to do.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
    except Exception as error:  # a damaged file makes the unpickler raise anything, struct.error included
        refused = _REFUSED.search(str(error))
        if refused and isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} is whole, but holds Python objects besides tensors ({refused[1]}), which are not loaded since "
                "they can run code; save it again with plain values in their place"
            ) from error
        raise ValueError(
            f"{path} is damaged ({(str(error) or type(error).__name__).splitlines()[0]}); remove it to go on from the "
            "one before"
        ) from error
    return content


def _number(path: Path) -> re.Match | None:
    return _EPOCH_NAME.search(path.name)


def _read(path: Path, default: dict) -> Resume:
    content = read_checkpoint(path)
    missing = [key for key in ("desc", "optimizer", "lr_scheduler") if key not in content]
    if missing:
        raise ValueError(f"{path} cannot be resumed from, it lacks {missing}; name it in `pretrained` instead")
    where = {**default, **content.get("resume", {})}
    return Resume(path, where["epoch"], where["epoch_step"], content)
