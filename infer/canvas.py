"""Predicted patches of an image or a slide; each is kept until no block needs it any more."""

from __future__ import annotations

import itertools

import numpy as np

from infer.grid import Box
from infer.plan import Plan


class Canvas:
    """The predicted patches of a plan, `channels` each, and how many of them each block still waits for."""

    def __init__(self, plan: Plan, channels: int):
        self.plan = plan
        self.channels = channels
        self._patches: dict[tuple[int, int], _Patch] = {}
        self._missing = {index: int(plan.wanted[plan.seen(index)].sum()) for index in plan.todo}
        blocks = plan.blocks
        self._rows = [plan.net_box(row * blocks.cols)[::2] for row in range(blocks.rows)]
        self._cols = [plan.net_box(col)[1::2] for col in range(blocks.cols)]

    def __len__(self) -> int:
        """Patches that are held."""
        return len(self._patches)

    def put(self, row: int, col: int, output: np.ndarray) -> list[int]:
        """Keep what a patch predicts, (C, out, out) float32; return the blocks that are complete with it."""
        size, start = self.plan.patches.patch_output, self.plan.patches.start
        patch = _Patch(output, row * size + start, col * size + start)
        waiting = [index for index in self._seeing(patch) if index in self._missing]
        if waiting:
            self._patches[row, col] = patch
        for index in waiting:
            self._missing[index] -= 1
        return [index for index in waiting if not self._missing[index]]

    def shape(self, index: int) -> tuple[int, int, int]:
        """Return the shape of the maps of a block."""
        y0, x0, y1, x1 = self.plan.net_box(index)
        return self.channels, y1 - y0, x1 - x0

    def take(self, index: int, maps: np.ndarray) -> None:
        """Assemble the maps of a complete block in `maps`, and drop the patches that no other block needs.

        Pixels that no patch predicts are 0.
        """
        box, seen = self.plan.net_box(index), self.plan.seen(index)
        if not self.plan.wanted[seen].all():
            maps[:] = 0
        del self._missing[index]
        for cell in itertools.product(*(range(part.start, part.stop) for part in seen)):
            patch = self._patches.get(cell)
            if patch is None:
                continue
            patch.paste(maps, box)
            boxes = [self.plan.net_box(other) for other in self._seeing(patch) if other in self._missing]
            if boxes:
                self._patches[cell] = patch.cut(boxes)
            else:
                del self._patches[cell]

    def _seeing(self, patch: _Patch) -> list[int]:
        rows = [row for row, (y0, y1) in enumerate(self._rows) if y0 < patch.y + patch.height and patch.y < y1]
        cols = [col for col, (x0, x1) in enumerate(self._cols) if x0 < patch.x + patch.width and patch.x < x1]
        return [row * self.plan.blocks.cols + col for row, col in itertools.product(rows, cols)]


class _Patch:
    """A prediction, (C, h, w) float32, or the part of it that is still needed; (y, x): its corner in the network's
    plane."""

    def __init__(self, output: np.ndarray, y: int, x: int):
        self.output, self.y, self.x = output, y, x
        self.height, self.width = output.shape[1:]

    def paste(self, maps: np.ndarray, box: Box) -> None:
        """Copy the part inside a box to the box's maps."""
        y0, x0, y1, x1 = self._inside(box)
        maps[:, y0 - box[0] : y1 - box[0], x0 - box[1] : x1 - box[1]] = self._part(y0, x0, y1, x1)

    def cut(self, boxes: list[Box]) -> _Patch:
        """Return a copy of the part inside some boxes; a view would keep the whole batch in memory."""
        inside = np.array([self._inside(box) for box in boxes])
        y0, x0, y1, x1 = *inside[:, :2].min(axis=0).tolist(), *inside[:, 2:].max(axis=0).tolist()
        return _Patch(self._part(y0, x0, y1, x1).copy(), y0, x0)

    def _inside(self, box: Box) -> Box:
        bottom, right = self.y + self.height, self.x + self.width
        return max(self.y, box[0]), max(self.x, box[1]), min(bottom, box[2]), min(right, box[3])

    def _part(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        return self.output[:, y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x]
