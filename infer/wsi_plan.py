"""What there is to do on a slide: patches with tissue, the tiles that see them, and what is left when some are done."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from infer.grid import Band, PatchGrid, Range, TileGrid, bands, patch_grid, slide_patch_grid, tile_grid
from misc.slides.tissue import TissueMask


@dataclass(frozen=True)
class Strip:
    """A band that is to be done.

    Attributes:
        band: the band.
        rows: of patches that are predicted for it; those above `band.rows` belong to the band before, and are
            predicted again where that one is done already.
    """

    band: Band
    rows: Range


@dataclass(frozen=True)
class Plan:
    """What there is to do on a slide.

    Attributes:
        patches, tiles: their grids.
        tissue: (rows, cols) bool, which patches have tissue.
    """

    patches: PatchGrid
    tiles: TileGrid
    tissue: np.ndarray

    def expected(self) -> list[int]:
        """Return the tiles that see a patch with tissue."""
        sums = np.pad(self.tissue.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)

        def has_tissue(index: int) -> bool:
            (r0, r1), (c0, c1) = self.patches.touching(self.tiles.tile(index).outer)
            return bool(sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0])

        return [index for index in range(len(self.tiles)) if has_tissue(index)]

    def strips(self, done_rows: Collection[int]) -> list[Strip]:
        """Return what is to be done, from top to bottom.

        Args:
            done_rows: rows of tiles that are done, wherever they lie.
        """
        wanted = {index // self.tiles.cols for index in self.expected()} - set(done_rows)
        return [
            Strip(band, band.rows if band.tile_row - 1 in wanted else (band.needed_from, band.rows[1]))
            for band in bands(self.patches, self.tiles)
            if band.tile_row in wanted
        ]

    def nr_patches(self, strips: Sequence[Strip] | None = None) -> int:
        """Return how many patches the network gets for strips; without them, for the whole slide."""
        if strips is None:
            return int(self.tissue.sum())
        return sum(int(self.tissue[slice(*strip.rows)].sum()) for strip in strips)


def plan_slide(shape_yx: tuple[int, int], window: tuple[int, int], side: int, margin: int, tissue: TissueMask) -> Plan:
    """Lay patches and tiles over a slide.

    Args:
        shape_yx: height and width of the plane that the network reads, px.
        window: (input, output) side of a patch, px.
        side, margin: of a tile's core, and what it sees beyond it, px.
    """
    tiles = tile_grid(shape_yx, side, margin)
    # a slide of one tile is what tile mode makes of it
    patches = (patch_grid if len(tiles) == 1 else slide_patch_grid)(shape_yx, *window)
    corners = patches.output_tl_yx
    covered = tissue.covers(np.hstack([corners, corners + patches.patch_output]), shape_yx)
    return Plan(patches, tiles, covered.reshape(patches.rows, patches.cols))
