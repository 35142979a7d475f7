"""Predictions put together block by block: whole, in their places, and held no longer than a block waits for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from infer.canvas import Canvas
from infer.grid import Planes
from infer.plan import Plan, plan_slide
from misc.slides.tissue import TissueMask, whole_mask


def prediction(plan: Plan, plane: np.ndarray, row: int, col: int) -> np.ndarray:
    """Return what a patch predicts: the pixels of a plane, and nonsense where it reaches over the edge."""
    size, start = plan.patches.patch_output, plan.patches.start
    y, x = row * size + start, col * size + start
    output = np.full((len(plane), size, size), np.nan, np.float32)
    y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + size, plane.shape[1]), min(x + size, plane.shape[2])
    output[:, y0 - y : y1 - y, x0 - x : x1 - x] = plane[:, y0:y1, x0:x1]
    return output


def cells_of(plan: Plan) -> list[tuple[int, int]]:
    return [tuple(cell) for chunk in plan.chunks() for cell in chunk.cells.tolist()]


def random_plan(rng: np.random.Generator, scale: float) -> Plan:
    out_yx = tuple(rng.integers(1, 60, 2).tolist())
    planes = Planes(tuple(max(round(n * scale), 1) for n in out_yx), out_yx)
    tissue = TissueMask(rng.random((4, 5)) < rng.choice([0.3, 0.8, 1]), "given")
    window = [(9, 4), (12, 7), (5, 5)][rng.integers(3)]
    plan = plan_slide(planes, window, int(rng.integers(4, 20)), int(rng.integers(0, 6)), tissue, bool(rng.integers(2)))
    done = frozenset(index for index in range(len(plan.blocks)) if rng.random() < 0.2)
    return replace(plan, done=done, read_side=int(rng.integers(1, 60)))


def test_blocks_are_whole_and_nothing_is_left():
    """Whatever the planes, the tissue, and what is done; also where patches come in another order."""
    for seed in range(120):
        rng = np.random.default_rng(seed)
        plan = random_plan(rng, [1, 0.5, 0.7, 1.6][seed % 4])
        plane = rng.normal(size=(3, *plan.planes.net_yx)).astype(np.float32)
        canvas, taken, cells = Canvas(plan, 3), [], cells_of(plan)
        for row, col in rng.permutation(cells).tolist() if seed % 3 == 0 and cells else cells:
            for index in canvas.put(row, col, prediction(plan, plane, row, col)):
                maps = np.full(canvas.shape(index), 7, np.float32)  # used before
                canvas.take(index, maps)
                y0, x0, y1, x1 = plan.net_box(index)
                rows = (np.arange(y0, y1) - plan.patches.start) // plan.patches.patch_output
                cols = (np.arange(x0, x1) - plan.patches.start) // plan.patches.patch_output
                seen = plan.tissue[np.ix_(rows, cols)]
                assert np.array_equal(maps, np.where(seen, plane[:, y0:y1, x0:x1], 0))
                taken.append(index)
        assert sorted(taken) == plan.todo
        assert len(canvas) == 0


def patches_held(plan: Plan) -> list[int]:
    """Return how many patches a canvas holds after each one that comes; its blocks are taken when they are whole."""
    canvas, held = Canvas(plan, 1), []
    for row, col in cells_of(plan):
        for index in canvas.put(row, col, np.zeros((1, 7, 7), np.float32)):
            canvas.take(index, np.empty(canvas.shape(index), np.float32))
        held.append(len(canvas))
    return held


def test_only_what_a_block_still_waits_for_is_held():
    """Of a tall slide a band and its margin, however tall it is."""
    most = []
    for height in (400, 1600):
        plan = plan_slide(Planes((height, 100), (height, 100)), (12, 7), 40, 8, whole_mask(), True)
        held = patches_held(plan)
        most.append(max(held))
        assert held[-1] == 0
    rows_of_a_band = -(-(40 + 2 * 8) // 7) + 1
    assert most[0] == most[1] <= rows_of_a_band * plan.patches.cols


def test_what_is_held_of_a_single_row_of_blocks_does_not_go_with_its_width():
    """Nothing lies below it, so nothing of it is kept."""
    most = []
    for width in (400, 800):
        plan = plan_slide(Planes((40, width), (40, width)), (12, 7), 48, 8, whole_mask(), True)
        most.append(max(patches_held(replace(plan, read_side=50))))
    assert most[0] == most[1]


def test_of_a_patch_only_what_is_waited_for_is_kept_and_not_its_batch():
    plan = plan_slide(Planes((40, 100), (40, 100)), (12, 7), 20, 2, whole_mask(), False)
    canvas, batch = Canvas(plan, 1), np.zeros((64, 1, 7, 7), np.float32)
    for row, col in [(row, col) for row in range(4) for col in range(4)]:
        for index in canvas.put(row, col, batch[4 * row + col]):
            canvas.take(index, np.empty(canvas.shape(index), np.float32))
    cut = [patch.output for patch in canvas._patches.values() if patch.output.shape != (1, 7, 7)]
    assert cut
    assert all(output.base is None for output in cut)
    only_the_last = replace(plan, done=frozenset(plan.expected[:-1]))
    canvas = Canvas(only_the_last, 1)
    assert canvas.put(0, 0, batch[0]) == []
    assert len(canvas) == 0
