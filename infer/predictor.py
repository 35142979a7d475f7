"""The network at work: batches of patches in, prediction maps out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from models.hovernet.net_desc import HoVerNet, to_inference
from models.hovernet.run_desc import infer_step

logger = logging.getLogger(__name__)

# On a CPU larger batches gain nothing and cost 0.6 GB a patch at full width.
MAX_CPU_BATCH = 4
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How PyTorch, cuBLAS and cuDNN say that memory ran out where they raise no exception of a class of its own, lower case:
# the allocator of the CPU, "CUDA error: out of memory", CUBLAS_STATUS_ALLOC_FAILED and CUDNN_STATUS_ALLOC_FAILED,
# CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_alloc_failed", "_allocation_failed")


class OutOfMemoryError(RuntimeError):
    """The network does not fit into memory even with one patch at a time."""


def parse_devices(gpu: str) -> list[torch.device]:
    """Turn `--gpu` into devices.

    Args:
        gpu: comma-separated ids; empty for the CPU. Without CUDA it is the CPU whatever the ids.

    Raises:
        ValueError: an id is no number, or this machine has no such GPU.
    """
    try:
        ids = [int(item) for item in gpu.split(",") if item.strip()]
    except ValueError as error:
        raise ValueError(f"--gpu takes comma-separated ids such as 0,1; got `{gpu}`") from error
    if not ids:
        return [torch.device("cpu")]
    if not torch.cuda.is_available():
        logger.info("no CUDA device here: running on the CPU")
        return [torch.device("cpu")]
    count = torch.cuda.device_count()
    unknown = [i for i in ids if not 0 <= i < count]
    if unknown:
        raise ValueError(f"--gpu={gpu}: no GPU {unknown}; this machine has {count} (0 to {count - 1})")
    return [torch.device("cuda", i) for i in ids]


class Predictor:
    """A network on its devices.

    Args:
        net: the network with its weights.
        devices: one CPU, or one or several CUDA devices (DataParallel).
        batch_size: patches a device; on a CPU at most `MAX_CPU_BATCH`.
        precision: `auto` (fp32), `fp32`, `bf16` or `fp16`.
        type_probs: append the softmax of the TP branch to the maps.

    Raises:
        ValueError: unknown precision, or one that the device cannot do.
    """

    def __init__(
        self,
        net: HoVerNet,
        devices: Sequence[torch.device],
        batch_size: int,
        precision: str = "auto",
        type_probs: bool = False,
    ):
        self.device = devices[0]
        self.precision = "fp32" if precision == "auto" else precision
        if self.precision not in _PRECISIONS:
            raise ValueError(f"--precision must be auto, {', '.join(_PRECISIONS)}; got `{precision}`")
        if self.device.type == "cpu" and self.precision == "fp16":
            raise ValueError("--precision=fp16 needs a GPU; use fp32 or bf16 on a CPU")
        self.type_probs = type_probs and net.nr_types is not None
        self.channels = net.output_ch + (net.nr_types if self.type_probs else 0)
        self.batch_size = batch_size * len(devices)
        if self.device.type == "cpu" and batch_size > MAX_CPU_BATCH:
            logger.info("batch size %d -> %d: on a CPU more gains nothing", batch_size, MAX_CPU_BATCH)
            self.batch_size = MAX_CPU_BATCH
        net = to_inference(net, self.device)
        self.model = torch.nn.DataParallel(net, device_ids=list(devices)) if len(devices) > 1 else net

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Predict patches; when memory runs out, with half the batch size from then on.

        Args:
            patches: (N, H, W, 3) uint8, RGB.

        Returns:
            (N, h, w, C) float32, channels as in `run_desc.to_prediction_map`.

        Raises:
            OutOfMemoryError: a single patch does not fit.
        """
        outputs, start = [], 0
        while start < len(patches):
            part = patches[start : start + self.batch_size]
            try:
                outputs.append(self._step(part))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(len(part), error)
                continue
            start += len(part)
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def _step(self, part: np.ndarray) -> np.ndarray:
        if self.precision == "fp32":
            computed_in = full_fp32()
        else:
            computed_in = torch.autocast(self.device.type, dtype=_PRECISIONS[self.precision])
        with computed_in:
            return infer_step(torch.from_numpy(part), self.model, self.type_probs)

    def _shrink(self, tried: int, error: RuntimeError) -> None:
        if tried == 1:
            raise OutOfMemoryError(
                "out of memory with a single patch; use a smaller --window, or --gpu='' for the CPU"
            ) from error
        self.batch_size = max(tried // 2, 1)
        logger.warning("out of memory with a batch of %d: going on with %d", tried, self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Compute in whole float32 while the block runs; by default CUDA convolutions keep 10 of its 23 bits (TF32)."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether the network ran out of memory; only some of those who notice have an exception class for that."""
    said = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in said for words in _OUT_OF_MEMORY)
