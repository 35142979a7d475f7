"""What there is to do on an image or a slide: every patch that a block waits for is read once, and no other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from infer.grid import Planes
from infer.plan import Plan, plan_image, plan_slide
from misc.slides.tissue import TissueMask, whole_mask

WINDOWS = [(9, 4), (5, 5), (12, 7)]
SHAPES = [(1, 1), (4, 9), (17, 13), (40, 33)]
SIDES = [1, 12, 20, 1000]


def planes_of(out_yx) -> list[Planes]:
    """The network's plane is the same, coarser and finer."""
    return [Planes(tuple(max(round(n * f), 1) for n in out_yx), out_yx) for f in (1, 0.5, 0.7, 2)]


def random_mask(rng: np.random.Generator, share: float = 0.3) -> TissueMask:
    return TissueMask(rng.random((6, 5)) < share, "given")


def read_by(plan: Plan, max_side: int) -> np.ndarray:
    """Return how often each patch is read; what is read must hold its patches and be no larger than asked."""
    count, grid = np.zeros_like(plan.tissue, int), plan.patches
    for chunk in replace(plan, read_side=max_side).chunks():
        y0, x0, y1, x1 = chunk.box
        assert max(y1 - y0, x1 - x0) <= max(max_side, grid.patch_input)
        corners = chunk.cells * grid.patch_output + grid.start - grid.margin
        assert (corners >= (y0, x0)).all()
        assert (corners + grid.patch_input <= (y1, x1)).all()
        # and nothing that none of them needs
        assert corners.min(axis=0).tolist() == [y0, x0]
        assert (corners.max(axis=0) + grid.patch_input).tolist() == [y1, x1]
        np.add.at(count, tuple(chunk.cells.T), 1)
    return count


def test_an_image_is_one_block_all_of_which_is_wanted():
    for shape, window in itertools.product(SHAPES, WINDOWS):
        for planes in planes_of(shape):
            plan = plan_image(planes, window)
            block = plan.blocks.block(0)
            assert len(plan.blocks) == 1
            assert block.core == block.outer == (0, 0, *shape)
            assert plan.net_box(0) == (0, 0, *planes.net_yx)
            assert plan.patches.start == 0
            assert plan.todo == plan.expected == [0]
            assert plan.wanted.all()
            for side in SIDES:
                assert (read_by(plan, side) == 1).all()


def test_every_wanted_patch_is_read_once_and_no_other():
    rng = np.random.default_rng(0)
    for shape, window, (side, margin) in itertools.product(SHAPES, WINDOWS, [(4, 1), (8, 3), (50, 4)]):
        for planes, phase in itertools.product(planes_of(shape), (True, False)):
            plan = plan_slide(planes, window, side, margin, random_mask(rng), phase)
            for max_side in SIDES:
                assert np.array_equal(read_by(plan, max_side), plan.wanted)


def test_wanted_is_what_blocks_that_are_to_be_done_see_of_the_tissue():
    """By brute force over the pixels, with some blocks done."""
    rng = np.random.default_rng(1)
    for planes, window, share in itertools.product(planes_of((40, 33)), WINDOWS, (0, 0.2, 0.6, 1)):
        fresh = plan_slide(planes, window, 11, 3, random_mask(rng, share), True)
        done = frozenset(index for index in range(len(fresh.blocks)) if rng.random() < 0.4)
        plan = replace(fresh, done=done)
        grid, wanted, expected = plan.patches, np.zeros_like(plan.tissue), []
        for index in range(len(plan.blocks)):
            y0, x0, y1, x1 = plan.net_box(index)
            ys, xs = np.arange(y0, y1) - grid.start, np.arange(x0, x1) - grid.start
            seen = np.zeros_like(plan.tissue)
            seen[np.ix_(np.unique(ys // grid.patch_output), np.unique(xs // grid.patch_output))] = True
            if (seen & plan.tissue).any():
                expected.append(index)
                if index not in done:
                    wanted |= seen & plan.tissue
        assert plan.expected == expected
        assert plan.todo == [index for index in expected if index not in done]
        assert np.array_equal(plan.wanted, wanted)
        assert fresh.expected == fresh.todo == expected


def test_a_slide_whose_blocks_are_done_has_nothing_to_read():
    plan = plan_slide(Planes((40, 33), (40, 33)), (9, 4), 11, 3, whole_mask(), True)
    assert len(plan.todo) == len(plan.blocks) == 12
    done = replace(plan, done=frozenset(plan.expected))
    assert (done.todo, list(done.chunks())) == ([], [])
    glass = plan_slide(plan.planes, (9, 4), 11, 3, TissueMask(np.zeros((6, 5), bool), "given"), True)
    assert (glass.expected, list(glass.chunks())) == ([], [])


def test_blocks_come_complete_in_row_major_order_of_their_rows():
    """A row of blocks has all it sees before a patch of the next row of blocks alone is read: memory is one band's."""
    for planes, window in itertools.product(planes_of((60, 33)), WINDOWS):
        plan = plan_slide(planes, window, 11, 3, whole_mask(), True)
        missing = {index: int(plan.wanted[plan.seen(index)].sum()) for index in plan.todo}
        first, complete = {}, {}
        cells = [tuple(cell) for chunk in replace(plan, read_side=20).chunks() for cell in chunk.cells.tolist()]
        for step, (row, col) in enumerate(cells):
            for index in plan.todo:
                rows, cols = plan.seen(index)
                if rows.start <= row < rows.stop and cols.start <= col < cols.stop:
                    first.setdefault(index, step)
                    missing[index] -= 1
                    if not missing[index]:
                        complete[index] = step
        assert complete.keys() == set(plan.todo)
        by_row = [[i for i in plan.todo if i // plan.blocks.cols == row] for row in range(plan.blocks.rows)]
        for row, later in itertools.combinations(range(plan.blocks.rows), 2):
            assert max(complete[i] for i in by_row[row]) <= max(complete[i] for i in by_row[later])
            if later > row + 2:
                assert max(complete[i] for i in by_row[row]) < min(first[i] for i in by_row[later])


def test_patches_of_a_slide_lie_as_asked_and_those_of_a_single_block_as_of_an_image():
    planes = Planes((400, 500), (400, 500))
    assert plan_slide(planes, (256, 164), 128, 40, whole_mask(), True).patches.start == -118
    assert plan_slide(planes, (256, 164), 128, 40, whole_mask(), False).patches.start == 0
    assert plan_slide(planes, (256, 164), 500, 40, whole_mask(), True).patches.start == 0
