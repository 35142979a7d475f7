"""Scoring a slide once it is known which DAB densities are weak, moderate and strong: tables and histogram.

With k-means the limits are known only when all slides have been measured. Until then a slide keeps its densities and
which nuclei lie in its hot spots; ids and positions are read again from its JSON file, as a stream.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.files import atomic_path
from misc.formats.nuclei_json import iter_json
from misc.formats.slide_facts import level0_xy
from misc.ihc import plots
from misc.ihc.density import bin_index
from misc.ihc.heat_map.slide import SlideMap, SlideNuclei
from misc.ihc.scores import CLASS_NAMES, NOT_COUNTED, Score, classify, score, score_columns

# Columns of a slide's table of nuclei: pixel centres at level 0; the density; the name of its class. Density and class
# of a nucleus that could not be measured are empty.
NUCLEUS_COLUMNS = ("id", "x_px", "y_px", "dab_od", "class")
POSITION_DECIMALS, DENSITY_DECIMALS = 2, 4


@dataclass(frozen=True)
class Measured:
    """What scoring needs of a slide.

    Attributes:
        path: its JSON file.
        scale: level-0 px per px of the file.
        dab: (N,) float32 mean DAB density, in the order of the file; NaN where not measured.
        spots: for each hot spot, best first, the (M,) int64 positions in `dab` of its nuclei.
    """

    path: Path
    scale: float
    dab: np.ndarray
    spots: list[np.ndarray]

    @classmethod
    def of(cls, path: Path, slide: SlideNuclei, found: SlideMap | None) -> Measured:
        """Keep what scoring needs; `found` is `None` for a slide without a map."""
        return cls(path, slide.scale, slide.dab, _members(found) if found else [])


def _members(found: SlideMap) -> list[np.ndarray]:
    """Return which nuclei lie in the bins of each hot spot."""
    slide = found.slide
    rows, columns = bin_index(slide.xy, slide.width, slide.height, found.tile_size, slide.slack_px).T
    return [
        np.flatnonzero((rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1))
        for x0, y0, x1, y1 in found.boxes_bins
    ]


def score_slide(
    measured: Measured, thresholds: tuple[float, float, float], summary: dict, spots: list[dict], folder: Path
) -> Score:
    """Grade the nuclei of a slide; write `<folder>/<slide>.csv` and `.png`, add columns to its rows of the tables.

    Args:
        measured: the slide.
        thresholds: DAB densities from which a nucleus is weak, moderate, strong.
        summary: its row.
        spots: the rows of its hot spots, best first.
        folder: where to write to; made if it is not there.
    """
    classes = classify(measured.dab, thresholds)
    scored = score(classes)
    summary |= score_columns(scored, thresholds)
    for row, members in zip(spots, measured.spots, strict=True):
        row |= score_columns(score(classes[members]), thresholds)
    folder.mkdir(parents=True, exist_ok=True)
    name = summary["slide"]
    write_nuclei(folder / f"{name}.csv", measured, classes)
    plots.save(plots.dab_histogram(measured.dab, thresholds, scored, name), folder / f"{name}.png")
    return scored


def write_nuclei(path: Path, measured: Measured, classes: np.ndarray) -> None:
    """Write a row for each nucleus, one piece of the file after the other.

    Raises:
        ValueError: the JSON file has other nuclei than when they were measured.
    """
    names = np.array([CLASS_NAMES.get(c, "") for c in range(NOT_COUNTED, max(CLASS_NAMES) + 1)])[classes]
    start = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(NUCLEUS_COLUMNS)
        for part in iter_json(measured.path):
            stop = start + len(part)
            xy = np.round(level0_xy(part, measured.scale), POSITION_DECIMALS).T.tolist()
            dab = [f"{d:.{DENSITY_DECIMALS}f}" if d == d else "" for d in measured.dab[start:stop].tolist()]
            table.writerows(zip(part.ids.tolist(), *xy, dab, names[start:stop].tolist(), strict=False))
            start = stop
        if start != len(classes):
            raise ValueError(f"{measured.path}: changed while it was read: {len(classes)} nuclei, then {start}")
