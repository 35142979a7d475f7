"""Measure the effect of each choice: one change at a time, on the same images, with the same training.

Usage:
  ablations.py inference --model_path=<file> [options] <folder>...
  ablations.py training --patches=<dir> [options] <folder>...
  ablations.py (-h | --help)

`inference` changes how one checkpoint is used: window of the network, precision, flips at test time, smallest nucleus,
edges between nuclei, least probability, and the normalisation of the maps before post-processing. `training` trains
the recipe `opt_scratch` by AdamW, once for each axis of the loss term `msge`, once with averaged weights, once with a
larger window, and once with Muon, equally long and with the same patches, and scores each. Each folder has Images/ and
Labels/.

Options:
  -h --help            Show this text.
  --model_path=<file>  Checkpoint.
  --patches=<dir>      Training patches (.npy) of 0.5 um/px, as pretrained/README.md makes them.
  --epochs=<n>         Epochs of each training. [default: 2]
  --seed=<n>           Seed of each training. [default: 10]
  --log_dir=<dir>      Folder of the trainings; those that are there are used or resumed. [default: logs/ablations]
  --only=<text>        Run only the first row and rows whose names contain this text.
  --mpp=<um>           um/px of the images in the folders. [default: 0.25]
  --gpu=<ids>          GPUs; empty for the CPU. [default: 0]
  --bootstrap=<n>      Resamples of the images for the 95 % intervals. [default: 2000]
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from docopt import docopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHOWN = ("Dice", "AJI", "DQ", "SQ", "PQ")
WINDOWS_PX = (256, 512, 1024)
MIN_SIZES_PX = (10, 20, 40, 80)
POST_PROCS = (
    {"edges": "directions"},
    {"min_prob": 0.7},
    {"edges": "directions", "min_prob": 0.7},
    {"edges": "axes", "min_prob": 0},
)
# Changes to the first training: axis and weight of `msge`, decay of the averaged weights, window in px, optimizer.
TRAININGS: dict[str, dict] = {
    "msge axis: paper": {},
    "msge axis: upstream": {"msge_axis": "upstream"},
    "msge axis: none": {"msge": 0},
    "averaged weights (ema 0.999)": {"ema": 0.999},
    "window of 352 px in training": {"act_px": 352},
    "Muon for the filters": {"muon": True},
}


def main() -> int:
    args = docopt(__doc__)
    logging.basicConfig(level=logging.WARNING)
    folders = [Path(folder) for folder in args["<folder>"]]
    part = inference if args["inference"] else training
    print(f"| {part.__name__} | {' | '.join(SHOWN)} | PQ minus first row | s per image |")
    print("|---" * (len(SHOWN) + 3) + "|")
    first = None
    try:
        for name, score in part(args, folders):
            if first is not None and (args["--only"] or "") not in name:
                continue
            values, seconds = score()
            first = values if first is None else first
            print(row(name, values, first, seconds, int(args["--bootstrap"])), flush=True)
    except (ValueError, OSError) as error:
        print(f"ablations.py: {error}", file=sys.stderr)
        return 1
    return 0


def row(name: str, values: np.ndarray, first: np.ndarray, seconds: float, resamples: int) -> str:
    """Return a row of the table; the difference of PQ to the first row is paired, image by image."""
    from benchmarks.accuracy import interval
    from metrics.folders import INSTANCE_SCORES

    means = dict(zip(INSTANCE_SCORES, np.nanmean(values, axis=1), strict=True))
    pq = INSTANCE_SCORES.index("PQ")
    mean, low, high = (float(v[0]) for v in interval((values - first)[pq : pq + 1], resamples))
    difference = "" if values is first else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"| {name} | {' | '.join(f'{means[s]:.3f}' for s in SHOWN)} | {difference} | {seconds:.1f} |"


def inference(args: dict, folders: list[Path]) -> Iterator[tuple[str, Callable]]:
    """Yield the name of each way to use a checkpoint, and a function that returns (6, N) scores and s per image."""
    from infer.tile import InferManager
    from models.hovernet.net_desc import PATCH_SHAPES

    def score(precision: str = "fp32", **options) -> tuple[np.ndarray, float]:
        manager = InferManager({"model_path": args["--model_path"]}, gpu=args["--gpu"], precision=precision)
        options = {"patch_input_shape": PATCH_SHAPES[manager.mode][0], **options}  # not the checkpoint's window
        return scored(manager, folders, {"mpp": float(args["--mpp"]), "nr_post_proc_workers": 0, **options})

    yield "unchanged: patch of the mode, fp32", score
    for window in WINDOWS_PX:
        yield f"window of {window} px", partial(score, patch_input_shape=window)
    yield "bf16", partial(score, precision="bf16")
    yield "flips (--tta)", partial(score, tta=True)
    for size in MIN_SIZES_PX:
        yield f"smallest nucleus {size} px", partial(with_smallest, score, size)
    for options in POST_PROCS:
        yield " ".join(f"--{name}={value}" for name, value in options.items()), partial(score, **options)
    fixed = partial(with_fixed_ranges, partial(score, edges="axes"))  # other edges are not normalised
    yield "HV maps and slopes normalised by fixed numbers", fixed


def with_smallest(score: Callable, size_px: int) -> tuple[np.ndarray, float]:
    """Score with another size of the smallest nucleus, px."""
    from models.hovernet import post_proc

    with mock.patch.object(post_proc, "MIN_SIZE_PX", size_px):
        return score()


def with_fixed_ranges(score: Callable) -> tuple[np.ndarray, float]:
    """Score with maps that are normalised by the same numbers in every image."""
    with fixed_normalisation(typical_ranges(score)):
        return score()


def training(args: dict, folders: list[Path]) -> Iterator[tuple[str, Callable]]:
    """Yield the name of each training, and a function that returns its (6, N) scores and seconds per image."""
    for name, changes in TRAININGS.items():
        yield name, partial(train_and_score, name, changes, args, folders)


def train_and_score(name: str, changes: dict, args: dict, folders: list[Path]) -> tuple[np.ndarray, float]:
    """Train, and score the checkpoint."""
    from infer.tile import InferManager

    manager = InferManager({"model_path": train(name, args, **changes)}, gpu=args["--gpu"])
    return scored(manager, folders, {"mpp": float(args["--mpp"])})


def scored(manager, folders: list[Path], options: dict) -> tuple[np.ndarray, float]:
    """Return the (6, N) scores of all folders together, and seconds per image."""
    from benchmarks.accuracy import score_folder

    start = time.perf_counter()
    values = np.concatenate([score_folder(manager, folder, options).values for folder in folders], axis=1)
    return values, (time.perf_counter() - start) / values.shape[1]


def train(
    name: str,
    args: dict,
    msge_axis: str = "paper",
    msge: float = 1,
    ema: float | None = None,
    act_px: int | None = None,
    muon: bool = False,
) -> Path:
    """Train once and return the checkpoint; a finished training is used again.

    Args:
        name: of the training, and of its folder.
        args: of the command line.
        msge_axis, msge: axis and weight of the loss term.
        ema: decay of the averaged weights.
        act_px: window of the network in training, px; its output follows.
        muon: train the filters by Muon.
    """
    from models.hovernet.net_desc import output_size
    from pretrained.config import Config
    from run_train import Commands
    from run_utils.callbacks.base import ConditionalSaver, TriggerEngine, ValidateImages
    from run_utils.engine import Events

    manager = type("TrainManager", (Commands, Config), {"MUON": muon})()
    epochs, folder = int(args["--epochs"]), "".join(c if c.isalnum() else "_" for c in name)
    manager.seed, manager.log_dir = int(args["--seed"]), str(Path(args["--log_dir"]) / folder)
    manager.train_dir_list = manager.valid_dir_list = [args["--patches"]]
    (phase,) = manager.model_config["phase_list"]
    phase["nr_epochs"] = epochs
    # what `scored` prints comes from whole images; validation would take as long as half of the training
    events = manager.model_config["run_engine"]["train"]["callbacks"]
    unused = (TriggerEngine, ValidateImages, ConditionalSaver)
    events[Events.EPOCH_COMPLETED] = [c for c in events[Events.EPOCH_COMPLETED] if not isinstance(c, unused)]
    extra = phase["run_info"]["net"]["extra_info"]
    extra["msge_axis"], extra["loss"]["hv"]["msge"], extra["ema"] = msge_axis, msge, ema
    if act_px is not None:
        shape = {"input_shape": [act_px] * 2, "mask_shape": [output_size("fast", act_px)] * 2}
        manager.shape_info = {"train": shape, "valid": shape}
    path = Path(manager.log_dir) / f"net_epoch={epochs}.tar"
    if not path.exists():
        manager.run(args["--gpu"], resume=Path(manager.log_dir).exists())
    return path


def typical_ranges(score: Callable) -> list[tuple[float, float]]:
    """Return the median range (low, high) over all images of each map: h, its slope, v, its slope."""
    from models.hovernet import post_proc

    spans: list[tuple[float, float]] = []
    plain = post_proc.cv2.normalize

    def watching(source, *arguments, **options):
        spans.append((float(source.min()), float(source.max())))
        return plain(source, *arguments, **options)

    with mock.patch.object(post_proc.cv2, "normalize", watching):
        score()
    return [tuple(np.median(np.array(spans[k::4]), axis=0).tolist()) for k in range(4)]


@contextlib.contextmanager
def fixed_normalisation(ranges: list[tuple[float, float]]) -> Iterator[None]:
    """Normalise every image by the same numbers instead of its own extremes; values beyond are clipped."""
    from models.hovernet import post_proc

    calls = iter(range(sys.maxsize))

    def stretched(source, out, **_):
        low, high = ranges[next(calls) % 4]
        out[:] = np.clip((source - low) / (high - low), 0, 1)
        return out

    with mock.patch.object(post_proc.cv2, "normalize", stretched):
        yield


if __name__ == "__main__":
    sys.exit(main())
