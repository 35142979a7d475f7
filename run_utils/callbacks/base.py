"""Callbacks of a `RunEngine`. Those of one event run in the order in which the recipe lists them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

from models.hovernet.net_utils import unwrapped
from run_utils import checkpoint_io, distributed
from run_utils.averaging import scored_network
from run_utils.log_files import log_epoch, read_stats
from run_utils.scores import combined, first_known, first_known_types

_COMPARATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class BaseCallbacks:
    """Base of all callbacks; `engine_trigger` marks those that run another engine."""

    engine_trigger = False

    def run(self, state, event) -> None:
        """Do what the callback is for."""

    def reset(self) -> None:
        """Forget everything; called before every phase."""

    def state_dict(self) -> dict:
        """Return what a resumed run needs, as plain values."""
        return {}

    def load_state_dict(self, saved: dict) -> None:
        """Restore what `state_dict` returned."""


class AverageBuffers(BaseCallbacks):
    """Give every process the mean of the batch-norm statistics; runs first at the end of a training epoch."""

    def run(self, state, event) -> None:
        for net_info in state.run_info.values():
            _share_buffers(net_info)


class AverageWeights(BaseCallbacks):
    """Update the moving average of the weights; runs first after a training step, if there is an average."""

    def run(self, state, event) -> None:
        for net_info in state.run_info.values():
            if net_info.get("average") is not None:
                net_info["average"].update_parameters(unwrapped(net_info["desc"]))


class TrackLr(BaseCallbacks):
    """Log the learning rate."""

    def run(self, state, event) -> None:
        for net_name, net_info in state.run_info.items():
            state.tracked_step_output["scalar"][f"lr-{net_name}"] = net_info["optimizer"].param_groups[0]["lr"]


class ScheduleLr(BaseCallbacks):
    """Advance the learning-rate schedules at each event that it is listed under: epoch or step."""

    def run(self, state, event) -> None:
        for net_info in state.run_info.values():
            net_info["lr_scheduler"].step()


class TriggerEngine(BaseCallbacks):
    """Run another engine, e.g. `valid`, for `nr_epoch` epochs."""

    engine_trigger = True

    def __init__(self, triggered_engine_name: str, nr_epoch: int = 1):
        self.triggered_engine_name = triggered_engine_name
        self.triggered_engine = None
        self.nr_epoch = nr_epoch

    def run(self, state, event) -> None:
        self.triggered_engine.run(chained=True, nr_epoch=self.nr_epoch, shared_state=state)


class PeriodicSaver(BaseCallbacks):
    """Save checkpoints: `<net>_epoch=N.tar` by epoch, or `<net>_step.tar`, replaced every time, by step.

    List it last: if a run is killed before the file is whole, the resumed run repeats what ran before.

    Args:
        per_n_epoch: epochs between two files.
        keep_every: files of every k-th epoch stay; of the others only the newest. 1 keeps all, as upstream.
        per_n_step: save by step instead, for epochs that take hours.
    """

    def __init__(self, per_n_epoch: int = 1, keep_every: int = 10, per_n_step: int | None = None):
        self.per_n_epoch = per_n_epoch
        self.keep_every = keep_every
        self.per_n_step = per_n_step
        self.reset()

    def reset(self) -> None:
        self._superseded: list[str] = []
        self._obsolete: list[str] = []

    def state_dict(self) -> dict:
        return {"superseded": list(self._superseded), "obsolete": list(self._obsolete)}

    def load_state_dict(self, saved: dict) -> None:
        self._superseded = list(saved.get("superseded", []))

    def run(self, state, event) -> None:
        if self.per_n_step is not None:
            # the saver by epoch saves the end of an epoch, after all its callbacks
            if state.curr_epoch_step % self.per_n_step == 0 and state.curr_epoch_step < state.nr_epoch_steps:
                _save(state, "step")
        elif state.curr_epoch % self.per_n_epoch == 0 or state.curr_epoch == state.nr_epochs:
            self._save_epoch(state)

    def _save_epoch(self, state) -> None:
        old, kept = self._superseded, state.curr_epoch % self.keep_every == 0
        # set before saving: the file then says whether the next one may replace it, and which files it replaces. If a
        # kill comes before those are removed, the resumed run removes them
        self._superseded = [] if kept else [f"{name}_epoch={state.curr_epoch}.tar" for name in state.run_info]
        self._obsolete = [*old, *(f"{name}_step.tar" for name in state.run_info)]
        _save(state, f"epoch={state.curr_epoch}")
        if state.logging:
            for name in self._obsolete:
                Path(state.log_dir, name).unlink(missing_ok=True)


class ConditionalSaver(BaseCallbacks):
    """Save `<net>_best.tar` whenever a metric is at least as good as in every epoch before.

    Args:
        metric_name: name in `stats.json`; of several, the first that the run has values of.
        comparator: `>`, `>=`, `<` or `<=`: how a better value compares with all earlier ones.
        types: scores of the types, `valid-tp_dice` for `valid-tp_dice_1`, ...; of several, the first that the run has
            values of. Their mean over the types counts as much as the metric. A run without types ignores them.

    Raises:
        ValueError: unknown `comparator`.
    """

    def __init__(self, metric_name: str | Sequence[str], comparator: str = ">=", types: Sequence[str] = ()):
        self.metric_names = [metric_name] if isinstance(metric_name, str) else list(metric_name)
        self.type_names = list(types)
        if comparator not in _COMPARATORS:
            raise ValueError(f"comparator must be one of {list(_COMPARATORS)}, got `{comparator}`")
        self.comparator = comparator

    def run(self, state, event) -> None:
        best = self._best(state) if state.logging else None
        if distributed.gather(best is not None)[0]:
            _save(state, "best", {"best": best})

    def _best(self, state) -> dict | None:
        """Return metric, value and epoch if this epoch is the best so far, else `None`."""
        stats = read_stats(state.log_info["json_file"])
        metric, types = first_known(self.metric_names, stats), first_known_types(self.type_names, stats)
        if metric is None:
            return None
        values = {int(epoch): combined(scores, metric, types) for epoch, scores in stats.items()}
        now, compare = values.get(state.curr_epoch, math.nan), _COMPARATORS[self.comparator]
        earlier = [value for epoch, value in values.items() if epoch < state.curr_epoch and math.isfinite(value)]
        if not math.isfinite(now) or not all(compare(now, value) for value in earlier):
            return None
        name = metric if types is None else f"mean of {metric} and {types}"
        return {"metric": name, "value": now, "epoch": state.curr_epoch}


class AccumulateRawOutput(BaseCallbacks):
    """Append the step function's `raw` values to lists that grow over the epoch."""

    def run(self, state, event) -> None:
        for key, values in state.step_output["raw"].items():
            state.epoch_accumulated_output.setdefault(key, []).extend(list(values))


