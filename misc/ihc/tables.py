"""Tables of density maps: a row for each hot spot, a row for each slide.

Units are in the names of the columns. What is not known (no pixel size, no types, nothing to divide by) is an empty
field, so that tables of several slides have the same columns.

Positive is what `--positive_types` says, and so are `positive`, `positive_share`, `positive_per_*`, `hot_spot_share`:
by type as the network has it, or by DAB density (`dab`, and nuclei without types). The columns `dab_*`, `h_score` and
`ki67_index*` are by DAB density, always. Shares by DAB are shares of the nuclei that could be measured, so that
`positive_share` and `ki67_index` of a row agree where both are by DAB; `nuclei` and `nuclei_per_*` count all.

Densities of a slide are per mm2 of the slide, and of its tissue where the file says how much that is; those of a hot
spot are per mm2 of its box.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from misc.files import CsvWriter, plain_cell, write_atomic
from misc.ihc.density import bin_counts
from misc.ihc.density_slide import UM_PER_MM, SlideMap, SlideNuclei, mm2
from misc.ihc.scores import CLASS_NAMES, Score
from misc.locks import locked

# Significant digits of numbers in the tables.
DIGITS = 6
# Columns that are there even when no slide gave a row.
HOT_SPOT_COLUMNS = ("slide", "rank", "x0_px", "y0_px", "x1_px", "y1_px")
SUMMARY_COLUMNS = ("slide",)
_TYPE_COLUMN = re.compile(r"type_\d+(_|$)")


def hot_spot_rows(found: SlideMap) -> list[dict]:
    """Return a row for each hot spot; lengths in px of level 0 and in mm from the slide's corner."""
    slide = found.slide
    by_type = {f"type_{t}": [_sum_in(c, box) for box in found.boxes_bins] for t, c in _counts_by_type(found)}
    mm = (np.nan, np.nan) if slide.mpp_xy is None else (slide.mpp_xy[0] / UM_PER_MM, slide.mpp_xy[1] / UM_PER_MM)
    everything, judged = _counts(found, np.ones(len(slide), bool)), _counts(found, found.judged)
    rows = []
    for i, (x0, y0, x1, y1) in enumerate(found.boxes_px.tolist()):
        total, positive = _sum_in(everything, found.boxes_bins[i]), int(found.sums[i])
        area = (x1 - x0) * (y1 - y0) * mm[0] * mm[1]
        rows.append(
            {"slide": slide.name, "rank": i + 1}
            | {"x0_px": x0, "y0_px": y0, "x1_px": x1, "y1_px": y1}
            | {"x0_mm": x0 * mm[0], "y0_mm": y0 * mm[1], "x1_mm": x1 * mm[0], "y1_mm": y1 * mm[1], "area_mm2": area}
            | {"nuclei": total, "nuclei_per_mm2": total / area}
            | _positive_columns(found.is_share, positive, _sum_in(judged, found.boxes_bins[i]), area)
            | {name: counts[i] for name, counts in by_type.items()}
        )
    return rows


def summary_row(found: SlideMap | None, slide: SlideNuclei) -> dict:
    """Return a slide's row; `found` is `None` for a slide without a map."""
    area = np.nan if slide.mpp_xy is None or not slide.width else mm2(slide.width * slide.height, slide.mpp_xy)
    total, positive = len(slide), int(found.positive.sum()) if found else 0
    tissue = (np.nan if slide.tissue_share is None else area * slide.tissue_share) or np.nan  # of none, no density
    row = {"slide": slide.name, "width_px": slide.width, "height_px": slide.height}
    row |= {"slide_mm2": area, "tissue_mm2": tissue, "nuclei": total}
    row |= {"nuclei_per_slide_mm2": total / area, "nuclei_per_tissue_mm2": total / tissue}
    columns = _positive_columns(not found or found.is_share, positive, int(found.judged.sum()) if found else 0, area)
    columns["positive_per_slide_mm2"] = per_mm2 = columns.pop("positive_per_mm2")
    row |= columns | {"positive_per_tissue_mm2": per_mm2 * area / tissue}
    row |= {"positive_types": found.counted if found else None}
    sums = found.sums if found else np.zeros(0, np.int64)
    row |= {"hot_spots": len(sums), "hot_spot_share": _share(int(sums.sum()), positive)}
    if slide.types is not None:
        types, counts = np.unique(slide.types, return_counts=True)
        for t, count in zip(types.tolist(), counts.tolist(), strict=True):
            row |= {f"type_{t}": count, f"type_{t}_share": count / total}
    return row


