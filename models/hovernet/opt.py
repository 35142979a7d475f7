"""The recipe of the original repository: 50 epochs with the encoder fixed, then 50 with everything trained.

Edit by hand; `config.py` chooses the recipe. Every value stands once, also those that both phases share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import optim

from run_utils.callbacks.base import (
    AccumulateRawOutput,
    ConditionalSaver,
    PeriodicSaver,
    ProcessAccumulatedRawOutput,
    ScalarMovingAverage,
    ScheduleLr,
    TrackLr,
    TriggerEngine,
    ValidateImages,
    VisualizeOutput,
)
from run_utils.callbacks.logging import LoggingEpochOutput, LoggingStepOutput
from run_utils.engine import Events

from .net_desc import PATCH_SHAPES, create_model
from .targets import gen_targets, prep_sample
from .train_step import proc_valid_step_output, train_step, valid_step, viz_step_output

# The file of the ImageNet encoder; a path relative to the folder of `config.py`, or an absolute one.
IMAGENET = "pretrained/ImageNet-ResNet50-Preact_pytorch.tar"
_CONFIG_DIR = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Shape:
    """Sides in px of the square patches of a mode.

    Attributes:
        aug: patch on disk; augmentation rotates and scales it before the centre is cut out.
        act: input of the network.
        out: output of the network.
        step: from one patch on disk to the next; equal to `out`, so that every pixel is a target about once.
    """

    aug: int
    act: int
    out: int
    step: int


# The only table of shapes; configuration, extraction and inference use it.
SHAPES: dict[str, Shape] = {
    mode: Shape(540, act, out, step=out) for mode, (act, out) in PATCH_SHAPES.items() if mode in ("original", "fast")
}


def get_config(nr_type: int | None, mode: str) -> dict:
    """Return the recipe.

    Args:
        nr_type: number of nuclear types with the background; `None` for segmentation alone.
        mode: `original` or `fast`.
    """

    def phase(freeze: bool, pretrained, batch_size: dict, nr_epochs: int = 50) -> dict:
        net = {
            "desc": lambda: create_model(input_ch=3, nr_types=nr_type, freeze=freeze, mode=mode),
            "optimizer": [optim.Adam, {"lr": 1.0e-4, "betas": (0.9, 0.999)}],
            "lr_scheduler": lambda optimizer: optim.lr_scheduler.StepLR(optimizer, 25),  # a tenth every 25 epochs
            "extra_info": {
                "loss": {
                    "np": {"bce": 1, "dice": 1},
                    "hv": {"mse": 1, "msge": 1},
                    "tp": {"bce": 1, "dice": 1},
                },
                "msge_axis": "upstream",  # or "paper": differentiate x along x and y along y
                "tp_class_weights": None,  # one weight a type, background first, e.g. [1, 2, 1, 1, 5]
                "clip_grad_norm": None,  # largest norm of the gradient, e.g. 5.0
                "ema": None,  # or a decay, 0.999: validate and save the moving average of the weights
                "amp": "bf16",  # precision of the forward pass on CUDA: "bf16", "fp16", None for float32
                "amp_cpu": None,  # on a CPU: "bf16" halves the time on processors with bfloat16 instructions
            },
            # a file (ImageNet encoder, or a HoVer-Net with any number of types), -1 for the last checkpoint of the
            # previous phase, None for random weights
            "pretrained": pretrained,
            # (mean, std) of RGB from 0 to 1 that an encoder expects, 3 numbers each; None: timm's 0.5, or none at all
            "pretrained_norm": None,
        }
        return {
            "run_info": {"net": net},
            "target_info": {"gen": (gen_targets, {}), "viz": (prep_sample, {})},
            "batch_size": batch_size,  # of one GPU
            "nr_epochs": nr_epochs,
        }

    return {
        "phase_list": [
            phase(freeze=True, pretrained=str(_CONFIG_DIR / IMAGENET), batch_size={"train": 16, "valid": 16}),
            phase(freeze=False, pretrained=-1, batch_size={"train": 4, "valid": 8}),
        ],
        "run_engine": get_engines(nr_type),
    }


def get_engines(nr_type: int | None, keep_every: int = 10) -> dict:
    """Return the engines of every phase: the steps, and the callbacks in the order in which they run.

    Args:
        nr_type: as in `get_config`.
        keep_every: keep the checkpoint of every k-th epoch, and the last one.
    """
    return {
        "train": {
            "nr_procs": 16,  # processes that load; never more than the machine has cores
            "run_step": train_step,
            "reset_per_run": False,
            "type_sampling": None,  # or a power: 0.5 draws patches of rare types more often, 1.0 evens types out
            # or True: change the amounts of haematoxylin, eosin and DAB too, and in a third of the samples the colours
            # of the stains, as if H&E were haematoxylin and DAB; or options of `dataloader.augs.jitter_stains`, as
            # {"recoloured_share": 0, "factor": (0.6, 1.6)}
            "stain_jitter": False,
            # or True: blur some of the samples as a slide out of focus is blurred; or options of
            # `dataloader.augs.draw_out_of_focus`, as {"share": 0.5, "sigma_px": (0.5, 2.5)}
            "defocus": False,
            # or {"share": 0.6, "classes": 2, "mpp": 0.5}: re-stain that share of the samples with haematoxylin and DAB;
            # their types are then negative and positive (4: and weak, moderate, strong; None: those of the patches)
            "restain": None,
            "callbacks": {
                Events.STEP_COMPLETED: [
                    ScalarMovingAverage(),
                    LoggingStepOutput(),
                    PeriodicSaver(per_n_step=2000),
                ],
                Events.EPOCH_COMPLETED: [
                    TrackLr(),
                    VisualizeOutput(lambda raw: viz_step_output(raw, nr_types=nr_type)),
                    LoggingEpochOutput(),
                    TriggerEngine("valid"),
                    ValidateImages(per_n_epoch=5),
                    ScheduleLr(),
                    # nuclei and (if any) types count equally; scores of whole images decide, if there are any
                    ConditionalSaver(("valid-img_pq", "valid-np_dice"), types=("valid-img_f1", "valid-tp_dice")),
                    PeriodicSaver(keep_every=keep_every),  # last: after a kill, the callbacks before it run again
                ],
            },
        },
        "valid": {
            "nr_procs": 8,
            "run_step": valid_step,
            "reset_per_run": True,  # forget what the last run accumulated
            "callbacks": {
                Events.STEP_COMPLETED: [AccumulateRawOutput()],
                Events.EPOCH_COMPLETED: [
                    ProcessAccumulatedRawOutput(lambda raw: proc_valid_step_output(raw, nr_types=nr_type)),
                    LoggingEpochOutput(),
                ],
            },
        },
    }
