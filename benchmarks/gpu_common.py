"""Shared by the steps of gpu.py: sizes for real runs and rehearsals, networks, pictures, precisions, and rows."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from models.hovernet.net_desc import HoVerNet

SEED = 7
NR_TYPES = 5  # of typed networks, as CoNSeP's
MODES = ("fast", "original")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
RESIDUAL = 0.2  # factor of the weights of the last convolution of a residual unit


@dataclass(frozen=True)
class Size:
    """Sizes of a run.

    Attributes:
        width: of the networks.
        parity_patches: number of patches that are compared with the CPU.
        batch_px: input px of a batch whose speed is measured.
        seconds: time for which one speed is measured.
        image_px, slide_px: sides of the made-up image and of the slide.
        train_batch: patches per training step; `None` for the recipe's number.
        train_steps: number of timed steps.
    """

    width: float
    parity_patches: int
    batch_px: int
    seconds: float
    image_px: int
    slide_px: int
    train_batch: int | None
    train_steps: int


FOR_REAL = Size(1.0, 4, 64 * 256**2, 0.7, 1000, 40_000, None, 30)
REHEARSAL = Size(0.125, 1, 256**2, 0.01, 300, 2_000, 1, 2)


class Step:
    """One step: its device, its sizes, and its file of rows.

    Args:
        argv: the file of rows, and maybe `--rehearse`.
    """

    def __init__(self, argv: list[str]):
        import torch

        self.rows, self.rehearse = Path(argv[0]), "--rehearse" in argv[1:]
        self.size = REHEARSAL if self.rehearse else FOR_REAL
        if not self.rehearse and not torch.cuda.is_available():
            sys.exit("no CUDA device here; --rehearse runs on the CPU")
        self.gpu = "" if self.rehearse else "0"  # as `--gpu`
        self.device = torch.device("cpu" if self.rehearse else "cuda")
        if self.device.type == "cpu":
            torch.set_num_threads(1)

    def row(self, name: dict, measure: Callable[[], dict]) -> None:
        """Write a row at once, so that it stays if the step is stopped; an error becomes a row too."""
        import torch

        try:
            values = measure()
        except Exception as error:
            values = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        with open(self.rows, "a", encoding="utf-8") as out:
            out.write(json.dumps({**name, **values}) + "\n")
        print({**name, **values}, flush=True)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


@functools.cache
def patches(count: int, side: int) -> np.ndarray:
    """Return made-up tissue, (count, side, side, 3) uint8: a few pictures, repeated."""
    import numpy as np

    from benchmarks.synthetic import nuclei_labels, tissue_like_image

    labels = [nuclei_labels(side, seed=seed) for seed in range(min(count, 4))]
    images = [tissue_like_image(one, seed) for seed, one in enumerate(labels)]
    return np.stack([images[k % len(images)] for k in range(count)])


def noise(count: int, side: int) -> np.ndarray:
    """Return (count, side, side, 3) uint8 of noise, the same on every call."""
    import numpy as np

    return np.random.default_rng(SEED).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def seeded_net(mode: str, nr_types: int | None, width: float, device: torch.device) -> HoVerNet:
    """Return a network with random weights, for prediction, whose values do not grow from layer to layer.

    Its batch norms fit its weights, and its residual units add as little as trained ones do. Otherwise every unit would
    amplify the rounding errors of the units before it.
    """
    import torch

    from models.hovernet.net_desc import PATCH_SHAPES, create_model, to_inference

    torch.manual_seed(SEED)
    net = create_model(mode, nr_types=nr_types, width=width).to(device)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
        elif name.endswith(".conv3"):
            module.weight.data *= RESIDUAL
    with torch.no_grad():
        net.train()(as_input(noise(2, PATCH_SHAPES[mode][0]), device))
    return to_inference(net, device)


def as_input(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return (B, 3, H, W) float32, channels last in memory, as inference makes it."""
    import torch

    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in one of `PRECISIONS`, without gradients, while the block runs."""
    import torch

    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    try:
        for place in places:
            place.allow_tf32 = precision != "fp32"
        with torch.inference_mode(), torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
            yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
