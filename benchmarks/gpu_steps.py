"""A step of gpu.py: training steps per second, for both modes and all phases of config.py's recipe, on made-up patches.

Usage: gpu_steps.py <rows> [--rehearse]
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_common import MODES, NR_TYPES, SEED, Step

NR_FILES = 16
PATCH_PX = 540  # side of a patch on disk
NR_EPOCHS = 1000  # never reached
WARM_UPS = 3


def main() -> None:
    from config import Config

    step, recipe = Step(sys.argv[1:]), Config().model_config
    with tempfile.TemporaryDirectory() as folder:
        files = write_patches(Path(folder))
        for mode, phase in itertools.product(MODES, range(len(recipe["phase_list"]))):
            name = {"mode": mode, "phase": phase + 1}
            step.row(name, lambda m=mode, p=phase: measure(step, files, recipe, m, p))


def write_patches(folder: Path) -> list[Path]:
    """Write patches as extract_patches.py does, (540, 540, 5) [R, G, B, nucleus, type]."""
    from benchmarks.synthetic import nuclei_labels, tissue_like_image

    paths = [folder / f"{index}.npy" for index in range(NR_FILES)]
    for index, path in enumerate(paths):
        labels = nuclei_labels(PATCH_PX, seed=index)
        types = np.where(labels > 0, 1 + labels % (NR_TYPES - 1), 0)
        np.save(path, np.dstack([tissue_like_image(labels, index), labels, types]).astype(np.uint16))
    return paths


def measure(step: Step, files: list[Path], recipe: dict, mode: str, phase: int) -> dict:
    """Return steps per second of the network alone (one batch, repeated) and with the loader."""
    from models.hovernet.net_desc import create_model

    options, size = recipe["phase_list"][phase], step.size
    net_info = options["run_info"]["net"]
    torch.manual_seed(SEED)
    net = create_model(mode, nr_types=NR_TYPES, freeze=phase == 0, width=size.width)
    net = net.to(step.device, memory_format=torch.channels_last)
    optimizer, arguments = net_info["optimizer"]
    nets = {"desc": net, "optimizer": optimizer(net.parameters(), **arguments), "extra_info": net_info["extra_info"]}
    count = size.train_batch or options["batch_size"]["train"]
    procs = 0 if step.rehearse else recipe["run_engine"]["train"]["nr_procs"]
    batches = loader(step, files, mode, count, options["target_info"]["gen"], procs)
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first = next(batches)
    alone = steps_a_second(step, {"net": nets}, itertools.repeat(first))
    with_loader = steps_a_second(step, {"net": nets}, batches)
    memory = torch.cuda.max_memory_allocated() / 1e9 if step.device.type == "cuda" else None
    numbers = {"steps/s": alone, "patches/s": alone * count, "steps/s with the loader": with_loader}
    return {"batch": count, **numbers, "GPU memory, GB": memory}


def loader(step: Step, files: list[Path], mode: str, count: int, target_gen, procs: int) -> Iterator[dict]:
    """Yield batches as training loads them, without end."""
    from dataloader.train_loader import FileLoader
    from models.hovernet.net_desc import PATCH_SHAPES
    from run_utils.loaders import build_loader
    from run_utils.sampling import EpochBatchSampler

    act, out = PATCH_SHAPES[mode]
    shapes = {"input_shape": (act, act), "mask_shape": (out, out)}
    many = files * (-(-count * step.size.train_steps // len(files)) + WARM_UPS)
    dataset = FileLoader(many, mode="train", with_type=True, target_gen=target_gen, seed=SEED, **shapes)
    batches = build_loader(
        dataset, EpochBatchSampler(len(dataset), count, SEED, True, 0, 1, None), procs, step.device.type == "cuda"
    )
    for epoch in range(NR_EPOCHS):
        batches.set_position(epoch, 0)
        yield from batches


def steps_a_second(step: Step, nets: dict, batches: Iterator[dict]) -> float:
    """Return training steps per second, after a few warm-up steps."""
    from models.hovernet.train_step import train_step

    where = {"epoch": 0, "step": 0}
    for _ in range(1 if step.rehearse else WARM_UPS):
        train_step(next(batches), (nets, where))
    step.wait()
    start = time.perf_counter()
    for _ in range(step.size.train_steps):
        train_step(next(batches), (nets, where))
    step.wait()
    return step.size.train_steps / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
