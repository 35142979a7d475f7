"""The recipe of the checkpoints that ship: a narrow network from random weights, affordable on a CPU.

Muon for the filters and AdamW for the rest, warm-up and cosine decay, clipped gradients, twice the HV error, and `msge`
along the paper's axes: with these the HV branch learns from the start. Made for patches of 0.5 um/px. What ships was
trained by AdamW alone (`muon=False`), but for the last trainings of the checkpoints at 0.3333 um/px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import optim

from .muon import MuonAdamW
from .net_desc import create_model
from .opt import Events, ScheduleLr, get_engines
from .targets import gen_targets, prep_sample

WIDTH = 0.25  # of HoVer-Net's channels
# (epochs, learning rate) of each phase; the learning rate falls to 0 in each, and each phase starts with the weights of
# the previous one. Made for the 784 patches of Kumar's 16 training images at 20x with a step of 82 px.
PHASES = ((20, 2.0e-3),)
# Learning rate of the filters under Muon, in multiples of the phase's (benchmarks/ablations.py).
FILTER_RATE = 3
WARMUP_STEPS = 60
KEEP_EVERY = 2  # epochs between checkpoints that stay, for a learning curve


def get_config(
    nr_type: int | None,
    mode: str,
    width: float | None = None,
    phases: tuple[tuple[int, float], ...] | None = None,
    ema: float | None = None,
    restain: dict | None = None,
    stain_jitter: bool | dict = True,
    defocus: bool | dict = False,
    muon: bool | Sequence[bool] = True,
) -> dict:
    """Return the recipe.

    Args:
        nr_type, mode: as in `opt.get_config`.
        width: share of HoVer-Net's channels; `WIDTH` if left out.
        phases: as `PHASES`; `PHASES` if left out.
        ema: decay of the moving average of the weights.
        restain: as in `opt.get_engines`; validation is re-stained as training is.
        stain_jitter: as in `opt.get_engines`; `{"recoloured_share": 0}` for a network that sees H&E alone.
        defocus: as in `opt.get_engines`.
        muon: train filters by Muon, which needs fewer steps; otherwise AdamW trains all weights. One value for all
            phases, or one for each.
    """

    def phase(index: int, nr_epochs: int, learning_rate: float) -> dict:
        net = {
            "desc": lambda: create_model(input_ch=3, nr_types=nr_type, freeze=False, mode=mode, width=width or WIDTH),
            "optimizer": _optimizer(muon if isinstance(muon, bool) else muon[index], learning_rate),
            "lr_scheduler": lambda optimizer, nr_steps: warmup_cosine(optimizer, nr_steps, WARMUP_STEPS),
            "extra_info": {
                "loss": {
                    "np": {"bce": 1, "dice": 1},
                    "hv": {"mse": 2, "msge": 1},
                    "tp": {"bce": 1, "dice": 1},
                },
                "msge_axis": "paper",
                "tp_class_weights": None,
                "clip_grad_norm": 5.0,
                "ema": ema,
                "amp": "bf16",
                "amp_cpu": "bf16",  # halves the time where the processor knows it
            },
            "pretrained": None if index == 0 else -1,
            "pretrained_norm": None,
        }
        return {
            "run_info": {"net": net},
            "target_info": {"gen": (gen_targets, {}), "viz": (prep_sample, {})},
            "batch_size": {"train": 4, "valid": 8},
            "nr_epochs": nr_epochs,
        }

    return {
        "phase_list": [phase(index, *values) for index, values in enumerate(phases or PHASES)],
        "run_engine": _engines(nr_type, restain, stain_jitter=stain_jitter, defocus=defocus),
    }


def _optimizer(muon: bool, learning_rate: float) -> list:
    """Return class and options of the optimizer, as a recipe holds them."""
    options = {"lr": learning_rate, "weight_decay": 1.0e-4}
    if muon:
        return [MuonAdamW, {**options, "filter_lr": FILTER_RATE * learning_rate}]
    return [optim.AdamW, options]


def _engines(nr_type: int | None, restain: dict | None, **augmentation: bool | dict) -> dict:
    """Return the engines of `opt.get_engines` with this augmentation, and a schedule by step."""
    engines = get_engines(nr_type, KEEP_EVERY)
    engines["train"] |= augmentation
    engines["train"]["restain"] = engines["valid"]["restain"] = restain
    # per step, not per epoch: the schedule is the same for any number of patches
    events = engines["train"]["callbacks"]
    events[Events.EPOCH_COMPLETED] = [c for c in events[Events.EPOCH_COMPLETED] if not isinstance(c, ScheduleLr)]
    events[Events.STEP_COMPLETED].insert(0, ScheduleLr())
    return engines


def warmup_cosine(optimizer: optim.Optimizer, nr_steps: int, warmup: int) -> optim.lr_scheduler.LambdaLR:
    """Warm up linearly over `warmup` steps to the optimizer's learning rate, then decay along half a cosine to zero.

    Args:
        optimizer: what to schedule.
        nr_steps: steps of the whole run.
        warmup: steps of the warm-up; at most a tenth of the run.
    """
    warmup = min(warmup, nr_steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, nr_steps - warmup))))

    return optim.lr_scheduler.LambdaLR(optimizer, factor)
