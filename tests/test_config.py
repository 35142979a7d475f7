"""The configuration and the recipes as people know them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import config
from models.hovernet import opt, opt_scratch
from models.hovernet.muon import MuonAdamW
from models.hovernet.net_desc import create_model
from run_utils.callbacks.base import PeriodicSaver, ScheduleLr
from run_utils.engine import Events

ATTRIBUTES = (
    "seed logging debug type_classification dataset_name log_dir train_dir_list valid_dir_list shape_info model_config"
).split()


def edited(monkeypatch, *changes: tuple[str, str]):
    """Return config.py's `Config` after editing lines of its source."""
    source = inspect.getsource(config)
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    namespace = {"__name__": "edited"}
    exec(compile(source, "config.py", "exec"), namespace)
    return namespace["Config"]


def test_config_has_the_names_people_edit():
    values = config.Config()
    assert all(hasattr(values, name) for name in ATTRIBUTES)
    local = config.Config.__init__.__code__.co_varnames
    assert {"model_name", "model_mode", "nr_type", "act_shape", "out_shape"} <= set(local)
    assert values.shape_info["train"] == {"input_shape": [270, 270], "mask_shape": [80, 80]}


def test_p42_one_table_of_shapes(monkeypatch):
    assert {mode: (s.aug, s.act, s.out, s.step) for mode, s in opt.SHAPES.items()} == {
        "original": (540, 270, 80, 80),
        "fast": (540, 256, 164, 164),
    }
    values = edited(monkeypatch, ('model_mode = "original"', 'model_mode = "fast"'))()
    assert values.shape_info["valid"] == {"input_shape": [256, 256], "mask_shape": [164, 164]}


def test_wrong_values_are_one_line(monkeypatch):
    with pytest.raises(ValueError, match="model_mode must be one of .*`quick`"):
        edited(monkeypatch, ('model_mode = "original"', 'model_mode = "quick"'))()
    for wrong in ("None", "1", "'5'"):
        with pytest.raises(ValueError, match="nr_type counts the background"):
            edited(monkeypatch, ("nr_type = 5", f"nr_type = {wrong}"))()
    with pytest.raises(ValueError, match="recipe: there is no models/hovernet/opt_mine.py"):
        edited(monkeypatch, ('recipe = "opt"', 'recipe = "opt_mine"'))()
    with pytest.raises(ValueError, match="model_name: there is no models/hover/opt.py"):
        edited(monkeypatch, ('model_name = "hovernet"', 'model_name = "hover"'))()


def test_a_module_that_a_recipe_lacks_is_not_taken_for_the_recipe(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(config.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="timm"):
        config.Config()


def test_the_encoders_file_is_looked_for_beside_the_configuration(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = config.Config().model_config["phase_list"][0]["run_info"]["net"]["pretrained"]
    assert Path(path) == Path(config.__file__).resolve().parent / opt.IMAGENET


def network(recipe: dict, phase: int = 0):
    with torch.device("meta"):
        return recipe["phase_list"][phase]["run_info"]["net"]["desc"]()


def test_type_classification_off_leaves_the_types_out(monkeypatch):
    assert network(config.Config().model_config).nr_types == 5
    values = edited(monkeypatch, ("self.type_classification = True", "self.type_classification = False"))()
    assert network(values.model_config).nr_types is None


def test_upstreams_recipe_has_upstreams_values():
    recipe = opt.get_config(5, "original")
    first, second = recipe["phase_list"]
    assert [phase["nr_epochs"] for phase in (first, second)] == [50, 50]
    assert first["batch_size"] == {"train": 16, "valid": 16}
    assert second["batch_size"] == {"train": 4, "valid": 8}
    nets = [phase["run_info"]["net"] for phase in (first, second)]
    assert nets[0]["pretrained"].endswith("ImageNet-ResNet50-Preact_pytorch.tar")
    assert nets[1]["pretrained"] == -1
    assert [network(recipe, i).freeze for i in (0, 1)] == [True, False]
    for net in nets:
        optimizer_class, options = net["optimizer"]
        assert optimizer_class is torch.optim.Adam
        assert options == {"lr": 1.0e-4, "betas": (0.9, 0.999)}
        schedule = net["lr_scheduler"](torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1))
        assert (schedule.step_size, schedule.gamma) == (25, 0.1)
        extra = net["extra_info"]
        assert extra["loss"] == {"np": {"bce": 1, "dice": 1}, "hv": {"mse": 1, "msge": 1}, "tp": {"bce": 1, "dice": 1}}
        assert extra["msge_axis"] == "upstream"
        assert extra["tp_class_weights"] is None
        assert extra["clip_grad_norm"] is None
    engines = recipe["run_engine"]
    assert [engines[name]["nr_procs"] for name in ("train", "valid")] == [16, 8]
    assert engines["train"]["type_sampling"] is None
    # what a kill interrupts is done again, so saving comes last
    assert isinstance(engines["train"]["callbacks"][Events.EPOCH_COMPLETED][-1], PeriodicSaver)


def test_the_recipe_from_scratch_takes_the_papers_axis_and_a_schedule_by_step():
    recipe = opt_scratch.get_config(None, "fast")
    net = recipe["phase_list"][0]["run_info"]["net"]
    assert len(recipe["phase_list"]) == 1
    assert network(recipe).width == opt_scratch.WIDTH == 0.25
    assert net["extra_info"]["msge_axis"] == "paper"
    assert net["extra_info"]["loss"]["hv"] == {"mse": 2, "msge": 1}
    callbacks = recipe["run_engine"]["train"]["callbacks"]
    assert any(isinstance(c, ScheduleLr) for c in callbacks[Events.STEP_COMPLETED])
    assert not any(isinstance(c, ScheduleLr) for c in callbacks[Events.EPOCH_COMPLETED])


def test_the_recipe_from_scratch_trains_filters_by_muon_in_the_phases_that_say_so():
    def optimizers(**options):
        recipe = opt_scratch.get_config(None, "fast", phases=((1, 1.0e-3), (2, 5.0e-4)), **options)
        return [phase["run_info"]["net"]["optimizer"] for phase in recipe["phase_list"]]

    adamw = [[torch.optim.AdamW, {"lr": rate, "weight_decay": 1.0e-4}] for rate in (1.0e-3, 5.0e-4)]
    muon = [[MuonAdamW, {**options, "filter_lr": opt_scratch.FILTER_RATE * options["lr"]}] for _, options in adamw]
    assert optimizers() == optimizers(muon=True) == muon
    assert optimizers(muon=False) == adamw
    assert optimizers(muon=(False, True)) == [adamw[0], muon[1]]


def test_warm_up_and_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = opt_scratch.warmup_cosine(optimizer, nr_steps=110, warmup=10)
    rates = []
    for _ in range(110):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2 / 11)
    assert max(rates) == rates[10] == pytest.approx(2)
    assert rates[60] == pytest.approx(1)  # half-way down the cosine
    assert rates[-1] < 0.001
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)


def test_p40_the_network_needs_no_configuration_and_the_trainer_no_plots():
    code = """
import sys
import models.hovernet.net_desc, models.hovernet.run_desc
print([name for name in ("config", "dataset", "models.hovernet.opt", "imgaug", "matplotlib") if name in sys.modules])
import run_train, config, run_utils.trainer
print("matplotlib" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\nFalse\n"


def test_default_recipe_makes_the_full_network():
    assert network(opt.get_config(None, "fast")).width == create_model("fast", width=1.0).width
