"""The network at work: batches of patches in, prediction maps out.

A batch goes through three steps, each of which may run in its own thread: `upload` brings it to the device, `forward`
runs the network, `download` brings the maps back. On a CUDA GPU the steps overlap: copies in both directions run beside
the network, and the next batch is queued while the GPU computes this one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.hovernet.devices import choose_precision, computing_in, is_out_of_memory
from models.hovernet.flips import Flipped
from models.hovernet.ink import InkSeen
from models.hovernet.net_desc import PATCH_SHAPES, HoVerNet, to_inference
from models.hovernet.run_desc import prediction_planes
from models.hovernet.two_scales import TwoScales

logger = logging.getLogger(__name__)

# On a CPU larger batches gain nothing and cost 0.6 GB a patch at full width.
MAX_CPU_BATCH = 4
# How far the maps of a checked device may differ from the CPU's: as far as half precision does.
CHECKED_SHARE = 0.01  # of the pixels may differ by more than
CHECKED_DIFFERENCE = 0.1  # probability, or share of the distance from a nucleus' centre to its edge


class OutOfMemoryError(RuntimeError):
    """The network does not fit into memory even with one patch at a time."""


class WrongResultError(RuntimeError):
    """A device computes other values than the CPU."""


class Maps(NamedTuple):
    """Maps on their way to the CPU: (n, C, h, w) on a GPU and its event; elsewhere the network's output."""

    parts: list
    done: torch.cuda.Event | None


class Predictor:
    """A network on its devices.

    Args:
        devices: one CPU or Apple GPU, or one or several CUDA devices (DataParallel).
        batch_size: patches of the mode's own size a device; on a CPU at most `MAX_CPU_BATCH`.
        precision: see `choose_precision`.
        type_probs: append the softmax of the TP branch to the maps.
        tta: average the maps over mirror images of each patch.
        ink: append a map of where the image has the colour of ink.
    """

    def __init__(
        self,
        net: HoVerNet | TwoScales,
        devices: Sequence[torch.device],
        batch_size: int,
        precision: str = "auto",
        type_probs: bool = False,
        tta: bool = False,
        ink: bool = False,
    ):
        self.device = devices[0]
        self.precision = choose_precision(precision, None, self.device)
        self.type_probs = type_probs and net.nr_types is not None
        self.channels = net.output_ch + (net.nr_types if self.type_probs else 0) + ink
        batch_size *= len(devices)
        if self.device.type == "cpu" and batch_size > MAX_CPU_BATCH and isinstance(net, (HoVerNet, TwoScales)):
            logger.info("batch size %d -> %d: on a CPU a larger batch is not faster", batch_size, MAX_CPU_BATCH)
            batch_size = MAX_CPU_BATCH
        self._patch_px = PATCH_SHAPES[getattr(net, "mode", "fast")][0] ** 2
        self._batch_px = batch_size * self._patch_px
        net = Flipped(net) if tta else net
        net = InkSeen(net) if ink else net
        # Apple's kernels have returned wrong values before, without an error
        self._unchecked = copy.deepcopy(net) if self.device.type == "mps" else None
        net = to_inference(net, self.device)
        self.model = torch.nn.DataParallel(net, device_ids=list(devices)) if len(devices) > 1 else net
        self._cuda = self.device.type == "cuda"
        self._up, self._down = (torch.cuda.Stream(self.device) if self._cuda else None for _ in range(2))

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Predict patches, (N, H, W, 3) uint8 RGB; (N, C, h, w) float32, see `run_desc.prediction_planes`.

        Raises:
            OutOfMemoryError: a single patch does not fit.
            WrongResultError: an Apple GPU computes other values than the CPU.
        """
        return self.download(self.forward(self.upload(torch.from_numpy(patches))))

    def batch_size(self, side: int | None = None) -> int:
        """Return how many patches of a side (default: the mode's own) make a batch; memory goes by pixels."""
        return max(self._batch_px // (side**2 if side else self._patch_px), 1)

    def new_batch(self, side: int) -> Tensor:
        """Return a buffer for a batch, (N, side, side, 3) uint8, from which CUDA can copy beside other work."""
        return torch.empty((self.batch_size(side), side, side, 3), dtype=torch.uint8, pin_memory=self._cuda)

    def upload(self, patches: Tensor) -> Tensor:
        """Start to copy patches, (N, H, W, 3) uint8, to the device; returns them as (N, 3, H, W), channels last."""
        if not self._cuda:
            return patches.permute(0, 3, 1, 2).to(self.device, torch.float32)
        with torch.cuda.stream(self._up):
            batch = patches.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        batch.record_stream(torch.cuda.default_stream(self.device))
        return batch

    def forward(self, batch: Tensor) -> Maps:
        """Run the network; when memory runs out, halve the batch size from then on. Raises what `__call__` does."""
        if self._cuda:
            torch.cuda.default_stream(self.device).wait_stream(self._up)
        parts, start = [], 0
        while start < len(batch):
            part = batch[start : start + self.batch_size(batch.shape[-1])]
            try:
                parts.append(self._step(part))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(part, error)
                continue
            start += len(part)
        if self._unchecked is not None:
            self._check(batch[:1], parts[0])
        return Maps(parts, torch.cuda.default_stream(self.device).record_event() if self._cuda else None)

    def download(self, maps: Maps) -> np.ndarray:
        """Wait for maps and return them, (N, C, h, w) float32."""
        with torch.inference_mode():
            if maps.done is None:
                parts = [prediction_planes(part, self.type_probs).cpu() for part in maps.parts]
                return (parts[0] if len(parts) == 1 else torch.cat(parts)).numpy()
            with torch.cuda.stream(self._down):
                self._down.wait_event(maps.done)
                whole = maps.parts[0] if len(maps.parts) == 1 else torch.cat(maps.parts)
                host = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True)
                host.copy_(whole, non_blocking=True)
                arrived = self._down.record_event()
            for part in maps.parts:
                part.record_stream(self._down)
            arrived.synchronize()
            return host.numpy()

    def _step(self, part: Tensor):
        """Return the network's result for a batch: the maps on a GPU, elsewhere the network's output unchanged."""
        with computing_in(self.precision, self.device), torch.inference_mode():
            self.model.eval()
            out = self.model(part.to(torch.float32))
            return prediction_planes(out, self.type_probs) if self._cuda else out

    def _shrink(self, tried: Tensor, error: RuntimeError) -> None:
        if len(tried) == 1:
            raise OutOfMemoryError(
                "out of memory with a single patch; use a smaller --window, or --gpu='' for the CPU"
            ) from error
        count, side = len(tried) // 2, tried.shape[-1]
        self._batch_px = count * side**2
        logger.warning("out of memory with a batch of %d patches of %d px: going on with %d", len(tried), side, count)
        if self._cuda:
            torch.cuda.empty_cache()

    def _check(self, batch: Tensor, found) -> None:
        """Compare the maps of the first patch with the CPU's."""
        net = to_inference(self._unchecked, "cpu")
        with torch.inference_mode():
            expected = prediction_planes(net(batch.to("cpu", torch.float32)), self.type_probs)
            off = (prediction_planes(found, self.type_probs)[:1].cpu() - expected).abs() > CHECKED_DIFFERENCE
        if (share := off.float().mean().item()) > CHECKED_SHARE:
            raise WrongResultError(
                f"{self.device} computes {100 * share:.0f} % of the first patch differently from the CPU; use --gpu= "
                "for the CPU, or another version of PyTorch"
            )
        self._unchecked = None
