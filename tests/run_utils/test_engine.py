"""The loop: order of events, counting, and going on where a run was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from run_utils.callbacks.base import BaseCallbacks, TriggerEngine
from run_utils.engine import Events, RunEngine
from run_utils.seeding import check_manual_seed, seed_everything


class Batches(list):
    """A loader that starts anywhere: batches [0, 1], [2, 3], ..."""

    def __init__(self, count: int):
        super().__init__({"x": torch.tensor([2 * i, 2 * i + 1])} for i in range(count))
        self.first = 0

    def set_position(self, epoch, first_step):
        self.first = first_step

    def __iter__(self):
        return iter(list(super().__iter__())[self.first :])


class Recorder(BaseCallbacks):
    def __init__(self, name: str, record: list):
        self.name, self.record = name, record

    def run(self, state, event):
        where = (state.curr_epoch, state.curr_epoch_step, state.curr_global_step)
        self.record.append((self.name, event.value, *where))


def step(batch, run_info):
    loss = float(batch["x"].sum()) + random.random() + float(np.random.random()) + float(torch.rand(1))
    return {"EMA": {"overall_loss": loss}, "raw": {}}


def test_callbacks_run_in_list_order_and_count_what_is_completed():
    record = []
    engine = RunEngine("train", Batches(2), step, {}, {})
    for name in ("first", "second"):
        for event in (Events.EPOCH_STARTED, Events.STEP_COMPLETED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, Recorder(name, record))
    engine.run(2)
    one_epoch = [("epoch_started", 0, 0), ("step_completed", 0, 1), ("step_completed", 0, 2), ("epoch_completed", 1, 0)]
    expected = []
    for epoch in range(2):
        for event, epochs, steps in one_epoch:
            done = 2 * epoch + (2 if event == "epoch_completed" else steps)
            expected += [(name, event, epoch + epochs, steps, done) for name in ("first", "second")]
    assert record == expected


def test_a_triggered_engine_starts_anew_every_time():
    record = []
    valid = RunEngine("valid", Batches(3), lambda batch, info: {"raw": {}}, {}, {})
    valid.add_event_handler(Events.EPOCH_COMPLETED, Recorder("valid", record))
    train = RunEngine("train", Batches(1), step, {}, {})
    trigger = TriggerEngine("valid")
    trigger.triggered_engine = valid
    train.add_event_handler(Events.EPOCH_COMPLETED, trigger)
    train.run(2)
    assert [entry[2] for entry in record] == [1, 1]
    assert valid.state.global_state is train.state


def losses(engine: RunEngine, nr_epochs: int) -> list[float]:
    seen = []

    class Keep(BaseCallbacks):
        def run(self, state, event):
            seen.append(state.step_output["EMA"]["overall_loss"])

    engine.add_event_handler(Events.STEP_COMPLETED, Keep())
    engine.run(nr_epochs)
    return seen


class Kill(BaseCallbacks):
    """Stop a run at a step, and keep where it was."""

    def __init__(self, stop: int):
        self.stop, self.saved = stop, {}

    def run(self, state, event):
        if state.curr_global_step == self.stop:
            self.saved = state.snapshot()
            raise KeyboardInterrupt


def test_p36_a_run_taken_up_at_any_step_draws_the_same_numbers(subtests):
    whole = losses(RunEngine("train", Batches(3), step, {}, {}, seed=7), 3)
    assert len(set(whole)) == 9  # every step draws its own
    for stop in range(1, 9):
        with subtests.test(stop=stop):
            kill = Kill(stop)
            killed = RunEngine("train", Batches(3), step, {}, {}, seed=7)
            killed.add_event_handler(Events.STEP_COMPLETED, kill)
            with pytest.raises(KeyboardInterrupt):
                killed.run(3)
            engine = RunEngine("train", Batches(3), step, {}, {}, seed=7)
            engine.load_state_dict(kill.saved)
            assert losses(engine, 3) == whole[stop:]


def test_an_exception_is_announced_to_the_callbacks():
    record = []
    engine = RunEngine("train", Batches(1), lambda batch, info: 1 / 0, {}, {})
    engine.add_event_handler(Events.EXCEPTION_RAISED, Recorder("told", record))
    with pytest.raises(ZeroDivisionError):
        engine.run(1)
    assert len(record) == 1


def test_the_length_of_an_epoch_is_announced_once(capsys):
    engine = RunEngine("train", Batches(6), step, {}, {})
    engine.state.logging = True
    engine.run(2)
    assert capsys.readouterr().out.count("an epoch of 6 steps takes about") == 1


def test_the_length_of_a_short_epoch_is_announced_at_its_end(capsys, subtests):
    for count in [1, 2, 3]:
        with subtests.test(count=count):
            engine = RunEngine("train", Batches(count), step, {}, {})
            engine.state.logging = True
            engine.run(3)
            assert capsys.readouterr().out.count(f"an epoch of {count} steps takes about") == 1


def test_seeds_depend_on_the_position_alone():
    def draw():
        return random.random(), float(np.random.random()), float(torch.rand(1))

    seed_everything(1, epoch=2, step=3)
    first = draw()
    seed_everything(1, epoch=2, step=4)
    assert draw() != first
    seed_everything(1, epoch=2, step=3)
    assert draw() == first
    assert check_manual_seed(5) == 5
    assert check_manual_seed(None) > 0
    assert type(check_manual_seed(np.int64(5))) is int
    for wrong in (-1, "10", 1.5):
        with pytest.raises(ValueError, match=f"a seed is a whole number from 0 up, got {wrong!r}"):
            check_manual_seed(wrong)
