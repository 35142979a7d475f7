"""What scripts print: counted things, tables, the first of many names."""

from __future__ import annotations

from collections.abc import Sequence

# Plurals that are not made with an s.
_PLURALS = {"nucleus": "nuclei", "patch": "patches", "process": "processes"}
# Names that a line lists.
LISTED = 3


def counted(number: int, what: str) -> str:
    """Return a number with what it counts: `1 image`, `2 hot spots`, `0 nuclei`."""
    *words, noun = what.split()
    return " ".join([str(number), *words, noun if number == 1 else _PLURALS.get(noun, f"{noun}s")])


def first_names(names: Sequence[str]) -> str:
    """Return the first of a list of names, with dots for the others."""
    return ", ".join([*names[:LISTED], *["..."] * (len(names) > LISTED)])


def print_table(rows: Sequence[Sequence]) -> None:
    """Print rows, the first of which is the header: the first column to the left, the others to the right."""
    cells = [[f"{value:.5f}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
