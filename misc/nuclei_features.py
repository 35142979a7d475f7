"""Shape and stain of nuclei, for the tables and the intensity scores.

A contour runs through the centres of a nucleus' border pixels; the nucleus is what it encloses, border included
and holes filled. Everything here is in pixels of the contour's own grid.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from misc.ihc.stain import optical_density, unmixing
from misc.nuclei import Nuclei
from misc.outlines import Border, grid_steps, nucleus_mask, second_moments, steps_of

# Side in px of the pieces of an image that are read to measure the nuclei in them: 12 MB of RGB.
READ_PX = 2048
# Plausible median diameters of the nuclei of an image, um: 5 to 6 for small lymphocytes, about 15 for pleomorphic
# carcinomas (Alberts et al., Molecular Biology of the Cell: 5 to 8 in most cells).
PLAUSIBLE_DIAMETER_UM = (4.0, 20.0)

# Cells of the table that finds grid points passed twice, 64 MB; 2,000 nuclei take about a million.
MAX_CELLS = 16 << 20

ReadRegion = Callable[[int, int, int, int], np.ndarray]


@dataclass(frozen=True)
class Shapes:
    """Shape of N nuclei, each attribute (N,) float64; lengths in px, areas in px^2.

    Attributes:
        area: number of pixels.
        perimeter: length of the contour, through the centres of the border pixels.
        major_axis, minor_axis: axes of the ellipse with the nucleus' second moments, as scikit-image has them.
        eccentricity: of that ellipse, 0 a circle, 1 a line.
        solidity: area over the area of the convex hull of the pixels' squares, at most 1.
    """

    area: np.ndarray
    perimeter: np.ndarray
    major_axis: np.ndarray
    minor_axis: np.ndarray
    eccentricity: np.ndarray
    solidity: np.ndarray


def pixel_areas(nuclei: Nuclei) -> np.ndarray:
    """Return the number of pixels of each nucleus, holes filled, without drawing it.

    Pick's theorem: a polygon on grid points covers A + B/2 + 1 of them, A its area and B its border points. It holds
    for contours that run out and back along a line one pixel wide, too.

    Args:
        nuclei: N nuclei with contours of border pixels.

    Returns:
        (N,) float64.
    """
    return _pixel_areas(nuclei, steps_of(nuclei))


def _pixel_areas(nuclei: Nuclei, steps: np.ndarray) -> np.ndarray:
    dx, dy = steps
    # int64, from the contour's first point: each comes back to its start, so that the sums begin at 0 with each
    x, y = np.cumsum(dx) - dx, np.cumsum(dy) - dy
    enclosed, border = np.abs(_sum(x * dy - y * dx, nuclei)) / 2, _sum(grid_steps(steps), nuclei)
    return enclosed + border / 2 + (np.diff(nuclei.offsets) > 0)


def diameters_um(nuclei: Nuclei, mpp: float) -> Counter:
    """Count nuclei by the diameter of a disc of their area, um, to a tenth; `mpp`: um per px of outlines."""
    areas = pixel_areas(nuclei)
    return Counter(np.round(np.sqrt(areas[areas > 0] * 4 / np.pi) * mpp, 1).tolist())


def say_diameter(diameters: Counter) -> str:
    """Return a text on the median diameter, "" without nuclei; says if that size is implausible."""
    if not diameters:
        return ""
    median = statistics.median(diameters.elements())
    low, high = PLAUSIBLE_DIAMETER_UM
    odd = "" if low <= median <= high else f", implausible (nuclei have {low:g} to {high:g}): check the pixel size"
    return f"median nucleus diameter {median:.1f} um{odd}"


def perimeters(nuclei: Nuclei) -> np.ndarray:
    """Return the length of each contour, (N,) float64 px."""
    return _sum(np.hypot(*steps_of(nuclei)), nuclei)


def touches_itself(nuclei: Nuclei) -> np.ndarray:
    """Return which contours pass a grid point more than once, as they do along parts one pixel wide; (N,) bool."""
    border = Border.of(nuclei)
    drawn = np.flatnonzero(np.diff(border.offsets))
    starts, points = border.offsets[drawn], np.diff(border.offsets)[drawn]
    (x0, y0), (x1, y1) = (
        [pick.reduceat(side, starts).astype(np.int64) for side in (border.x, border.y)]
        for pick in (np.minimum, np.maximum)
    )
    # cells of one box a nucleus, row by row and box after box
    width = x1 - x0 + 1
    in_box = width * (y1 - y0 + 1)
    ends = np.cumsum(in_box)
    first = ends - in_box - y0 * width - x0
    cells = np.repeat(first, points) + border.y * np.repeat(width, points) + border.x
    twice = np.zeros(len(nuclei), bool)
    twice[drawn[np.searchsorted(ends, _repeated(cells, ends.max(initial=0)), side="right")]] = True
    return twice


def _repeated(numbers: np.ndarray, stop: int) -> np.ndarray:
    """Return those numbers, of 0 to `stop` - 1, that come again later."""
    if stop > MAX_CELLS:
        numbers = np.sort(numbers)
        return numbers[1:][numbers[1:] == numbers[:-1]]
    # each writes its place into a table, ten times as fast as sorting; the last one of a number finds it there again
    table, places = np.empty(stop, np.int32), np.arange(len(numbers), dtype=np.int32)
    table[numbers] = places
    return numbers[table[numbers] != places]


def shapes(nuclei: Nuclei) -> Shapes:
    """Measure the shape of each nucleus."""
    xx, xy, yy = second_moments(nuclei).T
    spread = np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    major = np.maximum((xx + yy) / 2 + spread, 0)
    minor = np.maximum((xx + yy) / 2 - spread, 0)
    steps = steps_of(nuclei)
    area = _pixel_areas(nuclei, steps)
    return Shapes(
        area=area,
        perimeter=_sum(np.hypot(*steps), nuclei),
        major_axis=4 * np.sqrt(major),
        minor_axis=4 * np.sqrt(minor),
        eccentricity=np.sqrt(1 - _divide(minor, major, otherwise=1)),
        solidity=_divide(area, _hull_areas(nuclei), otherwise=0),
    )


def nuclear_densities(nuclei: Nuclei, read: ReadRegion, shape_px: tuple[int, int], stain: str) -> np.ndarray:
    """Measure the mean optical density of each stain in each nucleus.

    Args:
        nuclei: N nuclei on the pixel grid of the image.
        read: `read(y, x, h, w)` gives that region as (h, w, 3) uint8 RGB.
        shape_px: height and width of the image.
        stain: a key of `misc.ihc.stain.STAINS`.

    Returns:
        (N, 2) float64, in the order of `misc.ihc.stain.STAINS[stain]`; NaN for a nucleus outside the image.
    """
    nuclei = replace(nuclei, boxes_yx=boxes_of_contours(nuclei))  # upstream's boxes on slides are at wrong places
    means = np.full((len(nuclei), 3), np.nan)
    cells = np.floor(nuclei.centroids_xy / READ_PX).astype(np.int64)
    order = np.lexsort(cells.T)
    breaks = np.flatnonzero(np.diff(cells[order], axis=0).any(axis=1)) + 1
    for group in np.split(order, breaks):
        if len(group):
            _measure_group(nuclei, group, read, shape_px, means)
    return means @ unmixing(stain)


def _measure_group(
    nuclei: Nuclei, group: np.ndarray, read: ReadRegion, shape_px: tuple[int, int], means: np.ndarray
) -> None:
    """Read the region that holds a group of nuclei once, and fill in their mean red, green and blue density."""
    boxes = np.clip(nuclei.boxes_yx[group], 0, shape_px)
    top, left = boxes[:, 0].min(axis=0)
    bottom, right = boxes[:, 1].max(axis=0)
    if bottom <= top or right <= left:
        return
    region = read(int(top), int(left), int(bottom - top), int(right - left))
    for i in group:
        contour = nuclei.contour(i)
        if not len(contour):
            continue
        mask, (row, column) = nucleus_mask(contour)
        row, column = row - top, column - left
        up, before = max(-row, 0), max(-column, 0)  # the part of the mask outside the region
        pixels = region[row + up : row + mask.shape[0], column + before : column + mask.shape[1]]
        if pixels.size:
            inside = mask[up : up + pixels.shape[0], before : before + pixels.shape[1]].astype(bool)
            if inside.any():
                means[i] = optical_density(pixels[inside]).mean(axis=0)


def boxes_of_contours(nuclei: Nuclei) -> np.ndarray:
    """Return (N, 2, 2) int32 boxes [[rmin, cmin], [rmax, cmax]], max exclusive; as they are where no contour is."""
    boxes, filled = nuclei.boxes_yx.copy(), np.diff(nuclei.offsets) > 0
    starts = nuclei.offsets[:-1][filled]
    if len(starts):
        boxes[filled, 0] = np.minimum.reduceat(nuclei.points_xy, starts)[:, ::-1]
        boxes[filled, 1] = np.maximum.reduceat(nuclei.points_xy, starts)[:, ::-1] + 1
    return boxes


def _sum(values: np.ndarray, nuclei: Nuclei) -> np.ndarray:
    """Sum the values of each contour's points, (N,) float64."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return total[nuclei.offsets[1:]] - total[nuclei.offsets[:-1]]


def _hull_areas(nuclei: Nuclei) -> np.ndarray:
    """Return the area of the convex hull of the pixels' unit squares, (N,) float64; 0 where no contour is.

    It is the hull of the centres, grown by a unit square: its area plus its width, its height and one.
    """
    hulls = np.zeros(len(nuclei))
    drawn = np.flatnonzero(np.diff(nuclei.offsets))
    sides = np.diff(boxes_of_contours(nuclei)[drawn], axis=1).reshape(-1, 2) - 1
    points, ends = nuclei.points_xy, nuclei.offsets.tolist()
    centres = [cv2.contourArea(cv2.convexHull(points[a:b])) for a, b in itertools.pairwise(ends) if b > a]
    hulls[drawn] = np.array(centres) + sides.sum(axis=1) + 1
    return hulls


def _divide(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), float(otherwise)), where=below > 0)
