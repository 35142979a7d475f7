"""Pictures of all slides of a run together: index by slide, share of each class by slide, agreement of two runs.

matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from misc.ihc.dab.agreement import BlandAltman, IntraclassCorrelation
from misc.ihc.panel import CLASS_TYPES, HALO, unit
from misc.ihc.scores import CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A slide takes a line of that height; names are cut to so many letters.
LINE_INCH, WIDTH_INCH, AROUND_INCH, DPI = 0.32, 8.5, 1.7, 110
NAME_LETTERS = 40
# More slides than this are drawn without their names, in lines of a fraction of the height.
NAMED_SLIDES, THIN = 120, 0.25
TEXT_PT = 10
# Okabe and Ito: the whole, and the hot spot.
GLOBAL_COLOUR, HOT_COLOUR = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Estimate:
    """A share of nuclei and its interval, 0 to 1; NaN where there is none."""

    index: float
    low: float
    high: float


@dataclass(frozen=True)
class SlideIndex:
    """What the cohort's pictures show of a slide: its index, that of its hot spot, and its nuclei by class."""

    name: str
    overall: Estimate
    hot_spot: Estimate
    counts: dict[int, int]


def index_picture(slides: Sequence[SlideIndex], cut_offs: Sequence[float] = (), title: str = "") -> Figure:
    """Draw the index of each slide, the highest on top, with its interval and that of its hot spot.

    Args:
        slides: at least one.
        cut_offs: shares at which categories part, drawn as lines.
        title: text above the picture.
    """
    order = sorted(slides, key=lambda one: np.nan_to_num(one.overall.index, nan=-1))
    figure, axes = _lines([one.name for one in order], title)
    for estimates, colour, marker, label, shift in (
        ([one.overall for one in order], GLOBAL_COLOUR, "o", "all nuclei scored", 0.12),
        ([one.hot_spot for one in order], HOT_COLOUR, "D", "hot spot", -0.12),
    ):
        values = 100 * np.array([(one.index, one.low, one.high) for one in estimates])
        if np.isnan(values[:, 0]).all():
            continue
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        style = {"fmt": marker, "markersize": 5, "capsize": 2.5, "elinewidth": 1.2}
        axes.errorbar(values[:, 0], np.arange(len(order)) + shift, xerr=errors, color=colour, label=label, **style)
    for cut_off in cut_offs:
        axes.axvline(100 * cut_off, color="grey", linestyle="--", linewidth=1, zorder=0)
    axes.set(xlabel="positive nuclei, % (95 % interval)", xlim=(-1, None))
    axes.grid(axis="x", alpha=0.3)
    _legend_above(axes, 2)
    return figure


def shares_picture(slides: Sequence[SlideIndex], title: str = "") -> Figure:
    """Draw for each slide the share of each staining class, in the order of `index_picture`."""
    order = sorted(slides, key=lambda one: np.nan_to_num(one.overall.index, nan=-1))
    figure, axes = _lines([one.name for one in order], title)
    counts = np.array([[one.counts.get(c, 0) for c in CLASS_NAMES] for one in order], np.float64)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left = np.zeros(len(order))
    for column, (class_id, name) in enumerate(CLASS_NAMES.items()):
        colour = unit(CLASS_TYPES[class_id][1])
        axes.barh(np.arange(len(order)), shares[:, column], 0.7, left, color=colour, label=name, edgecolor=unit(HALO))
        left += shares[:, column]
    axes.set(xlabel="share of the nuclei, %", xlim=(0, 100))
    if len(order) <= NAMED_SLIDES:
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(order)), [f"{int(n):,}" for n in counts.sum(axis=1)], fontsize=TEXT_PT)
        right.set_ylabel("nuclei")
    _legend_above(axes, len(CLASS_NAMES))
    return figure


def agreement_picture(
    found: BlandAltman, icc: IntraclassCorrelation, names: tuple[str, str], what: str = "index, %"
) -> Figure:
    """Draw the differences of two runs over their means, with bias and limits of agreement.

    Args:
        found: in the unit that `what` names.
        icc: of the same pairs.
        names: of the first and the second run.
        what: was measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.axhspan(found.bias_low, found.bias_high, color=GLOBAL_COLOUR, alpha=0.12, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.scatter(found.mean, found.difference, color=GLOBAL_COLOUR, zorder=3, s=28)
    for value, style, text in (
        (found.bias, "-", "bias"),
        (found.low, "--", "lower limit"),
        (found.high, "--", "upper limit"),
    ):
        axes.axhline(value, color=HOT_COLOUR, linestyle=style, linewidth=1.3)
        axes.annotate(
            f"{text} {value:+.2f}", (1, value), xycoords=("axes fraction", "data"), xytext=(-4, 3),
            textcoords="offset points", ha="right", fontsize=TEXT_PT, color=HOT_COLOUR,
        )  # fmt: skip
    spread = max(abs(found.low), abs(found.high), np.abs(found.difference).max()) * 1.25 or 1.0
    axes.set(
        xlabel=f"mean of both, {what} (band: 95 % interval of the bias)",
        ylabel=f"{names[1]} - {names[0]}",
        ylim=(-spread, spread),
    )
    axes.set_title(
        f"{len(found.mean)} slides, limits of agreement {found.low:.2f} to {found.high:.2f}; "
        f"ICC(2,1) {icc.icc:.3f} ({icc.low:.3f}-{icc.high:.3f})",
        fontsize=TEXT_PT + 1,
    )
    axes.grid(alpha=0.3)
    return figure


def _lines(names: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """Make axes with a line for each slide, the first at the bottom."""
    from matplotlib.figure import Figure

    named = len(names) <= NAMED_SLIDES
    height = AROUND_INCH + LINE_INCH * (1 if named else THIN) * len(names)
    figure = Figure(figsize=(WIDTH_INCH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    short = [name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…" for name in names]
    axes.set_yticks(range(len(names)) if named else [], short if named else [], fontsize=TEXT_PT)
    axes.set(ylim=(-0.6, len(names) - 0.4))
    figure.suptitle(title, fontsize=TEXT_PT + 1)
    return figure, axes


def _legend_above(axes: Axes, columns: int) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, frameon=False, fontsize=TEXT_PT)
