"""Several processes of one run, as torchrun starts them, and what the ranks exchange.

Without torchrun every function here works for the one process, so callers need no second path.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Process:
    """This process's place among all; `local_rank` counts the processes of this machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def is_torchrun() -> bool:
    """Whether torchrun started this process; some clusters set one of the two variables for purposes of their own."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def read_environment() -> Process:
    """Return this process's place in a torchrun; without one, the only process."""
    if not is_torchrun():
        return Process()
    return Process(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def start(process: Process, device: torch.device) -> None:
    """Connect to the other processes, if torchrun started this one: NCCL between GPUs, gloo between CPUs."""
    if not is_torchrun() or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", rank=process.rank, world_size=process.world_size
    )


def stop() -> None:
    """Disconnect from the other processes."""
    if is_running():
        dist.destroy_process_group()


def is_running() -> bool:
    """Whether this process is one of a torchrun."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process; 0 is the one that writes."""
    return dist.get_rank() if is_running() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_running() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def gather(value) -> list:
    """Return every rank's `value` (anything that can be pickled), in order of rank, on every rank."""
    if not is_running():
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def on_main(function: Callable, *arguments):
    """Call `function` on rank 0 only; every rank returns its result, or raises its ValueError or OSError.

    For questions about files: on several machines, other ranks may not see those of rank 0.
    """
    result = error = None
    if is_main():
        try:
            result = function(*arguments)
        except (ValueError, OSError) as caught:
            error = caught
    if is_running():
        shared = [(result, error)]
        dist.broadcast_object_list(shared, src=0)
        result, error = shared[0]
    if error is not None:
        raise error
    return result


def gather_lists(raw: dict[str, list]) -> dict[str, list]:
    """Join dictionaries of lists over the ranks, key by key."""
    parts = gather(raw)
    return {key: [entry for part in parts for entry in part.get(key, [])] for key in _keys(parts)}


def _keys(parts: list[dict]) -> list[str]:
    return list(dict.fromkeys(key for part in parts for key in part))


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Give every rank the mean of all ranks' batch-norm statistics; the other buffers are equal anyway."""
    if not is_running():
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world_size()
