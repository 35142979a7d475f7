"""Files that a run writes beside its checkpoints: `stats.json` by epoch, `steps.csv` by step, TensorBoard's events."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from misc.files import CsvWriter, write_atomic
from misc.type_info import TypeInfo
from misc.viz_utils import with_legend

from .callbacks.serialize import serialize
from .disk_full import writing
from .scores import labelled

_STEP_COLUMNS = ["epoch", "step"]


def read_stats(path: str | Path) -> dict[str, dict[str, float]]:
    """Read `stats.json`: `{epoch: {"<engine>-<name>": value}}`, epochs as strings; empty where there is no file.

    Raises:
        ValueError: the file is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to go on without the earlier statistics") from error


def truncate_logs(log_dir: str | Path, epoch: int, epoch_step: int) -> None:
    """Remove entries that are later than the moment from which a run resumes; it writes them again.

    Args:
        log_dir: folder of the phase.
        epoch: completed epochs.
        epoch_step: completed steps of the next epoch.

    Raises:
        ValueError: `stats.json` is damaged.
    """
    stats_file, steps_file = Path(log_dir, "stats.json"), Path(log_dir, "steps.csv")
    stats = read_stats(stats_file)
    with writing(stats_file):
        write_atomic(stats_file, json.dumps({key: value for key, value in stats.items() if int(key) <= epoch}))
    if not steps_file.is_file():
        return
    with open(steps_file, newline="", errors="replace") as handle:
        lines = handle.readlines()
    # a run killed at its first step leaves an empty file, or a piece of the header
    if not lines or not lines[0].endswith("\n") or not lines[0].startswith(",".join(_STEP_COLUMNS)):
        steps_file.unlink()
        return
    header = next(csv.reader(lines[:1]))
    # a killed run may leave an unfinished line, which is later than any checkpoint
    rows = [row for row in csv.reader(line for line in lines[1:] if "\0" not in line) if len(row) == len(header)]
    text = io.StringIO()
    CsvWriter(text).writerows([header, *(row for row in rows if _before(row, epoch, epoch_step))])
    with writing(steps_file):
        write_atomic(steps_file, text.getvalue())


def _before(row: list[str], epoch: int, epoch_step: int) -> bool:
    return all(map(str.isdigit, row[:2])) and (int(row[0]) - 1, int(row[1])) <= (epoch, epoch_step)


def log_epoch(log_info: dict, epoch: int, engine_name: str, output: dict) -> None:
    """Write `output` (`{"scalar": {name: value}, "image": {name: (H, W, 3)}}`) to console, JSON and TensorBoard.

    Values that `stats.json` already has for this epoch stay, unless a new one has the same name.
    """
    named = [
        (kind, f"{engine_name}-{name}", value) for kind, values in output.items() for name, value in values.items()
    ]
    said = [
        (labelled(name, log_info.get("type_info")), serialize(value, kind, "console")) for kind, name, value in named
    ]
    texts = {name: text for name, text in said if text is not None}
    width = max(map(len, texts), default=0)
    for name, text in texts.items():
        tqdm.write(f"  {name.ljust(width)} : {text}")

    stats = read_stats(log_info["json_file"])
    numbers = {name: number for kind, name, value in named if (number := serialize(value, kind, "json")) is not None}
    stats[str(epoch)] = {**stats.get(str(epoch), {}), **numbers}
    with writing(log_info["json_file"]):
        write_atomic(log_info["json_file"], json.dumps(stats, indent=1))
    writer = log_info.get("tfwriter")
    if writer is not None:
        with writing(f"TensorBoard's events beside {log_info['json_file']}"):
            _log_to_tensorboard(writer, named, epoch, log_info.get("type_info"))


def _log_to_tensorboard(writer, named: list[tuple], epoch: int, type_info: TypeInfo | None) -> None:
    for kind, name, value in named:
        if kind == "scalar":
            writer.add_scalar(name, serialize(value, kind, "tensorboard"), epoch)
        else:
            picture = with_legend(serialize(value, kind, "tensorboard"), type_info)
            writer.add_image(name, picture, epoch, dataformats="HWC")
    writer.flush()


def step_columns(path: str | Path, names: Iterable[str]) -> list[str]:
    """Return the columns of `steps.csv`, after adding those of these names that it lacks, empty in earlier rows.

    After an edit of the losses, a resumed run logs other values than before.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        return list(names)
    with open(path, newline="") as handle:
        header, *rows = csv.reader(handle)
    new = [name for name in names if name not in header]
    if new:
        text = io.StringIO()
        with writing(path):
            CsvWriter(text).writerows([header + new, *(row + [""] * len(new) for row in rows)])
            write_atomic(path, text.getvalue())
    return (header + new)[len(_STEP_COLUMNS) :]


def append_step(path: str | Path, epoch: int, step: int, values: dict[str, float], columns=None) -> None:
    """Append a line to `steps.csv`; epoch and step count from 1, numbers keep every digit.

    Args:
        path: the file; an empty or missing one gets a header.
        epoch, step: of the values.
        values: by name.
        columns: what `step_columns` returned; `None` for the names of the values.
    """
    path, columns = Path(path), list(values) if columns is None else columns
    new = not path.is_file() or path.stat().st_size == 0
    with writing(path), open(path, "a", newline="") as handle:
        writer = CsvWriter(handle)
        if new:
            writer.writerow([*_STEP_COLUMNS, *columns])
        writer.writerow([epoch, step, *(repr(values[name]) if name in values else "" for name in columns)])
