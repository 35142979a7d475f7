"""Checks of a run's patches before the first step; every error is one line."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from misc.files import list_files
from misc.machine import cpu_count
from misc.type_info import UNKNOWN_TYPE

# Channels of a patch: R, G, B, instance, and type in typed data sets.
_NR_CHANNELS = (4, 5)


def list_patches(folders: Sequence[str | Path], setting: str) -> list[Path]:
    """List the `.npy` patches of several folders, in a fixed order.

    Args:
        folders: where `extract_patches.py` wrote them, as `folder` or `(folder, weight)`.
        setting: name of the value in `config.py`, for messages.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: no folder was named, one holds no patch, or a weight is not a number above 0.
    """
    if not folders:
        raise ValueError(f"{setting} in config.py names no folder")
    files = []
    for folder, _ in _with_weights(folders, setting):
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"no such folder: {folder} ({setting} in config.py); extract_patches.py makes the patches"
            )
        found = list_files(folder, "*.npy")
        if not found:
            raise ValueError(f"no .npy patches in {folder} ({setting} in config.py)")
        files += found
    return files


def folder_weights(folders: Sequence, files: Sequence[Path], setting: str) -> np.ndarray | None:
    """Return how often each patch is drawn, relative to the others: the weight of its folder, 1 without one.

    Args:
        folders: as in `config.py`; patches of `(folder, 2.0)` are drawn twice as often as those of a plain folder.
        files: the patches in them, as `list_patches` lists them.
        setting: name of the value in `config.py`, for messages.

    Returns:
        (N,) float64; `None` where no folder has a weight.

    Raises:
        ValueError: an entry is neither a folder nor a pair with a number above 0, or a folder has two weights.
    """
    if all(isinstance(entry, str | Path) for entry in folders):
        return None
    pairs = _with_weights(folders, setting)
    weights = {Path(folder): weight for folder, weight in pairs}
    for folder, weight in pairs:
        if weight != weights[Path(folder)]:
            raise ValueError(f"{setting} in config.py: {folder} has two weights; list it once, or with one weight")
    return np.array([weights[path.parent] for path in files], np.float64)


def _with_weights(folders: Sequence, setting: str) -> list[tuple[str | Path, float]]:
    pairs = [(entry, 1.0) if isinstance(entry, str | Path) else tuple(entry) for entry in folders]
    for pair in pairs:
        is_number = len(pair) == 2 and isinstance(pair[1], int | float) and not isinstance(pair[1], bool)
        if not is_number or not 0 < pair[1] < float("inf"):
            raise ValueError(f"{setting} in config.py: an entry is a folder or (folder, weight above 0), got {pair!r}")
    return pairs


def check_patches(files: Sequence[Path], nr_types: int | None, show: bool = False) -> np.ndarray | None:
    """Read every patch once, and check its shape and type ids.

    Args:
        files: `.npy` patches.
        nr_types: number of types with the background; `None` checks only the shapes.
        show: whether to show a progress bar.

    Returns:
        (N, nr_types + 1) int64, pixels of each type in each patch, those of unknown type last; `None` for an untyped
        network.

    Raises:
        ValueError: training cannot use a patch; the message names it.
    """
    with ThreadPoolExecutor(min(8, cpu_count())) as pool:
        counts = pool.map(lambda path: _check_patch(path, nr_types), files)
        bar = tqdm(counts, total=len(files), desc="checking patches", unit="patch", disable=not show, leave=False)
        counts = list(bar)
    return None if nr_types is None else np.array(counts)


def _check_patch(path: Path, nr_types: int | None) -> np.ndarray | None:
    try:
        patch = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no readable .npy array: {error}") from error
    if patch.ndim != 3 or patch.shape[2] not in _NR_CHANNELS or min(patch.shape[:2]) < 1:
        raise ValueError(
            f"{path} has shape {patch.shape}; a patch is (H, W, 4) [R, G, B, inst] or (H, W, 5) with types"
        )
    if not np.issubdtype(patch.dtype, np.integer):
        raise ValueError(f"{path} holds {patch.dtype}; a patch holds whole numbers")
    if nr_types is None:
        return None
    if patch.shape[2] != 5:
        nuclear = np.count_nonzero(patch[..., 3])
        return np.array([patch[..., 3].size - nuclear, *[0] * (nr_types - 1), nuclear])
    types = np.asarray(patch[..., 4]).astype(np.int64)
    unknown = types == UNKNOWN_TYPE
    wrong = types[((types < 0) | (types >= nr_types)) & ~unknown]
    if len(wrong):
        raise ValueError(
            f"{path} has type id {wrong[0]}; nr_type = {nr_types} in config.py allows 0 to {nr_types - 1}, and "
            f"{UNKNOWN_TYPE} for an unknown type"
        )
    return np.bincount(np.where(unknown, nr_types, types).ravel(), minlength=nr_types + 1)


def describe_unknown(counts: np.ndarray, types_are_made: bool = False) -> str | None:
    """Return a line that says how many patches have nuclei of unknown type; `None` if none has.

    Args:
        counts: what `check_patches` returned for a typed network.
        types_are_made: training itself assigns types to nuclei (`restain` in the recipe).

    Raises:
        ValueError: no nucleus has a type, and training assigns none.
    """
    known, unknown = int(counts[:, 1:-1].sum()), int(counts[:, -1].sum())
    if not unknown:
        return None
    if not known and not types_are_made:
        raise ValueError(
            "no patch of train_dir_list has types; set type_classification = False in config.py, or extract patches "
            "with types"
        )
    patches = np.count_nonzero(counts[:, -1])
    share = unknown / (known + unknown)
    but = ", except in re-stained samples" if types_are_made else ""
    return (
        f"types are unknown in {patches} training patches, {share:.0%} of nuclear pixels: left out of the TP loss{but}"
    )


def source_images(patches: Sequence[Path]) -> list[str]:
    """Return the names of the images that patches were cut from: `<name>_<number>.npy`."""
    return sorted({source_image(path) for path in patches})


def source_image(patch: Path) -> str:
    """Return the name of the image that a patch was cut from."""
    return patch.stem.rpartition("_")[0] or patch.stem


def type_sampling_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Return how much more often each patch is drawn, because of the rarest type in it.

    Args:
        counts: (N, nr_types) pixels of each type in each patch.
        power: 0 ignores rarity, 1 makes up for it in full, 0.5 half-way (on a logarithmic scale).

    Returns:
        (N,) float64, 1 for patches of the commonest type or without nuclei.
    """
    nuclei = counts[:, 1:].astype(np.float64)
    totals = nuclei.sum(0)
    rarity = np.where(totals > 0, totals.max(initial=1.0) / np.maximum(totals, 1.0), 1.0) ** power
    return np.where(nuclei > 0, rarity, 1.0).max(axis=1, initial=1.0)
