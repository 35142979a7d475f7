"""Tiles for the page: of the slide itself, of outlines of nuclei, and of their density.

A tile is `TILE_PX` wide at a scale of 2^zoom screen px per level-0 px: zoom 0 is the slide's own px, -1 half of it.
Outlines have no colours yet: the page colours them, so that types, colours and the slider need no request.
"""

from __future__ import annotations

import functools
import itertools

import cv2
import numpy as np

from misc.slides.handler import FileHandler
from viewer.index import BIN_PX, NucleiIndex

TILE_PX = 512
JPEG_QUALITY = 88
# Tiles of the slide that are kept, 0.8 MB each.
KEPT_TILES = 100
# Tolerance of a factor of 2 between levels, since their sizes are rounded to whole px.
ROUNDED = 0.02
# Beyond zoom 0 the page enlarges the slide; outlines are drawn up to this zoom, so that they stay sharp.
MAX_NUCLEI_ZOOM = 3
# Least mean diameter of nuclei that are drawn as outlines, screen px; smaller ones are shown as density.
MIN_OUTLINE_PX = 6.0
# Steps of the slider; step 0 is an unknown value.
VALUE_STEPS = 64
# Width of outlines of large and of small nuclei, screen px, and the least mean diameter of large ones.
LINE_PX, THIN_LINE_PX = 2, 1
LARGE_PX = 20.0
# Extra width of the lines of the first of two results, which shows on both sides of the second's lines.
RIM_PX = 2
MARGIN_PX = LINE_PX + RIM_PX  # largest distance of a line from the box of its nucleus
# Fixed point of OpenCV's drawing: sixteenths of a px.
SUB_BITS = 4
# Largest side of the bins of a density map before smoothing, screen px.
MAX_BIN_PX = 16
# Radius of the Gaussian that smooths them, bins.
BLUR_BINS = 5
# Opacity of the densest place: the tissue stays visible.
MAX_ALPHA = 0.5
# Tiles of lines are mostly runs of one value: without a filter they pack in half the time, and get no larger.
PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
]


class SlideTiles:
    """The pixels of a slide by tile, at zoom 0, -1, ... until the slide is one tile.

    A level that the file lacks is made from the next larger one, tile by tile. The last tiles are kept, since others
    are made from them.

    Attributes:
        levels: number of zooms.
        rgb: `rgb(zoom, column, row)` returns a tile, see `_rgb`.
    """

    def __init__(self, handler: FileHandler):
        """`handler` was opened with `mag=1.0`, whatever the slide's own is: a magnification is then a share of level 0,
        also if the slide has no resolution."""
        self._planes = [handler]
        while max(self._planes[-1].shape_yx) > TILE_PX:
            self._planes.append(handler.at(read_mag=0.5 ** len(self._planes)))
        self.levels = len(self._planes)
        self.rgb = functools.lru_cache(KEPT_TILES)(self._rgb)

    def _rgb(self, zoom: int, column: int, row: int) -> np.ndarray:
        """Return a tile, (h, w, 3) uint8, smaller than `TILE_PX` at the slide's right and lower edge.

        Raises:
            IndexError: there is no such tile.
            SlideError: the slide is damaged there.
        """
        if not 0 <= -zoom < self.levels:
            raise IndexError(f"no zoom {zoom}")
        plane, x, y = self._planes[-zoom], column * TILE_PX, row * TILE_PX
        height, width = plane.shape_yx
        if x > width or y > height:
            raise IndexError(f"no tile {column}, {row}")
        x, y = min(x, width - 1), min(y, height - 1)  # sides are rounded down: the last tile may be less than a px
        size = min(TILE_PX, width - x), min(TILE_PX, height - y)
        if zoom == 0 or plane.shrinks < 2 - ROUNDED or 1 in size:
            return plane.read_region((x, y), size)
        return self._of_four(zoom + 1, column, row, size)

    def _of_four(self, zoom: int, column: int, row: int, size: tuple[int, int]) -> np.ndarray:
        """Make a tile from the four tiles of the next larger level."""
        width, height = size
        large = np.full((2 * height, 2 * width, 3), 255, np.uint8)
        for down, right in np.ndindex(2 if 2 * height > TILE_PX else 1, 2 if 2 * width > TILE_PX else 1):
            part = self.rgb(zoom, 2 * column + right, 2 * row + down)
            place = large[down * TILE_PX :, right * TILE_PX :]
            part = part[: place.shape[0], : place.shape[1]]
            place[: part.shape[0], : part.shape[1]] = part
        return cv2.resize(large, size, interpolation=cv2.INTER_AREA)


def jpeg(rgb: np.ndarray) -> bytes:
    """Return (H, W, 3) uint8 RGB as JPEG."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def png(image: np.ndarray) -> bytes:
    """Return an image in OpenCV's order of channels as PNG, packed fast."""
    return cv2.imencode(".png", image, PNG)[1].tobytes()


# ---------------------------------------------------------------------------------------------- outlines


def min_outline_zoom(mean_area: float) -> int:
    """Return the smallest zoom at which nuclei are outlined; `mean_area` is of nuclei, level-0 px^2."""
    diameter = max(2 * np.sqrt(mean_area / np.pi), 1.0)
    return min(int(np.ceil(np.log2(MIN_OUTLINE_PX / diameter))), MAX_NUCLEI_ZOOM)


