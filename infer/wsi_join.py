"""Rows of tiles of a slide, joined and written as they come: memory and disk are bounded whatever the slide's size.

Finished rows wait in the spool. Once it holds more than `JOIN_BYTES` they are joined; nuclei that nothing can change
any more go to a hidden file beside the slide's JSON, whose text it is, and the state of the joining (the tiles of one
row) to the spool, instead of the rows. A killed run goes on from that state and cuts off what was written after it was
saved, so that the file is, byte for byte, that of a run that was not killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from infer.spool import Spool, SpoolError
from infer.stitch import Stitcher
from infer.stitch_state import StitchState
from infer.tile_nuclei import TileNuclei
from infer.wsi_files import joined_path, named_errors, result_path
from infer.wsi_plan import Plan
from misc.files import atomic_path
from misc.formats.nuclei_json import SEPARATOR, TAIL, nuclei_text
from misc.nuclei import Nuclei

logger = logging.getLogger(__name__)

# Bytes of finished rows that wait to be joined: 400,000 nuclei, which take some five seconds.
JOIN_BYTES = 128 << 20
_COPY_BYTES = 1 << 20


@dataclass
class _Progress:
    """What has been joined, and where the file ends that holds it.

    Attributes:
        rows: nuclei of the rows of tiles that were joined, those that are still open included.
        found: nuclei in the file, by type (`None` without types).
        head: bytes of the file before the nuclei.
        text: bytes of the nuclei.
        checksum: CRC-32 of both.
        stitching: the nuclei that are not in the file yet.
    """

    rows: dict[int, int] = field(default_factory=dict)
    found: Counter = field(default_factory=Counter)
    head: int = 0
    text: int = 0
    checksum: int = 0
    stitching: StitchState = field(default_factory=StitchState)

    @property
    def size(self) -> int:
        """Bytes of the file that are for good."""
        return self.head + self.text

    def to_arrays(self) -> dict[str, np.ndarray]:
        numbers = {name: getattr(self, name) for name in ("head", "text", "checksum")}
        numbers |= {"rows": list(self.rows.items()), "found": list(self.found.items())}
        return {**self.stitching.to_arrays(), "progress": np.array(json.dumps(numbers))}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> _Progress:
        numbers = json.loads(str(arrays["progress"]))
        numbers |= {"rows": dict(numbers["rows"]), "found": Counter(dict(numbers["found"]))}
        return cls(**numbers, stitching=StitchState.from_arrays(arrays))


class SlideJoiner:
    """Takes the rows of tiles of a slide and makes its JSON file of them; goes on where a killed run was.

    Args:
        spool: of the slide.
        plan: of the slide.
        path: the JSON file.
        head: how it begins, see `misc.formats.nuclei_json.head_text`.

    Attributes:
        seconds: spent on joining before the last row.

    Raises:
        OSError: what an earlier run left cannot be read.
    """

    def __init__(self, spool: Spool, plan: Plan, path: Path, head: bytes):
        self.spool, self.path, self.head = spool, path, head
        self.seconds = 0.0
        self._joined = joined_path(path)
        self._progress = self._resumed() or _Progress()
        self._saved = self._progress.size
        spool.remove_rows(self._progress.rows)  # of a run killed right after the state was saved
        self._waiting = spool.rows()
        expected = plan.expected()
        self._expected = sorted({index // plan.tiles.cols for index in expected})
        self._stitcher = Stitcher(plan.tiles, expected, self._progress.stitching)

    @property
    def rows(self) -> dict[int, int]:
        """Rows of tiles that are done, and how many nuclei they own."""
        return self._progress.rows | self._waiting

    def keep(self, row: int, parts: Sequence[TileNuclei]) -> None:
        """Keep a row; join it and those that wait when there are many.

        Raises:
            OSError: it cannot be written; the file is named.
            SpoolError: a row that waits cannot be read back.
        """
        self.spool.write(row, parts)
        self._waiting[row] = sum(int(part.owned.sum()) for part in parts)
        if self.spool.size() > JOIN_BYTES and (rows := self._next_rows()):
            start = time.perf_counter()
            with self._appending() as out:
                self._join(rows, out)
            self._save(rows)
            self.seconds += time.perf_counter() - start

    def finish(self) -> Counter:
        """Join what is left, and give the file its name.

        Returns:
            Number of nuclei of each type (`None` without types).

        Raises:
            SpoolError: a row is missing, or cannot be read back.
            OSError: as `keep`; what was joined before remains for the next run.
        """
        with self._appending() as out:
            self._join(self._next_rows(), out)
            if not self._stitcher.done:
                raise SpoolError(f"{self.spool.folder}: not all rows of tiles are there; the same command goes on")
            out.write(TAIL)
        try:
            with named_errors(self.path):
                self._give_name()
        except OSError:
            self._cut_back()
            raise
        return self._progress.found

    # ------------------------------------------------------------------------------------------ joining

    def _next_rows(self) -> list[int]:
        """Return the rows that can be joined: those before the first one that is not there."""
        rows = []
        for row in self._expected:
            if row in self._waiting:
                rows.append(row)
            elif row not in self._progress.rows:
                break
        return rows

    def _join(self, rows: Sequence[int], out: BinaryIO) -> None:
        progress = self._progress
        for row in rows:
            for part in self.spool.read(row):
                for nuclei in self._stitcher.add(part):
                    progress.found.update(_count(nuclei))
                    for text in nuclei_text(nuclei):
                        text = SEPARATOR + text if progress.text else text
                        progress.text += out.write(text)
                        progress.checksum = zlib.crc32(text, progress.checksum)
            progress.rows[row] = self._waiting.pop(row)

    @contextlib.contextmanager
    def _appending(self) -> Iterator[BinaryIO]:
        """Open the file behind what was saved; when the block fails, no more is left in it than there was."""
        progress = self._progress
        with named_errors(self._joined):
            try:
                with open(self._joined, "r+b" if self._saved else "wb") as out:
                    if out.seek(0, os.SEEK_END) < self._saved:
                        raise OSError(errno.EIO, "somebody else cut it meanwhile")
                    out.truncate(self._saved)
                    out.seek(self._saved)
                    if not self._saved:
                        progress.head, progress.checksum = out.write(self.head), zlib.crc32(self.head)
                    yield out
                    out.flush()
                    os.fsync(out.fileno())
            except BaseException:
                self._cut_back()
                raise

    def _save(self, rows: Sequence[int]) -> None:
        """Save how far joining got, and remove the rows that went into it."""
        try:
            self.spool.write_state(self._progress.to_arrays())
        except OSError:
            self._cut_back()
            raise
        self._saved = self._progress.size
        self.spool.remove_rows(rows)

    def _cut_back(self) -> None:
        """Leave only what was saved, so that other slides may find room on the disk."""
        with contextlib.suppress(OSError):
            if self._saved:
                os.truncate(self._joined, self._saved)
            else:
                self._joined.unlink()

    def _give_name(self) -> None:
        """Make the whole file the slide's JSON, with a new head if names or colours of types were edited meanwhile."""
        with open(self._joined, "rb") as source:
            same = source.read(self._progress.head) == self.head
            if not same:
                with result_path(self.path) as path, atomic_path(path) as temporary, open(temporary, "wb") as out:
                    out.write(self.head)
                    shutil.copyfileobj(source, out)
        if same:
            os.replace(self._joined, self.path)
        else:
            self._joined.unlink()

    # ------------------------------------------------------------------------------------------ going on

    def _resumed(self) -> _Progress | None:
        """Return what an earlier run had joined, if there is any and its file is as it was left."""
        try:
            progress = self.spool.read_state(_Progress.from_arrays)
        except SpoolError as error:
            self._forget(str(error))
            return None
        with named_errors(self._joined):
            if progress and _checksum(self._joined, progress.size) != progress.checksum:
                self._forget(f"{self._joined} is not as the last run left it")
                return None
        return progress

    def _forget(self, reason: str) -> None:
        logger.warning("%s; the rows of tiles that were joined are done again", reason)
        self.spool.forget_state()


def remove_joined(path: Path) -> None:
    """Remove nuclei that were joined before the JSON file `path` was written: their run was killed right after it."""
    joined = joined_path(path)
    with contextlib.suppress(FileNotFoundError):
        if joined.stat().st_mtime_ns <= path.stat().st_mtime_ns:
            joined.unlink()


def _count(nuclei: Nuclei) -> dict[int | None, int]:
    if nuclei.types is None:
        return {None: len(nuclei)}
    types, counts = np.unique(nuclei.types, return_counts=True)
    return dict(zip(types.tolist(), counts.tolist(), strict=True))


def _checksum(path: Path, length: int) -> int | None:
    """Return the CRC-32 of the first bytes of a file, `None` if they are not all there."""
    checksum = 0
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        while length and (block := file.read(min(length, _COPY_BYTES))):
            checksum, length = zlib.crc32(block, checksum), length - len(block)
    return None if length else checksum
