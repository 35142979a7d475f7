"""What labs do with each marker: limits of the classes, the rule of the hot spot, categories with their sources.

A marker is a preset: `marker("ki67", min_nuclei=1000)` changes what a study does otherwise. Nothing is hidden in code
elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Median DAB optical density of a nucleus, above that of the ground, from which it is weak, moderate, strong: QuPath's
# defaults for nuclear DAB (0.2, 0.4, 0.6 above white), less the 0.1 that unstained tissue has there.
THRESHOLDS_OD = (0.1, 0.3, 0.5)
# A window of 0.5 x 0.5 mm: about one field of a 40x objective, and what holds 500 to 2000 nuclei of a tumour.
FIELD_MM2 = 0.25
SQUARE, CIRCLE = "square", "circle"
BY_INDEX, BY_POSITIVE = "index", "positive"
# Scores of fewer nuclei are flagged: ASCO/CAP 2020 wants 100 for a receptor, the Ki67 Working Group 500 for an index.
FEW_NUCLEI = (100, 500)


@dataclass(frozen=True)
class Cutoffs:
    """Categories of the share of positive nuclei.

    Attributes:
        name: of the rule, for a column.
        categories: names, from the lowest.
        limits: share from which each category but the first begins, rising.
        includes: whether a share that is exactly the limit belongs to the category above it.
        source: where the rule is written.
    """

    name: str
    categories: tuple[str, ...]
    limits: tuple[float, ...]
    includes: tuple[bool, ...]
    source: str

    def category(self, share: float) -> str:
        """Name the category of a share, 0 to 1; empty for NaN."""
        if math.isnan(share):
            return ""
        above = (share >= x if own else share > x for x, own in zip(self.limits, self.includes, strict=True))
        return self.categories[sum(above)]


_ASCO_CAP = "ASCO/CAP 2020 (Allison et al., J Clin Oncol 38:1346)"
RECEPTOR = Cutoffs(
    "asco_cap_2020",
    ("negative (under 1 %)", "low positive (1-10 %)", "positive (over 10 %)"),
    (0.01, 0.10),
    (True, False),
    _ASCO_CAP,
)
PR_RECEPTOR = replace(RECEPTOR, source=f"{_ASCO_CAP}; it reports low positive for ER only")
KI67_BREAST = Cutoffs(
    "ikwg_2021",
    ("low (at most 5 %)", "intermediate (over 5, under 30 %)", "high (30 % and more)"),
    (0.05, 0.30),
    (False, True),
    "International Ki67 in Breast Cancer Working Group 2021 (Nielsen et al., J Natl Cancer Inst 113:808)",
)
NEUROENDOCRINE = Cutoffs(
    "net_grade",
    ("G1 (at most 2 %, under 3)", "G2 (3-20 %)", "G3 (over 20 %)"),
    (0.03, 0.20),
    (True, False),
    "WHO 2019, Digestive system tumours, neuroendocrine tumours; by Ki-67 alone, without mitoses",
)


@dataclass(frozen=True)
class Marker:
    """How one marker is read.

    Attributes:
        name: a key of `MARKERS`.
        thresholds: DAB optical densities above the ground from which a nucleus is weak, moderate, strong.
        min_contrast: DAB density above that of the ring around it which a weak or moderate nucleus has at least; 0 asks
            for none.
        min_area_um2: area of a nucleus that counts, at least.
        field_mm2: area of a hot spot.
        shape: `SQUARE` or `CIRCLE`.
        ranked_by: `BY_INDEX` (share of positive nuclei) or `BY_POSITIVE` (positive nuclei a mm2).
        min_nuclei: a hot spot grows until it holds so many, see `misc.ihc.dab.hot_spots`.
        min_tissue: share of a hot spot that is tissue, at least.
        top_k: most hot spots.
        few_nuclei: numbers below which a score is flagged, rising.
        cutoffs: categories of the index, none for a marker without a rule.
        allred: whether the Allred score means something.
    """

    name: str
    thresholds: tuple[float, float, float] = THRESHOLDS_OD
    min_contrast: float = 0.0
    min_area_um2: float = 0.0
    field_mm2: float = FIELD_MM2
    shape: str = SQUARE
    ranked_by: str = BY_INDEX
    min_nuclei: int = 500
    min_tissue: float = 0.0
    top_k: int = 5
    few_nuclei: tuple[int, ...] = FEW_NUCLEI
    cutoffs: tuple[Cutoffs, ...] = ()
    allred: bool = False

    @property
    def side_um(self) -> float:
        """Side of the square, or diameter of the circle, um."""
        area_um2 = self.field_mm2 * 1e6
        return math.sqrt(area_um2 if self.shape == SQUARE else 4 * area_um2 / math.pi)


MARKERS = {
    one.name: one
    for one in (
        Marker("ki67", cutoffs=(KI67_BREAST, NEUROENDOCRINE)),
        Marker("er", cutoffs=(RECEPTOR,), allred=True),
        Marker("pr", cutoffs=(PR_RECEPTOR,), allred=True),
        Marker("generic"),
    )
}
# Markers of membranes (and of cells other than the tumour's), by the names people give them.
_MEMBRANE = {"her2": "HER2", "erbb2": "HER2", "pdl1": "PD-L1", "cd274": "PD-L1"}


def marker(name: str, **changes) -> Marker:
    """Return a preset, with what is asked for otherwise.

    Args:
        name: a key of `MARKERS`; upper and lower case are the same, and dashes do not count.
        **changes: attributes of `Marker`; `None` leaves the preset's.

    Raises:
        ValueError: there is no such marker, it is one that is not scored, or a value makes no sense.
    """
    key = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if key in _MEMBRANE:
        raise ValueError(
            f"--marker={name}: {_MEMBRANE[key]} is scored on membranes, which this tool does not find: it scores nuclei"
        )
    if key not in MARKERS:
        raise ValueError(f"--marker={name}: there are {', '.join(MARKERS)}")
    return check_marker(replace(MARKERS[key], **{k: v for k, v in changes.items() if v is not None}))


def check_marker(one: Marker) -> Marker:
    """Return the marker.

    Raises:
        ValueError: an attribute makes no sense; the message names its option.
    """
    if not (len(one.thresholds) == 3 and all(a < b for a, b in zip(one.thresholds, one.thresholds[1:], strict=False))):
        raise ValueError(f"--thresholds: expected three rising DAB densities, got {list(one.thresholds)}")
    if not 0 <= one.min_contrast < math.inf:
        raise ValueError(f"--min_contrast is a DAB density from 0 on, got {one.min_contrast}")
    if not 0 <= one.min_area_um2 < math.inf:
        raise ValueError(f"--min_area is an area in um2 from 0 on, got {one.min_area_um2}")
    if not 0 < one.field_mm2 < math.inf:
        raise ValueError(f"--hotspot_field_mm2 is a positive number, got {one.field_mm2}")
    for option, value, known in (
        ("--hotspot_shape", one.shape, (SQUARE, CIRCLE)),
        ("--hotspot_by", one.ranked_by, (BY_INDEX, BY_POSITIVE)),
    ):
        if value not in known:
            raise ValueError(f"{option} is {' or '.join(known)}, got {value!r}")
    if not 0 <= one.min_tissue <= 1:
        raise ValueError(f"--min_tissue is a share from 0 to 1, got {one.min_tissue}")
    for option, value in (("--min_nuclei", one.min_nuclei), ("--top_k", one.top_k)):
        if value < 1:
            raise ValueError(f"{option} is a positive number, got {value}")
    return one


def describe(one: Marker) -> list[str]:
    """Return what a run prints of a marker: every rule with its source, a line each."""
    weak, moderate, strong = one.thresholds
    lines = [
        f"{one.name}: weak from {weak:g}, moderate from {moderate:g}, strong from {strong:g} DAB OD above background"
    ]
    if one.min_contrast:
        lines.append(f"weak and moderate: at least {one.min_contrast:g} OD above the ring around them")
    if one.min_area_um2:
        lines.append(f"counted: nuclei of at least {one.min_area_um2:g} um2")
    lines.append(
        f"hot spots: {one.shape} of {one.field_mm2:g} mm2, ranked by {one.ranked_by}, at least {one.min_nuclei} nuclei "
        f"and {100 * one.min_tissue:g} % tissue"
    )
    return lines + [f"{c.name}: {', '.join(c.categories)}; {c.source}" for c in one.cutoffs]
