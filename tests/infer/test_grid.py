"""Patches, blocks and planes: every pixel once, swept over sizes around every boundary."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from infer.grid import Planes, bands, block_grid, cut_window, patch_grid, slide_patch_grid
from misc.slides.resample import Axis, enlarge
from models.hovernet.net_desc import PATCH_SHAPES, WINDOW_STEPS, output_size

WINDOWS = [(270, 80), (256, 164), (9, 4), (5, 5)]
# one px, and one px around one, two and three patches or blocks
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17]
BLOCKS = [(1, 0), (3, 1), (4, 2), (5, 0), (8, 3), (16, 4), (17, 40)]
LAYS = [patch_grid, slide_patch_grid]


def all_blocks(grid):
    return [grid.block(i) for i in range(len(grid))]


def test_a_grid_by_hand():
    grid = patch_grid((90, 170), 270, 80)
    assert (grid.rows, grid.cols, len(grid)) == (2, 3, 6)
    assert grid.output_tl_yx.tolist() == [[0, 0], [0, 80], [0, 160], [80, 0], [80, 80], [80, 160]]
    assert grid.input_box((0, 1), (0, 1)) == (-95, -95, 175, 175)
    assert grid.input_box((1, 2), (2, 3)) == (-15, 65, 255, 335)
    assert grid.input_box((0, 2), (1, 3)) == (-95, -15, 255, 335)
    assert grid.touching((79, 80, 81, 160)) == ((0, 2), (1, 2))


def test_patches_lie_where_the_reference_lays_them():
    """Reference, tile mode: `ceil((length - out) / out) + 1` steps from 0; padding `(in - out) // 2` before."""
    for window, around, off in itertools.product(WINDOWS, (1, 2, 3), (-1, 0, 1)):
        length = max(around * window[1] + off, 1)
        grid = patch_grid((length, 1), *window)
        steps = math.ceil((length - window[1]) / window[1]) + 1
        assert grid.output_tl_yx[:, 0].tolist() == [k * window[1] for k in range(steps)]
        assert grid.input_box((0, 1), (0, 1))[0] == -((window[0] - window[1]) // 2)


def test_slide_patches_lie_where_the_reference_lays_them():
    """Reference, slide mode: the first patch reads from 0 on, and predicts from `(in - out) // 2` on."""
    for window in WINDOWS:
        corners = slide_patch_grid((1000, 700), *window).output_tl_yx
        assert (((window[0] - window[1]) // 2 - corners) % window[1] == 0).all()
    assert slide_patch_grid((300, 100), 256, 164).output_tl_yx.tolist() == [
        [y, x] for y in (-118, 46, 210) for x in (-118, 46)
    ]


def test_p08_every_pixel_is_predicted_once():
    for lay in LAYS:
        for window, height, width in itertools.product([(9, 4), (5, 5), (7, 2), (11, 2)], LENGTHS, (1, 4, 9, 16)):
            grid = lay((height, width), *window)
            assert -window[1] < grid.start <= 0
            hits = np.zeros((height, width), int)
            for y, x in grid.output_tl_yx:
                hits[max(y, 0) : y + window[1], max(x, 0) : x + window[1]] += 1
            assert (hits == 1).all()


def test_chunks_are_all_patches_once_and_no_larger_than_asked():
    grid = patch_grid((33, 21), 9, 4)
    for max_side in (1, 9, 13, 14, 1000):
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


def test_cores_partition_the_plane():
    for side, margin in BLOCKS:
        for height, width in itertools.product(LENGTHS, (1, 4, 8, 13)):
            grid = block_grid((height, width), side, margin)
            owner = np.full((height, width), -1)
            for block in all_blocks(grid):
                y0, x0, y1, x1 = block.core
                assert (owner[y0:y1, x0:x1] == -1).all()
                owner[y0:y1, x0:x1] = block.index
                low, high = np.array(block.core[:2]) - margin, np.array(block.core[2:]) + margin
                assert block.outer == (*np.maximum(low, 0), *np.minimum(high, (height, width)))
            points = np.argwhere(owner >= 0)
            assert len(points) == height * width
            assert (grid.index_at(points) == owner[points[:, 0], points[:, 1]]).all()
            assert (grid.index_at(points + 0.9) == owner[points[:, 0], points[:, 1]]).all()


def test_what_touches_what_by_brute_force():
    rng = np.random.default_rng(0)
    overlap = lambda a, b: a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]  # noqa: E731
    for (side, margin), _ in itertools.product(BLOCKS, range(40)):
        grid = block_grid((17, 13), side, margin)
        (y0, y1), (x0, x1) = np.sort(rng.integers(0, 17, 2)), np.sort(rng.integers(0, 13, 2))
        box = (int(y0), int(x0), int(y1) + 1, int(x1) + 1)
        for name, kind in (("cores_touching", "core"), ("blocks_touching", "outer")):
            rows, cols = getattr(grid, name)(box)
            expected = [block.index for block in all_blocks(grid) if overlap(getattr(block, kind), box)]
            assert [row * grid.cols + col for row in range(*rows) for col in range(*cols)] == expected
        assert grid.last_touching(box) == expected[-1]


def test_the_private_part_of_a_block_is_what_no_other_sees():
    for side, margin in BLOCKS:
        grid = block_grid((17, 13), side, margin)
        seen = np.zeros((17, 13), int)
        for block in all_blocks(grid):
            y0, x0, y1, x1 = block.outer
            seen[y0:y1, x0:x1] += 1
        for block in all_blocks(grid):
            y0, x0, y1, x1 = grid.private_box(block)
            private = np.zeros_like(seen, bool)
            private[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
            y0, x0, y1, x1 = block.core
            core = np.zeros_like(seen, bool)
            core[y0:y1, x0:x1] = True
            assert (private == (core & (seen == 1))).all()


def net_shapes(out_yx):
    """Sizes of the network's plane for an output plane: the same, coarser and finer."""
    return [out_yx] + [tuple(max(round(n * f), 1) for n in out_yx) for f in (0.25, 0.5, 0.7, 1.5, 2)]


