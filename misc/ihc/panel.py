"""A picture shown px by px, with a panel of text, legend and counts beside it, a scale bar, and outlines of regions.

matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from misc.formats.sedeen import HOT_SPOT
from misc.ihc.region_files import region_colour
from misc.ihc.regions import TISSUE, Region
from misc.ihc.scores import CLASS_NAMES, MODERATE, NEGATIVE, NOT_COUNTED, STRONG, WEAK
from misc.slides.tissue import save_png
from misc.type_info import RGB, TypeInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of the classes on tissue: told apart by readers of any colour vision, brighter than nuclei, not of the stains'
# own hues; yellow to magenta rises with the staining.
CLASS_TYPES: TypeInfo = {
    NOT_COUNTED: ("not counted", (150, 150, 150)),
    NEGATIVE: (CLASS_NAMES[NEGATIVE], (0, 200, 255)),
    WEAK: (CLASS_NAMES[WEAK], (255, 230, 50)),
    MODERATE: (CLASS_NAMES[MODERATE], (255, 140, 0)),
    STRONG: (CLASS_NAMES[STRONG], (225, 0, 130)),
}
# Dark line around a coloured one, so that it is seen on pale tissue, too.
HALO: RGB = (30, 30, 30)
# Small pictures are enlarged by a whole number until their longer side has this many px; a picture has room for the
# panel, px.
MIN_SIDE_PX, MIN_HEIGHT_PX = 900, 560
# Dots per inch, of pictures up to this height; in taller ones letters, lines and panel grow with the picture.
DPI, FULL_HEIGHT_PX = 100, 1000
PANEL_PX, TEXT_PT, TITLE_PT = 330, 11, 13
# Letters that fit into a line of the panel.
TITLE_LETTERS, LINE_LETTERS = 26, 36
# Share of the picture's width that a scale bar is shorter than.
BAR_SHARE = 0.25


@dataclass(frozen=True)
class Caption:
    """What stands beside a picture: a title, the number of nuclei of each class, and lines of text."""

    title: str
    counts: dict[int, int]
    lines: Sequence[str] = field(default_factory=tuple)


def unit(rgb: RGB) -> tuple[float, ...]:
    """Return a colour as matplotlib wants it, 0 to 1."""
    return tuple(value / 255 for value in rgb)


def enlargement(rgb: np.ndarray) -> int:
    """Return how many times a picture is to be enlarged to be looked at."""
    return max(1, -(-MIN_SIDE_PX // max(rgb.shape[:2])))


def beside(rgb: np.ndarray, caption: Caption, mpp: float | None) -> tuple[Figure, Axes, Axes, float]:
    """Show a picture px by px, and a panel to its right.

    Args:
        rgb: (h, w, 3) uint8.
        caption: what the panel says.
        mpp: um per px of the picture, or `None`: no scale bar.

    Returns:
        The figure; the axes of the picture, whose unit is its px; those of the panel, `PANEL_PX` wide, whose unit is a
        hundredth of an inch; and how far down the panel is written on, in that unit.
    """
    from matplotlib.figure import Figure

    height, width = rgb.shape[:2]
    tall, scale = max(height, MIN_HEIGHT_PX), max(1, height / FULL_HEIGHT_PX)
    dpi, panel_px = DPI * scale, round(PANEL_PX * scale)
    wide = width + panel_px
    figure = Figure(figsize=(wide / dpi, tall / dpi), dpi=dpi, facecolor="white")
    axes = figure.add_axes((0, 1 - height / tall, width / wide, height / tall))
    axes.imshow(rgb, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    if mpp:
        scale_bar(axes, width, height, mpp)
    panel = figure.add_axes((width / wide, 0, panel_px / wide, 1))
    panel.set(xlim=(0, PANEL_PX), ylim=(tall / scale, 0), autoscale_on=False)
    panel.axis("off")
    return figure, axes, panel, _write(panel, caption)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, much faster than matplotlib does; its folder is made if it is not there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(path, np.asarray(canvas.buffer_rgba())[..., :3])


def _write(panel: Axes, caption: Caption) -> float:
    y, left, step = 32.0, 18, 26
    title = _wrapped(caption.title, TITLE_LETTERS)
    panel.text(left, y, title, fontsize=TITLE_PT, weight="bold", va="top")
    y += step * (1 + title.count("\n")) + 8
    for class_id, count in caption.counts.items():
        if class_id != NOT_COUNTED or count:
            _legend_line(panel, (left, y), class_id, caption.counts)
            y += step
    y += 12
    for line in caption.lines:
        text = _wrapped(line, LINE_LETTERS)
        panel.text(left, y, text, fontsize=TEXT_PT, va="top")
        y += 20 * (1 + text.count("\n")) + 4
    return y


def _legend_line(panel: Axes, xy: tuple[float, float], class_id: int, counts: dict[int, int]) -> None:
    """Write a class: its outline, name, number, and share of what was measured."""
    from matplotlib.patches import Rectangle

    (x, y), (name, rgb), count = xy, CLASS_TYPES[class_id], counts[class_id]
    panel.add_patch(Rectangle((x, y), 18, 16, facecolor="white", edgecolor=unit(HALO), linewidth=3.4))
    panel.add_patch(Rectangle((x, y), 18, 16, fill=False, edgecolor=unit(rgb), linewidth=1.8))
    total = sum(number for key, number in counts.items() if key != NOT_COUNTED)
    share = f"{100 * count / total:.1f} %" if total and class_id != NOT_COUNTED else ""
    style = {"fontsize": TEXT_PT, "va": "center"}
    panel.text(x + 32, y + 8, name, **style)
    panel.text(x + 200, y + 8, f"{count:,}", ha="right", **style)
    panel.text(x + 285, y + 8, share, ha="right", **style)


def _wrapped(text: str, letters: int) -> str:
    return "\n".join(textwrap.wrap(text, letters))


def scale_bar(axes: Axes, width: float, height: float, mpp: float) -> None:
    """Draw a bar of a round length into the lower left corner of axes of `width` x `height` px."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    um = bar_length(width * mpp * BAR_SHARE)
    length, thick, margin = um / mpp, max(height / 150, 4), 0.03 * min(width, height)
    y = height - margin - thick
    axes.add_patch(Rectangle((margin, y), length, thick, facecolor="black", edgecolor="white", linewidth=1))
    text = f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm"
    label = axes.text(margin + length / 2, y - 0.4 * margin, text, ha="center", va="bottom", fontsize=TEXT_PT)
    label.set_path_effects([withStroke(linewidth=3, foreground="white")])


