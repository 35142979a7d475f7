"""The flow of patches when something fails: who fails is named, and touches no other; nobody is left waiting."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from jobs import Keep
from pixel_stream import (
    Picture,
    Pixels,
    check,
    image,
    run,
    stream,
    threads,
)
from tqdm import tqdm

from infer.predictor import OutOfMemoryError, WrongResultError
from infer.source import ImageSource
from infer.stream import FAILED, PLANNED

# ---------------------------------------------------------------------------------------------- faults


def let_fail(where: str, task: Picture) -> None:
    def broken(*_):
        raise OSError(f"{where} of {task.name} failed")

    if where == "read":
        task.source = type("Broken", (), {"read": broken})()
    else:
        setattr(task, where, broken)


def test_p02_a_task_that_fails_is_named_and_touches_no_other():
    for where in ["prepare", "read", "job"]:
        for position, batch_size in itertools.product((0, 2, 4), (1, 3, 100)):
            tasks = [image(f"{n}", (20, 10 + n)) for n in range(5)]
            let_fail(where, tasks[position])
            events = list(run(stream(tasks, Pixels(batch_size))))
            failed = [event for event in events if event.what == FAILED]
            assert [event.task for event in failed] == [tasks[position]]
            assert failed[0].outcome.error == f"{where} of {position} failed"
            others = [task for task in tasks if task is not tasks[position]]
            check(others, [event for event in events if event.task is not tasks[position]])


class Disliking(Pixels):
    """Raises an error in one of its steps when there is a dark patch in the batch."""

    def __init__(self, where: str, error: Exception):
        super().__init__(2)
        self.where, self.error = where, error

    def _step(self, where: str, dark: bool) -> None:
        if where == self.where and dark:
            raise self.error

    def upload(self, patches):
        batch = super().upload(patches)
        batch.dark = bool((batch == 0).any())
        self._step("upload", batch.dark)
        return batch

    def forward(self, batch):
        self._step("forward", batch.dark)
        maps = super().forward(batch)
        maps.dark = batch.dark
        return maps

    def download(self, maps):
        self._step("download", maps.dark)
        return super().download(maps)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("cuDNN is upset"), "RuntimeError: cuDNN is upset"),
        (OutOfMemoryError("use a smaller --window"), "use a smaller --window"),
        (WrongResultError("mps computes otherwise"), "mps computes otherwise"),
    ],
    ids=["fault", "memory", "wrong"],
)
def test_p02_a_batch_on_which_the_network_fails_names_its_images(error, said):
    """Two images are dark; the network does not like them."""
    for where in ("upload", "forward", "download"):
        tasks = [image(f"{n}", (7, 14)) for n in range(8)]  # one batch each
        for task in tasks[2:4]:
            task.source = ImageSource(np.zeros((7, 14, 3), np.uint8))
        events = list(run(stream(tasks, Disliking(where, error))))
        failed = {event.task.name: event.outcome for event in events if event.what == FAILED}
        assert failed.keys() == {"2", "3"}
        assert all(outcome.error == said for outcome in failed.values())
        assert ("Traceback" in failed["2"].details) == (type(error) is RuntimeError)
        check([t for t in tasks if t.name not in failed], [e for e in events if e.task.name not in failed])


def test_a_passing_fault_of_the_network_is_survived(caplog):
    class Flaky(Pixels):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("once")
            return super().forward(batch)

    tasks = [image(f"{n}") for n in range(4)]
    check(tasks, list(run(stream(tasks, Flaky()))))
    assert "failed on a batch (once); trying once more" in caplog.text


def test_work_on_a_block_that_fails_is_the_outcome_of_that_block():
    class Broken(Keep):
        def run(self):
            raise ValueError("no nuclei here")

    tasks = [image("a"), image("b")]
    tasks[0].job = lambda index, maps: Broken(maps)
    events = list(run(stream(tasks)))
    outcomes = {event.task.name: event.outcome for event in events if event.what == 0}
    assert outcomes["a"].error == "ValueError: no nuclei here"
    assert outcomes["a"].name == "a, block 0"
    assert "in run" in outcomes["a"].details
    check(tasks[1:], [event for event in events if event.task is tasks[1]])


def test_a_task_that_failed_is_read_no_further():
    """Nothing more is read or predicted of it, and it fails once."""
    task, reads = image("a", (7, 7 * 400)), []
    task.plan = replace(task.plan, read_side=12)

    def broken(box):
        reads.append(box)
        raise OSError("away")

    task.source = type("Broken", (), {"read": staticmethod(broken)})()
    predictor = Pixels()
    events = list(run(stream([task], predictor)))
    assert [event.what for event in events] == [PLANNED, FAILED]
    assert len(reads) <= 3  # those that were read ahead
    assert predictor.batches == []


# ---------------------------------------------------------------------------------------------- interruptions


class Stopped(Pixels):
    """Is interrupted at the third batch, in one of its steps."""

    def __init__(self, where: str):
        super().__init__(1)
        self.where, self.calls = where, 0

    def _step(self, where: str) -> None:
        self.calls += where == self.where
        if self.calls == 3:
            raise KeyboardInterrupt

    def upload(self, patches):
        self._step("upload")
        return super().upload(patches)

    def forward(self, batch):
        self._step("forward")
        return super().forward(batch)

    def download(self, maps):
        self._step("download")
        return super().download(maps)


def test_p04_an_interruption_ends_the_run_and_all_its_threads():
    for where in ("upload", "forward", "download"):
        before, flow = threads(), stream((image(f"{n}") for n in range(1000)), Stopped(where))
        with pytest.raises(KeyboardInterrupt):
            list(flow.run(tqdm(disable=True)))
        assert threads() <= before


def test_who_no_longer_listens_ends_the_run():
    """Ctrl-C in the main thread: what is being opened is waited for, nothing new is begun."""
    for plan_of in (lambda task: task.plan, lambda task: None):  # with work for the network, and without
        prepared, tasks = [], []
        for n in range(200):
            task = image(f"{n}", cost=1)
            task.prepare = lambda task=task, prepared=prepared, plan_of=plan_of: prepared.append(task) or plan_of(task)
            tasks.append(task)
        before, flow = threads(), stream(tasks, Pixels(1), budget=10)
        events = flow.run(tqdm(disable=True))
        next(events)  # the budget is never given back, so that no more than ten are under way
        events.close()
        assert threads() <= before
        assert len(prepared) <= 10
