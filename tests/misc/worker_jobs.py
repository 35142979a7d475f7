"""Jobs for the tests of the worker pool; a worker that imports this needs no pytest."""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """A function and what it is called with; functions that tell workers from the parent get the parent's pid."""

    function: Any
    args: tuple

    def run(self) -> Any:
        return self.function(*self.args)


def double(number):
    return 2 * number


def fail_on_three(number):
    if number == 3:
        raise ValueError("three is not liked")
    return number


def die_in_a_worker(parent, number):
    """Number 2 kills its process, unless that is the parent."""
    if number == 2 and os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_in_a_worker(parent, number):
    if os.getpid() != parent:
        raise MemoryError("only here")
    return number


def large_result(number):
    """Larger than a pipe holds: a kill often meets a worker that is writing it."""
    return bytes([number % 256]) * (4 << 20)


def die_amid_the_result(parent, number):
    """As `die_in_a_worker`, when half of the result has been written."""
    if number == 2 and os.getpid() != parent:

        def half(pipe, data):
            os.write(pipe.fileno(), struct.pack("!i", len(data)) + bytes(data[: len(data) // 2]))
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send_bytes = half
    return bytes(1000) if number == 2 else number


def unsendable(parent):
    """A worker makes what cannot be pickled."""
    return (lambda: 0) if os.getpid() != parent else "made here"


def add_up(*arrays):
    """Sum of arrays, which are changed: the memory is the parent's, too."""
    sums = [int(shared.array.sum()) for shared in arrays]
    for shared in arrays:
        shared.array[...] = 1
    return os.getpid(), sums


def add_up_or_die(parent, number, shared):
    die_in_a_worker(parent, number)
    return int(shared.array.sum())


def mapped(shared=None):
    """Return how many bytes of shared arrays this process maps."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:maps" in line]
    ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return sum(stop - start for start, stop in ends)
