"""Resizing by region: every pixel of the result depends only on its absolute position, not on the region.

`cv2.resize` on a piece of an image places its sampling grid by the piece's own size, so pieces do not fit together.
Here the weights of each result pixel are computed from the sizes of the two whole images and applied in integers,
which makes any cut equal to the same cut of the whole, bit for bit. Shrinking averages the covered area (as
`INTER_AREA`), enlarging is bicubic (as `INTER_CUBIC`, the kernel the reference implementation enlarges slides with).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

CUBIC_A = -0.75  # parameter of the cubic kernel (Keys 1981); OpenCV's value
_WEIGHT_BITS = 12  # weights are multiples of 2**-12
_CARRY_BITS = 8  # fractional bits kept between the two passes; 8 + 8 + 12 bits and cubic overshoot fit int32


@dataclass(frozen=True)
class Axis:
    """One axis of a resize from `source` to `target` px, both whole lengths.

    Pixel i of the target covers [i * source / target, (i + 1) * source / target) of the source.
    """

    source: int
    target: int

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the source range [first, last) that target pixels [start, stop) are computed from."""
        if self.source == self.target:
            return start, stop
        if self.source > self.target:
            return start * self.source // self.target, -(-stop * self.source // self.target)
        first, last = self._cubic_anchor(start), self._cubic_anchor(stop - 1) + 4
        return max(first, 0), min(last, self.source)

    def weights(self, start: int, stop: int) -> scipy.sparse.csr_array:
        """Return the (stop - start, length of `span`) int32 weights of target pixels [start, stop), in 2**-12."""
        first, last = self.span(start, stop)
        if self.source == self.target:
            columns = np.arange(start, stop)[:, None]
            weights = np.ones(columns.shape)
        else:
            columns, weights = self._area(start, stop) if self.source > self.target else self._cubic(start, stop)
        rows = np.repeat(np.arange(stop - start), columns.shape[1])
        entries = (_whole(weights).ravel(), (rows, columns.ravel() - first))
        return scipy.sparse.csr_array(entries, shape=(stop - start, last - first), dtype=np.int32)

    def cubic_weights(self, start: int, stop: int) -> scipy.sparse.csr_array:
        """Return the (stop - start, length of `span`) float32 weights by which an enlarged axis is interpolated."""
        columns, weights = self._cubic(start, stop)
        rows = np.repeat(np.arange(stop - start), columns.shape[1])
        first, last = self.span(start, stop)
        columns = np.clip(columns, first, last - 1)  # of equal axes the span is the range itself; all else weighs 0
        entries = (weights.astype(np.float32).ravel(), (rows, columns.ravel() - first))
        return scipy.sparse.csr_array(entries, shape=(stop - start, last - first))

    def nearest(self, start: int, stop: int) -> np.ndarray:
        """Return the source px, counted from `span`, that the centres of target pixels [start, stop) lie in."""
        return (2 * np.arange(start, stop) + 1) * self.source // (2 * self.target) - self.span(start, stop)[0]

    def _area(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return columns (n, k) and weights (n, k) of an average over the covered area."""
        index = np.arange(start, stop, dtype=np.int64)[:, None]
        begin, end = index * self.source, (index + 1) * self.source  # in 1/target of a source px: exact integers
        taps = -(-self.source // self.target) + 1
        columns = begin // self.target + np.arange(taps)
        overlap = np.minimum(end, (columns + 1) * self.target) - np.maximum(begin, columns * self.target)
        return np.minimum(columns, (end - 1) // self.target), np.maximum(overlap, 0) / self.source

    def _cubic_anchor(self, index):
        """Return the first of the four source pixels around the centre of target pixel `index`, maybe outside."""
        return ((2 * index + 1) * self.source - self.target) // (2 * self.target) - 1

    def _cubic(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return columns (n, 4) and weights (n, 4) of cubic interpolation; border pixels are repeated."""
        index = np.arange(start, stop, dtype=np.int64)
        anchor = self._cubic_anchor(index)
        part = ((2 * index + 1) * self.source - self.target) / (2 * self.target) - (anchor + 1)
        distance = np.abs(part[:, None] - np.arange(-1, 3))
        near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
        far = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
        columns = np.clip(anchor[:, None] + np.arange(4), 0, self.source - 1)
        return columns, np.where(distance <= 1, near, far)


def resample(pixels: np.ndarray, axis_y: Axis, axis_x: Axis, box: tuple[int, int, int, int]) -> np.ndarray:
    """Compute a region of a resized image.

    Args:
        pixels: (h, w, C) uint8, the region `axis_y.span(y0, y1)` x `axis_x.span(x0, x1)` of the source image.
        axis_y, axis_x: the resize.
        box: (y0, x0, y1, x1) px of the target image, exclusive.

    Returns:
        (y1 - y0, x1 - x0, C) uint8.
    """
    y0, x0, y1, x1 = box
    height, width, channels = pixels.shape
    if axis_y.source == axis_y.target and axis_x.source == axis_x.target:
        return pixels
    rows = axis_y.weights(y0, y1) @ pixels.reshape(height, width * channels).astype(np.int32)
    rows = _shift(rows, _WEIGHT_BITS - _CARRY_BITS)
    turned = np.ascontiguousarray(rows.reshape(-1, width, channels).swapaxes(0, 1)).reshape(width, -1)
    turned = _shift(axis_x.weights(x0, x1) @ turned, _WEIGHT_BITS + _CARRY_BITS)
    np.clip(turned, 0, 255, out=turned)
    return np.ascontiguousarray(turned.astype(np.uint8).reshape(x1 - x0, y1 - y0, channels).swapaxes(0, 1))


def enlarge(plane: np.ndarray, axis_y: Axis, axis_x: Axis, box: tuple[int, int, int, int]) -> np.ndarray:
    """Compute a region of an enlarged map by cubic interpolation; any cut is the same cut of the whole, bit for bit.

    Args:
        plane: (h, w) float32, the region `axis_y.span(y0, y1)` x `axis_x.span(x0, x1)` of the source map.
        axis_y, axis_x: the resize.
        box: (y0, x0, y1, x1) px of the target map, exclusive.

    Returns:
        (y1 - y0, x1 - x0) float32.
    """
    y0, x0, y1, x1 = box
    rows = axis_y.cubic_weights(y0, y1) @ plane
    return np.ascontiguousarray((axis_x.cubic_weights(x0, x1) @ np.ascontiguousarray(rows.T)).T)


def _whole(weights: np.ndarray) -> np.ndarray:
    """Round weights (n, k) to integers; what rounding takes from a row's sum goes to its largest weight."""
    whole = np.rint(weights * (1 << _WEIGHT_BITS)).astype(np.int64)
    missing = (1 << _WEIGHT_BITS) - whole.sum(axis=1)
    whole[np.arange(len(whole)), weights.argmax(axis=1)] += missing
    return whole.astype(np.int32)


def _shift(values: np.ndarray, bits: int) -> np.ndarray:
    """Divide by 2**bits, rounding halves up."""
    values += 1 << (bits - 1)
    values >>= bits
    return values
