"""All slides of a table of scores together: pictures, and the agreement with another table of the same slides."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from misc.ihc.dab.agreement import BlandAltman, IntraclassCorrelation, bland_altman, icc_2_1
from misc.ihc.dab.cohort_pictures import Estimate, SlideIndex, agreement_picture, index_picture, shares_picture
from misc.ihc.markers import Marker
from misc.ihc.panel import save_picture
from misc.ihc.scores import CLASS_NAMES
from misc.tables import read_table, write_table

INDEX = "positive_percent"
# Pictures and tables beside the table of scores.
INDEX_PICTURE, CLASSES_PICTURE = "cohort_index.png", "cohort_classes.png"
PAIRS, AGREEMENT, AGREEMENT_PICTURE = "compare.csv", "agreement.csv", "agreement.png"


def draw_cohort(table: Path, marker: Marker, other: Path | None) -> None:
    """Draw the index and the classes of all slides of a table; compare it with another one if asked.

    Args:
        table: `scores.csv`; pictures and tables are written beside it.
        marker: whose cut-offs are drawn.
        other: the table of another run, or of a person: columns `slide` and `positive_percent`.

    Raises:
        ValueError: the other table is none, or has fewer than two of the slides.
    """
    rows = read_rows(table)
    slides = [_slide(row) for row in rows.values()]
    if slides:
        limits = marker.cutoffs[0].limits if marker.cutoffs else ()
        cuts = ", ".join(f"{100 * limit:g}" for limit in limits)
        title = f"{marker.name}: index by slide" + (f" (lines at {cuts} %: {marker.cutoffs[0].name})" if limits else "")
        save_picture(index_picture(slides, limits, title), table.with_name(INDEX_PICTURE))
        save_picture(shares_picture(slides, f"{marker.name}: staining classes"), table.with_name(CLASSES_PICTURE))
    if other:
        # a run goes by its folder, a table of a person by its own name
        name = other.resolve().parent.name if other.name == table.name else other.stem
        compare(rows, read_rows(other), table.parent, name)


def read_rows(table: Path) -> dict[str, dict[str, str]]:
    """Return the row of each slide that holds its index, by slide; slides that failed have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no columns `slide` and `positive_percent`, or two rows of a slide.
    """
    try:
        rows = [row for row in read_table(table) if row["slide"]]
        rows = [row for row in rows if row.get("global", "1") == "1" and not row.get("failed")]
        found = {row["slide"]: row for row in rows}
        for row in rows:
            _number(row[INDEX])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{table}: no table of scores, with columns slide and {INDEX} ({error!r})") from error
    if len(found) < len(rows):
        raise ValueError(f"{table}: more than one index of a slide; one row a slide is compared")
    return found


def compare(first: dict, second: dict, folder: Path, name: str) -> tuple[BlandAltman, IntraclassCorrelation]:
    """Write and draw how well two tables agree, `second` being the one that is compared with.

    Args:
        first, second: as `read_rows` gives them.
        folder: where to write to.
        name: of the second one.

    Raises:
        ValueError: fewer than two slides have an index in both.
    """
    both = [slide for slide in first if slide in second]
    values = np.array([[_number(row[slide][INDEX]) for row in (second, first)] for slide in both]).reshape(-1, 2)
    known = np.isfinite(values).all(axis=1)
    if known.sum() < 2:
        raise ValueError(f"--compare: {known.sum()} slides have an index in both tables; agreement needs two")
    limits, icc = bland_altman(*values[known].T), icc_2_1(values[known])
    columns = [f"{INDEX}{end}" for end in ("", "_low", "_high")]
    rows = [
        {"slide": slide}
        | {column: first[slide].get(column) for column in columns}
        | {f"other_{column}": second[slide].get(column) for column in columns}
        | {"difference_points": float(mine - theirs)}
        for slide, (theirs, mine) in zip(both, values.tolist(), strict=True)
    ]
    write_table(folder / PAIRS, rows, ("slide",))
    numbers = {key: value for key, value in asdict(limits).items() if isinstance(value, float)}
    row = {"slides": int(known.sum()), "other": name, **{f"{key}_points": value for key, value in numbers.items()}}
    write_table(folder / AGREEMENT, [row | {f"icc_2_1{end}": v for end, v in _ends(icc)}], ("slides", "other"))
    save_picture(agreement_picture(limits, icc, (name, "this run")), folder / AGREEMENT_PICTURE)
    alone = sorted({*first, *second} - set(both))
    print(
        f"agreement with {name}: {known.sum()} slides, bias {limits.bias:+.2f} points, limits of agreement "
        f"{limits.low:.2f} to {limits.high:.2f}, ICC(2,1) {icc.icc:.3f} ({icc.low:.3f}-{icc.high:.3f})"
        + (f"; in one table only: {', '.join(alone)}" if alone else "")
    )
    return limits, icc


def _ends(icc: IntraclassCorrelation) -> list[tuple[str, float]]:
    return [("", icc.icc), ("_low", icc.low), ("_high", icc.high)]


def _slide(row: dict[str, str]) -> SlideIndex:
    estimates = [
        Estimate(*(_number(row.get(f"{name}{end}")) / 100 for end in ("", "_low", "_high")))
        for name in (INDEX, "hot_spot_percent")
    ]
    counts = {class_id: int(row.get(name) or 0) for class_id, name in CLASS_NAMES.items()}
    return SlideIndex(row["slide"], *estimates, counts)


def _number(text: str | None) -> float:
    return float(text) if text else float("nan")
