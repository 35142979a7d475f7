"""What is wrong with the data of a run, found before the first step and said in one line."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from misc.files import list_files
from misc.machine import cpu_count

# Channels of a patch: R, G, B, instance, and type in typed data sets.
_NR_CHANNELS = (4, 5)


def list_patches(folders: Sequence[str | Path], setting: str) -> list[Path]:
    """List the `.npy` patches of several folders, in a fixed order.

    Args:
        folders: where `extract_patches.py` wrote them.
        setting: name of the value in `config.py`, for messages.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: no folder was named, or one holds no patch.
    """
    if not folders:
        raise ValueError(f"{setting} in config.py names no folder")
    files = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"no such folder: {folder} ({setting} in config.py); extract_patches.py makes the patches"
            )
        found = list_files(folder, "*.npy")
        if not found:
            raise ValueError(f"no .npy patches in {folder} ({setting} in config.py)")
        files += found
    return files


def check_patches(files: Sequence[Path], nr_types: int | None, show: bool = False) -> np.ndarray | None:
    """Read every patch once: shapes, and type ids against the number of types.

    Args:
        files: `.npy` patches.
        nr_types: number of types with the background; `None` looks at the shapes alone.
        show: whether to show a progress bar.

    Returns:
        (N, nr_types) int64, pixels of each type in each patch; `None` for an untyped network.

    Raises:
        ValueError: a patch that training could not use; it is named.
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
        raise ValueError(
            f"{path} has no type channel (shape {patch.shape}); set type_classification = False in config.py, "
            "or extract the patches with types"
        )
    types = np.asarray(patch[..., 4])
    low, high = int(types.min()), int(types.max())
    if low < 0 or high >= nr_types:
        raise ValueError(
            f"{path} has type id {low if low < 0 else high}; nr_type = {nr_types} in config.py allows 0 to "
            f"{nr_types - 1}"
        )
    return np.bincount(types.astype(np.int64).ravel(), minlength=nr_types)


def source_images(patches: Sequence[Path]) -> list[str]:
    """Return the names of the images that patches were cut from: `<name>_<number>.npy`."""
    return sorted({path.stem.rpartition("_")[0] or path.stem for path in patches})


def type_sampling_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Return how much more often a patch is drawn for the rarest type in it.

    Args:
        counts: (N, nr_types) pixels of each type in each patch.
        power: 0 changes nothing, 1 makes up for the rarity in full, 0.5 half-way (on a logarithmic scale).

    Returns:
        (N,) float64, 1 for patches of the commonest type or without nuclei.
    """
    nuclei = counts[:, 1:].astype(np.float64)
    totals = nuclei.sum(0)
    rarity = np.where(totals > 0, totals.max(initial=1.0) / np.maximum(totals, 1.0), 1.0) ** power
    return np.where(nuclei > 0, rarity, 1.0).max(axis=1, initial=1.0)
