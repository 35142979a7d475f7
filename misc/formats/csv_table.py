"""Nuclei as a CSV table; unknown values are empty fields."""

from __future__ import annotations

import csv
from pathlib import Path

from misc.files import atomic_path, safe_cell
from misc.formats.nuclei_table import THREADS, Columns, NucleiTable
from misc.threads import map_ahead


def write_csv(path: str | Path, table: NucleiTable) -> int:
    """Write the table, one piece after the other.

    Returns:
        Number of rows.

    Raises:
        ValueError: the types' names lack a type, or there is no such stain.
    """
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(table.names)
        for columns in map_ahead(table.columns, table.pieces(), THREADS):
            rows.writerows(zip(*_cells(columns), strict=True))
            count += len(columns["id"])
    return count


def _cells(columns: Columns) -> list[list]:
    """Return the columns with `None`, an empty field, for NaN."""
    texts = {"name": [safe_cell(name) for name in columns["name"]]}
    return [
        column if isinstance(column, list) else [None if value != value else value for value in column.tolist()]
        for column in (columns | texts).values()
    ]
