"""A stream without a network: its maps are the pixels of the images, so that every pixel can be told."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jobs import Keep
from tqdm import TMonitor, tqdm

from infer.plan import Plan, plan_image, plan_slide
from infer.source import ImageSource
from infer.stream import FAILED, PLANNED, Budget, Event, Stream, Task
from misc.slides.tissue import TissueMask
from misc.workers import SharedArray, WorkerPool

LOST = 5  # px that the network takes off its window, odd: one more at the right than at the left
WINDOWS = [(9, 4), (12, 7), (16, 11)]
# one px, and one px around one, two and three patches
LENGTHS = [1, 3, 4, 5, 7, 8, 11, 12, 13, 21, 22, 23, 34]
ENOUGH_S = 120  # no test comes near it; one that hangs ends there


class Pixels:
    """Stands in for the predictor: its maps are the pixels in the middle of the patches."""

    channels = 3

    def __init__(self, batch_size: int = 4):
        self.sizes = itertools.repeat(batch_size)
        self.batches: list[tuple[int, int]] = []  # patches, and their side

    def new_batch(self, side: int) -> torch.Tensor:
        return torch.full((next(self.sizes), side, side, 3), 77, dtype=torch.uint8)

    def upload(self, patches: torch.Tensor) -> torch.Tensor:
        return patches.clone()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(tuple(batch.shape[:2]))
        first, last = LOST // 2, batch.shape[1] - LOST + LOST // 2
        return batch[:, first:last, first:last]

    def download(self, maps: torch.Tensor) -> np.ndarray:
        return maps.permute(0, 3, 1, 2).to(torch.float32).numpy()


class Picture(Task):
    """An image with its plan."""

    def __init__(self, name: str, source: ImageSource, plan: Plan | None, cost: int = 0):
        super().__init__(Path(name), cost)
        self.source, self.plan = source, plan

    def prepare(self) -> Plan | None:
        return self.plan

    def job(self, index: int, maps: SharedArray) -> Keep:
        return Keep(maps)


def pixels(shape_yx, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (*shape_yx, 3), dtype=np.uint8)


def image(name: str, shape_yx=(10, 10), window=(12, 7), scale: float = 1.0, **kwargs) -> Picture:
    source = ImageSource(pixels(shape_yx, len(name)), scale)
    return Picture(name, source, plan_image(source.planes, window), **kwargs)


def slide(name: str, shape_yx, window, rng: np.random.Generator, scale: float = 1.0) -> Picture:
    """A slide some of which has no tissue, and some of whose blocks are done."""
    source = ImageSource(pixels(shape_yx, len(name)), scale)
    tissue = TissueMask(rng.random((4, 5)) < rng.choice([0, 0.3, 0.8]), "given")
    side, margin = int(rng.integers(4, 20)), int(rng.integers(0, 6))
    plan = plan_slide(source.planes, window, side, margin, tissue, bool(rng.integers(0, 2)))
    done = frozenset(index for index in range(len(plan.blocks)) if rng.random() < 0.3)
    return Picture(name, source, replace(plan, done=done, read_side=int(rng.integers(1, 60))))


def expected(task: Picture, index: int) -> np.ndarray:
    """Return the pixels of what a block sees, (3, h, w), those of patches without tissue 0."""
    plan = task.plan
    y0, x0, y1, x1 = plan.net_box(index)
    rows = (np.arange(y0, y1) - plan.patches.start) // plan.patches.patch_output
    cols = (np.arange(x0, x1) - plan.patches.start) // plan.patches.patch_output
    return np.moveaxis(task.source.read((y0, x0, y1, x1)) * plan.tissue[np.ix_(rows, cols)][..., None], -1, 0)


def stream(tasks, predictor=None, readers: int = 2, ahead: int = 2, budget: int = 0, workers: int = 0) -> Stream:
    predictor = Pixels() if predictor is None else predictor
    return Stream(tasks, predictor, WorkerPool(workers), readers, ahead, Budget(budget))


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not isinstance(thread, TMonitor)}


def run(flow: Stream) -> Iterator[Event]:
    """Run it; budget is given back when all blocks of a task have come, and all threads are gone at the end."""
    before, waiting = threads(), {}
    for event in flow.run(tqdm(disable=True)):
        if event.what == PLANNED:
            waiting[event.task] = len(event.outcome.value.todo) if event.outcome.value else 0
        elif event.what != FAILED:
            waiting[event.task] -= 1
        if event.what == FAILED or not waiting[event.task]:
            flow.budget.give(event.task)
        yield event
    assert threads() <= before


def check(tasks, events) -> None:
    """Every block of every task has come once, with the pixels of its source."""
    found = {(event.task, event.what): event.outcome for event in events}
    assert len(found) == len(events)
    assert set(found) == {(task, what) for task in tasks for what in (PLANNED, *task.plan.todo)}
    for (task, what), outcome in found.items():
        assert outcome.error is None
        if what != PLANNED:
            assert np.array_equal(outcome.value, expected(task, what)), (task.name, what)
