"""Tables that several runs write to: CSV with a row for each slide, image or field.

Unknown values are empty fields, so that tables of several slides have the same columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from misc.files import CsvWriter, plain_cell, write_atomic
from misc.locks import locked

# Significant digits of numbers in the tables.
DIGITS = 6
_TYPE_COLUMN = re.compile(r"type_\d+(_|$)")


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header, as text by column; missing values are empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV file.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: is no table ({error})") from error
    return [{k: plain_cell(v or "") for k, v in row.items() if k} for row in rows]


def earlier_rows(path: str | Path, slides: Sequence[str], key: str = "slide") -> list[dict]:
    """Return the rows that a table has of other slides, so that a run on some slides loses none of the others.

    Args:
        path: the table; there need be none.
        slides: names of the slides of this run.
        key: the column that has the names.

    Raises:
        ValueError: the file is no such table.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        return [row for row in read_table(path) if row[key] not in (*slides, "")]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: is no table of an earlier run ({error!r}); move it away") from error


def merge_table(
    path: Path,
    rows: Sequence[dict],
    slides: Sequence[str],
    first: Sequence[str],
    last: Sequence[str] = (),
    key: str = "slide",
) -> None:
    """Write the rows of some slides into a table that other runs write to, too; rows of other slides stay.

    Args:
        path: the table; there need be none.
        rows: of the slides `slides`; `rows`, `first` and `last` as in `write_table`.
        key: the column that has the names of the slides.

    Raises:
        ValueError: the file is no such table.
    """
    # a lock keeps other runs away from read to write
    with locked(path.with_name(f".{path.name}.lock"), wait=True):
        both = itertools.chain(earlier_rows(path, slides, key), rows)
        write_table(path, sorted(both, key=lambda row: row[key]), first, last)


def write_table(path: str | Path, rows: Sequence[dict], first: Sequence[str], last: Sequence[str] = ()) -> None:
    """Write rows as CSV; the columns are those of all rows together.

    Args:
        path: the file.
        rows: values by column; a column that a row lacks, NaN and `None` are empty fields.
        first, last: columns to begin and to end with, present or not in the rows. Columns of types (`type_<n>`) are
            sorted by type, the others keep the order in which they first appear.
    """
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    types = sorted((n for n in names if _TYPE_COLUMN.match(n)), key=lambda n: (int(n.split("_")[1]), n))
    columns = [n for n in names if n not in types and n not in last]
    text = io.StringIO()
    table = CsvWriter(text)
    table.writerow([*columns, *types, *last])
    table.writerows([_field(row.get(name)) for name in (*columns, *types, *last)] for row in rows)
    write_atomic(path, text.getvalue())


def _field(value):
    if isinstance(value, float):
        return "" if value != value else f"{value:.{DIGITS}g}"
    return "" if value is None else value
