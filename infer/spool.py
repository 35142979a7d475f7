"""A slide's finished blocks on disk, until all are there to be stitched; a killed run resumes from them.

Each slide has its own folder in the cache folder. The name has the slide, a digest of the output folder and a digest of
all that the nuclei depend on. A run with other options or weights, or of another slide of that name, uses another
folder, so the content of a folder always fits the run. The worker that finds the nuclei of a block writes its file.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.segment import BlockNuclei
from misc.files import atomic_path, short_stem

logger = logging.getLogger(__name__)

_DIGEST_LENGTH = 16
# Errors of a damaged .npz, or of one from another version.
DAMAGED = (ValueError, KeyError, IndexError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class SpoolError(RuntimeError):
    """A file of an earlier run cannot be read."""


@dataclass(frozen=True)
class Spool:
    """Finished blocks of one slide, `name`; the caller holds the slide's lock.

    Attributes:
        root: the cache folder.
        owner: the output folder: runs into different ones may share a cache folder.
        digest: of all that the nuclei depend on.
    """

    root: Path
    name: str
    owner: str
    digest: str

    @classmethod
    def of(cls, root: Path, name: str, owner: Path, fingerprint: dict[str, Any]) -> Spool:
        """Make the folder, and remove the slide's folders of earlier runs that depended on something else.

        `fingerprint` is what the nuclei depend on, anything that JSON can hold.
        """
        spool = cls(root, name, str(owner), _digest(json.dumps(fingerprint, sort_keys=True, default=str)))
        for folder in spools(root, name, owner):
            if folder != spool.folder:
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another run just removed the empty cache folder
            spool.folder.mkdir(parents=True, exist_ok=True)
        spool.folder.mkdir(parents=True, exist_ok=True)
        for path in spool.folder.glob(".*"):  # half-written files of killed runs
            path.unlink(missing_ok=True)
        return spool

    @property
    def folder(self) -> Path:
        return self.root / f"{_prefix(self.name, self.owner)}.{self.digest}.spool"

    def blocks(self) -> dict[int, int]:
        """Return which blocks are there, and how many nuclei they own; removes damaged ones."""
        counts = {}
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            try:
                counts[int(path.stem)] = int(self.read(int(path.stem)).owned.sum())
            except SpoolError as error:
                logger.warning("%s; that block is done again", error)
                path.unlink()
        return counts

    def write(self, part: BlockNuclei) -> None:
        """Write a block."""
        with atomic_path(self._path(part.block)) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **part.to_arrays())

    def read(self, block: int) -> BlockNuclei:
        """Return a block; `SpoolError` where the file is damaged or not there, `OSError` where it cannot be read."""
        path = self._path(block)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                # a file decompresses a member at every access
                return BlockNuclei.from_arrays(block, {name: arrays[name] for name in arrays})
        except DAMAGED as error:
            raise SpoolError(f"{path} cannot be read ({error})") from error
        except OSError as error:
            # a short failure of a drive must not make hours of work be done again
            if error.errno not in (None, errno.EINVAL, errno.ENOENT):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise SpoolError(f"{path} cannot be read ({error})") from error

    def remove(self) -> None:
        """Delete the slide's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:06d}.npz"


def spools(root: Path, name: str, owner: Path | str) -> list[Path]:
    """Return the folders of all spools of a slide, whatever they depend on."""
    pattern = re.compile(rf"{re.escape(_prefix(name, owner))}\.[0-9a-f]{{{_DIGEST_LENGTH}}}\.spool")
    return [path for path in root.glob("*.spool") if pattern.fullmatch(path.name) and path.is_dir()]


def remove_finished(root: Path, name: str, owner: Path | str, result: Path) -> None:
    """Remove spools that were complete before `result` was written: their runs were killed right after it."""
    for folder in spools(root, name, owner):
        # not the folder's own time: some of its blocks may have been removed since
        if max((path.stat().st_mtime_ns for path in folder.iterdir()), default=0) <= result.stat().st_mtime_ns:
            shutil.rmtree(folder, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]


def _prefix(name: str, owner: Path | str) -> str:
    return f"{short_stem(name)}.{_digest(str(owner))}"
