"""Scores of immunohistochemistry: how strongly nuclei are stained, and the numbers a report quotes.

A nucleus is negative, weak, moderate or strong by the mean optical density of DAB in it. Where the limits lie is
given, or found on a cohort: three-way k-means of the positive nuclei, limits half way between the centres.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from misc.formats.sedeen import LAB_CLASSES
from misc.ihc.markers import Cutoffs, Marker
from misc.ihc.stain import STAINS, label_densities
from misc.type_info import TypeInfo, find_ids, positive_ids

# Mean DAB optical density of a nucleus from which it is weak, moderate, strong: QuPath's defaults for nuclear DAB.
THRESHOLDS_OD = (0.2, 0.4, 0.6)
# Types of nuclei by stain, as the lab's pens number them; 0 is a nucleus that was not measured or is too small.
NOT_COUNTED, NEGATIVE, WEAK, MODERATE, STRONG = 0, 1, 2, 3, 4
CLASS_NAMES: dict[int, str] = LAB_CLASSES
# H-score: what a nucleus of each class counts; 100 strong nuclei of 100 are 300 (McCarty et al. 1985).
H_WEIGHTS = {WEAK: 1, MODERATE: 2, STRONG: 3}
# Allred's score: share of positive nuclei from which (exclusive, but for the first two) the proportion score is 1 to 5.
# Allred et al. 1998, Mod Pathol 11:155-168; Harvey et al. 1999, J Clin Oncol 17:1474-1481.
ALLRED_SHARES = (0.0, 1 / 100, 1 / 10, 1 / 3, 2 / 3)
# Standard normal quantile of a two-sided 95 % interval.
Z_95 = 1.959964
# Densities are rounded to this for k-means, which is then exact: there are only some thousand values.
KMEANS_STEP_OD = 0.001
# Column of DAB in what the "hdab" stain pair measures.
DAB = list(STAINS["hdab"]).index("dab")


@dataclass(frozen=True)
class Score:
    """Scores of one image or slide; NaN where no nucleus was measured.

    Attributes:
        counts: number of nuclei by class, keys 1 to 4.
        h_score: 0 to 300.
        index: share of nuclei that are not negative, 0 to 1 (the Ki-67 index, as a share).
        index_low, index_high: its 95 % interval (Wilson).
    """

    counts: dict[int, int]
    h_score: float
    index: float
    index_low: float
    index_high: float

    @property
    def measured(self) -> int:
        """Number of nuclei."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class MarkerScore:
    """Scores of a selection of nuclei, read as a marker is.

    Attributes:
        score: counts, index with its interval, H-score.
        allred: (proportion 0-5, intensity 0-3), their sum is the Allred score; `None` where the marker has none, or
            without nuclei.
        categories: name of each rule -> category, empty without nuclei.
        flags: what a person should know before quoting the numbers, in words.
    """

    score: Score
    allred: tuple[int, int] | None
    categories: dict[str, str]
    flags: tuple[str, ...]


