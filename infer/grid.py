"""Arithmetic of patches, blocks and bands: what the network reads, and what post-processing gets.

Patches lie in the network's plane, blocks in the output plane; `Planes` goes from one to the other. y comes before x; a
box is (y0, x0, y1, x1), exclusive. Ranges of rows and columns are (first, last), exclusive too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from misc.slides.resample import Axis

Box = tuple[int, int, int, int]
Range = tuple[int, int]


@dataclass(frozen=True)
class PatchGrid:
    """Patches of an image in row-major order, placed so that every pixel is predicted once.

    Attributes:
        shape_yx: height and width of the image.
        patch_input: side of a patch, px: what the network reads.
        patch_output: side of the centre that the network predicts, px.
        start: first predicted px on both axes; from above -`patch_output` to 0.
    """

    shape_yx: tuple[int, int]
    patch_input: int
    patch_output: int
    start: int = 0

    @property
    def rows(self) -> int:
        return -(-(self.shape_yx[0] - self.start) // self.patch_output)

    @property
    def cols(self) -> int:
        return -(-(self.shape_yx[1] - self.start) // self.patch_output)

    @property
    def margin(self) -> int:
        """Pixels that a patch reads above and to the left of what it predicts."""
        return (self.patch_input - self.patch_output) // 2

    def __len__(self) -> int:
        return self.rows * self.cols

    @cached_property
    def output_tl_yx(self) -> np.ndarray:
        """(N, 2) top left of what each patch predicts; the first and last row and column may reach beyond the image."""
        return self.output_corners((0, self.rows), (0, self.cols))

    def output_corners(self, rows: Range, cols: Range) -> np.ndarray:
        """Return `output_tl_yx` of some rows and columns only, row-major, since a slide has millions of patches."""
        axes = (np.arange(*rows) * self.patch_output + self.start, np.arange(*cols) * self.patch_output + self.start)
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)

    def input_box(self, rows: Range, cols: Range) -> Box:
        """Return what a block of patches reads; it may reach outside the image on any side."""
        size, rest = self.patch_output, self.patch_input - self.patch_output
        y0, x0 = (first * size + self.start - self.margin for first in (rows[0], cols[0]))
        return y0, x0, y0 + (rows[1] - rows[0]) * size + rest, x0 + (cols[1] - cols[0]) * size + rest

    def touching(self, box: Box) -> tuple[Range, Range]:
        """Return the rows and columns of patches that predict a part of a box inside the image."""
        y0, x0, y1, x1 = (end - self.start for end in box)
        size = self.patch_output
        return (y0 // size, -(-y1 // size)), (x0 // size, -(-x1 // size))

    def chunks(self, rows: Range, cols: Range, max_side: int) -> Iterator[tuple[Range, Range]]:
        """Group patches into chunks of at most `max_side` px a side (but at least one patch), from left to right."""
        side = max((max_side - self.patch_input) // self.patch_output + 1, 1)
        for col in range(cols[0], cols[1], side):
            for row in range(rows[0], rows[1], side):
                yield (row, min(row + side, rows[1])), (col, min(col + side, cols[1]))


def patch_grid(shape_yx, patch_input: int, patch_output: int) -> PatchGrid:
    """Place patches over an image so that every pixel is predicted once, as the reference's tile mode does."""
    height, width = (int(length) for length in shape_yx)
    if min(height, width) < 1 or not 1 <= patch_output <= patch_input:
        raise ValueError(f"no patches {patch_input} -> {patch_output} px on an image of {height}x{width} px")
    return PatchGrid((height, width), patch_input, patch_output)


def slide_patch_grid(shape_yx, patch_input: int, patch_output: int) -> PatchGrid:
    """Place patches where the reference's slide mode places them: the first one inside the slide begins to read at 0.

    Patches at other places give other maps, since the network strides and pads, and weak nuclei appear or
    disappear. The reference predicts no pixels before that patch; here patches that reach over the edge predict them.
    """
    grid = patch_grid(shape_yx, patch_input, patch_output)
    return replace(grid, start=-(-grid.margin % patch_output))


