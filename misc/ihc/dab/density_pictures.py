"""Density of positive nuclei per mm2 of tissue, over the slide without its colours.

Glass is not coloured, and the darkness of the tissue shows through: a map in one hue, the denser the more opaque, and
contour lines. All maps of a run have one range of colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import shapely

from misc.ihc.density import bin_counts, mm2, smooth
from misc.ihc.panel import DPI, PANEL_PX, TEXT_PT, Caption, beside, draw_regions, enlargement
from misc.ihc.regions import Region, area_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from shapely.geometry.base import BaseGeometry

# Side of a bin and standard deviation of the Gaussian, um: a hot spot of 0.5 mm is some of these wide.
BIN_UM, SIGMA_UM = 25.0, 75.0
# Bins of the longer side at least, whatever the pixel size: fields of a fraction of a mm.
MIN_BINS = 8
# Less tissue than this share of what the Gaussian sees gives no density.
MIN_TISSUE = 0.05
# matplotlib's name; one hue, even steps of lightness.
COLOUR_MAP = "RdPu"
# Share of it that is used: beyond, nuclei are no longer seen through it.
LAST_COLOUR = 0.8
# Contour lines at these shares of the range, and their colour.
CONTOURS, CONTOUR_COLOUR = (0.25, 0.5, 0.75), "#49006a"
# How much the slide is made paler.
PALER = 0.4
# Times as fine as the bins that tissue is drawn to find its share of each.
FINER = 4


@dataclass(frozen=True)
class DensityMap:
    """Density of positive nuclei by bin.

    Attributes:
        density: (rows, columns) float64, per mm2 of tissue, or per px2 where px have no size; NaN without tissue.
        tile_px: side of a bin, level-0 px.
        unit: of the density.
    """

    density: np.ndarray
    tile_px: int
    unit: str

    @property
    def top(self) -> float:
        """Highest density, 0 where there is none."""
        return float(np.nanmax(self.density, initial=0))


def density_map(
    xy: np.ndarray, tissue: BaseGeometry, size_wh: tuple[int, int], mpp_xy: tuple[float, float] | None
) -> DensityMap:
    """Bin nuclei and divide by the tissue in their bins, both smoothed alike, so that edges are not paler.

    Args:
        xy: (N, 2) level-0 px of the positive nuclei that lie in the tissue.
        tissue: its outline, level-0 px.
        size_wh: of the slide, level-0 px.
        mpp_xy: um per level-0 px, or `None`.
    """
    width, height = size_wh
    tile = max(1, min(round(BIN_UM / mpp_xy[0]) if mpp_xy else 50, max(size_wh) // MIN_BINS))
    sigma = SIGMA_UM / BIN_UM
    counts = smooth(bin_counts(xy, width, height, tile), sigma)
    share = smooth(tissue_share(tissue, counts.shape, tile), sigma)
    px_area = mm2(1.0, mpp_xy) if mpp_xy else 1.0
    area = np.where(share > MIN_TISSUE, share * tile**2 * px_area, np.nan)
    return DensityMap(counts / area, tile, "positive nuclei per mm² of tissue" if mpp_xy else "positive nuclei per px²")


def tissue_share(tissue: BaseGeometry, shape: tuple[int, int], tile_px: int) -> np.ndarray:
    """Return the share of tissue in each bin, (rows, columns) float64 from 0 to 1."""
    rows, columns = shape
    drawn = _mask(tissue, (rows * FINER, columns * FINER), tile_px / FINER)
    return drawn.reshape(rows, FINER, columns, FINER).mean(axis=(1, 3), dtype=np.float64)


def _mask(area: BaseGeometry, shape: tuple[int, int], shrunk: float) -> np.ndarray:
    """Tell which px, `shrunk` level-0 px wide, lie in an area, (rows, columns) bool."""
    return area_mask(shapely.transform(area, lambda xy: (xy + 0.5) / shrunk - 0.5), shape)


@dataclass(frozen=True)
class MapOnSlide:
    """What a picture of a density map shows beside the map: the slide, made smaller, and what is drawn on it.

    Attributes:
        rgb: (h, w, 3) uint8, the whole slide.
        shrunk: level-0 px per px of it.
        tissue: its outline, level-0 px.
        regions: to be outlined, tissue and hot spots among them.
        mpp: um per level-0 px, or `None`.
    """

    rgb: np.ndarray
    shrunk: float
    tissue: BaseGeometry
    regions: Sequence[Region]
    mpp: float | None


def density_picture(found: DensityMap, slide: MapOnSlide, caption: Caption, top: float) -> Figure:
    """Draw a density map.

    Args:
        found: the map.
        slide: what it is of.
        caption: what to say; the classes are not listed.
        top: density that has the last colour, the same for all slides of a run.
    """
    zoom = enlargement(slide.rgb)
    rgb = slide.rgb.repeat(zoom, 0).repeat(zoom, 1)
    shrunk = slide.shrunk / zoom
    density = _enlarged(found, rgb.shape[:2], shrunk)
    density[~_mask(slide.tissue, rgb.shape[:2], shrunk)] = np.nan
    figure, axes, _, y = beside(_blend(rgb, density / (top or 1.0)), caption, slide.mpp and slide.mpp * shrunk)
    levels = [share * top for share in CONTOURS]
    if top and np.nanmax(density, initial=0) > levels[0]:
        middles = np.arange(0.5, rgb.shape[1]), np.arange(0.5, rgb.shape[0])
        axes.contour(*middles, density, levels=levels, colors=CONTOUR_COLOUR, linewidths=(0.7, 1.1, 1.6))
    draw_regions(axes, slide.regions, shrunk)
    _colour_bar(figure, axes, found.unit, top or 1.0, y)
    return figure


def _enlarged(found: DensityMap, shape: tuple[int, int], shrunk: float) -> np.ndarray:
    """Return the density at each px of a picture, float32, between bins by straight lines."""
    known = np.isfinite(found.density)
    to_bins = [((np.arange(side) + 0.5) * shrunk / found.tile_px - 0.5).astype(np.float32) for side in shape]
    grid_x, grid_y = np.meshgrid(to_bins[1], to_bins[0])
    read = lambda plane: cv2.remap(  # noqa: E731
        plane.astype(np.float32), grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    weight = read(known)
    return read(np.where(known, found.density, 0)) / np.where(weight > 0, weight, np.nan)


def _blend(rgb: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Lay the colours of shares (NaN: none) on a pale grey picture of the slide.

    Multiplied, as a stain would: dark tissue stays darker than pale tissue.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None] / 255
    colours = _colour_map()(np.clip(share, 0, 1), bytes=True)[..., :3]
    return np.rint((grey + (1 - grey) * PALER) * np.where(np.isnan(share)[..., None], 255, colours)).astype(np.uint8)


def _colour_map() -> Colormap:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[COLOUR_MAP](np.linspace(0, LAST_COLOUR, 256)))


def _colour_bar(figure: Figure, axes: Axes, unit: str, top: float, y: float) -> None:
    """Add the colours with their numbers below the text of the panel, which ends at `y` as `beside` has it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = figure.get_size_inches() * DPI
    bar = figure.add_axes(((width - PANEL_PX + 18) / width, 1 - (y + 66) / height, 270 / width, 16 / height))
    figure.colorbar(ScalarMappable(Normalize(0, top), _colour_map()), cax=bar, orientation="horizontal")
    lines = ", ".join(f"{100 * share:.0f}" for share in CONTOURS)
    bar.set_title(f"{unit};\nlines at {lines} % of the range", fontsize=TEXT_PT, loc="left")
    bar.tick_params(labelsize=TEXT_PT - 1)
