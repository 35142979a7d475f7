"""Pictures of density maps and of stain densities, drawn with matplotlib.

Figures are made as objects: no window system, no global "current figure", safe in threads. matplotlib is imported
when the first figure is drawn, so that nothing else of the toolkit needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from misc.files import atomic_path
from misc.formats.sedeen import RANK_PENS
from misc.ihc.panel import CLASS_TYPES, HALO, unit
from misc.ihc.scores import CLASS_NAMES, Score, classify
from misc.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Longest side of the map in a figure, inch; its dots per inch grow with the number of bins between these limits.
MAP_INCH = 8.0
DPI_MIN, DPI_MAX = 110, 250
# Longest side of a map as it is drawn, bins: what the figure has px for. matplotlib takes 70 bytes for each.
DRAWN_BINS = 2000
# A map this many times longer than wide is drawn no narrower than this, inch, to leave room for the text.
SHORT_INCH = 2.5
LEFT_INCH, RIGHT_INCH, BOTTOM_INCH, TOP_INCH = 0.8, 1.4, 0.6, 0.6  # around a map: labels, colour bar, title
BAR_INCH = 0.25  # width of the colour bar, and its distance from the map
# matplotlib's name; rises evenly in lightness, so that it reads the same without colours.
COLOUR_MAP = "inferno"
# Over a slide: opacity of the highest density, falling with the density, and share of it below which the tissue
# shows unchanged.
OVERLAY_ALPHA, OVERLAY_FROM = 0.85, 0.05
OVERLAY_GAMMA = 0.7
OVERLAY_COLOUR_MAP = "turbo"
BOX_WIDTH_PT, LABEL_PT = 1.8, 11
HISTOGRAM_BINS = 100
HISTOGRAM_INCH = (7.5, 4.5)


@dataclass(frozen=True)
class MapPicture:
    """What a picture of a density map shows.

    Attributes:
        density: (rows, columns) float64, what the colours mean.
        unit: of the density, for the colour bar.
        tile_size: side of a bin, px.
        width, height: px of the slide.
        mpp_xy: um per px, or `None`: the axes are in mm if it is known, else in px.
        boxes: (K, 4) hot spots [x0, y0, x1, y1] in px, best first.
        title: text above the picture.
    """

    density: np.ndarray
    unit: str
    tile_size: int
    width: int
    height: int
    mpp_xy: tuple[float, float] | None
    boxes: np.ndarray
    title: str


def heat_map(picture: MapPicture) -> Figure:
    """Draw a density map with its hot spots and a colour bar."""
    figure, axes = _map_axes(picture)
    shares = _shrunk(picture.density) / _top(picture.density)
    axes.imshow(_colours(shares, COLOUR_MAP), extent=_extent(picture), aspect="equal")
    _finish_map(figure, axes, picture, COLOUR_MAP)
    return figure


def overlay(picture: MapPicture, thumbnail: np.ndarray) -> Figure:
    """Draw a density map over the slide; the tissue shows where little was counted.

    Args:
        picture: the map.
        thumbnail: (h, w, 3) uint8, the whole slide at any size.
    """
    figure, axes = _map_axes(picture)
    scale_x, scale_y, _ = _axis_units(picture)
    extent = (0, picture.width * scale_x, picture.height * scale_y, 0)
    axes.imshow(_opaque(blend(picture, thumbnail)), extent=extent, aspect="equal")
    _finish_map(figure, axes, picture, OVERLAY_COLOUR_MAP)
    return figure


def blend(picture: MapPicture, thumbnail: np.ndarray) -> np.ndarray:
    """Lay the colours of a map on the slide, the denser the more opaque: (h, w, 3) uint8 as the thumbnail."""
    height, width = thumbnail.shape[:2]
    # the bin under the middle of each pixel of the thumbnail
    rows = ((np.arange(height) + 0.5) * (picture.height / height) / picture.tile_size).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * (picture.width / width) / picture.tile_size).astype(np.int64)
    share = (picture.density[np.ix_(rows, columns)] / _top(picture.density)).astype(np.float32)
    alpha = np.where(share < OVERLAY_FROM, 0, OVERLAY_ALPHA * share**OVERLAY_GAMMA)
    colours = _colours(share, OVERLAY_COLOUR_MAP)[..., :3]
    return np.rint(thumbnail + alpha[..., None] * (colours.astype(np.float32) - thumbnail)).astype(np.uint8)


def dab_histogram(
    dab: np.ndarray,
    thresholds: tuple[float, float, float],
    scored: Score,
    title: str,
    what: str = "mean DAB optical density of the nucleus",
    classes: np.ndarray | None = None,
) -> Figure:
    """Draw how many nuclei have which DAB density, with the thresholds and the scores.

    Args:
        dab: (N,) densities; NaN is left out.
        thresholds: densities from which a nucleus is weak, moderate, strong.
        scored: the scores to quote.
        title: text above the picture.
        what: the densities are.
        classes: (N,) of the nuclei; by the thresholds where not given.
    """
    from matplotlib.figure import Figure

    dab = np.asarray(dab, np.float64)
    measured = np.isfinite(dab)
    dab, classes = dab[measured], (classify(dab, thresholds) if classes is None else classes)[measured]
    figure = Figure(figsize=HISTOGRAM_INCH, dpi=DPI_MIN, layout="constrained")
    axes = figure.subplots()
    low, high = min(0.0, dab.min(initial=0)), max(thresholds[-1] * 1.25, dab.max(initial=0))
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    # a bin that holds a threshold is cut there, so that each bin has one colour
    edges = np.unique(np.concatenate([edges, [t for t in thresholds if low < t < high]]))
    below = np.zeros(len(edges) - 1)  # classes with the same densities are stacked
    for class_id, name in CLASS_NAMES.items():
        inside = dab[classes == class_id]
        percent = f"{100 * len(inside) / max(len(dab), 1):.1f} %"
        # one shape for a class: with a bar for each bin the picture takes twice as long
        style = {"facecolor": unit(CLASS_TYPES[class_id][1]), "edgecolor": unit(HALO), "linewidth": 0.4, "fill": True}
        top = below + np.histogram(inside, edges)[0]
        axes.stairs(top, edges, baseline=below, label=f"{name}: {len(inside)} ({percent})", **style)
        below = top
    for threshold in thresholds:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            f"{threshold:.3g}", (threshold, 0.98), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="top"
        )
    axes.set(xlabel=what, ylabel="nuclei", xlim=(low, high))
    axes.set_title(f"{title}\n{describe(scored)}", fontsize=LABEL_PT)
    axes.legend(frameon=False, loc="upper right")
    return figure


def describe(scored: Score) -> str:
    """Return the scores in a line of text."""
    if not scored.measured:
        return "no nucleus was measured"
    return (
        f"{counted(scored.measured, 'nucleus')}, H-score {scored.h_score:.0f}, positive {100 * scored.index:.1f} % "
        f"(95 % CI {100 * scored.index_low:.1f}-{100 * scored.index_high:.1f})"
    )


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG; the file is whole or not there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _top(density: np.ndarray) -> float:
    """Return the density that has the last colour; an empty map has a scale, too."""
    return float(density.max(initial=0)) or 1.0


def _shrunk(density: np.ndarray) -> np.ndarray:
    """Return the map with no side longer than `DRAWN_BINS`, by the mean of what falls together."""
    factor = DRAWN_BINS / max(density.shape)
    if factor >= 1:
        return density
    rows, columns = (max(1, round(side * factor)) for side in density.shape)
    return cv2.resize(density, (columns, rows), interpolation=cv2.INTER_AREA)


def _colours(shares: np.ndarray, colour_map: str) -> np.ndarray:
    """Return numbers from 0 to 1 in colours, (..., 4) uint8; much smaller than what imshow would make of them."""
    from matplotlib import colormaps

    return colormaps[colour_map](shares, bytes=True)


def _opaque(rgb: np.ndarray) -> np.ndarray:
    """Add the fourth channel, which matplotlib would add as float64."""
    return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])


def _axis_units(picture: MapPicture) -> tuple[float, float, str]:
    if picture.mpp_xy is None:
        return 1.0, 1.0, "px"
    return picture.mpp_xy[0] / 1000, picture.mpp_xy[1] / 1000, "mm"


def _extent(picture: MapPicture) -> tuple[float, float, float, float]:
    """Return left, right, bottom, top of the grid in units of the axes; the last bins reach beyond the slide."""
    rows, columns = picture.density.shape
    scale_x, scale_y, _ = _axis_units(picture)
    return 0, columns * picture.tile_size * scale_x, rows * picture.tile_size * scale_y, 0


def _map_axes(picture: MapPicture) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    scale_x, scale_y, unit = _axis_units(picture)
    size = np.array([picture.width * scale_x, picture.height * scale_y])
    inch = np.maximum(size / size.max() * MAP_INCH, SHORT_INCH)
    dpi = int(np.clip(max(picture.density.shape) / MAP_INCH, DPI_MIN, DPI_MAX))
    width, height = whole = inch + (LEFT_INCH + RIGHT_INCH, BOTTOM_INCH + TOP_INCH)
    figure = Figure(figsize=tuple(whole), dpi=dpi)
    axes = figure.add_axes((LEFT_INCH / width, BOTTOM_INCH / height, inch[0] / width, inch[1] / height))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), xlabel=f"x [{unit}]", ylabel=f"y [{unit}]")
    return figure, axes


def _finish_map(figure: Figure, axes: Axes, picture: MapPicture, colour_map: str) -> None:
    """Add hot spots, colour bar and title; keep the axes on the slide."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    scale_x, scale_y, _ = _axis_units(picture)
    boxes = picture.boxes * np.array([scale_x, scale_y, scale_x, scale_y])
    for rank in range(len(boxes), 0, -1):  # the best one is drawn last: where boxes touch its line is on top
        x0, y0, x1, y1 = boxes[rank - 1]
        colour = RANK_PENS[min(rank, len(RANK_PENS)) - 1]
        around = [withStroke(linewidth=BOX_WIDTH_PT + 1.5, foreground="white")]
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=BOX_WIDTH_PT)
        box.set_path_effects(around)
        axes.add_patch(box)
        text = axes.text((x0 + x1) / 2, (y0 + y1) / 2, str(rank), ha="center", va="center", weight="bold")
        text.set(fontsize=LABEL_PT, path_effects=[withStroke(linewidth=3, foreground="white")])
    axes.set(xlim=(0, picture.width * scale_x), ylim=(picture.height * scale_y, 0))
    axes.set_title(picture.title, fontsize=LABEL_PT)
    colours = ScalarMappable(Normalize(0, _top(picture.density)), colour_map)
    wide = BAR_INCH / (figure.get_figwidth() - LEFT_INCH - RIGHT_INCH)
    beside = axes.inset_axes([1 + wide, 0, wide, 1])  # as high as the map, whatever its shape
    figure.colorbar(colours, cax=beside, label=picture.unit)
