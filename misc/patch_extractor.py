"""Cutting images into overlapping windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

EXTRACT_TYPES = ("mirror", "valid", "whole")
# Colours in the picture that `debug` draws: windows, and the area of one step inside them.
_WINDOW_RGB, _STEP_RGB, _LINE_PX = (255, 0, 0), (0, 120, 255), 3


class PatchExtractor:
    """Cuts windows out of an image, in the original's order.

    Args:
        win_size: (h, w) of a window in px.
        step_size: (h, w) in px from one window to the next.
        debug: also draw where the windows lie, into the attribute `drawn`.

    Attributes:
        drawn: (H', W', 3) uint8, the first three channels of the (padded) image with all windows (red) and the step
            in the middle of each (blue); `None` before the first image, or without `debug`.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(self, win_size: Sequence[int], step_size: Sequence[int], debug: bool = False):
        self.win_size, self.step_size = tuple(win_size), tuple(step_size)
        for name, size in (("win_size", self.win_size), ("step_size", self.step_size)):
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"{name} is (height, width) of at least 1 px each, got {size}")
        self.debug = debug
        self.drawn: np.ndarray | None = None

    def extract(self, x: np.ndarray, patch_type: str) -> list[np.ndarray]:
        """Return all windows of an image; see `iterate`."""
        return list(self.iterate(x, patch_type))

    def iterate(self, x: np.ndarray, patch_type: str) -> Iterator[np.ndarray]:
        """Yield the windows of an image one by one.

        Args:
            x: (H, W) or (H, W, C), of any type.
            patch_type: upper and lower case are the same.
                `mirror`: the image is reflected at its edges (again and again where it is small), so that the centres
                of the windows, of the size of a step, cover it and stay inside it as far as steps allow.
                `valid`: windows lie inside the image; the last ones end at its bottom and right edge. A smaller image
                is reflected at its bottom and right to the size of a window.
                `whole`: the image as it is, neither padded nor cut.

        Yields:
            (h, w) or (h, w, C), views of the image or of its padded copy.

        Raises:
            ValueError: another `patch_type`, or an image without pixels.
        """
        kind = patch_type.lower()
        if kind not in EXTRACT_TYPES:
            raise ValueError(f"unknown patch type `{patch_type}`; there is {', '.join(EXTRACT_TYPES)}")
        if x.ndim not in (2, 3) or not x.size:
            raise ValueError(f"an image is (H, W) or (H, W, C) with at least one pixel, got shape {x.shape}")
        height, width = self.win_size if kind != "whole" else x.shape[:2]
        x = self._padded(x, kind)
        corners = self.corners(x.shape[:2]) if kind != "whole" else [(0, 0)]
        if self.debug and kind != "whole":
            self.drawn = self._draw(x, corners)
        for top, left in corners:
            yield x[top : top + height, left : left + width]

    def corners(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Return (y, x) of the windows in an image of (H, W) px, at least as large as a window.

        First the regular ones, row by row; then, if the steps leave a rest, those along the bottom edge, those along
        the right edge, and the one in the corner.
        """
        rows, last_row = _starts(shape[0], self.win_size[0], self.step_size[0])
        cols, last_col = _starts(shape[1], self.win_size[1], self.step_size[1])
        return (
            [(y, x) for y in rows for x in cols]
            + [(y, x) for y in last_row for x in cols]
            + [(y, x) for x in last_col for y in rows]
            + [(y, x) for y in last_row for x in last_col]
        )

    def _padded(self, x: np.ndarray, kind: str) -> np.ndarray:
        if kind == "whole":
            return x
        margins = [(0, 0)] * x.ndim
        for axis, (window, step) in enumerate(zip(self.win_size, self.step_size, strict=True)):
            before = max(window - step, 0) // 2 if kind == "mirror" else 0
            after = max(window - step, 0) - before if kind == "mirror" else 0
            margins[axis] = (before, after + max(window - (x.shape[axis] + before + after), 0))
        return np.pad(x, margins, mode="reflect") if any(map(any, margins)) else x

    def _draw(self, x: np.ndarray, corners: list[tuple[int, int]]) -> np.ndarray:
        grey = x.ndim == 2 or x.shape[2] < 3
        channels = np.repeat(x.reshape(*x.shape[:2], -1)[..., :1], 3, axis=2) if grey else x[..., :3]
        picture = np.clip(channels, 0, 255).astype(np.uint8)
        for corner in corners:
            for size, colour, width in ((self.step_size, _STEP_RGB, 1), (self.win_size, _WINDOW_RGB, _LINE_PX)):
                top, left = (c + (w - s) // 2 for c, w, s in zip(corner, self.win_size, size, strict=True))
                cv2.rectangle(picture, (left, top), (left + size[1] - 1, top + size[0] - 1), colour, width)
        return picture


def _starts(length: int, window: int, step: int) -> tuple[list[int], list[int]]:
    """Return the starts of windows along one axis, and a list with the start of the window for a rest, if any."""
    rest = (length - window) % step
    return list(range(0, length - window + 1, step)), [length - window] if rest else []
