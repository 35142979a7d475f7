"""The loop: epochs over a loader, a step function for every batch, callbacks in list order at every event."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from tqdm import tqdm

from .seeding import seed_everything

# Steps that are timed before the duration of an epoch is printed, without the first one, which warms up. With fewer
# steps it is printed at the end of the epoch.
_TIMED_STEPS = 3


class Events(Enum):
    """When callbacks run."""

    EPOCH_STARTED = "epoch_started"
    EPOCH_COMPLETED = "epoch_completed"
    STEP_STARTED = "step_started"
    STEP_COMPLETED = "step_completed"
    STARTED = "started"
    COMPLETED = "completed"
    EXCEPTION_RAISED = "exception_raised"


class State:
    """What an engine's callbacks share.

    Attributes:
        logging: whether this process writes files.
        log_dir: folder for them.
        log_info: `json_file`, `steps_file`, `tfwriter`, `meta`, `image_validator`, `type_info`.
        attached_engine_name: `train` or `valid`.
        run_info: `{net name: {"desc", "optimizer", "lr_scheduler", "extra_info", ...}}`.
        nr_epochs: epochs that the engine runs in all.
        nr_epoch_steps: steps of a whole epoch.
        curr_epoch: epochs completed; curr_epoch_step: steps completed in this epoch; curr_global_step: in all.
        tracked_step_output: `{"scalar": {name: value}, "image": {name: array}}`, to be logged.
        epoch_accumulated_output: lists that grow over the steps of an epoch.
        run_accumulated_output: a list with that of the last whole epoch.
        step_output: what the step function returned last.
        global_state: the state of the engine that triggered this one.
        snapshot: returns where the run is, for a checkpoint.
    """

    def __init__(self):
        self.logging = False
        self.log_dir = None
        self.log_info = None
        self.attached_engine_name = None
        self.run_info = None
        self.nr_epochs = 0
        self.nr_epoch_steps = 0
        self.curr_epoch_step = 0
        self.curr_global_step = 0
        self.curr_epoch = 0
        self.global_state = None
        self.snapshot: Callable[[], dict] | None = None
        self.run_accumulated_output: list = []
        self.reset_variable()

    def reset_variable(self) -> None:
        """Forget what the last epoch reported."""
        self.tracked_step_output = {"scalar": {}, "image": {}}
        self.epoch_accumulated_output = {}
        self.step_output = None


class RunEngine:
    """Runs `run_step` over `dataloader`, epoch after epoch.

    Args:
        engine_name: `train` shows the loss in its progress bar; other names do not.
        dataloader: a `DataLoader` whose `batch_sampler` is an `EpochBatchSampler`, or any sized iterable of batches.
        run_step: `run_step(batch, [run_info, {"epoch", "step", "epoch_step"}])`, returns a dictionary.
        run_info: passed to `run_step` and to the callbacks.
        log_info: passed to the callbacks.
        seed: seeds every random generator at each step, together with epoch and step, so that a resumed run draws the
            same numbers; `None` leaves the generators alone.
    """

    def __init__(self, engine_name=None, dataloader=None, run_step=None, run_info=None, log_info=None, seed=None):
        self.engine_name = engine_name
        self.dataloader = dataloader
        self.run_step = run_step
        self.seed = seed
        self.state = State()
        self.state.attached_engine_name = engine_name
        self.state.run_info = run_info
        self.state.log_info = log_info
        self.state.nr_epoch_steps = len(dataloader)
        self.state.snapshot = self.state_dict
        self.event_handler_dict = {event: [] for event in Events}
        self._announced = False

    def add_event_handler(self, event_name: Events, handler) -> None:
        """Append a callback; callbacks of one event run in the order in which they were added."""
        self.event_handler_dict[event_name].append(handler)

    def run(self, nr_epoch: int = 1, shared_state: State | None = None, chained: bool = False) -> None:
        """Run up to epoch `nr_epoch`.

        Args:
            nr_epoch: epochs in all, those before a resume included.
            shared_state: the state of the engine that triggers this one.
            chained: triggered by another engine: start at epoch 0 every time.
        """
        state = self.state
        state.nr_epochs = nr_epoch
        state.global_state = shared_state
        if chained:
            state.curr_epoch = state.curr_epoch_step = 0
        self._trigger(Events.STARTED)
        try:
            while state.curr_epoch < nr_epoch:
                self._run_epoch(nr_epoch, chained)
        except BaseException:
            self._trigger(Events.EXCEPTION_RAISED)
            raise
        self._trigger(Events.COMPLETED)

    def state_dict(self) -> dict:
        """Return where the run is, and the states of the callbacks."""
        state = self.state
        return {
            "epoch": state.curr_epoch,
            "epoch_step": state.curr_epoch_step,
            "global_step": state.curr_global_step,
            "callbacks": {key: callback.state_dict() for key, callback in self._named_callbacks().items()},
        }

    def load_state_dict(self, saved: dict) -> None:
        """Return to the moment at which `state_dict` was called."""
        self.state.curr_epoch = saved["epoch"]
        self.state.curr_epoch_step = saved["epoch_step"]
        self.state.curr_global_step = saved["global_step"]
        for key, callback in self._named_callbacks().items():
            if key in saved["callbacks"]:  # a recipe may have been edited since
                callback.load_state_dict(saved["callbacks"][key])

    def _named_callbacks(self) -> dict:
        """Return `{"<event>/<position>/<class>": callback}`."""
        return {
            f"{event.value}/{index}/{type(callback).__name__}": callback
            for event, callbacks in self.event_handler_dict.items()
            for index, callback in enumerate(callbacks)
        }

    def _trigger(self, event: Events) -> None:
        for callback in self.event_handler_dict[event]:
            callback.run(self.state, event)

    def _run_epoch(self, nr_epoch: int, chained: bool) -> None:
        state = self.state
        state.reset_variable()
        if not chained and state.logging:
            tqdm.write(f"epoch {state.curr_epoch + 1} of {nr_epoch}")
        self._seed()
        # a `PositionedLoader` can start in the middle of an epoch; a plain list cannot
        if hasattr(self.dataloader, "set_position"):
            self.dataloader.set_position(state.curr_epoch, state.curr_epoch_step)
        self._trigger(Events.EPOCH_STARTED)
        self._run_steps()
        state.curr_epoch += 1
        state.curr_epoch_step = 0
        self._trigger(Events.EPOCH_COMPLETED)
        state.run_accumulated_output = [state.epoch_accumulated_output]

    def _run_steps(self) -> None:
        state = self.state
        shown = state.logging if state.global_state is None else state.global_state.logging
        pace = _Pace()
        with tqdm(
            total=state.nr_epoch_steps,
            initial=state.curr_epoch_step,
            desc=self.engine_name,
            unit="batch",
            disable=not shown,
        ) as bar:
            for batch in self.dataloader:
                self._seed()
                self._trigger(Events.STEP_STARTED)
                where = {
                    "epoch": state.curr_epoch,
                    "step": state.curr_global_step,
                    "epoch_step": state.curr_epoch_step,
                }
                state.step_output = self.run_step(batch, [state.run_info, where])
                state.curr_global_step += 1
                state.curr_epoch_step += 1
                self._trigger(Events.STEP_COMPLETED)
                pace.step(len(next(iter(batch.values()))))
                bar.set_postfix_str(self._postfix(pace.patches_per_second), refresh=False)
                bar.update()
                if shown and self.engine_name == "train":
                    self._announce(pace, pace.nr_timed >= _TIMED_STEPS or state.curr_epoch_step == state.nr_epoch_steps)

    def _postfix(self, rate: float) -> str:
        text = f"{rate:.1f} patches/s"
        if self.engine_name == "train":
            now = self.state.step_output["EMA"]["overall_loss"]
            text += f", loss {now:.4f}, average {self.state.tracked_step_output['scalar'].get('overall_loss', now):.4f}"
        return text

    def _announce(self, pace: _Pace, is_known: bool) -> None:
        """Print once, after a few steps, how long an epoch takes."""
        if self._announced or not is_known:
            return
        seconds, nr_steps = pace.seconds_per_step, self.state.nr_epoch_steps
        time_text = _duration(seconds * nr_steps)
        tqdm.write(f"{seconds:.2f} s per step: an epoch of {nr_steps} steps takes about {time_text}")
        self._announced = True

    def _seed(self) -> None:
        if self.seed is not None:
            seed_everything(self.seed, self.state.curr_epoch, self.state.curr_epoch_step)


class _Pace:
    """Measures the rate of steps and patches."""

    def __init__(self):
        self._started = self._first_step_at = time.perf_counter()
        self._steps = self._patches = 0

    def step(self, nr_patches: int) -> None:
        """Count a step."""
        self._steps += 1
        self._patches += nr_patches
        self._now = time.perf_counter()
        if self._steps == 1:
            self._first_step_at = self._now

    @property
    def patches_per_second(self) -> float:
        return self._patches / (self._now - self._started)

    @property
    def nr_timed(self) -> int:
        """Steps after the first one."""
        return self._steps - 1

    @property
    def seconds_per_step(self) -> float:
        """Mean without the first step, unless it is the only one."""
        if self.nr_timed:
            return (self._now - self._first_step_at) / self.nr_timed
        return self._now - self._started


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
