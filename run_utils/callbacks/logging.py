"""Callbacks that log an epoch, a step, or the gradients."""

from __future__ import annotations

from run_utils.log_files import append_step, log_epoch, step_columns

from .base import BaseCallbacks


class LoggingEpochOutput(BaseCallbacks):
    """Log tracked values to console, `stats.json` and TensorBoard; `valid` logs under the epoch of `train`."""

    def __init__(self, per_n_epoch: int = 1):
        self.per_n_epoch = per_n_epoch

    def run(self, state, event) -> None:
        leader = state.global_state or state
        if leader.logging and leader.curr_epoch % self.per_n_epoch == 0:
            log_epoch(leader.log_info, leader.curr_epoch, state.attached_engine_name, state.tracked_step_output)


class LoggingStepOutput(BaseCallbacks):
    """Append the losses of every step to `steps.csv`, with all digits: the learning curve."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._columns: list[str] | None = None

    def run(self, state, event) -> None:
        if not state.logging:
            return
        path, values = state.log_info["steps_file"], state.step_output["EMA"]
        if self._columns is None:
            self._columns = step_columns(path, values)
        append_step(path, state.curr_epoch + 1, state.curr_epoch_step, values, self._columns)


class LoggingGradient(BaseCallbacks):
    """Write histograms of weights and gradients to TensorBoard; slow, so only every `per_n_step` steps."""

    def __init__(self, per_n_step: int = 100):
        self.per_n_step = per_n_step

    def run(self, state, event) -> None:
        writer = state.log_info.get("tfwriter") if state.logging else None
        if writer is None or state.curr_global_step % self.per_n_step:
            return
        for net_name, net_info in state.run_info.items():
            for name, parameter in net_info["desc"].named_parameters():
                if parameter.grad is not None:
                    writer.add_histogram(
                        f"{net_name}_grad/{name}", parameter.grad.detach().cpu(), state.curr_global_step
                    )
                    writer.add_histogram(f"{net_name}_para/{name}", parameter.detach().cpu(), state.curr_global_step)
