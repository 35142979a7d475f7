"""The pairs of `compare_upstream.py` for training: targets, the loader, a training step."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .pairs import NR_TYPES, Pair, difference_of, in_turn
from .synthetic import nuclei_labels, tissue_like_image
from .upstream import Upstream

TARGET_TOLERANCE = 1e-6
LOSS_TOLERANCE = 1e-4  # of a loss term's value
HALF_TOLERANCE = 0.1
CHANNELS_LAST = torch.channels_last
NR_PATCHES = 16
LOSS = {"np": {"bce": 1, "dice": 1}, "hv": {"mse": 1, "msge": 1}, "tp": {"bce": 1, "dice": 1}}


def targets(upstream: Upstream, runs: int) -> Iterator[Pair]:
    """Training targets of one augmented patch."""
    from models.hovernet.targets import gen_targets as ours

    theirs = upstream.load("models.hovernet.targets").gen_targets
    for mode, size, crop in (("original", 270, 80), ("fast", 256, 164)):
        labels = nuclei_labels(size)
        *seconds, expected, got = in_turn(
            lambda: theirs(labels.copy(), (crop, crop)),  # noqa: B023
            lambda: ours(labels.copy(), (crop, crop)),  # noqa: B023
            4 * runs,
        )
        difference = max(difference_of(expected[key], got[key]) for key in expected)
        remark = f"largest difference {difference:.0e}" if difference else "identical"
        yield Pair(f"gen_targets, {mode}", *seconds, difference < TARGET_TOLERANCE, remark)


def loader(upstream: Upstream, runs: int) -> Iterator[Pair]:
    """Samples with augmentation and targets, in one process; each reads patches of the type that it extracts itself."""
    from dataloader.train_loader import FileLoader
    from models.hovernet.targets import gen_targets

    their_loader = upstream.load("dataloader.train_loader").FileLoader
    their_targets = upstream.load("models.hovernet.targets").gen_targets
    with tempfile.TemporaryDirectory() as folder:
        files = {dtype: _write_patches(Path(folder), dtype) for dtype in (np.int32, np.uint16)}
        options = {"with_type": True, "input_shape": (270, 270), "mask_shape": (80, 80), "mode": "train"}
        with upstream.active():
            theirs = their_loader(files[np.int32], target_gen=(their_targets, {}), **options)
        ours = FileLoader(files[np.uint16], target_gen=(gen_targets, {}), **options)

        def load_theirs():
            with upstream.active():
                return [theirs[index] for index in range(NR_PATCHES)]

        seconds = in_turn(load_theirs, lambda: [ours[index] for index in range(NR_PATCHES)], runs)[:2]
        sizes = [sum(Path(path).stat().st_size for path in paths) / 2**20 for paths in files.values()]
    remark = f"{sizes[0] / NR_PATCHES:.1f} and {sizes[1] / NR_PATCHES:.1f} MiB a patch on disk"
    yield Pair("loader, original, 1 sample", *(s / NR_PATCHES for s in seconds), 2 * sizes[1] <= sizes[0], remark)


def _write_patches(folder: Path, dtype) -> list[str]:
    paths = []
    for index in range(NR_PATCHES):
        labels = nuclei_labels(540, seed=index)
        patch = np.dstack([tissue_like_image(labels, seed=index), labels, labels % NR_TYPES])
        paths.append(str(folder / f"{np.dtype(dtype).name}_{index:03d}.npy"))
        np.save(paths[-1], patch.astype(dtype))
    return paths


def step(upstream: Upstream, device: str, runs: int) -> Iterator[Pair]:
    """One update of the full-width network, everything trained, with types; on CUDA in half precision too."""
    from models.hovernet.net_desc import create_model
    from models.hovernet.train_step import train_step

    their_step = upstream.load("models.hovernet.run_desc").train_step
    their_create = upstream.load("models.hovernet.net_desc").create_model
    # not 1: with it, the original squeezes the batch axis of the types away, and sums its Dice over all types
    batch_size = 2 if device == "cpu" else 4
    batch = _batch(batch_size)
    for amp in (None,) if device == "cpu" else (None, "bf16", "fp16"):
        torch.manual_seed(0)
        net = create_model("original", nr_types=NR_TYPES)
        with upstream.active():
            reference = _Wrapped(their_create(mode="original", nr_types=NR_TYPES))
        reference.module.load_state_dict(net.state_dict())
        nets = [_run_info(reference.to(device), None), _run_info(net.to(device, memory_format=CHANNELS_LAST), amp)]

        def theirs():
            with upstream.active():
                return their_step(batch, [nets[0], None])["EMA"]  # noqa: B023

        def ours():
            return train_step(batch, [nets[1], {"epoch": 0, "step": 0}])["EMA"]  # noqa: B023

        expected, got = theirs(), ours()
        difference = max(abs(got[name] / expected[name] - 1) for name in expected)
        seconds = in_turn(theirs, ours, runs)[:2]
        name = f"train step, original, {NR_TYPES} types, batch of {batch_size}, {amp or 'fp32'}"
        same = difference < (LOSS_TOLERANCE if amp is None else HALF_TOLERANCE)
        yield Pair(name, *seconds, same, f"losses differ by {difference:.0e} of their values")


class _Wrapped(torch.nn.Module):
    """Stands for DataParallel, in which the original expects the network."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, imgs: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.module(imgs)


def _run_info(net: torch.nn.Module, amp: str | None) -> dict:
    return {
        "net": {
            "desc": net,
            "optimizer": torch.optim.Adam(net.parameters(), lr=1e-4),
            "extra_info": {"loss": LOSS, "amp": amp},
            "scaler": torch.amp.GradScaler("cuda") if amp == "fp16" else None,
        }
    }


def _batch(size: int) -> dict[str, torch.Tensor]:
    from models.hovernet.targets import gen_targets

    samples = []
    for index in range(size):
        labels = nuclei_labels(270, seed=index)
        targets = gen_targets(labels, (80, 80))
        types = np.random.default_rng(index).integers(0, NR_TYPES, (80, 80))  # every type occurs
        samples.append({"img": tissue_like_image(labels), "tp_map": types, **targets})
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
