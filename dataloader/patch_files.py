"""Make training patches: image and label in one array, cut into windows, one `.npy` each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from misc.files import atomic_path
from misc.patch_extractor import PatchExtractor
from misc.slides.images import resize

# Types of the array on disk, smallest first; torch and OpenCV read all three.
_DTYPES = (np.uint8, np.uint16, np.int32)


@dataclass
class Written:
    """The result for one image.

    Attributes:
        new: number of patches written.
        there: number of equal patches that were there already.
        nuclei: number of nuclei of each type; of type `None` without types.
        vanished: nuclei that shrinking the label lost.
    """

    new: int = 0
    there: int = 0
    nuclei: Counter = field(default_factory=Counter)
    vanished: int = 0


def stack(image: np.ndarray, label: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Put image and label into one array.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W, 1) instances or (H, W, 2) with types, int32.
        scale: factor of both sides; 0.5 turns 40x into 20x. The image is averaged (interpolated above 1); the label
            takes the nearest pixel.

    Returns:
        (h, w, 4) or (h, w, 5), in the smallest of uint8, uint16 and int32 that holds all ids.

    Raises:
        ValueError: image and label differ in size.
    """
    if image.shape[:2] != label.shape[:2]:
        raise ValueError(
            f"the image is {image.shape[1]} x {image.shape[0]} px, its label {label.shape[1]} x {label.shape[0]}; "
            "they must have the same size"
        )
    shape = tuple(max(round(side * scale), 1) for side in image.shape[:2])
    if shape != image.shape[:2]:
        rows, cols = (_nearest(side, new) for side, new in zip(image.shape[:2], shape, strict=True))
        image, label = resize(image, shape), label[rows[:, None], cols]
    largest = int(label.max(initial=0))
    dtype = next(t for t in _DTYPES if largest <= np.iinfo(t).max)
    return np.concatenate([image.astype(dtype), label.astype(dtype)], axis=-1)


def _nearest(side: int, new: int) -> np.ndarray:
    """Return, for each of `new` pixels, which of `side` pixels holds its centre."""
    return np.minimum(((np.arange(new) + 0.5) * side / new).astype(np.int64), side - 1)


def count_nuclei(label: np.ndarray) -> Counter:
    """Count the nuclei of each type.

    Args:
        label: (H, W, 1 or 2), instances and types.

    Returns:
        Number of nuclei by the type that most of their pixels have (in a tie the lowest); by `None` without types.
    """
    ys, xs = np.nonzero(label[..., 0])
    ids, which = np.unique(label[ys, xs, 0], return_inverse=True)
    if label.shape[2] == 1 or not len(ids):
        return Counter({None: len(ids)}) if len(ids) else Counter()
    types, column = np.unique(label[ys, xs, 1], return_inverse=True)
    votes = np.bincount(which * len(types) + column, minlength=len(ids) * len(types)).reshape(len(ids), len(types))
    return Counter(types[votes.argmax(axis=1)].tolist())


def write_patches(
    name: str,
    image: np.ndarray,
    label: np.ndarray,
    out_dir: Path,
    extractor: PatchExtractor,
    extract_type: str = "mirror",
    scale: float = 1.0,
    overwrite: bool = False,
) -> Written:
    """Cut an image with its label into patches `<name>_<number>.npy`.

    Args:
        name: of the image; dots and brackets are fine.
        image, label, scale: see `stack`.
        out_dir: folder to write to.
        extractor, extract_type: how to cut.
        overwrite: replace patches that exist.

    Raises:
        ValueError: image and label differ in size; or `out_dir` holds patches of this image with other content.
    """
    stacked = stack(image, label, scale)
    nuclei = count_nuclei(stacked[..., 3:])
    result = Written(nuclei=nuclei, vanished=count_nuclei(label[..., :1]).total() - nuclei.total())
    shape = stacked.shape[:2]
    patches = list(extractor.iterate(stacked, extract_type))
    *paths, next_path = (out_dir / f"{name}_{number:03d}.npy" for number in range(len(patches) + 1))
    if next_path.exists():  # patches are numbered: an extraction that made more of them made this one
        raise ValueError(
            f"{next_path} is from an extraction with other options, which cut this image into more patches; "
            "remove them, or choose another --save_root"
        )
    there = [path.exists() for path in paths]
    if not overwrite:
        for path, patch, exists in zip(paths, patches, there, strict=True):
            if exists and not _same(path, patch):
                raise ValueError(
                    f"{path} differs from what these options give (image of {shape[1]} x {shape[0]} px); "
                    "--overwrite replaces it, another --save_root keeps both"
                )
    for path, patch, exists in zip(paths, patches, there, strict=True):
        if exists and not overwrite:
            result.there += 1
            continue
        with atomic_path(path) as temporary:
            np.save(temporary, patch)
        result.new += 1
    return result


def _same(path: Path, patch: np.ndarray) -> bool:
    try:
        old = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return False
    return np.array_equal(old, patch)
