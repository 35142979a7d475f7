"""`summary.csv`: what became of each slide, kept up to date while runs are at work, also by several at once."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from misc.files import write_atomic
from misc.locks import locked

logger = logging.getLogger(__name__)

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
BUSY = "another run is at work on it"
THERE = "its results are there"


@dataclass
class Row:
    """A line of the summary."""

    slide: str
    status: str = FAILED
    reason: str = ""
    nuclei: int | str = ""
    seconds: float | str = ""
    mpp: float | str = ""
    magnification: float | str = ""
    tissue_share: float | str = ""


COLUMNS = tuple(column.name for column in fields(Row))


class Summary:
    """The file, and the lines that could not be written to it yet.

    Args:
        path: the file; a lock lies beside it while it is changed.
    """

    def __init__(self, path: Path):
        self.path = path
        self._unwritten: list[Row] = []

    def earlier(self, slide: str) -> dict[str, str] | None:
        """Return the line of a slide as it is in the file."""
        return self._lines().get(slide)

    def put(self, row: Row) -> None:
        """Add a line; a disk that is full now does not end the run."""
        self._unwritten.append(row)
        try:
            self.flush()
        except OSError as error:
            logger.warning("%s: cannot be written now (%s)", self.path, error)

    def flush(self) -> None:
        """Merge what is unwritten into the file; lines of other slides stay, and so do columns that a user added.

        Raises:
            OSError: it cannot be written.
        """
        if not self._unwritten:
            return
        with locked(self.path.with_name(f".{self.path.stem}.lock"), wait=True):
            lines = self._lines()
            if not lines:
                self._set_aside()
            for row in self._unwritten:
                earlier = lines.get(row.slide)
                if not _says_more(earlier, row):
                    lines[row.slide] = {**(earlier or {}), **asdict(row)}
            text = io.StringIO()
            columns = dict.fromkeys(itertools.chain(COLUMNS, *lines.values()))
            writer = csv.DictWriter(text, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines[slide] for slide in sorted(lines))
            write_atomic(self.path, text.getvalue().encode(errors="backslashreplace"))
        self._unwritten = []

    def _set_aside(self) -> None:
        """Rename a file in which no line was found: whatever a spreadsheet made of it, nothing in it is to be lost."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        names = (self.path.with_name(f"{self.path.stem}.old{number}.csv") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        os.replace(self.path, aside)
        logger.warning("%s: has no line with a `slide`, separated by commas; it is now %s", self.path, aside.name)

    def _lines(self) -> dict[str, dict]:
        if not self.path.is_file():
            return {}
        # spreadsheets put a byte-order mark in front, and users add columns
        lines: list[dict] = []
        encoded = {"encoding": "utf-8-sig", "errors": "replace"}
        with open(self.path, newline="", **encoded) as handle, contextlib.suppress(csv.Error):
            lines = [line for line in csv.DictReader(handle) if line.get("slide")]
        return {line["slide"]: {name: value for name, value in line.items() if name is not None} for line in lines}


def _says_more(earlier: dict | None, row: Row) -> bool:
    """Tell whether the line of an earlier run, or of one beside this, is to stay."""
    if earlier is None or row.status != SKIPPED:
        return False
    return earlier.get("status") == DONE or row.reason == BUSY
