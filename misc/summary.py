"""A table with a line for each slide, kept up to date while runs are at work, also by several at once."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from misc.files import CsvWriter, plain_cell, remove_parts, write_atomic
from misc.locks import locked

logger = logging.getLogger(__name__)


class Summary:
    """The file, and the lines that could not be written to it yet.

    Args:
        path: the file; a lock lies beside it while it is changed.
        row_type: dataclass of a line; its field `slide` tells lines apart.
    """

    def __init__(self, path: Path, row_type: type):
        self.path = path
        self._columns = tuple(column.name for column in fields(row_type))
        self._unwritten: list[tuple[Any, bool]] = []

    def earlier(self, slide: str) -> dict[str, str] | None:
        """Return the line of a slide as it is in the file."""
        return self._lines().get(slide)

    def put(self, row: Any, keep_earlier: bool = False) -> None:
        """Add a line, unless an earlier one is to be kept; a disk that is full now does not end the run."""
        self._unwritten.append((row, keep_earlier))
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
            for row, keep_earlier in self._unwritten:
                earlier = lines.get(row.slide)
                if earlier is None or not keep_earlier:
                    lines[row.slide] = {**(earlier or {}), **asdict(row)}
            text = io.StringIO()
            columns = dict.fromkeys(itertools.chain(self._columns, *lines.values()))
            writer = CsvWriter(text)
            writer.writerow(columns)
            writer.writerows([lines[slide].get(name, "") for name in columns] for slide in sorted(lines))
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
        plain = ({name: plain_cell(value or "") for name, value in line.items() if name is not None} for line in lines)
        return {line["slide"]: line for line in plain}
