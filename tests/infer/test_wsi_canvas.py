"""The canvas: what is dropped is what nobody looks at any more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from infer.grid import bands, patch_grid, slide_patch_grid, tile_grid
from infer.wsi_canvas import Canvas


@pytest.mark.parametrize("grid", [patch_grid, slide_patch_grid])
@pytest.mark.parametrize(("side", "margin"), [(100, 20), (64, 30), (150, 1), (32, 0)])
def test_tiles_see_all_that_was_predicted_whatever_was_forgotten(grid, side, margin):
    shape, window = (310, 270), (50, 30)
    patches, tiles = grid(shape, *window), tile_grid(shape, side, margin)
    size, start = patches.patch_output, patches.start
    # from the first px of the first patch on
    truth = np.random.default_rng(0).random((patches.rows * size, patches.cols * size, 2), np.float32)
    canvas, held = Canvas(patches, 2), []
    for band in bands(patches, tiles):
        canvas.forget_above(band.needed_from)
        for row, col in itertools.product(range(*band.rows), range(patches.cols)):
            canvas.put(row, col, truth[row * size : (row + 1) * size, col * size : (col + 1) * size])
        for index in range(band.tile_row * tiles.cols, (band.tile_row + 1) * tiles.cols):
            y0, x0, y1, x1 = tiles.tile(index).outer
            assert np.array_equal(
                canvas.assemble((y0, x0, y1, x1)), truth[y0 - start : y1 - start, x0 - start : x1 - start]
            )
            below = patches.rows * size + start
            if band.tile_row + 1 < tiles.rows:
                below = tiles.tile(index + tiles.cols).outer[0]
            row_ends = (index + 1) % tiles.cols == 0
            canvas.forget_left(patches.cols * size + start if row_ends else tiles.tile(index + 1).outer[1], below)
        held.append(sum(len(output) for column in canvas._columns.values() for output in column.values()))
        ends = band.rows[1] * size + start
        assert held[-1] == patches.cols * max(ends - below, 0)  # not a row of px above the next band