class ProcessAccumulatedRawOutput(BaseCallbacks):
    """Turn the accumulated values of all processes into what is logged: `proc_func(raw) -> {"scalar", "image"}`."""

    def __init__(self, proc_func: Callable[[dict], dict]):
        self.proc_func = proc_func

    def run(self, state, event) -> None:
        state.tracked_step_output = self.proc_func(distributed.gather_lists(state.epoch_accumulated_output))


class ScalarMovingAverage(BaseCallbacks):
    """Track the exponential moving average of every value that the step function returned as `EMA`."""

    def __init__(self, alpha: float = 0.95):
        self.alpha = alpha
        self.reset()

    def reset(self) -> None:
        self.tracking_dict: dict[str, float] = {}

    def state_dict(self) -> dict:
        return dict(self.tracking_dict)

    def load_state_dict(self, saved: dict) -> None:
        self.tracking_dict = dict(saved)

    def run(self, state, event) -> None:
        for name, value in state.step_output["EMA"].items():
            old = self.tracking_dict.get(name, value)
            self.tracking_dict[name] = old * self.alpha + (1.0 - self.alpha) * value
        state.tracked_step_output["scalar"].update(self.tracking_dict)


class VisualizeOutput(BaseCallbacks):
    """Draw the `raw` values of the last step: `proc_func(raw) -> (H, W, 3) uint8`."""

    def __init__(self, proc_func: Callable, per_n_epoch: int = 1):
        self.proc_func = proc_func
        self.per_n_epoch = per_n_epoch

    def run(self, state, event) -> None:
        if state.logging and state.step_output is not None and state.curr_epoch % self.per_n_epoch == 0:
            state.tracked_step_output["image"]["output"] = self.proc_func(state.step_output["raw"])


class ValidateImages(BaseCallbacks):
    """Score whole validation images, if the configuration names any: `valid-img_pq`, `valid-img_aji`, ..."""

    def __init__(self, per_n_epoch: int = 5):
        self.per_n_epoch = per_n_epoch

    def run(self, state, event) -> None:
        validator = state.log_info.get("image_validator")
        due = state.curr_epoch % self.per_n_epoch == 0 or state.curr_epoch == state.nr_epochs
        if validator is None or not due:
            return
        scores = validator.score(scored_network(state.run_info["net"]))
        if state.logging:
            log_epoch(state.log_info, state.curr_epoch, "valid", {"scalar": scores, "image": {}})


def _share_buffers(net_info: dict) -> None:
    for key in ("desc", "average"):
        if net_info.get(key) is not None:
            distributed.average_buffers(net_info[key])


def _save(state, what: str, extra_meta: dict | None = None) -> None:
    """Save every network of a run as `<net>_<what>.tar`."""
    for net_name, net_info in state.run_info.items():
        _share_buffers(net_info)
        if state.logging:
            meta = {**state.log_info.get("meta", {}), "epoch": state.curr_epoch, **(extra_meta or {})}
            path = Path(state.log_dir) / f"{net_name}_{what}.tar"
            checkpoint_io.save_checkpoint(path, net_info, meta, state.snapshot())
