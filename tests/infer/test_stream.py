"""The flow of patches: every pixel arrives at its place, whatever is cut how; and in what order things are done."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import numpy as np
from jobs import Keep
from pixel_stream import (
    ENOUGH_S,
    LENGTHS,
    LOST,
    WINDOWS,
    Picture,
    Pixels,
    check,
    image,
    pixels,
    run,
    slide,
    stream,
)
from tqdm import tqdm

import infer.stream
from infer.grid import cut_window
from infer.source import ImageSource
from infer.stream import PLANNED
from misc.threads import Budget
from misc.workers import SharedArray

# ---------------------------------------------------------------------------------------------- every pixel


def test_cut_and_paste_is_the_identity_on_images():
    """Sizes around every boundary, all in one stream, the window cut to what each image needs."""
    for batch_size in [1, 3, 16, 1000]:
        tasks = []
        for number, (height, width) in enumerate(itertools.product(LENGTHS, LENGTHS[::3])):
            window = WINDOWS[number % len(WINDOWS)][0]
            window = cut_window((height, width), window, LOST, 1)
            tasks.append(image(f"{number}", (height, width), (window, window - LOST)))
        check(tasks, list(run(stream(tasks, Pixels(batch_size), readers=1 + batch_size % 3))))


def test_cut_and_paste_is_the_identity_on_slides_of_two_planes():
    for scale in [1, 0.5, 0.7, 1.6]:
        rng = np.random.default_rng(round(10 * scale))
        for readers, ahead in ((1, 1), (4, 3)):
            shapes = [tuple(rng.integers(1, 60, 2)) for _ in range(25)]
            tasks = [slide(f"{n}", shape, WINDOWS[n % 3], rng, scale) for n, shape in enumerate(shapes)]
            assert any(not task.plan.todo for task in tasks)
            check(tasks, list(run(stream(tasks, Pixels(5), readers, ahead))))


def test_what_workers_get_is_the_same():
    tasks = [image(f"{n}", (20 + n, 31)) for n in range(6)]
    flow = stream(tasks, workers=2)
    check(tasks, list(flow.run(tqdm(disable=True))))
    flow.pool.close()


def test_an_image_larger_than_what_is_read_at_once(monkeypatch):
    reads, read = [], ImageSource.read
    monkeypatch.setattr(ImageSource, "read", lambda self, box: reads.append(box) or read(self, box))
    task = image("large", (100, 90))
    task.plan = replace(task.plan, read_side=30)
    events = list(run(stream([task])))
    assert len(reads) == 5 * 5  # three patches a side
    check([task], events)


# ---------------------------------------------------------------------------------------------- batches


def test_batches_cross_the_borders_of_images_and_only_the_last_is_not_full(monkeypatch):
    """Where the next image is there before patches have waited long for it."""
    monkeypatch.setattr(infer.stream, "FULL_BATCH_S", ENOUGH_S)
    predictor = Pixels(4)
    tasks = [image(f"{n}", (7, 14)) for n in range(7)]  # two patches each
    check(tasks, list(run(stream(tasks, predictor))))
    assert [count for count, _ in predictor.batches] == [4, 4, 4, 2]


def test_a_batch_holds_patches_of_one_size():
    predictor = Pixels(4)
    tasks = [image(f"{n}", (7, 7), WINDOWS[n % 2]) for n in range(6)]
    check(tasks, list(run(stream(tasks, predictor))))
    assert {side for _, side in predictor.batches} == {9, 12}


def test_a_batch_size_that_is_halved_meanwhile_takes_no_patch_twice():
    predictor = Pixels()
    predictor.sizes = itertools.chain([8, 8, 8, 2], itertools.repeat(1))
    tasks = [image(f"{n}", (14, 21)) for n in range(8)]
    check(tasks, list(run(stream(tasks, predictor))))
    assert max(count for count, _ in predictor.batches) <= 8
    assert sum(count for count, _ in predictor.batches) == 8 * 6


def test_patches_do_not_wait_for_an_image_that_takes_long_to_open():
    """The second image opens when the network has seen the first one, whose patches fill no batch."""
    seen = threading.Event()

    class Spy(Pixels):
        def forward(self, batch):
            seen.set()
            return super().forward(batch)

    tasks = [image("first"), image("second")]
    tasks[1].prepare = lambda: seen.wait(ENOUGH_S) and tasks[1].plan
    check(tasks, list(run(stream(tasks, Spy(100)))))


def test_reading_the_network_and_the_work_on_its_maps_overlap():
    """The network waits on its first batch until the next image was read; work on a block, until the second batch."""
    read, computed, batches = threading.Event(), threading.Event(), []

    class Spy(Pixels):
        def forward(self, batch):
            batches.append(batch)
            if len(batches) == 1:
                assert read.wait(ENOUGH_S)
            else:
                computed.set()
            return super().forward(batch)

    class Waiting(Keep):
        def run(self):
            assert computed.wait(ENOUGH_S)
            return super().run()

    first, second = image("first", (7, 7)), image("second", (7, 7))
    first.job = lambda index, maps: Waiting(maps)
    second.source = type("Spied", (), {"read": lambda self, box, s=second.source: read.set() or s.read(box)})()
    events = list(run(stream([first, second], Spy(1))))
    second.source = ImageSource(pixels((7, 7), len("second")))
    check([first, second], events)


# ---------------------------------------------------------------------------------------------- order


def test_a_task_with_nothing_for_the_network_is_only_planned_and_more_may_be_submitted():
    tasks = [image("a"), Picture("b", None, None), image("c")]
    flow, seen = stream(tasks), []
    for event in flow.run(tqdm(disable=True)):
        seen.append((event.task.name, event.what))
        if event.what in (PLANNED, 0) and (event.what == 0) == bool(event.task.plan):
            flow.submit(event.task, "last", Keep(SharedArray((3,), np.uint8)))
        elif event.what == "last":
            assert event.outcome.value.shape == (3,)
    for task in tasks:
        order = [what for name, what in seen if name == task.name]
        assert order == [PLANNED, *([0] if task.plan else []), "last"]


def test_no_tasks_at_all():
    assert list(run(stream([]))) == []


def test_p17_no_more_is_under_way_than_memory_allows_but_one_always():
    rng = np.random.default_rng(0)
    for size, ahead, batch_size in itertools.product((0, 12, 1000), (1, 20), (1, 100)):
        tasks, under_way, lock, most = [], {}, threading.Lock(), []

        def prepare(task, under_way=under_way, lock=lock, most=most):
            with lock:
                under_way[task] = task.cost
                most.append((len(under_way), sum(under_way.values())))
            return task.plan

        for n in range(12):
            tasks.append(image(f"{n}", cost=int(rng.integers(1, 15))))
            tasks[-1].prepare = lambda task=tasks[-1]: prepare(task)
        flow = stream(tasks, Pixels(batch_size), ahead=ahead, budget=size)

        def gone(task, under_way=under_way, lock=lock, flow=flow):
            with lock:
                under_way.pop(task, None)
            Budget.give(flow.budget, task)

        flow.budget.give = gone
        check(tasks, list(run(flow)))
        assert all(count == 1 or cost <= size for count, cost in most)


def test_what_memory_allows_is_prepared_ahead():
    """The first image opens when three more are being opened."""
    opened = [threading.Event() for _ in range(4)]
    tasks = [image(f"{n}", cost=1) for n in range(4)]
    for n, task in enumerate(tasks):

        def prepare(n=n, task=task):
            opened[n].set()
            assert n or all(event.wait(ENOUGH_S) for event in opened)
            return task.plan

        task.prepare = prepare
    check(tasks, list(run(stream(tasks, ahead=4, budget=4))))
