"""Where a slide's finished tiles wait on disk to be joined, and what a killed run needs to go on.

A slide has a folder of its own in the cache folder, named after the slide, a digest of the output folder and one of
all that the nuclei depend on. A run with other options, weights or another slide of that name has another folder; so
what is in it can be trusted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from infer.tile_nuclei import TileNuclei, pack, unpack
from infer.wsi_files import named_errors, short_stem
from misc.files import atomic_path, remove_if_empty

logger = logging.getLogger(__name__)

_DIGEST_LENGTH = 16
_TRIES = 10
_T = TypeVar("_T")
# What a damaged .npz raises, or one that another version wrote.
_DAMAGED = (ValueError, KeyError, IndexError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class SpoolError(RuntimeError):
    """What a run left here cannot be read back."""


class Spool:
    """Finished rows of tiles of one slide, and the state of joining; whoever makes one holds the slide's lock.

    As a context manager it leaves no empty folder behind; what is in it stays, for the next run to go on.

    Args:
        root: the cache folder; made if it is not there.
        name: of the slide.
        fingerprint: what the nuclei depend on; anything that JSON can hold. Spools of the same slide and owner with
            another one are of runs that have ended, and are removed.
        owner: the output folder: runs into different ones may share a cache folder.
        is_ours: nobody else has anything in `root`, which goes when it is empty; otherwise only if this object made it.
    """

    def __init__(self, root: Path, name: str, fingerprint: dict[str, Any], owner: Path | str = "", is_ours=False):
        text = json.dumps(fingerprint, sort_keys=True, default=str)
        self.root = root
        self._may_remove_root = is_ours or not root.exists()
        self.folder = root / f"{_prefix(name, owner)}.{_digest(text)}.spool"
        for folder in _spools(root, name, owner):
            if folder != self.folder:
                shutil.rmtree(folder, ignore_errors=True)
        _make(self.folder)
        for path in self.folder.glob(".*"):  # what killed runs were writing
            path.unlink(missing_ok=True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_) -> None:
        if not any(self.folder.glob("[!.]*")):
            self.remove()

    def rows(self) -> dict[int, int]:
        """Return which rows of tiles are there, and how many nuclei they own; those that are damaged are removed.

        Raises:
            OSError: a row cannot be read.
        """
        rows = {}
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            row = int(path.stem)
            try:
                rows[row] = sum(int(part.owned.sum()) for part in self.read(row))
            except SpoolError as error:
                logger.warning("%s; that row is done again", error)
                path.unlink()
        return rows

    def write(self, row: int, parts: Sequence[TileNuclei]) -> None:
        """Keep the tiles of a row."""
        _save(self._path(row), pack(parts))

    def read(self, row: int) -> list[TileNuclei]:
        """Return the tiles of a row.

        Raises:
            SpoolError: the file is damaged.
            OSError: it cannot be read.
        """
        return _load(self._path(row), unpack)

    def remove_rows(self, rows: Iterable[int]) -> None:
        """Remove rows, those that are there."""
        for row in rows:
            self._path(row).unlink(missing_ok=True)

    def write_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the state of joining."""
        _save(self._state, arrays)

    def read_state(self, make: Callable[[Mapping[str, np.ndarray]], _T]) -> _T | None:
        """Return what `make` makes of the state of joining; `None` where none was kept.

        Raises:
            As `read`.
        """
        return _load(self._state, make) if self._state.exists() else None

    def forget_state(self) -> None:
        """Remove the state of joining."""
        self._state.unlink(missing_ok=True)

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def remove(self) -> None:
        """Delete the slide's folder, and the cache folder if it is empty and ours."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._may_remove_root:
            remove_if_empty(self.root)

    @property
    def _state(self) -> Path:
        return self.folder / "joined.npz"

    def _path(self, row: int) -> Path:
        return self.folder / f"{row:06d}.npz"


def _load(path: Path, make: Callable[[Mapping[str, np.ndarray]], _T]) -> _T:
    try:
        with named_errors(path), np.load(path, allow_pickle=False) as arrays:
            # a file decompresses a member at every access
            return make({name: arrays[name] for name in arrays})
    except _DAMAGED as error:
        raise SpoolError(f"{path} cannot be read ({error})") from error
    except OSError as error:
        # a drive that is away for a moment is no reason to do hours of work again
        if error.errno not in (None, errno.EINVAL, errno.ENOENT):
            raise
        raise SpoolError(f"{path} cannot be read ({error})") from error


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with named_errors(path), atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)


def remove_finished(root: Path, name: str, owner: Path | str, result: Path) -> None:
    """Remove spools that were complete before `result` was written: their runs were killed right after it."""
    for folder in _spools(root, name, owner):
        if folder.stat().st_mtime_ns <= result.stat().st_mtime_ns:
            shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path) -> None:
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # another run just removed the empty cache folder
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


def _prefix(name: str, owner: Path | str) -> str:
    return f"{short_stem(name)}.{_digest(str(owner))}"


def _spools(root: Path, name: str, owner: Path | str) -> list[Path]:
    """Return the folders of all spools of a slide, whatever they depend on."""
    pattern = re.compile(rf"{re.escape(_prefix(name, owner))}\.[0-9a-f]{{{_DIGEST_LENGTH}}}\.spool")
    return [path for path in root.glob("*.spool") if pattern.fullmatch(path.name) and path.is_dir()]
