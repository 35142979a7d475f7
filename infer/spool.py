"""Where a slide's finished tiles wait on disk until the last one is there: some hundred MB, and what resuming needs.

A slide has a folder of its own in the cache folder, named after the slide, a digest of the output folder and one of
all that the nuclei depend on. A run with other options, weights or another slide of that name has another folder; so
what is in it can be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.tile_nuclei import TileNuclei, pack, unpack
from infer.wsi_files import short_stem
from misc.files import atomic_path, remove_if_empty

logger = logging.getLogger(__name__)

_DIGEST_LENGTH = 16
_TRIES = 10
_UNREADABLE = (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile)  # what a damaged .npz raises


class SpoolError(RuntimeError):
    """A finished row of tiles cannot be read back."""


class Spool:
    """Finished rows of tiles of one slide; whoever makes one holds the slide's lock.

    As a context manager it leaves no empty folder behind; rows stay, for the next run to go on.

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

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_) -> None:
        if not any(self.folder.glob("[0-9]*.npz")):
            self.remove()

    def rows(self) -> dict[int, int]:
        """Return which rows of tiles are there, and how many nuclei they own; those that are damaged are removed."""
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
        with atomic_path(self._path(row)) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **pack(parts))

    def read(self, row: int) -> list[TileNuclei]:
        """Return the tiles of a row.

        Raises:
            SpoolError: the file is damaged, or cannot be read.
        """
        try:
            with np.load(self._path(row), allow_pickle=False) as arrays:
                return unpack(arrays)
        except _UNREADABLE as error:
            raise SpoolError(f"{self._path(row)} cannot be read ({error})") from error

    def remove(self) -> None:
        """Delete the slide's folder, and the cache folder if it is empty and ours."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._may_remove_root:
            remove_if_empty(self.root)

    def _path(self, row: int) -> Path:
        return self.folder / f"{row:06d}.npz"


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
