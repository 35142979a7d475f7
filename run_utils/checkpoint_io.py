"""Training checkpoints: upstream's three parts, and what taking a run up again needs besides.

`<net>_epoch=N.tar`: `desc` (weights without `module.` prefixes, so that upstream loads them strictly), `optimizer`,
`lr_scheduler`; ours add `meta` (what the network is, how it was made) and `resume` (where the run was).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from misc.files import atomic_path

_EPOCH_NAME = re.compile(r"_epoch=(\d+)\.tar$")


class SaveError(OSError):
    """A checkpoint could not be written; the one before it is still whole."""


@dataclass(frozen=True)
class Resume:
    """A moment a run can be taken up from.

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
    """Write one network with everything that belongs to it; the file is the old one or the whole new one.

    Args:
        path: the file.
        net_info: `desc`, `optimizer`, `lr_scheduler`, maybe `scaler`.
        meta: plain values that describe the network.
        resume: where the run is, plain values.

    Raises:
        SaveError: it could not be written, e.g. the disk is full.
    """
    path = Path(path)
    network = getattr(net_info["desc"], "module", net_info["desc"])
    content = {
        "desc": network.state_dict(),
        "optimizer": net_info["optimizer"].state_dict(),
        "lr_scheduler": net_info["lr_scheduler"].state_dict(),
        "meta": meta,
        "resume": resume,
    }
    if net_info.get("scaler") is not None:
        content["scaler"] = net_info["scaler"].state_dict()
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        last = last_checkpoint(path.parent, path.name.split("_")[0])
        kept = (
            f"the last good checkpoint is {last}; make room and go on with --resume" if last else "none was saved yet"
        )
        raise SaveError(f"could not save {path} ({str(error).splitlines()[0]}); {kept}") from error


def last_checkpoint(log_dir: str | Path, net_name: str) -> Path | None:
    """Return `<net>_epoch=N.tar` with the largest N, or `None`."""
    files = [
        (int(match[1]), path) for path in Path(log_dir).glob(f"{net_name}_epoch=*.tar") if (match := _number(path))
    ]
    return max(files)[1] if files else None


def read_resume(log_dir: str | Path, net_name: str = "net") -> Resume:
    """Find and read the latest moment that a phase can be taken up from; its beginning where nothing was saved.

    A checkpoint of the original repository counts: the epoch is in its name.

    Raises:
        ValueError: the file is damaged.
    """
    moments = []
    by_epoch, by_step = last_checkpoint(log_dir, net_name), Path(log_dir, f"{net_name}_step.tar")
    if by_epoch is not None:
        moments.append(_read(by_epoch, {"epoch": int(_number(by_epoch)[1]), "epoch_step": 0}))
    if by_step.is_file():
        moments.append(_read(by_step, {}))
    return max(moments, key=lambda moment: (moment.epoch, moment.epoch_step), default=Resume())


def restore(net_info: dict, resume: Resume) -> None:
    """Put weights, optimizer, schedule and loss scale back to where they were.

    Raises:
        ValueError: the checkpoint is of another network or optimizer.
    """
    content, network = resume.content, getattr(net_info["desc"], "module", net_info["desc"])
    weights = {name.removeprefix("module."): value for name, value in content["desc"].items()}
    try:
        network.load_state_dict(weights)
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


def remove_parts(log_dir: str | Path, net_name: str) -> None:
    """Remove the temporary files that a killed run left while saving; they have no other name."""
    for path in Path(log_dir).glob(f".{net_name}_*.part.tar"):
        path.unlink()


def _number(path: Path) -> re.Match | None:
    return _EPOCH_NAME.search(path.name)


def _read(path: Path, default: dict) -> Resume:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        missing = [key for key in ("desc", "optimizer", "lr_scheduler") if key not in content]
    except Exception as error:  # a damaged file makes the unpickler raise anything, struct.error included
        raise ValueError(
            f"{path} is damaged ({str(error).splitlines()[0]}); remove it to go on from the one before"
        ) from error
    if missing:
        raise ValueError(f"{path} cannot be resumed from, it lacks {missing}; name it in `pretrained` instead")
    where = {**default, **content.get("resume", {})}
    return Resume(path, where["epoch"], where["epoch_step"], content)
