"""Nuclei as a CSV table; unknown values are empty fields."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from misc.files import atomic_path, safe_cell
from misc.formats.nuclei_table import Columns, NucleiTable
from misc.nuclei import Nuclei


def write_csv(path: str | Path, table: NucleiTable) -> int:
    """Write the table, one piece after the other.

    Returns:
        Number of rows.

    Raises:
        ValueError: the types' names lack a type, or there is no such stain.
    """
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerow(table.names)
        for text, rows in table.each(_lines):
            out.write(text)
            count += rows
    return count


def _lines(table: NucleiTable, piece: Nuclei) -> tuple[str, int]:
    """Return the text of one or more rows, and their number."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(zip(*_cells(table.columns(piece)), strict=True))
    return text.getvalue(), len(piece)


def _cells(columns: Columns) -> list[list]:
    """Return the columns with `None`, an empty field, for NaN."""
    texts = {"name": [safe_cell(name) for name in columns["name"]]}
    return [
        column if isinstance(column, list) else [None if value != value else value for value in column.tolist()]
        for column in (columns | texts).values()
    ]
