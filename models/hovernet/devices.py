"""Devices and precisions: what the options mean, and how to compute with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

_PRECISIONS = {"tf32": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Messages of PyTorch, cuBLAS and cuDNN for "out of memory" that have no exception class of their own, in lower case:
# the allocator of the CPU, "CUDA error: out of memory", CUBLAS_STATUS_ALLOC_FAILED and CUDNN_STATUS_ALLOC_FAILED,
# CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_alloc_failed", "_allocation_failed")


def parse_devices(gpu: str) -> list[torch.device]:
    """Turn `--gpu` into devices.

    Args:
        gpu: comma-separated ids; `mps` for Apple's; empty for the CPU. Without CUDA, ids mean the CPU.

    Raises:
        ValueError: an id is no number, or this machine has no such GPU.
    """
    if gpu.strip().lower() == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("--gpu=mps: this machine has no Apple GPU that PyTorch can use; --gpu= runs on the CPU")
        return [torch.device("mps")]
    try:
        ids = [int(item) for item in gpu.split(",") if item.strip()]
    except ValueError as error:
        raise ValueError(f"--gpu takes comma-separated ids such as 0,1, or mps; got `{gpu}`") from error
    if not ids:
        return [torch.device("cpu")]
    if not torch.cuda.is_available():
        return [torch.device("cpu")]
    count = torch.cuda.device_count()
    unknown = [i for i in ids if not 0 <= i < count]
    if unknown:
        raise ValueError(f"--gpu={gpu}: no GPU {unknown}; this machine has {count} (0 to {count - 1})")
    return [torch.device("cuda", i) for i in ids]


def device_names(devices: Sequence[torch.device], gpu: str) -> str:
    """Return the name of the devices of `--gpu` for messages; says so if a GPU was asked for and there is none."""
    names = ", ".join(str(device) for device in devices)
    return f"{names} (no CUDA device here, --gpu={gpu} has no effect)" if names == "cpu" and gpu.strip() else names


def choose_precision(asked: str, recommended: str | None, device: torch.device) -> str:
    """Return the precision to compute in.

    Args:
        asked: `--precision`.
        recommended: what the checkpoint recommends for `auto`, if anything; taken where the device has it in hardware.
        device: the device. `auto` does what the original does: on CUDA PyTorch's default, TF32 for convolutions;
            elsewhere fp32.

    Raises:
        ValueError: unknown precision, or the device does not support it.
    """
    if asked == "auto":
        if recommended in _PRECISIONS and has_precision(device, recommended):
            return recommended
        return "tf32" if device.type == "cuda" else "fp32"
    if asked not in _PRECISIONS:
        raise ValueError(f"--precision must be auto, {', '.join(_PRECISIONS)}; got `{asked}`")
    if device.type == "cpu" and asked in ("fp16", "tf32"):
        raise ValueError(f"--precision={asked} needs a GPU; use fp32 or bf16 on a CPU")
    return asked


def has_precision(device: torch.device, precision: str) -> bool:
    """Tell whether a device computes in a precision at least as fast as in fp32."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision != "bf16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and precision == "bf16":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private; if missing: no
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return False


def computing_in(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context in which a network computes in a precision, see `choose_precision`."""
    if precision == "fp32":
        return full_fp32()
    if precision == "tf32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_PRECISIONS[precision])


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Compute in full float32 while the block runs; by default CUDA convolutions keep 10 of its 23 bits (TF32)."""
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
    """Tell whether the network ran out of memory; only some libraries have an exception class for that."""
    said = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in said for words in _OUT_OF_MEMORY)