def test_bands_bring_each_row_of_patches_once_and_in_time():
    """After its band, a row of blocks has all it sees; and no band brings a row that its blocks do not need."""
    for lay in LAYS:
        windows, shapes = [(9, 4), (5, 5), (7, 2)], [(17, 13), (1, 1), (16, 8), (5, 17)]
        for (side, margin), window, out_yx in itertools.product(BLOCKS, windows, shapes):
            for net_yx in net_shapes(out_yx):
                planes, blocks = Planes(net_yx, out_yx), block_grid(out_yx, side, margin)
                patches = lay(net_yx, *window)
                plan = bands(patches, blocks, planes)
                assert len(plan) == blocks.rows
                assert [row for rows in plan for row in range(*rows)] == list(range(patches.rows))
                for row, rows in enumerate(plan):
                    y0, _, y1, _ = planes.net_box(blocks.block(row * blocks.cols).outer)
                    needed = patches.touching((y0, 0, y1, 1))[0]
                    assert rows[1] >= needed[1]
                    assert rows[0] == rows[1] or rows[1] == needed[1]


def test_the_network_box_of_a_block_is_all_that_it_is_computed_from():
    """The whole is the whole; a box is no larger than need be, and what lies outside of it does not matter."""
    rng = np.random.default_rng(0)
    for out_yx in [(17, 13), (1, 30), (64, 40)]:
        for net_yx in net_shapes(out_yx):
            planes = Planes(net_yx, out_yx)
            assert planes.net_box((0, 0, *out_yx)) == (0, 0, *net_yx)
            y0, x0 = rng.integers(0, out_yx)
            y1, x1 = rng.integers((y0, x0), out_yx) + 1
            top, left, bottom, right = planes.net_box((y0, x0, y1, x1))
            assert 0 <= top < bottom <= net_yx[0]
            assert 0 <= left < right <= net_yx[1]
            scale = np.array(net_yx) / out_yx
            assert (np.array((bottom - top, right - left)) <= np.ceil(np.array((y1 - y0, x1 - x0)) * scale) + 5).all()
            # from the first pixel of the network's plane whose area is in the box to the last one
            assert (np.array((top, left)) <= np.floor(np.array((y0, x0)) * scale + 1e-9)).all()
            assert (np.array((bottom, right)) >= np.ceil(np.array((y1, x1)) * scale - 1e-9)).all()


def test_enlarging_any_box_equals_that_cut_of_the_whole():
    rng = np.random.default_rng(0)
    for net_yx, out_yx in [((9, 7), (20, 14)), ((30, 40), (41, 90)), ((1, 5), (3, 6)), ((12, 20), (12, 31))]:
        plane = rng.normal(size=net_yx).astype(np.float32)
        planes = Planes(net_yx, out_yx)
        axes: tuple[Axis, Axis] = planes.axes
        whole = enlarge(plane, *axes, (0, 0, *out_yx))
        assert whole.shape == out_yx
        for _ in range(20):
            (y0, x0) = rng.integers(0, out_yx)
            (y1, x1) = rng.integers((y0, x0), out_yx) + 1
            top, left, bottom, right = planes.net_box((y0, x0, y1, x1))
            part = enlarge(plane[top:bottom, left:right], *axes, (y0, x0, y1, x1))
            assert np.array_equal(part, whole[y0:y1, x0:x1])


@pytest.mark.parametrize("mode", PATCH_SHAPES)
def test_a_window_is_cut_to_what_an_image_needs(mode):
    """It is one that the network takes, takes no more patches, and the next smaller one would."""
    (usual, out), step = PATCH_SHAPES[mode], WINDOW_STEPS[mode]
    lost = usual - out
    smallest = next(size for size in range(lost + 1, lost + step + 1) if size % step == usual % step)
    sizes = range(smallest, 700, 168 // step * step)
    for window, height, width in itertools.product(sizes, (1, 7, 163, 164, 165, 500, 1000), (1, 80, 333, 1001)):
        count = lambda size, shape: len(patch_grid(shape, size, size - lost))  # noqa: E731
        cut = cut_window((height, width), window, lost, step)
        assert cut <= window
        assert output_size(mode, cut) == cut - lost
        assert count(cut, (height, width)) == count(window, (height, width))
        if cut > smallest:
            assert count(cut - step, (height, width)) > count(window, (height, width))
    assert cut_window((512, 512), 600, 92, 8) == 352  # two patches a side
    assert cut_window((508, 508), 600, 92, 8) == 600


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="0x5"):
        patch_grid((0, 5), 270, 80)
    with pytest.raises(ValueError, match="80 -> 270"):
        patch_grid((5, 5), 80, 270)
    with pytest.raises(ValueError, match="0x5"):
        block_grid((0, 5), 2048, 128)
    with pytest.raises(ValueError, match="--tile_shape"):
        block_grid((5, 5), 0, 128)
    with pytest.raises(ValueError, match="--ambiguous_size"):
        block_grid((5, 5), 256, -1)
