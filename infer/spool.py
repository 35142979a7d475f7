"""Where a slide's finished tiles wait on disk until the last one is there: some hundred MB, and what resuming needs.

A slide has a folder of its own in the cache folder, named after the slide and a digest of all that the nuclei depend
on. A run with other options, weights or another slide of that name has another folder; so what is in it can be trusted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from infer.tile_nuclei import TileNuclei, pack, unpack
from misc.files import atomic_path

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not kept apart there
    fcntl = None

logger = logging.getLogger(__name__)

_DIGEST_LENGTH = 16
_HELD = (errno.EACCES, errno.EAGAIN)  # what flock says when somebody else has the lock


class Spool:
    """Finished rows of tiles of one slide.

    Args:
        root: the cache folder; made if it is not there, and removed again if nothing else came into it.
        name: of the slide.
        fingerprint: what the nuclei depend on; anything that JSON can hold.
    """

    def __init__(self, root: Path, name: str, fingerprint: dict[str, Any]):
        text = json.dumps(fingerprint, sort_keys=True, default=str)
        self._made_root = not root.exists()
        self.root = root
        self.folder = root / f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]}.spool"
        self.folder.mkdir(parents=True, exist_ok=True)

    def rows(self) -> set[int]:
        """Return which rows of tiles are there."""
        return {int(path.stem) for path in self.folder.glob("[0-9]*.npz")}

    def write(self, row: int, parts: Sequence[TileNuclei]) -> None:
        """Keep the tiles of a row."""
        with atomic_path(self._path(row)) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **pack(parts))

    def read(self, row: int) -> list[TileNuclei]:
        """Return the tiles of a row."""
        with np.load(self._path(row), allow_pickle=False) as arrays:
            return unpack(arrays)

    def remove(self) -> None:
        """Delete the slide's folder, and the cache folder if this object made it and it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._made_root:
            with contextlib.suppress(OSError):
                self.root.rmdir()

    def _path(self, row: int) -> Path:
        return self.folder / f"{row:06d}.npz"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs; yields whether it was free.

    The system gives the lock up when its process ends, however it ends: a dead run's slides are taken over. On a disk
    that has no locks it is free to everybody, which is said.
    """
    if fcntl is None:
        yield True
        return
    while True:
        with open(path, "a") as handle:
            if not _flock(handle, path):
                yield False
                return
            if not _is_still(handle, path):
                continue  # its last holder removed it after it was opened here: whoever comes next would make another
            try:
                yield True
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            return


def _flock(handle: IO, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        logger.warning("%s: no locks on this disk (%s); do not start two runs on this folder", path.parent, error)
    return True


def _is_still(handle: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