def bar_length(longest_um: float) -> float:
    """Return the longest of 1, 2 or 5 times a power of ten that is no longer."""
    power = 10.0 ** np.floor(np.log10(longest_um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= longest_um * (1 + 1e-9)))


def draw_regions(axes: Axes, regions: Iterable[Region], shrunk: float) -> None:
    """Draw the outlines of regions, their names inside; `shrunk` is level-0 px per unit of the axes."""
    from matplotlib.patheffects import withStroke

    around = [withStroke(linewidth=3.4, foreground="white")]
    for region in regions:
        colour = unit(region_colour(region.label))
        for polygon in shapely.get_parts(region.area):
            for ring in (polygon.exterior, *polygon.interiors):
                xy = (shapely.get_coordinates(ring) + 0.5) / shrunk
                axes.plot(*xy.T, color=colour, linewidth=1.5, path_effects=around)
        if region.label == TISSUE:
            continue
        # in a corner, of hot spots another one than of regions: they often share an edge
        (x0, y0), (_, y1) = ((np.array(region.area.bounds).reshape(2, 2) + 0.5) / shrunk).tolist()
        y, side = (max(y0, 0) + 5, "top") if region.label == HOT_SPOT else (min(y1, axes.get_ylim()[0]) - 5, "bottom")
        text = axes.text(max(x0, 0) + 5, y, region.name, ha="left", va=side, fontsize=TEXT_PT, clip_on=True)
        text.set(color=colour, weight="bold", path_effects=around)
