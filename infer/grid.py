"""Pure arithmetic of patches and tiles: what the network reads, what post-processing gets, and when it has it.

All coordinates are px of the image at the processing magnification, y before x; a box is (y0, x0, y1, x1), exclusive.
Ranges of rows and columns are (first, last), exclusive too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

Box = tuple[int, int, int, int]
Range = tuple[int, int]


@dataclass(frozen=True)
class PatchGrid:
    """Patches of an image in row-major order, laid so that every pixel is predicted once.

    Attributes:
        shape_yx: height and width of the image.
        patch_input: side of what a patch reads.
        patch_output: side of what it predicts, in the middle of what it reads.
        start: where on both axes the first patch begins to predict, px; 0 or less, and above -`patch_output`.
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

    @cached_property
    def input_tl_yx(self) -> np.ndarray:
        """(N, 2) top left of what each reads; negative at the top and left, where the image is reflected."""
        return self.output_tl_yx - self.margin

    def output_corners(self, rows: Range, cols: Range) -> np.ndarray:
        """Return `output_tl_yx` of some rows and columns alone, row-major: a slide has millions of patches."""
        axes = (np.arange(*rows) * self.patch_output + self.start, np.arange(*cols) * self.patch_output + self.start)
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)

    def output_box(self, rows: Range, cols: Range) -> Box:
        """Return what a block of patches predicts, cut at the image."""
        low, high = (np.array((r, c)) * self.patch_output + self.start for r, c in zip(rows, cols, strict=True))
        return *np.maximum(low, 0).tolist(), *np.minimum(high, self.shape_yx).tolist()

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
        """Cut a block of patches into blocks that read at most `max_side` px a side (one patch at least).

        Yields:
            Rows and columns of each; all of the left columns come before those to their right.
        """
        side = max((max_side - self.patch_input) // self.patch_output + 1, 1)
        for col in range(cols[0], cols[1], side):
            for row in range(rows[0], rows[1], side):
                yield (row, min(row + side, rows[1])), (col, min(col + side, cols[1]))


def patch_grid(shape_yx, patch_input: int, patch_output: int) -> PatchGrid:
    """Lay patches over an image so that every pixel is predicted once, as the reference's tile mode does.

    Raises:
        ValueError: the image is empty, or the patch predicts more than it reads.
    """
    height, width = (int(length) for length in shape_yx)
    if min(height, width) < 1 or not 1 <= patch_output <= patch_input:
        raise ValueError(f"no patches {patch_input} -> {patch_output} px on an image of {height}x{width} px")
    return PatchGrid((height, width), patch_input, patch_output)


def slide_patch_grid(shape_yx, patch_input: int, patch_output: int) -> PatchGrid:
    """Lay patches where the reference's slide mode lays them: the first one that reads no pixel outside begins at 0.

    Another phase gives other maps, since the network strides and pads, and weak nuclei come and go with it. The
    reference leaves the pixels before that patch out; here they have patches that reach over the edge.

    Raises:
        ValueError: as `patch_grid`.
    """
    grid = patch_grid(shape_yx, patch_input, patch_output)
    return replace(grid, start=-(-grid.margin % patch_output))


@dataclass(frozen=True)
class Tile:
    """A piece of the image that is post-processed at once.

    Attributes:
        index: place in row-major order; `row` and `col` alike.
        core: the pixels it answers for; cores partition the image.
        outer: core and margin, cut at the image: the pixels it sees.
    """

    index: int
    row: int
    col: int
    core: Box
    outer: Box


@dataclass(frozen=True)
class TileGrid:
    """Tiles of an image.

    Attributes:
        shape_yx: height and width of the image.
        side: side of a core (`--tile_shape`); the last row and column may be smaller.
        margin: pixels that a tile sees beyond its core (`--ambiguous_size`).
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

    def tile(self, index: int) -> Tile:
        row, col = divmod(index, self.cols)
        (height, width), side, margin = self.shape_yx, self.side, self.margin
        y0, x0 = row * side, col * side
        y1, x1 = min(y0 + side, height), min(x0 + side, width)
        outer = max(y0 - margin, 0), max(x0 - margin, 0), min(y1 + margin, height), min(x1 + margin, width)
        return Tile(index, row, col, (y0, x0, y1, x1), outer)

    def index_at(self, points_yx: np.ndarray) -> np.ndarray:
        """Return the tile whose core holds each of (N, 2) points; (N,) int64."""
        cell = np.floor(points_yx).astype(np.int64) // self.side
        cell = np.clip(cell, 0, (self.rows - 1, self.cols - 1))
        return cell[:, 0] * self.cols + cell[:, 1]

    def cores_touching(self, box: Box) -> tuple[Range, Range]:
        """Return the rows and columns of tiles whose core holds a part of a box inside the image."""
        return (box[0] // self.side, -(-box[2] // self.side)), (box[1] // self.side, -(-box[3] // self.side))

    def tiles_touching(self, box: Box) -> tuple[Range, Range]:
        """Return the rows and columns of tiles that see a part of a box inside the image."""
        y0, x0, y1, x1 = box
        return self._seeing(y0, y1, self.rows), self._seeing(x0, x1, self.cols)

    def last_touching(self, box: Box) -> int:
        """Return the index of the last tile, in row-major order, that sees a part of a box."""
        rows, cols = self.tiles_touching(box)
        return (rows[1] - 1) * self.cols + cols[1] - 1

    def private_box(self, tile: Tile) -> Box:
        """Return the part of a tile's core that no other tile sees; empty (y1 <= y0) when there is none."""
        (y0, x0, y1, x1), (height, width), margin = tile.core, self.shape_yx, self.margin
        return (
            y0 + margin if y0 > 0 else 0,
            x0 + margin if x0 > 0 else 0,
            y1 - margin if y1 < height else height,
            x1 - margin if x1 < width else width,
        )

    def _seeing(self, start: int, stop: int, count: int) -> Range:
        return max((start - self.margin) // self.side, 0), min(-(-(stop + self.margin) // self.side), count)


def tile_grid(shape_yx, side: int, margin: int) -> TileGrid:
    """Lay tiles over an image.

    Raises:
        ValueError: the image is empty, or `side` or `margin` makes no sense.
    """
    height, width = (int(length) for length in shape_yx)
    if min(height, width) < 1:
        raise ValueError(f"no tiles on an image of {height}x{width} px")
    if side < 1 or margin < 0:
        raise ValueError(f"--tile_shape must be positive and --ambiguous_size not negative, got {side} and {margin}")
    return TileGrid((height, width), side, margin)


@dataclass(frozen=True)
class Band:
    """The patches that a row of tiles waits for.

    Attributes:
        tile_row: once this band is predicted, all tiles of this row are complete.
        rows: rows of patches that no earlier band predicts; may be empty for small tiles.
        needed_from: first row of patches that the tiles of this row see; those before `rows` come from earlier bands.
    """

    tile_row: int
    rows: Range
    needed_from: int


def bands(patches: PatchGrid, tiles: TileGrid) -> list[Band]:
    """Group the rows of patches by the first row of tiles that needs them; they come in this order, each row once."""
    result, done = [], 0
    for row in range(tiles.rows):
        outer = tiles.tile(row * tiles.cols).outer
        first, last = patches.touching(outer)[0]
        result.append(Band(row, (done, last), first))
        done = last
    return result


def complete_cols(patches: PatchGrid, tiles: TileGrid, cols_done: int) -> int:
    """Return how many tiles of a band's row, from the left, have all they see.

    Args:
        cols_done: columns of patches, from the left, that are predicted in all rows of the band.
    """
    if cols_done >= patches.cols:
        return tiles.cols
    # tile c sees px up to (c + 1) * side + margin
    return max((cols_done * patches.patch_output + patches.start - tiles.margin) // tiles.side, 0)