@dataclass(frozen=True)
class Block:
    """A piece of the output plane that is post-processed at once; `index` is its place in row-major order.

    Attributes:
        core: the pixels it answers for; cores partition the plane.
        outer: core and margin, cut at the plane: the pixels it sees.
    """

    index: int
    core: Box
    outer: Box


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of the output plane.

    Attributes:
        shape_yx: height and width of the plane.
        side: side of a core (`--tile_shape`); the last row and column may be smaller.
        margin: pixels that a block sees beyond its core (`--ambiguous_size`).
    """

    shape_yx: tuple[int, int]
    side: int
    margin: int

    @property
    def rows(self) -> int:
        return -(-self.shape_yx[0] // self.side)

    @property
    def cols(self) -> int:
        return -(-self.shape_yx[1] // self.side)

    def __len__(self) -> int:
        return self.rows * self.cols

    def block(self, index: int) -> Block:
        row, col = divmod(index, self.cols)
        (height, width), side, margin = self.shape_yx, self.side, self.margin
        y0, x0 = row * side, col * side
        y1, x1 = min(y0 + side, height), min(x0 + side, width)
        outer = max(y0 - margin, 0), max(x0 - margin, 0), min(y1 + margin, height), min(x1 + margin, width)
        return Block(index, (y0, x0, y1, x1), outer)

    def index_at(self, points_yx: np.ndarray) -> np.ndarray:
        """Return the block whose core holds each of (N, 2) points; (N,) int64."""
        cell = np.floor(points_yx).astype(np.int64) // self.side
        cell = np.clip(cell, 0, (self.rows - 1, self.cols - 1))
        return cell[:, 0] * self.cols + cell[:, 1]

    def cores_touching(self, box: Box) -> tuple[Range, Range]:
        """Return the rows and columns of blocks whose core holds a part of a box inside the plane."""
        return (box[0] // self.side, -(-box[2] // self.side)), (box[1] // self.side, -(-box[3] // self.side))

    def blocks_touching(self, box: Box) -> tuple[Range, Range]:
        """Return the rows and columns of blocks that see a part of a box inside the plane."""
        y0, x0, y1, x1 = box
        return self._seeing(y0, y1, self.rows), self._seeing(x0, x1, self.cols)

    def last_touching(self, box: Box) -> int:
        """Return the index of the last block, in row-major order, that sees a part of a box."""
        rows, cols = self.blocks_touching(box)
        return (rows[1] - 1) * self.cols + cols[1] - 1

    def private_box(self, block: Block) -> Box:
        """Return the part of a block's core that no other block sees; empty (y1 <= y0) when there is none."""
        (y0, x0, y1, x1), (height, width), margin = block.core, self.shape_yx, self.margin
        return (
            y0 + margin if y0 > 0 else 0,
            x0 + margin if x0 > 0 else 0,
            y1 - margin if y1 < height else height,
            x1 - margin if x1 < width else width,
        )

    def _seeing(self, start: int, stop: int, count: int) -> Range:
        return max((start - self.margin) // self.side, 0), min(-(-(stop + self.margin) // self.side), count)


def block_grid(shape_yx, side: int, margin: int) -> BlockGrid:
    """Lay blocks over the output plane."""
    height, width = (int(length) for length in shape_yx)
    if min(height, width) < 1:
        raise ValueError(f"no blocks on an image of {height}x{width} px")
    if side < 1 or margin < 0:
        raise ValueError(f"--tile_shape must be positive and --ambiguous_size not negative, got {side} and {margin}")
    return BlockGrid((height, width), side, margin)


@dataclass(frozen=True)
class Planes:
    """Height and width, px, of the plane that the network reads, and of the output plane; both show the whole."""

    net_yx: tuple[int, int]
    out_yx: tuple[int, int]

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """How rows and columns of the network's plane become those of the output plane."""
        return tuple(Axis(*lengths) for lengths in zip(self.net_yx, self.out_yx, strict=True))

    def net_box(self, box: Box) -> Box:
        """Return the px of the network's plane from which a box of the output plane is computed."""
        (y0, y1), (x0, x1) = (axis.span(*ends) for axis, ends in zip(self.axes, (box[::2], box[1::2]), strict=True))
        return y0, x0, y1, x1


def bands(patches: PatchGrid, blocks: BlockGrid, planes: Planes) -> list[Range]:
    """Return, for each row of blocks, the rows of patches that it sees and that no row above it does; may be empty."""
    result, done = [], 0
    for row in range(blocks.rows):
        last = patches.touching(planes.net_box(blocks.block(row * blocks.cols).outer))[0][1]
        result.append((done, max(last, done)))
        done = max(last, done)
    return result


def cut_window(shape_yx: tuple[int, int], window: int, lost: int, step: int) -> int:
    """Return the smallest window that takes no more patches than a given one: a small image needs no large window.

    A patch predicts `lost` px less than it reads; windows differ by multiples of `step`.
    """
    out = window - lost
    needed = [-(-length // -(-length // out)) for length in shape_yx]
    return window - (out - max(needed)) // step * step
