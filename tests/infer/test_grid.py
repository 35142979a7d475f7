"""Patches and tiles: every pixel once, swept over sizes around every boundary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from infer.grid import bands, complete_cols, patch_grid, slide_patch_grid, tile_grid

WINDOWS = [(270, 80), (256, 164), (9, 4), (5, 5)]
# one px, and one px around one, two and three patches or tiles
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17]
TILES = [(1, 0), (3, 1), (4, 2), (5, 0), (8, 3), (16, 4), (17, 40)]


def boxes(grid):
    return [grid.tile(i) for i in range(len(grid))]


def test_a_grid_by_hand():
    grid = patch_grid((90, 170), 270, 80)
    assert (grid.rows, grid.cols, len(grid)) == (2, 3, 6)
    assert grid.output_tl_yx.tolist() == [[0, 0], [0, 80], [0, 160], [80, 0], [80, 80], [80, 160]]
    assert grid.input_tl_yx[0].tolist() == [-95, -95]
    assert grid.input_tl_yx[-1].tolist() == [-15, 65]
    assert grid.output_box((0, 2), (1, 3)) == (0, 80, 90, 170)
    assert grid.input_box((0, 2), (1, 3)) == (-95, -15, 255, 335)
    assert grid.touching((79, 80, 81, 160)) == ((0, 2), (1, 2))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("around", [1, 2, 3])
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_patches_lie_where_the_reference_lays_them(window, around, off):
    """Reference, tile mode: `ceil((length - out) / out) + 1` steps from 0; padding `(in - out) // 2` before."""
    length = max(around * window[1] + off, 1)
    grid = patch_grid((length, 1), *window)
    steps = math.ceil((length - window[1]) / window[1]) + 1
    assert grid.output_tl_yx[:, 0].tolist() == [k * window[1] for k in range(steps)]
    assert (grid.input_tl_yx == grid.output_tl_yx - (window[0] - window[1]) // 2).all()


def test_slide_patches_lie_where_the_reference_lays_them():
    """Reference, slide mode: the first patch reads from 0 on, and predicts from `(in - out) // 2` on."""
    for window in WINDOWS:
        corners = slide_patch_grid((1000, 700), *window).output_tl_yx
        assert (((window[0] - window[1]) // 2 - corners) % window[1] == 0).all()
    assert slide_patch_grid((300, 100), 256, 164).output_tl_yx.tolist() == [
        [y, x] for y in (-118, 46, 210) for x in (-118, 46)
    ]


@pytest.mark.parametrize("lay", [patch_grid, slide_patch_grid])
@pytest.mark.parametrize("window", [(9, 4), (5, 5), (7, 2), (11, 2)])
@pytest.mark.parametrize("height", LENGTHS)
def test_p08_every_pixel_is_predicted_once(window, height, lay):
    for width in (1, 4, 9, 16):
        grid = lay((height, width), *window)
        assert -window[1] < grid.start <= 0
        hits = np.zeros((height, width), int)
        for y, x in grid.output_tl_yx:
            hits[max(y, 0) : y + window[1], max(x, 0) : x + window[1]] += 1
        assert (hits == 1).all()


@pytest.mark.parametrize("max_side", [1, 9, 13, 14, 1000])
def test_chunks_are_all_patches_once_and_no_larger_than_asked(max_side):
    grid = patch_grid((33, 21), 9, 4)
    seen = []
    for rows, cols in grid.chunks((1, grid.rows), (0, grid.cols), max_side):
        y0, x0, y1, x1 = grid.input_box(rows, cols)
        single = rows[1] - rows[0] == 1, cols[1] - cols[0] == 1
        assert y1 - y0 <= max_side or single[0]
        assert x1 - x0 <= max_side or single[1]
        corners = grid.output_corners(rows, cols)
        assert (corners[0] - 2 == (y0, x0)).all()
        assert (corners[-1] - 2 + 9 == (y1, x1)).all()
        seen += corners.tolist()
    assert sorted(seen) == grid.output_tl_yx[grid.cols :].tolist()


@pytest.mark.parametrize(("side", "margin"), TILES)
@pytest.mark.parametrize("height", LENGTHS)
def test_cores_partition_the_image(side, margin, height):
    for width in (1, 4, 8, 13):
        grid = tile_grid((height, width), side, margin)
        owner = np.full((height, width), -1)
        for tile in boxes(grid):
            y0, x0, y1, x1 = tile.core
            assert (owner[y0:y1, x0:x1] == -1).all()
            owner[y0:y1, x0:x1] = tile.index
            assert tile.outer == (
                max(y0 - margin, 0),
                max(x0 - margin, 0),
                min(y1 + margin, height),
                min(x1 + margin, width),
            )
        points = np.argwhere(owner >= 0)
        assert len(points) == height * width
        assert (grid.index_at(points) == owner[points[:, 0], points[:, 1]]).all()
        assert (grid.index_at(points + 0.9) == owner[points[:, 0], points[:, 1]]).all()


@pytest.mark.parametrize(("side", "margin"), TILES)
def test_what_touches_what_by_brute_force(side, margin):
    grid = tile_grid((17, 13), side, margin)
    rng = np.random.default_rng(0)
    overlap = lambda a, b: a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]  # noqa: E731
    for _ in range(40):
        (y0, y1), (x0, x1) = np.sort(rng.integers(0, 17, 2)), np.sort(rng.integers(0, 13, 2))
        box = (int(y0), int(x0), int(y1) + 1, int(x1) + 1)
        for name, kind in (("cores_touching", "core"), ("tiles_touching", "outer")):
            rows, cols = getattr(grid, name)(box)
            expected = [tile.index for tile in boxes(grid) if overlap(getattr(tile, kind), box)]
            found = [row * grid.cols + col for row in range(*rows) for col in range(*cols)]
            assert found == expected
        assert grid.last_touching(box) == expected[-1]


@pytest.mark.parametrize(("side", "margin"), TILES)
def test_the_private_part_of_a_tile_is_what_no_other_sees(side, margin):
    grid = tile_grid((17, 13), side, margin)
    seen = np.zeros((17, 13), int)
    for tile in boxes(grid):
        y0, x0, y1, x1 = tile.outer
        seen[y0:y1, x0:x1] += 1
    for tile in boxes(grid):
        y0, x0, y1, x1 = grid.private_box(tile)
        private = np.zeros_like(seen, bool)
        private[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        y0, x0, y1, x1 = tile.core
        core = np.zeros_like(seen, bool)
        core[y0:y1, x0:x1] = True
        assert (private == (core & (seen == 1))).all()


@pytest.mark.parametrize(("side", "margin"), TILES)
@pytest.mark.parametrize("window", [(9, 4), (5, 5), (7, 2)])
@pytest.mark.parametrize("lay", [patch_grid, slide_patch_grid])
def test_bands_bring_each_patch_once_and_in_time(side, margin, window, lay):
    for shape in [(17, 13), (1, 1), (16, 8), (5, 17)]:
        patches, tiles = lay(shape, *window), tile_grid(shape, side, margin)
        plan = bands(patches, tiles)
        assert [row for band in plan for row in range(*band.rows)] == list(range(patches.rows))
        predicted = np.zeros(shape, bool)
        for band in plan:
            for done in range(patches.cols + 1):
                if done:
                    y0, x0, y1, x1 = patches.output_box(band.rows, (done - 1, done))
                    predicted[y0:y1, x0:x1] = True
                row_of_tiles = [tiles.tile(band.tile_row * tiles.cols + col) for col in range(tiles.cols)]
                has_all = [predicted[t.outer[0] : t.outer[2], t.outer[1] : t.outer[3]].all() for t in row_of_tiles]
                ready = complete_cols(patches, tiles, done)
                assert all(has_all[:ready])
                if band.rows[1] > band.rows[0]:
                    # nothing that is complete waits; the tile whose margin ends at the image's edge is the last
                    assert sum(has_all) - ready <= sum(t.outer[3] == shape[1] for t in row_of_tiles)
            assert patches.touching(row_of_tiles[0].outer)[0] == (band.needed_from, band.rows[1])


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="0x5"):
        patch_grid((0, 5), 270, 80)
    with pytest.raises(ValueError, match="80 -> 270"):
        patch_grid((5, 5), 80, 270)
    with pytest.raises(ValueError, match="0x5"):
        tile_grid((0, 5), 2048, 128)
    with pytest.raises(ValueError, match="--tile_shape"):
        tile_grid((5, 5), 0, 128)
    with pytest.raises(ValueError, match="--ambiguous_size"):
        tile_grid((5, 5), 256, -1)
