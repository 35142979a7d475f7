"""`scores.csv`: a row for each slide, region and hot spot; and the line that a run prints of each slide.

Units are in the names of the columns; what is not known is an empty field. `global` marks the row that is the slide's
index: that of all regions together where regions were drawn.
"""

from __future__ import annotations

import numpy as np

from misc.ihc.dab.parts import SLIDE, SPOT, Part, SlideScores
from misc.ihc.markers import Marker
from misc.ihc.scores import CLASS_NAMES, NEGATIVE, Score

FIRST_COLUMNS = ("slide", "scope", "name", "class", "rank", "global", "nuclei", *CLASS_NAMES.values())
LAST_COLUMNS = ("flags", "failed")


def score_rows(slide: str, scores: SlideScores, marker: Marker, facts: dict) -> list[dict]:
    """Return the rows of a slide.

    Args:
        slide: its name.
        scores: of its parts.
        marker: how they are read; names its categories.
        facts: columns that are the same in all rows: stain, thresholds, pixel size.
    """
    best = scores.hot_spots[0].scored.score if scores.hot_spots else None
    rows = []
    for part in scores.parts:
        row = {"slide": slide, "scope": part.scope, **_who(part), **_counts(part), **_rules(part, marker)}
        if part is scores.overall:
            row |= {"global": 1, **_beside(part.scored.score, best)}
        if part.scope == SPOT:
            row |= dict(zip(("x0_px", "y0_px", "x1_px", "y1_px"), part.region.area.bounds, strict=True))
            row |= {"side_um": part.side_um, "tissue_percent": 100 * part.tissue_share}
        rows.append(row | facts | {"flags": "; ".join(part.flags)})
    return rows


def failed_row(slide: str, reason: str) -> dict:
    """Return the row of a slide that could not be scored."""
    return {"slide": slide, "scope": SLIDE, "failed": reason}


def line(slide: str, scores: SlideScores) -> str:
    """Return a slide in a line of text."""
    scored = scores.overall.scored.score
    if not scored.measured:
        return f"{slide}: no nuclei"
    text = f"{slide}: {scored.measured:,} nuclei, {percent(scored)}, H-score {scored.h_score:.0f}"
    if not scores.hot_spots:
        return f"{text}, no hot spot"
    best = scores.hot_spots[0].scored.score
    return f"{text}, hot spot {percent(best, positive='')} of {best.measured:,}"


def percent(scored: Score, positive: str = " positive") -> str:
    """Return an index with its interval, `18.2 % positive (15.5-21.1)`."""
    if not scored.measured:
        return f"no nucleus{positive}"
    low, high = 100 * scored.index_low, 100 * scored.index_high
    return f"{100 * scored.index:.1f} %{positive} ({low:.1f}-{high:.1f})"


def caption_lines(part: Part, marker: Marker) -> list[str]:
    """Return what stands beside a picture of a part: scores, categories with their sources, and flags."""
    scored = part.scored
    if not scored.score.measured:
        return ["no nuclei"]
    lines = [f"{scored.score.measured:,} nuclei, {percent(scored.score)}", f"H-score {scored.score.h_score:.0f}"]
    if scored.allred:
        lines[-1] += f", Allred {sum(scored.allred)} ({scored.allred[0]} + {scored.allred[1]})"
    if part.tissue_share is not None:
        lines.append(f"{100 * part.tissue_share:.0f} % of the field is tissue")
    for rule in marker.cutoffs:
        lines.append(f"{scored.categories[rule.name]}: {rule.source}")
    return [*lines, *(f"! {flag}" for flag in part.flags)]


def _who(part: Part) -> dict:
    return {"name": part.name, "class": part.region.label if part.region else "", "rank": part.rank}


def _counts(part: Part) -> dict:
    scored = part.scored.score
    nuclei = scored.measured
    positive = nuclei - scored.counts[NEGATIVE]
    row: dict = {"nuclei": nuclei} | {name: scored.counts[c] for c, name in CLASS_NAMES.items()}
    row |= _percents("positive_percent", scored) | {"h_score": scored.h_score, "area_mm2": part.area_mm2}
    per_mm2 = (lambda count: count / part.area_mm2) if part.area_mm2 > 0 else lambda count: np.nan
    return row | {"nuclei_per_mm2": per_mm2(nuclei), "positive_per_mm2": per_mm2(positive)}


def _percents(name: str, scored: Score) -> dict:
    values = (scored.index, scored.index_low, scored.index_high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), (100 * value for value in values), strict=True))


def _beside(overall: Score, best: Score | None) -> dict:
    """Return the index of the best hot spot, and by how many points it is above the whole."""
    if best is None:
        return {}
    difference = 100 * (best.index - overall.index)
    return {**_percents("hot_spot_percent", best), "hot_spot_nuclei": best.measured, "difference_points": difference}


def _rules(part: Part, marker: Marker) -> dict:
    row = {}
    if marker.allred:
        proportion, intensity = part.scored.allred or (None, None)
        total = None if part.scored.allred is None else proportion + intensity
        row = {"allred": total, "allred_proportion": proportion, "allred_intensity": intensity}
    for rule in marker.cutoffs:
        row |= {rule.name: part.scored.categories[rule.name], f"{rule.name}_source": rule.source}
    return row
