"""Wrong recipes are found before the first step, each in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.hovernet import opt, opt_scratch
from run_utils.callbacks.base import PeriodicSaver, TriggerEngine, ValidateImages
from run_utils.callbacks.logging import LoggingGradient
from run_utils.recipe_checks import check_recipe, check_shapes

LOSS = {"np": {"bce": 1, "dice": 1}, "hv": {"mse": 2, "msge": 1}, "tp": {"bce": 1}}


def recipe(net: dict | None = None, engine: dict | None = None, **changes) -> dict:
    net_info = {
        "desc": None,
        "optimizer": [torch.optim.Adam, {"lr": 1e-3}],
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 25),
        "pretrained": None,
        "extra_info": {"loss": LOSS},
        **(net or {}),
    }
    phase = {"run_info": {"net": net_info}, "target_info": {}, "batch_size": {"train": 1, "valid": 1}, "nr_epochs": 1}
    engines = {name: {"callbacks": {}, "nr_procs": 0, "run_step": None} for name in ("train", "valid")}
    engines["train"].update(engine or {})
    return {"phase_list": [{**phase, **changes}], "run_engine": engines}


def extra(**values) -> dict:
    return {"extra_info": {"loss": LOSS, **values}}


def loss(**branches) -> dict:
    return {"extra_info": {"loss": {**LOSS, **branches}}}


def refused(wrong: dict, message: str, error=ValueError, nr_types: int | None = 3, **options) -> None:
    with pytest.raises(error, match=message) as caught:
        check_recipe(wrong, nr_types, **options)
    assert "\n" not in str(caught.value)


def test_the_recipes_that_ship_are_right():
    check_recipe(opt.get_config(5, "fast"), 5, first_fresh=1)
    check_recipe(opt_scratch.get_config(None, "fast"), None)
    check_recipe(recipe(), 3)
    check_recipe(recipe(), None)  # `tp` of the loss is left over
    norm, weights = ((0.485, 0.456, 0.406), np.full(3, 0.2)), np.ones(3)
    check_recipe(recipe({"pretrained_norm": norm, **extra(tp_class_weights=weights)}), 3)


def test_the_start_of_a_phase(tmp_path):
    refused(recipe({"pretrained": -1}), "no phase before")
    refused(recipe({"pretrained": "nowhere.tar"}), "nowhere.tar; what to do", FileNotFoundError)
    check_recipe(recipe({"pretrained": "nowhere.tar"}), None, first_fresh=1)  # not needed any more


def test_mistakes_of_an_edit_are_named(subtests):
    cases = [
        ({"batch_size": {"train": 1, "valid": 0}}, "batch_size of `valid`"),
        ({"batch_size": {"train": "4", "valid": 1}}, "batch_size of `train` must be a whole number"),
        ({"batch_size": 4}, "batch_size must be {engine: number}.*got 4"),
        ({"nr_epochs": 0}, "nr_epochs"),
        ({"nr_epochs": 2.5}, "nr_epochs must be a whole number"),
        ({"net": extra(tp_class_weights=5)}, "tp_class_weights must be a list, one number a type, got 5"),
        ({"net": extra(tp_class_weights=[1, 2])}, "2 values for 3 types"),
        ({"net": extra(tp_class_weights=[1, -2, 1])}, "tp_class_weights must be numbers from 0 up"),
        ({"net": extra(tp_class_weights=[1, float("nan"), 1])}, "tp_class_weights must be numbers from 0 up"),
        ({"net": extra(tp_class_weights=[0, 0, 0])}, "not all of them 0"),
        ({"net": extra(msge_axis="papers")}, "msge_axis must be one of upstream, paper, got `papers`"),
        ({"net": extra(amp="half")}, "amp must be one of bf16, fp16 or None"),
        ({"net": extra(amp_cpu="fp16")}, "amp_cpu must be one of bf16 or None"),
        ({"net": extra(clip_grad_norm=0)}, "clip_grad_norm"),
        ({"net": {"extra_info": {"loss": {"np": {"bce": 1}, "hv": {"mse": 1}}}}}, "branch `tp`, but `loss` has none"),
        ({"net": {"extra_info": {}}}, "extra_info needs `loss`"),
        ({"net": loss(typ={"bce": 1})}, "unknown branch `typ`"),
        ({"net": loss(hv={"mgse": 1})}, "loss of `hv` has no term `mgse`; there is mse, msge"),
        ({"net": loss(np={"msge": 1})}, "loss of `np` has no term `msge`"),
        ({"net": loss(hv={"mse": "2"})}, "weight of `mse` of `hv`"),
        ({"net": loss(np={}, hv={"mse": 0}, tp={})}, "no loss term has a weight above 0"),
        ({"net": {"optimizer": [torch.optim.Adam, {"rate": 1}]}}, "optimizer or lr_scheduler of `net`: .*rate"),
        ({"engine": {"nr_procs": -1}}, "nr_procs"),
        ({"engine": {"type_sampling": "often"}}, "type_sampling"),
        ({"engine": {"stain_jitter": 0.5}}, "stain_jitter must be True, False, or options of .*, got 0.5"),
        ({"engine": {"stain_jitter": {"recolored_share": 0}}}, "stain_jitter must be .*recolored_share"),
        ({"engine": {"stain_jitter": {"factor": 1.5}}}, "stain_jitter must be .*factor.*1.5"),
        ({"engine": {"defocus": 0.5}}, "defocus must be True, False, or options of .*draw_out_of_focus, got 0.5"),
        ({"engine": {"defocus": {"sigma": (0.5, 2)}}}, "defocus must be .*sigma"),
        ({"engine": {"defocus": {"sigma_px": 2}}}, "defocus must be .*sigma_px.*2"),
        ({"engine": {"defocus": {"sigma_px": (0, 0)}}}, "defocus must be .*sigma_px a rising range above 0"),
        ({"engine": {"defocus": {"share": 40}}}, "defocus must be .*share is from 0 to 1"),
        ({"engine": {"callbacks": {"epoch": [TriggerEngine("test")]}}}, "triggers `test`"),
        ({"engine": {"callbacks": {"epoch": [ValidateImages(per_n_epoch=0)]}}}, "per_n_epoch of ValidateImages"),
        ({"engine": {"callbacks": {"epoch": [PeriodicSaver(keep_every=0)]}}}, "keep_every of PeriodicSaver .*got 0"),
        ({"engine": {"callbacks": {"step": [PeriodicSaver(per_n_step=0)]}}}, "per_n_step of PeriodicSaver"),
        ({"engine": {"callbacks": {"step": [LoggingGradient(per_n_step=2.5)]}}}, "per_n_step of LoggingGradient"),
        ({"net": {"pretrained_norm": 0.5}}, "pretrained_norm must be .mean, std."),
        ({"net": {"pretrained_norm": (0.5, 0.5)}}, "pretrained_norm must be"),
        ({"net": {"pretrained_norm": ([0.5] * 3, [0.5] * 4)}}, "pretrained_norm must be"),
        ({"net": {"pretrained_norm": ([0.5] * 3, [0.5, 0, 0.5])}}, "std above 0"),
    ]
    for changes, message in cases:
        with subtests.test(changes=changes, message=message):
            refused(recipe(**changes), message)


@pytest.mark.parametrize("key", ["optimizer", "extra_info"])
def test_missing_entries_are_named(key):
    wrong = recipe()
    del wrong["phase_list"][0]["run_info"]["net"][key]
    refused(wrong, f"phase 0: `net` of the recipe lacks {key}")
    wrong = recipe()
    del wrong["run_engine"]["valid"]
    refused(wrong, "no `valid` engine")


def test_what_no_checkpoint_could_hold_is_refused_before_the_first_step():
    class Rate(torch.optim.lr_scheduler.StepLR):
        def __init__(self, optimizer):
            super().__init__(optimizer, 25)
            self.table = object()

    refused(recipe({"lr_scheduler": Rate}), r"phase 0, `net`: lr_scheduler\['table'\] is a builtins.object")
    check_recipe(recipe({"optimizer": [torch.optim.Adam, {"lr": np.float64(1e-3)}]}), 3)  # is converted


def test_targets_are_as_large_as_the_output():
    shapes = {"train": {"input_shape": [128, 128], "mask_shape": [36, 36]}}
    check_shapes(shapes, "fast")
    with pytest.raises(ValueError, match=r"turns \(128, 128\) into \(36, 36\), but mask_shape is \(80, 80\)"):
        check_shapes({"train": {**shapes["train"], "mask_shape": [80, 80]}}, "fast")
    with pytest.raises(ValueError, match="takes windows of"):
        check_shapes({"train": {**shapes["train"], "input_shape": [130, 128]}}, "fast")
