"""Computed from contours without drawing them: their border pixels, and the moments of the enclosed pixels.

A contour runs through the centres of a nucleus' border pixels. As tracing gives it, each of its edges runs along a
row, a column or a diagonal. Everything here works on whole arrays: ten times as fast as one nucleus after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from misc.nuclei import Nuclei

# Eighths of a turn from +x towards +y, of the step number 3 * dy + dx + 4.
_EIGHTH = np.array([5, 6, 7, 4, 0, 0, 3, 2, 1])
# Sides of a row, just off its line: right above, left above, left below, right below, in eighths of a turn.
_ROW_SIDES = np.array([0.1, 3.9, 4.1, 7.9])


@dataclass(frozen=True)
class Border:
    """All P pixels on the contours of N nuclei, in order.

    Attributes:
        x, y: (P,) int32, px from the first point of the contour.
        dx, dy: (P,) int32, to the next grid point on the line to the contour's next point.
        offsets: (N + 1,) int64, border i is at `offsets[i]:offsets[i + 1]`; that of a single pixel is empty.
    """

    x: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, nuclei: Nuclei) -> Border:
        """Walk along the contours."""
        edges = steps_of(nuclei)
        count = grid_steps(edges)
        steps = [np.repeat(side // np.maximum(count, 1), count) for side in edges]
        # each contour ends where it starts, so that the sums begin at 0 with each
        places = [np.cumsum(step, dtype=np.int32) - step for step in steps]
        return cls(*places, *steps, offsets=np.concatenate([[0], np.cumsum(count)])[nuclei.offsets])

    def owners(self) -> np.ndarray:
        """Return the nucleus of each pixel, (P,) int64 from 0 to N - 1."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def steps_of(nuclei: Nuclei) -> np.ndarray:
    """Return for each of P points the step to the contour's next one, (2, P) int32: x, y."""
    points = np.ascontiguousarray(nuclei.points_xy.T)
    filled = np.diff(nuclei.offsets) > 0
    starts, lasts = nuclei.offsets[:-1][filled], nuclei.offsets[1:][filled] - 1
    steps = np.roll(points, -1, axis=1) - points
    steps[:, lasts] = points[:, starts] - points[:, lasts]
    return steps


def grid_steps(steps: np.ndarray) -> np.ndarray:
    """Return how many grid points each of the steps (2, P) passes, its end included; (P,) int32."""
    dx, dy = np.abs(steps)
    traced = (dx == dy) | (dx == 0) | (dy == 0)  # along a row, a column or a diagonal
    return np.maximum(dx, dy) if traced.all() else np.gcd(dx, dy)


def second_moments(nuclei: Nuclei) -> np.ndarray:
    """Return the central second moments of the pixels of each nucleus over their number, (N, 3) float64: xx, xy, yy.

    Holes are filled; a contour without points has zeros.
    """
    border = Border.of(nuclei)
    bent = np.maximum(np.abs(border.dx), np.abs(border.dy)) > 1  # edges between the eight directions
    traced = np.diff(border.offsets) > 0
    traced[border.owners()[bent]] = False
    moments = np.zeros((len(nuclei), 3))
    if traced.all():
        return _traced_moments(border)
    if traced.any():
        moments[traced] = _traced_moments(Border.of(nuclei.select(traced)))
    for i in np.flatnonzero(~traced & (np.diff(nuclei.offsets) > 0)):
        mask, _ = nucleus_mask(nuclei.contour(i))
        found = cv2.moments(mask, binaryImage=True)
        moments[i] = [found[key] / found["m00"] for key in ("mu20", "mu11", "mu02")]
    return moments


def _traced_moments(border: Border) -> np.ndarray:
    """Sum over the pixels row by row, as Green's theorem has it for grids.

    Where the border crosses a row at x, the row's sum of 1, x and x^2 up to there, half of pixel x included, counts
    with the step in y (half the step that comes and half that goes). That counts a border pixel by the share of
    `_ROW_SIDES` that lie within; the rest is added, so that each pixel counts as one.
    """
    starts, ends = border.offsets[:-1], border.offsets[1:]
    x, y = border.x.astype(np.float64), border.y
    turns = np.where(np.add.reduceat(x * border.dy - y * border.dx, starts) < 0, -1, 1)
    # mirrored, so that the inside is on the same side; all are alike where one program traced them
    turn = turns[:1] if (turns == turns[:1]).all() else np.repeat(turns, ends - starts)
    y, dy = y * turn, border.dy * turn
    leaving = dy * 3 + border.dx + 4
    coming = np.roll(leaving, 1)
    coming[starts] = leaving[ends - 1]
    crossing, rest = (table.take(coming * 9 + leaving) for table in _corners())
    ones = crossing * x + rest
    xs = (crossing * x / 2 + rest) * x
    xxs = (crossing * (2 * x * x + 1) / 6 + rest * x) * x
    count, sx, sy, sxx, sxy, syy = (np.add.reduceat(v, starts) for v in (ones, xs, ones * y, xxs, xs * y, ones * y * y))
    mx, my = sx / count, sy / count
    return np.stack([sxx / count - mx * mx, turns * (sxy / count - mx * my), syy / count - my * my], axis=1)


def _corners() -> tuple[np.ndarray, np.ndarray]:
    """Return what a border pixel has by the numbers of the steps that come and go, `3 * dy + dx + 4`; each (9, 9).

    Returns:
        Half of the sum of both dy; and the share of `_ROW_SIDES` outside the corner.
    """
    coming, leaving = np.mgrid[:9, :9]
    to, away = _EIGHTH[coming], _EIGHTH[leaving]
    inside = (_ROW_SIDES - away[..., None]) % 8 < ((to + 4 - away) % 8)[..., None]
    return (coming // 3 + leaving // 3 - 2) / 2, 1 - inside.mean(axis=-1)


def nucleus_mask(contour_xy: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Draw one nucleus.

    Args:
        contour_xy: (M, 2) int32, M > 0, x then y.

    Returns:
        (h, w) uint8, 1 inside, just large enough; and the (row, column) of its first pixel.
    """
    x, y, width, height = cv2.boundingRect(contour_xy)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [contour_xy], 1, offset=(-x, -y))
    return mask, (y, x)