def nuclear_dab(rgb: np.ndarray, inst_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure the mean DAB density of each nucleus: (H, W, 3) uint8, (H, W) int -> (N,) ids, (N,) float64."""
    ids, densities = label_densities(rgb, inst_map, "hdab")
    return ids, densities[:, DAB]


def check_thresholds(thresholds: Sequence[float]) -> tuple[float, float, float]:
    """Return three rising thresholds.

    Raises:
        ValueError: they are not three, not finite, or do not rise.
    """
    values = tuple(float(t) for t in thresholds)
    if len(values) != 3 or not np.isfinite(values).all() or not values[0] < values[1] < values[2]:
        raise ValueError(f"thresholds are three rising DAB densities (weak, moderate, strong), got {list(thresholds)}")
    return values


def classify(
    dab: np.ndarray, thresholds: Sequence[float] = THRESHOLDS_OD, negative: np.ndarray | None = None
) -> np.ndarray:
    """Name the staining class of each nucleus.

    Args:
        dab: (N,) mean DAB density; NaN was not measured.
        thresholds: densities from which a nucleus is weak, moderate, strong.
        negative: (N,) bool, a person's word that a nucleus is negative. If given it decides between negative and
            positive, and the thresholds only grade the positive ones (weak at least).

    Returns:
        (N,) uint8: 1 negative, 2 weak, 3 moderate, 4 strong, 0 not counted.
    """
    dab = np.asarray(dab, np.float64)
    classes = np.searchsorted(check_thresholds(thresholds), dab, side="right").astype(np.uint8) + np.uint8(NEGATIVE)
    if negative is not None:
        classes = np.where(negative, NEGATIVE, np.maximum(classes, WEAK)).astype(np.uint8)
    classes[np.isnan(dab)] = NOT_COUNTED
    return classes


def classes_of_types(
    types: np.ndarray, type_info: TypeInfo, dab: np.ndarray | None = None, thresholds: Sequence[float] = THRESHOLDS_OD
) -> np.ndarray:
    """Name the staining class of each nucleus by what the network calls its type.

    Args:
        types: (N,) int.
        type_info: names of the types. `negative`, `weak`, `moderate`, `strong` are the classes. A type that is only
            positive (its name says so) is graded by `dab`, weak at least; without `dab` it is weak.
        dab: (N,) DAB density; NaN was not measured.
        thresholds: densities from which a nucleus is moderate and strong; the first one does not count here.

    Returns:
        (N,) uint8 as `classify` gives; 0 for types of other names.

    Raises:
        ValueError: no type has such a name.
    """
    types = np.asarray(types)
    classes = np.zeros(len(types), np.uint8)
    graded = classify(np.zeros(len(types)) if dab is None else np.nan_to_num(dab), thresholds)
    positive = np.isin(types, positive_ids(type_info))
    classes[positive] = np.maximum(graded[positive], WEAK)
    by_name = {c: find_ids(name, type_info) for c, name in CLASS_NAMES.items()}
    for c, ids in by_name.items():
        classes[np.isin(types, ids)] = c
    if not any(by_name.values()) and not positive_ids(type_info):
        names = ", ".join(name for key, (name, _) in type_info.items() if key)
        raise ValueError(f"no type of the network says negative or positive ({names}); classify by thresholds instead")
    return classes


def cohort_thresholds(dab: Sequence[np.ndarray], positive_from: float | None = THRESHOLDS_OD[0]) -> tuple:
    """Find the limits between weak, moderate and strong on the nuclei of a cohort.

    Args:
        dab: densities, one (N,) array an image; NaN is left out.
        positive_from: density from which a nucleus is positive and takes part; `None` when all of `dab` are positive
            by a person's word.

    Returns:
        (weak, moderate, strong), to be used by `classify`; weak is `positive_from`, or the smallest density.

    Raises:
        ValueError: the positive nuclei have fewer than three different densities.
    """
    values = np.concatenate([np.zeros(0), *[np.asarray(d, np.float64).ravel() for d in dab]])
    values = values[np.isfinite(values)]
    if positive_from is not None:
        values = values[values >= positive_from]
    steps, weights = np.unique(np.rint(values / KMEANS_STEP_OD).astype(np.int64), return_counts=True)
    if len(steps) < 3:
        raise ValueError(
            f"k-means of three needs positive nuclei of at least three different DAB densities, the cohort has "
            f"{len(values)} positive nuclei of {len(steps)}; give the thresholds"
        )
    low, middle, high = kmeans3(steps * KMEANS_STEP_OD, weights)
    weak = float(values.min()) if positive_from is None else float(positive_from)
    return weak, (low + middle) / 2, (middle + high) / 2


def kmeans3(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Split numbers on a line into three clusters with the least sum of squares; exact, no random start.

    Args:
        values: (M,) float64, rising, M >= 3.
        weights: (M,) how often each occurs.

    Returns:
        The three means, rising. Among equal splits the one with the lowest cuts.
    """
    n = np.concatenate([[0.0], np.cumsum(weights)])
    s = np.concatenate([[0.0], np.cumsum(weights * values)])
    # the least sum of squares has the largest sum of (sum of cluster)^2 / (size of cluster)
    size = len(values)
    first = np.arange(1, size - 1)  # elements before the first cut
    best, cuts = -1.0, (1, 2)
    for second in range(2, size):
        i = first[: second - 1]
        gain = s[i] ** 2 / n[i] + (s[second] - s[i]) ** 2 / (n[second] - n[i])
        top = int(np.argmax(gain))
        total = gain[top] + (s[-1] - s[second]) ** 2 / (n[-1] - n[second])
        if total > best:
            best, cuts = total, (int(i[top]), second)
    edges = [0, *cuts, size]
    low, middle, high = ((s[b] - s[a]) / (n[b] - n[a]) for a, b in itertools.pairwise(edges))
    return float(low), float(middle), float(high)


def score(classes: np.ndarray, which: np.ndarray | None = None) -> Score:
    """Count the classes and score them.

    Args:
        classes: (N,) int, as `classify` gives; those not measured are left out.
        which: (N,) bool or positions, the nuclei of a selection; `None`: all.
    """
    classes = np.asarray(classes) if which is None else np.asarray(classes)[which]
    counts = np.bincount(classes.astype(np.int64), minlength=STRONG + 1)
    by_class = {c: int(counts[c]) for c in CLASS_NAMES}
    total = sum(by_class.values())
    positive = total - by_class[NEGATIVE]
    low, high = wilson_interval(positive, total)
    return Score(by_class, h_score(by_class), positive / total if total else float("nan"), low, high)


def score_columns(scored: Score, thresholds: tuple[float, float, float]) -> dict:
    """Return a slide's columns of staining classes and scores."""
    columns: dict = {f"dab_{name}": scored.counts[c] for c, name in CLASS_NAMES.items()}
    columns |= {"h_score": scored.h_score, "ki67_index": scored.index}
    columns |= {"ki67_index_low": scored.index_low, "ki67_index_high": scored.index_high}
    limits = zip(list(CLASS_NAMES.values())[1:], thresholds, strict=True)
    return columns | {f"{name}_from_od": limit for name, limit in limits}


def score_marker(classes: np.ndarray, marker: Marker, which: np.ndarray | None = None) -> MarkerScore:
    """Score a selection of nuclei as a marker is read; arguments as in `score`."""
    scored = score(classes, which)
    return MarkerScore(
        score=scored,
        allred=allred(scored) if marker.allred and scored.measured else None,
        categories={rule.name: rule.category(scored.index) for rule in marker.cutoffs},
        flags=flags(scored, marker),
    )


def allred(scored: Score) -> tuple[int, int]:
    """Return Allred's proportion (0-5) and intensity (0-3) score; their sum is 0 or 2 to 8.

    The intensity is the mean of the positive nuclei (weak 1, moderate 2, strong 3), rounded, halves up.
    """
    positive = sum(scored.counts.get(c, 0) for c in H_WEIGHTS)
    if not positive:
        return 0, 0
    nothing, hundredth, *others = ALLRED_SHARES
    share = scored.index
    proportion = int(share > nothing) + int(share >= hundredth) + sum(share > x for x in others)
    return proportion, int(sum(w * scored.counts.get(c, 0) for c, w in H_WEIGHTS.items()) / positive + 0.5)


def flags(scored: Score, marker: Marker) -> tuple[str, ...]:
    """Say what a person should know: too few nuclei, and an interval that reaches into another category."""
    if not scored.measured:
        return ("no nuclei",)
    few = [limit for limit in marker.few_nuclei if scored.measured < limit]
    return (*(f"fewer than {limit} nuclei" for limit in few[:1]), *_crossed(scored, marker.cutoffs))


def _crossed(scored: Score, cutoffs: Sequence[Cutoffs]) -> list[str]:
    low, high = scored.index_low, scored.index_high
    return [
        f"interval across {100 * limit:g} % ({rule.name})"
        for rule in cutoffs
        for limit in rule.limits
        if low < limit < high
    ]


def h_score(counts: dict[int, int]) -> float:
    """Return 1 x % weak + 2 x % moderate + 3 x % strong, 0 to 300; NaN without nuclei."""
    total = sum(counts.values())
    return 100 * sum(w * counts.get(c, 0) for c, w in H_WEIGHTS.items()) / total if total else float("nan")


def wilson_interval(positive: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Return the interval in which a share lies (Wilson 1927); it never leaves 0 to 1.

    Args:
        positive, total: counts.
        z: standard normal quantile, 1.96 for 95 %.

    Returns:
        (low, high), shares; NaN for `total` 0.
    """
    if not 0 <= positive <= total:
        raise ValueError(f"{positive} of {total} is no share")
    if total == 0:
        return float("nan"), float("nan")
    share, z2n = positive / total, z * z / total
    centre = (share + z2n / 2) / (1 + z2n)
    half = z * np.sqrt(share * (1 - share) / total + z2n / (4 * total)) / (1 + z2n)
    # rounding must not push a share of 0 or 1 out of its own interval
    return float(min(max(centre - half, 0.0), share)), float(max(min(centre + half, 1.0), share))
