"""Predicted patches of a slide, kept only as long as a tile still waits for them."""

from __future__ import annotations

import itertools

import numpy as np

from infer.grid import Box, PatchGrid


class Canvas:
    """Predicted patches by their place in the grid; those that are not there are 0.

    Args:
        patches: the grid.
        channels: of a prediction.
    """

    def __init__(self, patches: PatchGrid, channels: int):
        self.patches = patches
        self.channels = channels
        # column, row -> prediction, or as many of its last rows of px as are still looked at
        self._columns: dict[int, dict[int, np.ndarray]] = {}

    def __len__(self) -> int:
        """Patches that are held."""
        return sum(map(len, self._columns.values()))

    def put(self, row: int, col: int, output: np.ndarray) -> None:
        """Keep what a patch predicts, (out, out, C) float32."""
        self._columns.setdefault(col, {})[row] = output.copy()  # a view would keep the whole batch

    def assemble(self, outer: Box) -> np.ndarray:
        """Put together the maps of a box, (h, w, C) float32, from the patches that predict them."""
        top, left, bottom, right = outer
        size, start = self.patches.patch_output, self.patches.start
        maps = np.zeros((bottom - top, right - left, self.channels), np.float32)
        rows, cols = self.patches.touching(outer)
        for row, col in itertools.product(range(*rows), range(*cols)):
            output = self._columns.get(col, {}).get(row)
            if output is not None:
                y, x = (row + 1) * size + start - len(output), col * size + start
                y0, x0, y1, x1 = max(y, top), max(x, left), min(y + len(output), bottom), min(x + size, right)
                maps[y0 - top : y1 - top, x0 - left : x1 - left] = output[y0 - y : y1 - y, x0 - x : x1 - x]
        return maps

    def forget_left(self, left: int, below: int) -> None:
        """Drop what lies left of `left`, where the next tile begins, and above `below`, the next band's first px."""
        size, start = self.patches.patch_output, self.patches.start
        first = (below - start) // size
        needed = (first + 1) * size + start - below
        for col in [col for col in self._columns if (col + 1) * size + start <= left]:
            self._drop(col, first)
            output = self._columns.get(col, {}).get(first)
            if output is not None and len(output) > needed:
                self._columns[col][first] = output[-needed:].copy()

    def forget_above(self, row: int) -> None:
        """Drop the rows of patches above one."""
        for col in list(self._columns):
            self._drop(col, row)

    def _drop(self, col: int, first: int) -> None:
        kept = {row: output for row, output in self._columns[col].items() if row >= first}
        if kept:
            self._columns[col] = kept
        else:
            del self._columns[col]
