"""`summary.csv`: what became of each slide, kept up to date while runs are at work, also by several at once."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from infer.spool import locked
from misc.files import write_atomic

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
        """Merge what is unwritten into the file; lines of other slides stay.

        Raises:
            OSError: it cannot be written.
        """
        if not self._unwritten:
            return
        with locked(self.path.with_name(f".{self.path.stem}.lock"), wait=True):
            lines = self._lines()
            for row in self._unwritten:
                if not _says_more(lines.get(row.slide), row):
                    lines[row.slide] = asdict(row)
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines[slide] for slide in sorted(lines))
            write_atomic(self.path, text.getvalue())
        self._unwritten = []

    def _lines(self) -> dict[str, dict]:
        if not self.path.is_file():
            return {}
        with open(self.path, newline="", encoding="utf-8", errors="replace") as handle:
            return {line["slide"]: line for line in csv.DictReader(handle) if line.keys() == set(COLUMNS)}


def _says_more(earlier: dict | None, row: Row) -> bool:
    """Tell whether the line of an earlier run, or of one beside this, is to stay."""
    if earlier is None or row.status != SKIPPED:
        return False
    return earlier["status"] == DONE or row.reason == BUSY
