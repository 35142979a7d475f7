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

from collections.abc import Iterator

import numpy as np

from misc.ihc.density import UM_PER_MM, bin_counts, mm2
from misc.ihc.heat_map.slide import SlideMap, SlideNuclei

# Columns that are there even when no slide gave a row.
HOT_SPOT_COLUMNS = ("slide", "rank", "x0_px", "y0_px", "x1_px", "y1_px")
SUMMARY_COLUMNS = ("slide",)


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
