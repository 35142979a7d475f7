"""The moving average of the weights: its arithmetic, what is scored and saved, and a resume that changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from models.hovernet import opt
from models.hovernet.checkpoint import build_model, load_checkpoint
from models.hovernet.net_desc import create_model
from run_utils.averaging import make_average, scored_network
from run_utils.callbacks.base import AverageWeights, BaseCallbacks
from run_utils.recipe_checks import check_extra
from run_utils.trainer import Trainer

STEPS_AN_EPOCH = 2


def set_weight(net: nn.Linear, value: float) -> None:
    with torch.no_grad():
        net.weight.fill_(value)


def test_the_average_keeps_its_share_and_less_in_the_first_steps():
    net = nn.Linear(1, 1, bias=False)
    average = make_average(net, 0.2)
    info = {"desc": net, "average": average}
    state = SimpleNamespace(run_info={"net": info})
    # it begins as the first weights, keeps 2 of 11 in the second step, and 0.2 (less than 3 of 12) from then on
    expected = [5.0, 5 * 2 / 11 + 1 * 9 / 11, (5 * 2 / 11 + 9 / 11) * 0.2 + 0.8 * 3]
    for value, wanted in zip((5.0, 1.0, 3.0), expected, strict=True):
        set_weight(net, value)
        AverageWeights().run(state, None)
        assert average.module.weight.item() == pytest.approx(wanted)
        assert net.weight.item() == value
    assert scored_network(info) is average.module
    assert scored_network({"desc": net, "average": None}) is net
    assert make_average(net, None) is None
    assert not average.training
    assert not average.module.weight.requires_grad


def test_batch_norm_is_averaged_with_its_weights():
    net = nn.BatchNorm1d(2)
    average = make_average(net, 0.2)
    for step in range(3):
        net(torch.full((4, 2), float(step)) + torch.arange(4)[:, None])
        average.update_parameters(net)
    assert average.module.num_batches_tracked == 3
    assert not torch.equal(average.module.running_mean, net.running_mean)
    assert (average.module.running_mean < net.running_mean).all()  # it follows a rising mean


class Stop(BaseCallbacks):
    """Interrupt a run after a step."""

    def __init__(self, step: int):
        self.step = step

    def run(self, state, event) -> None:
        if state.curr_global_step == self.step:
            raise KeyboardInterrupt


class Weights(BaseCallbacks):
    """Note which weights an engine has when it begins."""

    def __init__(self):
        self.seen = []

    def run(self, state, event) -> None:
        self.seen.append({name: v.clone() for name, v in state.run_info["net"]["desc"].state_dict().items()})


def make_config(folder, name: str, stop: int | None = None, ema: float | None = 0.9, validated=None):
    model_config = opt.get_config(None, "fast")
    phase = model_config["phase_list"][0]
    net = phase["run_info"]["net"]
    net.update(desc=lambda: create_model("fast", nr_types=None, width=0.125), pretrained=None)
    net["extra_info"]["ema"] = ema
    phase.update(nr_epochs=2, batch_size={"train": 2, "valid": 2})
    engines = model_config["run_engine"]
    for engine in engines.values():
        engine["nr_procs"] = 0
    on_step = engines["train"]["callbacks"][opt.Events.STEP_COMPLETED]
    on_step[-1].per_n_step = 1
    on_step += [Stop(stop)] if stop else []
    if validated is not None:
        engines["valid"]["callbacks"][opt.Events.EPOCH_STARTED] = [validated]
    model_config["phase_list"] = [phase]
    shapes = {"input_shape": [128, 128], "mask_shape": [36, 36]}
    return SimpleNamespace(
        seed=1,
        logging=True,
        debug=True,
        log_dir=str(folder / name),
        train_dir_list=[folder / "patches"],
        valid_dir_list=[folder / "patches"],
        shape_info={"train": shapes, "valid": shapes},
        model_config=model_config,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three patches of squares, and a run over two epochs of them that nobody interrupted."""
    folder, rng = tmp_path_factory.mktemp("averaging"), np.random.default_rng(0)
    (folder / "patches").mkdir()
    for index in range(3):
        patch = np.zeros((150, 150, 4), np.uint8)
        patch[..., :3] = rng.integers(200, 255, (150, 150, 3))
        for nucleus, (y, x) in enumerate(rng.integers(20, 110, (8, 2)), 1):
            patch[y : y + 14, x : x + 14] = [90, 50, 120, nucleus]
        np.save(folder / "patches" / f"{index}_000.npy", patch)
    run(make_config(folder, "whole"))
    return folder


def run(config, resume: bool = False) -> None:
    Trainer(config, [torch.device("cpu")], resume).run()


def last(folder, name: str) -> dict:
    return torch.load(folder / name / "net_epoch=2.tar", weights_only=True)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_checkpoints_hold_the_average_for_inference_and_the_weights_to_go_on_from(folder):
    saved = last(folder, "whole")
    assert saved["nr_averaged"] == 2 * STEPS_AN_EPOCH
    assert saved["desc"].keys() == saved["raw"].keys()
    assert not same(saved["desc"], saved["raw"])
    loaded = build_model(load_checkpoint(folder / "whole" / "net_epoch=2.tar"))
    assert same(dict(loaded.state_dict()), saved["desc"])


def test_training_itself_is_the_same_with_and_without(folder):
    run(make_config(folder, "without", ema=None))
    assert same(last(folder, "without")["desc"], last(folder, "whole")["raw"])
    assert "raw" not in last(folder, "without")


def test_a_resumed_run_ends_with_the_same_weights_and_average(folder):
    for stop in (1, 3):  # in the first and in the second epoch
        name = f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(make_config(folder, name, stop))
        run(make_config(folder, name), resume=True)
        whole, resumed = last(folder, "whole"), last(folder, name)
        assert same(resumed["raw"], whole["raw"])
        assert same(resumed["desc"], whole["desc"])
        assert resumed["nr_averaged"] == whole["nr_averaged"]


def test_a_run_that_had_no_average_gets_one_from_where_it_is(folder):
    with pytest.raises(KeyboardInterrupt):
        run(make_config(folder, "late", 3, ema=None))
    run(make_config(folder, "late"), resume=True)
    assert last(folder, "late")["nr_averaged"] == 1
    assert same(last(folder, "late")["raw"], last(folder, "whole")["raw"])


def test_validation_and_the_best_checkpoint_are_of_the_average(folder):
    validated = Weights()
    run(make_config(folder, "validated", validated=validated))
    assert same(validated.seen[-1], last(folder, "validated")["desc"])
    best = torch.load(folder / "validated" / "net_best.tar", weights_only=True)
    assert same(best["desc"], validated.seen[best["meta"]["best"]["epoch"] - 1])


def test_a_decay_that_is_none_is_named():
    loss = {"np": {"bce": 1}, "hv": {"mse": 1}}
    for wrong in (1, 0, 1.5, "0.999", True):
        with pytest.raises(ValueError, match="phase 0: ema must be a number between 0 and 1"):
            check_extra({"loss": loss, "ema": wrong}, None, "phase 0")
    check_extra({"loss": loss, "ema": 0.999}, None, "phase 0")
