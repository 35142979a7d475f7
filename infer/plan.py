"""The work on an image or a slide: patches with tissue, blocks that see them, and what is not done yet.

An image is a slide of one block without a margin, all of which is tissue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from infer.grid import (
    BlockGrid,
    Box,
    PatchGrid,
    Planes,
    Range,
    bands,
    block_grid,
    patch_grid,
    slide_patch_grid,
)
from misc.slides.tissue import TissueMask

# Side of a region that is read at once, px: large, so that margins cost little; small, so that several are read ahead.
READ_SIDE_PX = 2048


@dataclass(frozen=True)
class Chunk:
    """Patches that are read at once: `box` is read, px of the network's plane; (N, 2) `cells` are rows and columns."""

    box: Box
    cells: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The work on an image or a slide.

    Attributes:
        planes: the network's plane, in which the patches lie, and the output plane of the blocks.
        patches, blocks: their grids.
        tissue: (rows, cols) bool, which patches have tissue.
        done: blocks that an earlier run has done.
        read_side: side of a region that is read at once, px, without one patch.
    """

    planes: Planes
    patches: PatchGrid
    blocks: BlockGrid
    tissue: np.ndarray
    done: Collection[int] = frozenset()
    read_side: int = READ_SIDE_PX

    @cached_property
    def expected(self) -> list[int]:
        """The blocks that see a patch with tissue; all others have no nuclei."""
        return [index for index in range(len(self.blocks)) if self.tissue[self.seen(index)].any()]

    @cached_property
    def todo(self) -> list[int]:
        """The expected blocks that are not done."""
        return [index for index in self.expected if index not in self.done]

    @cached_property
    def wanted(self) -> np.ndarray:
        """(rows, cols) bool, the patches with tissue that a block waits for."""
        wanted = np.zeros_like(self.tissue)
        for index in self.todo:
            wanted[self.seen(index)] = True
        return wanted & self.tissue

    def seen(self, index: int) -> tuple[slice, slice]:
        """Return the rows and columns of patches that a block sees."""
        rows, cols = self.patches.touching(self.net_box(index))
        return slice(*rows), slice(*cols)

    def net_box(self, index: int) -> Box:
        """Return what a block sees, in px of the network's plane."""
        return self.planes.net_box(self.blocks.block(index).outer)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the wanted patches: band after band, and in a band from left to right, so that blocks end early."""
        for rows in bands(self.patches, self.blocks, self.planes):
            for some_rows, some_cols in self.patches.chunks(rows, (0, self.patches.cols), self.read_side):
                chunk = self._chunk(some_rows, some_cols)
                if chunk:
                    yield chunk

    def _chunk(self, rows: Range, cols: Range) -> Chunk | None:
        cells = np.argwhere(self.wanted[slice(*rows), slice(*cols)]) + (rows[0], cols[0])
        if not len(cells):
            return None
        # read only what the patches with tissue need
        (r0, c0), (r1, c1) = cells.min(axis=0).tolist(), (cells.max(axis=0) + 1).tolist()
        return Chunk(self.patches.input_box((r0, r1), (c0, c1)), cells)


def plan_image(planes: Planes, window: tuple[int, int]) -> Plan:
    """Plan an image; arguments as in `plan_slide`."""
    patches = patch_grid(planes.net_yx, *window)
    blocks = block_grid(planes.out_yx, max(planes.out_yx), 0)
    return Plan(planes, patches, blocks, np.ones((patches.rows, patches.cols), bool))


def plan_slide(
    planes: Planes, window: tuple[int, int], side: int, margin: int, tissue: TissueMask, phase: bool
) -> Plan:
    """Plan a slide.

    Args:
        window: (input, output) side of a patch, px.
        side, margin: of a block's core, and what it sees beyond it, px of the output plane.
        phase: place the patches as the reference does on slides; with a single block, place them as on an image.
    """
    blocks = block_grid(planes.out_yx, side, margin)
    lay = slide_patch_grid if phase and len(blocks) > 1 else patch_grid
    patches = lay(planes.net_yx, *window)
    corners = patches.output_tl_yx
    covered = tissue.covers(np.hstack([corners, corners + patches.patch_output]), planes.net_yx)
    return Plan(planes, patches, blocks, covered.reshape(patches.rows, patches.cols))
