"""Check whether images are in both training and validation, by name and by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloader.leakage import same_pictures
from misc.files import full_stem
from misc.slides.images import read_image
from misc.text import counted

from .checks import source_image

# Largest number of pairs of pictures to compare before a run, at about 10 ms each; beyond it, only names are compared.
MAX_PAIRS = 1000


def describe_overlap(train: Sequence[Path], valid: Sequence[Path], whole: Sequence[Path]) -> list[str]:
    """Return up to two lines about images in both training and validation: by name, and by content.

    The middle patch of an image stands for its content.

    Args:
        train, valid: patches.
        whole: whole validation images.
    """
    trained, validated = _middle_patches(train), _middle_patches(valid) | {full_stem(path): path for path in whole}
    both, lines = sorted(trained.keys() & validated.keys()), []
    if both:
        lines.append(f"warning: in both training and validation: {counted(len(both), 'image')} ({both[0]}, ...)")
    trained, validated = ([p for name, p in files.items() if name not in both] for files in (trained, validated))
    if len(trained) * len(validated) <= MAX_PAIRS and (pairs := same_pictures(validated, trained, _read)):
        shown = " and ".join(path.name for path in pairs[0])
        pictures = counted(len(pairs), "validation picture")
        lines.append(f"warning: {pictures} of tissue that is also in training ({shown}, ...)")
    return lines


def _middle_patches(patches: Sequence[Path]) -> dict[str, Path]:
    """Return a patch from the middle of each image."""
    by_image: dict[str, list[Path]] = {}
    for path in patches:
        by_image.setdefault(source_image(path), []).append(path)
    return {name: paths[len(paths) // 2] for name, paths in by_image.items()}


def _read(path: Path) -> np.ndarray:
    if path.suffix != ".npy":
        return read_image(path)
    return np.ascontiguousarray(np.load(path, allow_pickle=False)[..., :3], np.uint8)
