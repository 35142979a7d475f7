"""Extract patches from folders of images and labels: pair the files, cut one image after the other, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from misc.batch import recorded
from misc.files import check_unique_stems, full_stem, list_files
from misc.patch_extractor import PatchExtractor

from .patch_files import write_patches

# Table that `extract_patches.py rois` writes beside its fields; `pair_files` skips it.
ROIS_TABLE = "rois.csv"


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, paired by name.

    Attributes:
        name: of the split.
        pairs: `{image's name: (image, label)}`.
        lone: files without a partner.
    """

    name: str
    pairs: dict[str, tuple[Path, Path]]
    lone: list[Path]


@dataclass(frozen=True)
class Cut:
    """How images become patches; see `PatchExtractor` and `patch_files.stack`."""

    win_size: tuple[int, int]
    step_size: tuple[int, int]
    extract_type: str = "mirror"
    scale: float = 1.0

    @property
    def folder(self) -> str:
        """Name of the folder for patches of this cut."""
        if self.extract_type == "whole":
            return "whole"
        return "{}x{}_{}x{}".format(*self.win_size, *self.step_size)


@dataclass
class Report:
    """The result for a split.

    Attributes:
        split: its name.
        images: number of extracted images.
        new, there: numbers of patches written, and of equal patches that were there already.
        nuclei: number of nuclei by type (`None` without types), each counted once.
        empty: names of images without a nucleus.
        vanished: nuclei that scaling lost.
        failed: reason by image.
    """

    split: str
    images: int = 0
    new: int = 0
    there: int = 0
    nuclei: Counter = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    vanished: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def pair_files(name: str, img: tuple[str, str | Path], ann: tuple[str, str | Path]) -> Split:
    """Pair images and labels by their full names, dots included.

    Args:
        name: of the split.
        img: ending of the images' names (`.png`, in any case; empty takes all files), and their folder.
        ann: the same for labels.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: two files have the name of one image, or nothing pairs.
    """
    found = []
    for ending, folder in (img, ann):
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"no such folder: {folder} (split `{name}`); give --img_dir and --ann_dir, "
                "or edit DATASET_INFO in extract_patches.py"
            )
        files = [p for p in list_files(folder) if p.name.lower().endswith(ending.lower()) and p.name != ROIS_TABLE]
        check_unique_stems(files)
        found.append({full_stem(path): path for path in files})
    images, labels = found
    pairs = {stem: (images[stem], labels[stem]) for stem in labels if stem in images}
    if not pairs:
        swapped = ann[0] and any(path.name.lower().endswith(ann[0].lower()) for path in list_files(img[1]))
        raise ValueError(
            f"no image in {img[1]} (*{img[0]}) has a label of its name in {ann[1]} (*{ann[0]}): "
            f"images {_some(images)}; labels {_some(labels)}{'; are the two folders swapped?' if swapped else ''}"
        )
    lone = [path for own in found for stem, path in own.items() if stem not in pairs]
    return Split(name, pairs, lone)


def _some(names: dict[str, Path]) -> str:
    """Return the first names and the number of all."""
    return f"{', '.join(path.name for path in list(names.values())[:3]) or 'none'} ({len(names)})"


def extract_split(
    split: Split,
    load_img: Callable[[Path], np.ndarray],
    load_ann: Callable[[Path], np.ndarray],
    cut: Cut,
    out_dir: Path,
    overwrite: bool = False,
) -> Report:
    """Extract the images of a split, with a progress bar; an image that fails is recorded, and the others go on.

    Args:
        split: images and labels.
        load_img: reads an image, (H, W, 3) uint8.
        load_ann: reads a label, (H, W, 1) instances or (H, W, 2) with types.
        cut: how to cut.
        out_dir: folder for the patches; created if missing.
        overwrite: replace patches that exist.
    """
    report = Report(split.name)
    extractor = PatchExtractor(cut.win_size, cut.step_size)
    out_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(split.pairs.items(), desc=split.name, unit=" images", disable=None) as bar:
        for name, (img_path, ann_path) in bar:
            with recorded(report.failed, name):
                image, label = _read(load_img, img_path), _read(load_ann, ann_path)
                done = write_patches(name, image, label, out_dir, extractor, cut.extract_type, cut.scale, overwrite)
                report.images += 1
                report.new += done.new
                report.there += done.there
                report.nuclei += done.nuclei
                report.vanished += done.vanished
                if not done.nuclei:
                    report.empty.append(name)
            bar.set_postfix(patches=report.new + report.there, nuclei=report.nuclei.total(), refresh=False)
    return report


def _read(load: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    """Read a file; errors name it."""
    try:
        return load(path)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
