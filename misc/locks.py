"""Lock files: one run at a time works on a slide, a table or a log folder.

We do not use the package `filelock`: it leaves its files in the folders of results, fails on disks without locks
(ENOLCK), and polls instead of waiting.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None

logger = logging.getLogger(__name__)

_HELD = (errno.EACCES, errno.EAGAIN)  # errors of flock when another process has the lock


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file while the block runs; yields whether it was free. With `wait`, waits until it is.

    The system releases the lock when its process ends, even if killed, so another run can take over. On a disk without
    locks, every process gets the lock, and a warning is logged.
    """
    if fcntl is None:
        yield True
        return
    while True:
        with open(path, "a") as handle:
            if not _flock(handle, path, wait):
                yield False
                return
            if not _is_still(handle, path):
                continue  # the last holder removed the file that was opened here
            try:
                yield True
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            return


def _flock(handle: IO, path: Path, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _HELD:
            return False
        _say_no_locks(path.parent, str(error))
    return True


@functools.cache
def _say_no_locks(folder: Path, reason: str) -> None:
    logger.warning("%s: no locks on this disk (%s); do not start two runs on this folder", folder, reason)


def _is_still(handle: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
