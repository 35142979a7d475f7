"""A table with a line for each slide, updated during runs, also by several runs at once."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from misc.files import CsvWriter, plain_cell, remove_parts, write_atomic
from misc.locks import locked

logger = logging.getLogger(__name__)

# Status of a slide in a job's list that the job has not begun.
WAITING = "waiting"
# Status of a slide with maps but without nuclei.
PREDICTED = "predicted"
# Extra column: the place of uploaded results.
UPLOADED = "uploaded_to"


@dataclass
class Row:
    """A line."""

    slide: str
    status: str = "failed"
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
        self._unwritten: list[tuple[dict, bool]] = []

    def earlier(self, slide: str) -> dict[str, str] | None:
        """Return the line of a slide as it is in the file."""
        return self._lines().get(slide)

    def put(self, row: Row, keep_earlier: bool = False, extra: Mapping[str, str] | None = None) -> None:
        """Add a line, unless an earlier one is to be kept; a full disk does not end the run.

        Args:
            row: the line.
            keep_earlier: where there is a line of that slide, it stays.
            extra: further columns.
        """
        self._put([({**asdict(row), **(extra or {})}, keep_earlier)])

    def expect(self, slides: Mapping[str, Mapping[str, str]]) -> None:
        """Add lines of slides that wait to be done, with further columns each."""
        self.join({name: asdict(Row(name, WAITING)) | dict(extra) for name, extra in slides.items()})
        if not slides and not self.path.exists():
            write_atomic(self.path, ",".join(COLUMNS) + "\n")

    def join(self, lines: Mapping[str, dict]) -> dict[str, dict]:
        """Add lines by slide, unless a slide was done before and is not done now; return all lines."""
        there = self._lines()
        done = {slide for slide, line in there.items() if line.get("status") == "done"}
        self._put([(line, line["status"] in (WAITING, "skipped") and slide in done) for slide, line in lines.items()])
        return self._lines()

    def _put(self, lines: list[tuple[dict, bool]]) -> None:
        self._unwritten += lines
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
            remove_parts(self.path)
            lines = self._lines()
            if not lines:
                self._set_aside()
            for line, keep_earlier in self._unwritten:
                earlier = lines.get(line["slide"])
                if earlier is None or not keep_earlier:
                    lines[line["slide"]] = {**(earlier or {}), **line}
            text = io.StringIO()
            columns = dict.fromkeys(itertools.chain(COLUMNS, *lines.values()))
            writer = CsvWriter(text)
            writer.writerow(columns)
            writer.writerows([lines[slide].get(name, "") for name in columns] for slide in sorted(lines))
            write_atomic(self.path, text.getvalue().encode(errors="backslashreplace"))
        self._unwritten = []

    def _set_aside(self) -> None:
        """Rename a file without any readable line (a spreadsheet may have changed it), so that nothing is lost."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        names = (self.path.with_name(f"{self.path.stem}.old{number}.csv") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        os.replace(self.path, aside)
        logger.warning("%s: has no line with a `slide`, separated by commas; it is now %s", self.path, aside.name)

    def _lines(self) -> dict[str, dict]:
        return read_lines(self.path)


def read_lines(path: Path) -> dict[str, dict]:
    """Return the lines of a file by slide; none where there is no such file."""
    if not path.is_file():
        return {}
    # spreadsheets put a byte-order mark in front, and users add columns
    lines: list[dict] = []
    encoded = {"encoding": "utf-8-sig", "errors": "replace"}
    with open(path, newline="", **encoded) as handle, contextlib.suppress(csv.Error):
        lines = [line for line in csv.DictReader(handle) if line.get("slide")]
    plain = ({name: plain_cell(value or "") for name, value in line.items() if name is not None} for line in lines)
    return {line["slide"]: line for line in plain}
