"""Types of drawn nuclei by their staining: the part of `GenerateMasks.py` that needs all images together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from misc.batch import recorded
from misc.files import full_stem
from misc.formats.labels import read_label
from misc.formats.masks import LabelMask
from misc.formats.sedeen import LAB_TYPES
from misc.ihc import plots
from misc.ihc.scores import CLASS_NAMES, NEGATIVE, classify, cohort_thresholds, score, score_columns
from misc.tables import merge_table
from misc.text import counted

_COLUMNS = ("image", "nucleus", "dab_od", "type", "class")


@dataclass(frozen=True)
class Measured:
    """An image: the path of its label map, its nuclei, their DAB densities (N,), and whether its label map is kept."""

    target: Path
    mask: LabelMask
    dab: np.ndarray
    kept: bool

    @property
    def name(self) -> str:
        """What the image is called in the tables."""
        return full_stem(self.target)


def grade(
    measured: dict[str, Measured], thresholds: tuple[float, float, float], kmeans: bool, keep_negative: bool
) -> tuple[dict[str, LabelMask], dict[str, str]]:
    """Classify every nucleus by its staining; write label maps, tables and histogram.

    Args:
        measured: by the name of the image, at least one.
        thresholds: DAB densities from which a nucleus is weak, moderate, strong.
        kmeans: find moderate and strong on all images.
        keep_negative: what was drawn as negative stays so, all others are positive.

    Returns:
        The label maps that were written, and the reason for each image that failed.

    Raises:
        ValueError: k-means has too few positive nuclei.
    """
    negative = {n: one.mask.types == NEGATIVE if keep_negative else None for n, one in measured.items()}
    if kmeans:
        thresholds = _find_thresholds(measured, negative, None if keep_negative else thresholds[0])
    types = {n: classify(one.dab, thresholds, negative[n]).astype(np.int32) for n, one in measured.items()}
    written, failed = {}, {}
    for name, one in measured.items():
        with recorded(failed, name):
            if one.kept:
                _check_kept(one.target, types[name])
            else:
                written[name] = replace(one.mask, types=types[name])
                written[name].save(one.target, LAB_TYPES)
    folder = next(iter(measured.values())).target.parent
    _write_tables(measured, types, thresholds, folder)
    scored = score(np.concatenate(list(types.values())))
    title = counted(len(measured), "image")
    figure = plots.dab_histogram(np.concatenate([one.dab for one in measured.values()]), thresholds, scored, title)
    plots.save(figure, folder / "intensity.png")
    print(f"{title}: {plots.describe(scored)}")
    return written, failed


def _find_thresholds(measured: dict[str, Measured], negative: dict, positive_from: float | None) -> tuple:
    """Find the limits between weak, moderate and strong on the positive nuclei of all images, and say them."""
    positive = [one.dab if negative[n] is None else one.dab[~negative[n]] for n, one in measured.items()]
    thresholds = cohort_thresholds(positive, positive_from)
    limits = ", ".join(f"{t:.3f}" for t in thresholds)
    print(f"k-means of {counted(len(measured), 'image')}: weak, moderate, strong from {limits}")
    return thresholds


def _check_kept(target: Path, types: np.ndarray) -> None:
    """Refuse a label map that is kept although it says something else than the tables that are written again."""
    try:
        same = np.array_equal(read_label(target)["inst_type"].ravel(), types)
    except (ValueError, KeyError, OSError):
        same = False
    if not same:
        raise ValueError(f"{target} has other types than these annotations and options give; give --overwrite")


def _write_tables(measured: dict[str, Measured], types: dict[str, np.ndarray], thresholds: tuple, folder: Path) -> None:
    """Write intensity.csv, a row a nucleus, and intensity_summary.csv, a row an image; rows of other images stay."""
    names = [one.name for one in measured.values()]
    nuclei = [
        dict(zip(_COLUMNS, (one.name, i, round(float(d), 4), int(t), CLASS_NAMES.get(int(t))), strict=True))
        for name, one in measured.items()
        for i, (d, t) in enumerate(zip(one.dab, types[name], strict=True), 1)
    ]
    merge_table(folder / "intensity.csv", nuclei, names, _COLUMNS, key="image")
    images = [
        {"image": one.name, "nuclei": len(one.dab)} | score_columns(score(types[name]), thresholds)
        for name, one in measured.items()
    ]
    merge_table(folder / "intensity_summary.csv", images, names, ("image",), key="image")
