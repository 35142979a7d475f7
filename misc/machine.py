"""What this machine has: processors and memory, as this process may use them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# glibc's mallopt parameters and their defaults (malloc.h, mallopt(3)).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_TRIM_DEFAULT, _MMAP_MAX_DEFAULT = 128 * 1024, 65536
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


class TooLargeError(ValueError):
    """A file needs more memory than there is; the message is one line with both sizes."""


def cpu_count() -> int:
    """Return how many processors this process may run on (at least 1)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Return how many bytes of memory are free without swapping, within a container's limit.

    Assumes 4 GiB where the system does not tell (neither Linux nor POSIX).
    """
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        try:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, OSError, ValueError):
            free = 4 << 30
    limits, used = _first_number(_CGROUP_LIMITS), _first_number(_CGROUP_USED)
    return min(free, limits - used) if limits is not None and used is not None else free


def check_fits(nr_bytes: float, what: str) -> None:
    """Raise an error if memory cannot hold something, before it is allocated.

    Args:
        nr_bytes: bytes that it takes.
        what: what takes them, for the message, e.g. `an image of 9 x 9 px`.

    Raises:
        TooLargeError: more than is free; the message gives both sizes.
    """
    free = available_memory()
    if nr_bytes > free:
        raise TooLargeError(f"{what}: {nr_bytes / 1e9:.3g} GB of memory are needed, {free / 1e9:.3g} GB are free")


def _first_number(paths: tuple[str, ...]) -> int | None:
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            return int(Path(path).read_text())
    return None


def share_one_arena() -> None:
    """Let all threads take memory from one place; call it before anything starts a thread.

    glibc gives threads arenas of their own, and memory that one of them freed is no use to the others: every layer of
    a network on a CPU then takes new pages. Does nothing where the C library is not glibc.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, 1)


@contextlib.contextmanager
def reused_memory_pages() -> Iterator[None]:
    """Keep freed memory in the process instead of giving it back to the system, while the block runs.

    A network frees and asks for hundreds of megabytes at every layer. By default glibc returns each of them and the
    kernel zeroes the pages again: half of the time of a full-width forward pass on a CPU. Does nothing where the C
    library is not glibc. It works best after `share_one_arena`.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    share_one_arena()
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX_DEFAULT)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_DEFAULT)
        libc.malloc_trim(0)


def _glibc():
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt, libc.malloc_trim  # noqa: B018  (musl has neither)
    except (OSError, AttributeError):
        return None
    return libc