def score_columns(scored: Score, thresholds: tuple[float, float, float]) -> dict:
    """Return a slide's columns of staining classes and scores."""
    columns: dict = {f"dab_{name}": scored.counts[c] for c, name in CLASS_NAMES.items()}
    columns |= {"h_score": scored.h_score, "ki67_index": scored.index}
    columns |= {"ki67_index_low": scored.index_low, "ki67_index_high": scored.index_high}
    limits = zip(list(CLASS_NAMES.values())[1:], thresholds, strict=True)
    return columns | {f"{name}_from_od": limit for name, limit in limits}


def _counts_by_type(found: SlideMap) -> Iterator[tuple[int, np.ndarray]]:
    types = found.slide.types
    if types is not None:
        for t in np.unique(types).tolist():
            yield t, _counts(found, types == t)


def _counts(found: SlideMap, which: np.ndarray) -> np.ndarray:
    """Count some of the nuclei by bin: (N,) bool -> (rows, columns) int64."""
    slide = found.slide
    return bin_counts(slide.xy[which], slide.width, slide.height, found.tile_size, slide.slack_px)


def _sum_in(counts: np.ndarray, box: np.ndarray) -> int:
    x0, y0, x1, y1 = box
    return int(counts[y0:y1, x0:x1].sum())


def _positive_columns(is_share: bool, positive: int, judged: int, area: float) -> dict:
    if not is_share:
        return {"positive": None, "positive_share": np.nan, "positive_per_mm2": np.nan}
    return {"positive": positive, "positive_share": _share(positive, judged), "positive_per_mm2": positive / area}


def _share(part: int, whole: int) -> float:
    return float(part / whole) if whole else np.nan


def earlier_rows(path: str | Path, slides: Sequence[str], key: str = "slide") -> list[dict]:
    """Return the rows that a table has of other slides, so that a run on some slides loses none of the others.

    Args:
        path: the table; there need be none.
        slides: names of the slides of this run.
        key: the column that has the names.

    Raises:
        ValueError: the file is no such table.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, strict=True))
        rows = [{k: plain_cell(v or "") for k, v in row.items() if k} for row in rows]
        return [row for row in rows if row[key] not in (*slides, "")]
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is no table of an earlier run ({error!r}); move it away") from error


def merge_table(
    path: Path,
    rows: Sequence[dict],
    slides: Sequence[str],
    first: Sequence[str],
    last: Sequence[str] = (),
    key: str = "slide",
) -> None:
    """Write the rows of some slides into a table that other runs write to, too; rows of other slides stay.

    Args:
        path: the table; there need be none.
        rows: of the slides `slides`, as `write_table` takes them; so `first` and `last`.
        key: the column that has the names of the slides.

    Raises:
        ValueError: the file is no such table.
    """
    # read and written while no other run does either
    with locked(path.with_name(f".{path.name}.lock"), wait=True):
        both = itertools.chain(earlier_rows(path, slides, key), rows)
        write_table(path, sorted(both, key=lambda row: row[key]), first, last)


def write_table(path: str | Path, rows: Sequence[dict], first: Sequence[str], last: Sequence[str] = ()) -> None:
    """Write rows as CSV; the columns are those of all rows together.

    Args:
        path: the file.
        rows: values by column; a column that a row lacks, NaN and `None` are empty fields.
        first, last: columns to begin and to end with, present or not in the rows. Columns of types (`type_<n>`) are
            sorted by type, the others keep the order in which they first appear.
    """
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    types = sorted((n for n in names if _TYPE_COLUMN.match(n)), key=lambda n: (int(n.split("_")[1]), n))
    columns = [n for n in names if n not in types and n not in last]
    text = io.StringIO()
    table = CsvWriter(text)
    table.writerow([*columns, *types, *last])
    table.writerows([_field(row.get(name)) for name in (*columns, *types, *last)] for row in rows)
    write_atomic(path, text.getvalue())


def _field(value):
    if isinstance(value, float):
        return "" if value != value else f"{value:.{DIGITS}g}"
    return "" if value is None else value
