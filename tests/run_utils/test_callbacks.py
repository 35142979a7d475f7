"""Callbacks: what is averaged, logged and saved, and which files stay."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from run_utils.callbacks.base import (
    AccumulateRawOutput,
    BaseCallbacks,
    ConditionalSaver,
    PeriodicSaver,
    ProcessAccumulatedRawOutput,
    ScalarMovingAverage,
    ScheduleLr,
    TrackLr,
    ValidateImages,
    VisualizeOutput,
)
from run_utils.callbacks.logging import LoggingEpochOutput, LoggingGradient, LoggingStepOutput
from run_utils.callbacks.serialize import serialize
from run_utils.disk_full import writing
from run_utils.engine import Events, State
from run_utils.log_files import append_step, read_stats, truncate_logs


class Writer:
    """Remembers what TensorBoard would get."""

    def __init__(self):
        self.seen = []

    def flush(self):
        pass

    def __getattr__(self, name):
        return lambda tag, value, step, **options: self.seen.append((name, tag, step))


@pytest.fixture
def state(tmp_path) -> State:
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    state = State()
    state.logging, state.log_dir, state.attached_engine_name = True, tmp_path, "train"
    state.run_info = {"net": {"desc": net, "optimizer": optimizer, "lr_scheduler": schedule, "extra_info": {}}}
    state.log_info = {
        "json_file": tmp_path / "stats.json",
        "steps_file": tmp_path / "steps.csv",
        "tfwriter": Writer(),
        "meta": {"mode": "fast"},
    }
    state.snapshot = lambda: {"epoch": state.curr_epoch, "epoch_step": 0, "global_step": 0, "callbacks": {}}
    state.nr_epochs, state.nr_epoch_steps = 100, 4
    return state


def tars(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.tar"))


def test_moving_average(state):
    callback = ScalarMovingAverage(alpha=0.9)
    for value in (1.0, 2.0):
        state.step_output = {"EMA": {"loss": value}}
        callback.run(state, None)
    assert state.tracked_step_output["scalar"]["loss"] == pytest.approx(0.9 * 1 + 0.1 * 2)
    other = ScalarMovingAverage(alpha=0.9)
    other.load_state_dict(callback.state_dict())
    other.run(state, None)
    assert state.tracked_step_output["scalar"]["loss"] == pytest.approx(0.9 * 1.1 + 0.1 * 2)
    other.reset()
    assert other.state_dict() == {}


def test_learning_rate_is_tracked_and_scheduled(state):
    TrackLr().run(state, None)
    state.run_info["net"]["optimizer"].step()
    ScheduleLr().run(state, None)
    assert state.tracked_step_output["scalar"]["lr-net"] == 0.5
    assert state.run_info["net"]["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05)


def test_p37_the_last_every_kth_and_no_other_checkpoint_stays(state, tmp_path):
    (tmp_path / "net_epoch=0.tar").write_bytes(b"of somebody else")
    saver = PeriodicSaver(keep_every=3)
    for epoch in range(1, 6):
        state.curr_epoch = epoch
        saver.run(state, None)
    assert tars(tmp_path) == ["net_epoch=0.tar", "net_epoch=3.tar", "net_epoch=5.tar"]


def test_p37_a_run_taken_up_goes_on_replacing_its_own_last(state, tmp_path):
    saver = PeriodicSaver(keep_every=10)
    state.snapshot = lambda: {"callbacks": {"saver": saver.state_dict()}}
    state.curr_epoch = 1
    saver.run(state, None)
    saved = torch.load(tmp_path / "net_epoch=1.tar", weights_only=True)["resume"]["callbacks"]["saver"]
    saver = PeriodicSaver(keep_every=10)
    saver.load_state_dict(saved)
    state.curr_epoch = 2
    saver.run(state, None)
    assert tars(tmp_path) == ["net_epoch=2.tar"]


def test_the_file_of_a_step_goes_when_its_epoch_is_saved(state, tmp_path):
    by_step, by_epoch = PeriodicSaver(per_n_step=1), PeriodicSaver(keep_every=10)
    state.snapshot = lambda: {"callbacks": {"saver": by_epoch.state_dict()}}
    for state.curr_epoch in (1, 2):
        state.curr_epoch_step = 1
        by_step.run(state, None)
        by_epoch.run(state, None)
    assert tars(tmp_path) == ["net_epoch=2.tar"]
    # the file says what it replaces, for a run that is killed before those are removed
    saved = torch.load(tmp_path / "net_epoch=2.tar", weights_only=True)["resume"]["callbacks"]["saver"]
    assert saved == {"superseded": ["net_epoch=2.tar"], "obsolete": ["net_epoch=1.tar", "net_step.tar"]}


def test_saving_by_step_replaces_one_file_and_leaves_the_end_to_the_epoch(state, tmp_path):
    saver, seen = PeriodicSaver(per_n_step=2), []
    for state.curr_epoch_step in (1, 2, 3, 4):
        saver.run(state, Events.STEP_COMPLETED)
        seen.append(tars(tmp_path))
        for path in tmp_path.glob("*.tar"):
            path.unlink()
    assert seen == [[], ["net_step.tar"], [], []]


def epochs(state, saver, values: list[dict]) -> list[int]:
    """Log a value an epoch; return the epochs that were saved as the best."""
    best = []
    for state.curr_epoch, stats in enumerate(values, 1):
        known = read_stats(state.log_info["json_file"])
        state.log_info["json_file"].write_text(json.dumps({**known, str(state.curr_epoch): stats}))
        saver.run(state, None)
        path = state.log_dir / "net_best.tar"
        if path.is_file():
            best.append(torch.load(path, weights_only=True)["meta"]["best"]["epoch"])
    return best


def test_p37_the_best_checkpoint_goes_by_a_named_metric(state):
    values = [{"dice": 0.5}, {"dice": 0.4}, {"dice": 0.7}, {}, {"dice": 0.6}]
    assert epochs(state, ConditionalSaver("dice"), values) == [1, 1, 3, 3, 3]


def test_p37_pq_decides_where_it_is_known(state):
    values = [{"dice": 0.9}, {"dice": 0.5, "pq": 0.3}, {"dice": 1.0}, {"dice": 0.1, "pq": 0.4}]
    assert epochs(state, ConditionalSaver(("pq", "dice")), values) == [1, 2, 2, 4]
    meta = torch.load(state.log_dir / "net_best.tar", weights_only=True)["meta"]
    assert meta["best"] == {"metric": "pq", "value": 0.4, "epoch": 4}
    assert meta["mode"] == "fast"


def test_lower_may_be_better(state):
    assert epochs(state, ConditionalSaver("mse", "<"), [{"mse": 2.0}, {"mse": 2.0}, {"mse": 1.0}]) == [1, 1, 3]
    with pytest.raises(ValueError, match="comparator"):
        ConditionalSaver("mse", "=")


def test_nothing_is_written_without_logging(state, tmp_path):
    state.logging = False
    state.step_output = {"EMA": {"loss": 1.0}, "raw": {}}
    for callback in (PeriodicSaver(), ConditionalSaver("a"), LoggingEpochOutput(), LoggingStepOutput()):
        callback.run(state, None)
    VisualizeOutput(lambda raw: 1 / 0).run(state, None)
    assert not list(tmp_path.iterdir())


def test_accumulated_output_is_processed(state):
    accumulate = AccumulateRawOutput()
    for values in ([1, 2], [3]):
        state.step_output = {"raw": {"count": np.array(values)}}
        accumulate.run(state, None)
    ProcessAccumulatedRawOutput(lambda raw: {"scalar": {"sum": sum(raw["count"])}, "image": {}}).run(state, None)
    assert state.tracked_step_output["scalar"] == {"sum": 6}


def test_epoch_is_logged_to_json_and_tensorboard_under_the_leaders_epoch(state, capsys):
    state.curr_epoch = 7
    valid = State()
    valid.attached_engine_name, valid.global_state = "valid", state
    valid.tracked_step_output = {"scalar": {"np_dice": 0.5}, "image": {"output": np.zeros((2, 2, 3), np.uint8)}}
    state.tracked_step_output = {"scalar": {"loss": 2.0, "bad": float("nan")}, "image": {}}
    LoggingEpochOutput().run(state, None)
    LoggingEpochOutput().run(valid, None)
    assert read_stats(state.log_info["json_file"]) == {"7": {"train-loss": 2.0, "valid-np_dice": 0.5}}
    tags = [("add_scalar", "train-loss", 7), ("add_scalar", "train-bad", 7)]
    assert state.log_info["tfwriter"].seen == [
        *tags,
        ("add_scalar", "valid-np_dice", 7),
        ("add_image", "valid-output", 7),
    ]
    assert "np_dice : 0.50000" in capsys.readouterr().out


def test_steps_are_logged_with_all_digits_and_cut_back_on_a_resume(state, tmp_path):
    callback = LoggingStepOutput()
    for state.curr_epoch, state.curr_epoch_step in ((0, 1), (0, 2), (1, 1), (1, 2)):
        state.step_output = {"EMA": {"overall_loss": 1 / 3}}
        callback.run(state, None)
    (tmp_path / "stats.json").write_text('{"1": {}, "2": {}}')
    with open(tmp_path / "steps.csv", "a") as handle:
        handle.write("3,")  # what kill -9 leaves
    truncate_logs(tmp_path, epoch=1, epoch_step=1)
    third = repr(1 / 3)
    lines = (tmp_path / "steps.csv").read_text().split()
    assert lines == ["epoch,step,overall_loss", f"1,1,{third}", f"1,2,{third}", f"2,1,{third}"]
    assert list(read_stats(tmp_path / "stats.json")) == ["1"]


def test_a_piece_of_a_header_is_no_reason_not_to_go_on(tmp_path, subtests):
    """What a run killed at its first step leaves of steps.csv."""
    for left in ["", "epo", "epoch,step,overall", "epoch,step", "\0\0\0"]:
        with subtests.test(left=left):
            path = tmp_path / "steps.csv"
            path.write_text(left)
            truncate_logs(tmp_path, epoch=0, epoch_step=0)
            append_step(path, 1, 1, {"loss": 0.5})
            assert path.read_text().split() == ["epoch,step,loss", "1,1,0.5"]
            path.write_text(path.read_text() + "x,y,0.1\n2,\0,3\n")
            truncate_logs(tmp_path, epoch=5, epoch_step=0)
            assert path.read_text().split() == ["epoch,step,loss", "1,1,0.5"]


def test_an_empty_step_file_gets_its_header(tmp_path):
    (tmp_path / "steps.csv").touch()
    append_step(tmp_path / "steps.csv", 1, 1, {"loss": 0.5})
    assert (tmp_path / "steps.csv").read_text().split() == ["epoch,step,loss", "1,1,0.5"]


def test_a_full_disk_names_the_file(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "steps.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        append_step(tmp_path / "steps.csv", 1, 1, {"loss": 0.5})
    assert caught.value.filename == str(tmp_path / "steps.csv")
    with pytest.raises(OSError, match="stats.json"), writing(tmp_path / "stats.json"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as TensorBoard's thread hands it on


def test_damaged_statistics_are_named(tmp_path):
    (tmp_path / "stats.json").write_text('{"1": ')
    with pytest.raises(ValueError, match=r"stats.json is damaged"):
        read_stats(tmp_path / "stats.json")


def test_gradients_go_to_tensorboard(state):
    net = state.run_info["net"]["desc"]
    net(torch.ones(1, 2)).sum().backward()
    state.curr_global_step = 100
    LoggingGradient(per_n_step=50).run(state, None)
    tags = {tag for _, tag, _ in state.log_info["tfwriter"].seen}
    assert tags == {"net_grad/weight", "net_para/weight", "net_grad/bias", "net_para/bias"}


def test_whole_images_are_scored_every_few_epochs_and_at_the_end(state):
    scored = []
    validator = SimpleNamespace(score=lambda net: scored.append(state.curr_epoch) or {"img_pq": 0.5})
    state.nr_epochs = 7
    for state.curr_epoch in range(1, 8):
        ValidateImages(per_n_epoch=3).run(state, None)  # without images: nothing
        state.log_info["image_validator"] = validator
        ValidateImages(per_n_epoch=3).run(state, None)
        del state.log_info["image_validator"]
    assert scored == [3, 6, 7]
    assert read_stats(state.log_info["json_file"])["7"] == {"valid-img_pq": 0.5}


def test_serialize():
    assert serialize(0.5, "scalar", "console") == "0.50000"
    assert serialize(float("inf"), "scalar", "json") is None
    assert serialize(np.zeros(1), "image", "json") is None
    with pytest.raises(ValueError, match="`conf_mat`"):
        serialize(1, "conf_mat", "json")


def test_a_callback_has_nothing_to_remember_unless_it_says_so(state):
    callback = BaseCallbacks()
    callback.load_state_dict(callback.state_dict())
    callback.reset()
    callback.run(state, None)
    assert not callback.engine_trigger
