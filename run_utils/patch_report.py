"""The content of a folder of patches, and its errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataloader.patch_files import count_nuclei
from misc.machine import cpu_count
from misc.text import counted
from misc.type_info import UNKNOWN_TYPE

from .checks import check_patches


@dataclass
class PatchReport:
    """The content of some patches.

    Attributes:
        shapes: number of patches of each (H, W, C).
        dtypes: number of patches of each dtype, by its name.
        size: bytes on disk.
        nuclei: nuclei by type (`None` without types), counted once in every patch that shows them.
        pixels: pixels by type, 0 for background; empty without types.
        empty: names of patches without a nucleus.
        odd: names of patches by oddity; oddities do not stop training.
        failed: the error of each patch that training cannot use, by name.
    """

    shapes: Counter = field(default_factory=Counter)
    dtypes: Counter = field(default_factory=Counter)
    size: int = 0
    nuclei: Counter = field(default_factory=Counter)
    pixels: Counter = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    odd: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def report_patches(files: Sequence[Path], nr_types: int | None = None) -> PatchReport:
    """Read patches, with a progress bar.

    Args:
        files: `.npy` patches.
        nr_types: number of types that they may have, background included; `None` allows any.
    """
    report = PatchReport()
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        parts = pool.map(lambda path: _one(path, nr_types), files)
        for part in tqdm(parts, total=len(files), desc="checking", unit=" patches", disable=None, leave=False):
            _add(report, part)
    channels = Counter()
    for shape, count in report.shapes.items():
        channels[shape[2]] += count
    if len(channels) > 1:
        report.failed["the folder"] = (
            f"{counted(channels[4], 'patch')} without types and {channels[5]} with; extract all alike"
        )
    return report


def _one(path: Path, nr_types: int | None) -> PatchReport:
    """Read one patch."""
    part, name = PatchReport(), path.name
    try:
        check_patches([path], None)
        patch = np.load(path, allow_pickle=False)
        _check_values(patch, nr_types)
    except (ValueError, OSError) as error:
        part.failed[name] = str(error).removeprefix(f"{path} ")
        return part
    label = patch[..., 3:].astype(np.int64)
    part.shapes[patch.shape] += 1
    part.dtypes[patch.dtype.name] += 1
    part.size = path.stat().st_size
    part.nuclei = count_nuclei(label)
    part.empty = [name] * (not part.nuclei)
    if patch.shape[2] == 5:
        types, counts = np.unique(label[..., 1], return_counts=True)
        part.pixels = Counter(dict(zip(types.tolist(), counts.tolist(), strict=True)))
    part.odd = {reason: [name] for reason in _oddities(patch[..., :3], label, part.nuclei)}
    return part


def _check_values(patch: np.ndarray, nr_types: int | None) -> None:
    rgb = patch[..., :3]
    if rgb.min() < 0 or rgb.max() > 255:
        raise ValueError(f"has colours from {rgb.min()} to {rgb.max()}; 0 to 255 are needed")
    if patch[..., 3].min() < 0:
        raise ValueError(f"has the instance id {patch[..., 3].min()}; ids are 1 and more, 0 for background")
    if patch.shape[2] == 5:
        types = patch[..., 4][patch[..., 4] != UNKNOWN_TYPE]
        low, high = int(types.min(initial=0)), int(types.max(initial=0))
        if low < 0 or (nr_types is not None and high >= nr_types):
            allowed = "0 and more" if nr_types is None else f"0 to {nr_types - 1}"
            raise ValueError(f"has the type id {low if low < 0 else high}; {allowed} are allowed")


def _oddities(rgb: np.ndarray, label: np.ndarray, nuclei: Counter) -> list[str]:
    """Name what training accepts, but is probably a mistake."""
    found = []
    if rgb.min() == rgb.max():
        found.append("an image of one colour")
    if label.shape[2] == 2:
        inst, types = label[..., 0], label[..., 1]
        if nuclei[0]:
            found.append("nuclei of type 0 (background)")
        if (types[inst == 0] % UNKNOWN_TYPE).any():  # unknown type outside nuclei: an area without annotation
            found.append("a type outside nuclei")
        pairs = np.unique(np.stack([inst[inst > 0], types[inst > 0]], axis=-1), axis=0)
        if len(pairs) > nuclei.total():
            found.append("nuclei with several types")
    return found


def _add(report: PatchReport, part: PatchReport) -> None:
    for name in ("shapes", "dtypes", "nuclei", "pixels"):
        getattr(report, name).update(getattr(part, name))
    report.size += part.size
    report.empty += part.empty
    report.failed.update(part.failed)
    for reason, names in part.odd.items():
        report.odd.setdefault(reason, []).extend(names)