def draw_outlines(
    index: NucleiIndex, scale: float, value: str, ends: tuple[float, float], zoom: int, corner: np.ndarray, rim: int = 0
) -> np.ndarray:
    """Draw the outlines of a tile without colours.

    Args:
        index: the nuclei.
        scale: level-0 px per px of the index.
        value: `prob`, `area` or `dab`: the value for the slider.
        ends: of the slider, in the unit of the index.
        zoom: of the tile.
        corner: (2,) x, y of its first px, in px of its zoom.
        rim: extra width of lines, px, if a second result is drawn on top.

    Returns:
        (TILE_PX, TILE_PX, 3) uint8 in OpenCV's order: coverage, step of the value, code of the type.
    """
    factor = scale * 2.0**zoom  # screen px per px of the index
    box = np.concatenate([corner - MARGIN_PX, corner + TILE_PX + MARGIN_PX]) / factor - 0.5
    nuclei = index.field(*box).nuclei
    nuclei = nuclei[nuclei["length"] > 0]
    tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    if not len(nuclei):
        return tile
    steps = value_steps(nuclei[value], ends)
    keys = nuclei["code"].astype(np.int64) * 256 + steps + 1  # 0 is no nucleus
    order = np.argsort(keys, kind="stable")
    keys, nuclei = keys[order], nuclei[order]
    points, offsets = index.contours(nuclei)
    fixed = np.rint((((points + 0.5) * factor - corner) - 0.5) * (1 << SUB_BITS)).astype(np.int32)
    rings = [fixed[start:stop] for start, stop in itertools.pairwise(offsets.tolist())]
    width = _line_width(index.meta["mean_area"], factor) + rim
    key, coverage = np.zeros((TILE_PX, TILE_PX), np.uint16), np.zeros((TILE_PX, TILE_PX), np.uint8)
    for group in np.split(np.arange(len(keys)), np.flatnonzero(np.diff(keys)) + 1):
        part = rings[group[0] : group[-1] + 1]
        cv2.polylines(key, part, True, int(keys[group[0]]), 1, cv2.LINE_8, SUB_BITS)
    cv2.polylines(coverage, rings, True, 255, width, cv2.LINE_AA, SUB_BITS)
    for _ in range(width // 2 + 1):  # thin lines are fast to draw; they grow to the soft edge of the wide ones
        key = np.where(key > 0, key, cv2.dilate(key, np.ones((3, 3), np.uint8)))
    coverage[key == 0] = 0
    key[coverage == 0] = 1
    key -= 1
    tile[..., 0], tile[..., 1], tile[..., 2] = coverage, key & 255, key >> 8
    return tile


def value_steps(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Return the slider's step of each value, 1 to `VALUE_STEPS`; 0 for an unknown value."""
    share = np.clip((values - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return np.where(np.isfinite(share), 1 + np.rint(np.nan_to_num(share) * (VALUE_STEPS - 1)), 0).astype(np.uint8)


def _line_width(mean_area: float, factor: float) -> int:
    """Return the width of lines, px: the same for all tiles of a zoom, so that no seam shows between them."""
    diameter = 2 * np.sqrt(mean_area / np.pi) * factor
    return LINE_PX if diameter >= LARGE_PX else THIN_LINE_PX


# ---------------------------------------------------------------------------------------------- density


def draw_density(index: NucleiIndex, scale: float, codes: list[int], zoom: int, corner: np.ndarray) -> np.ndarray:
    """Draw the density of nuclei whose type is in `codes`; other arguments as in `draw_outlines`.

    Returns:
        (TILE_PX, TILE_PX, 4) uint8 in OpenCV's order, transparent where there are none.
    """
    share = np.clip(density(index, scale, codes, zoom, corner) / index.meta["peak"], 0, 1)
    bgra = np.empty((*share.shape, 4), np.uint8)
    bgra[..., :3] = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    bgra[..., 3] = np.rint(255 * MAX_ALPHA * share**0.8)
    return bgra


def density(index: NucleiIndex, scale: float, codes: list[int], zoom: int, corner: np.ndarray) -> np.ndarray:
    """Return nuclei per px^2 of the index at each px of a tile, (TILE_PX, TILE_PX) float32, smooth across tiles."""
    factor = scale * 2.0**zoom
    level = int(np.clip(np.floor(np.log2(MAX_BIN_PX / (BIN_PX * factor))), 0, len(index.counts) - 1))
    bin_px = BIN_PX << level
    corner = np.asarray(corner) / factor / bin_px  # in bins
    low = np.maximum(np.floor(corner).astype(int) - BLUR_BINS, 0)
    high = np.ceil(corner + TILE_PX / factor / bin_px).astype(int) + BLUR_BINS
    counts = index.counts[level][low[1] : high[1], low[0] : high[0]][..., codes].sum(axis=2, dtype=np.float32)
    if not counts.size:
        return np.zeros((TILE_PX, TILE_PX), np.float32)
    smooth = cv2.GaussianBlur(np.pad(counts, BLUR_BINS), (0, 0), BLUR_BINS / 3) / bin_px**2
    # the centre of px i lies at (i + 0.5) / (factor * bin) bins from the tile's corner; bin j's centre at j + 0.5
    step = 1 / (factor * bin_px)
    shift = corner - low + BLUR_BINS + 0.5 * step - 0.5
    move = np.array([[step, 0, shift[0]], [0, step, shift[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(smooth, move, (TILE_PX, TILE_PX), flags=flags, borderMode=cv2.BORDER_CONSTANT)
