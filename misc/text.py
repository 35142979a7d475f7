"""Words and tables that scripts print."""

from __future__ import annotations

# Plurals that are not made with an s.
_PLURALS = {"nucleus": "nuclei", "patch": "patches"}


def counted(number: int, what: str) -> str:
    """Return a number with its noun: `1 image`, `2 images`, `0 nuclei`, `3 files to convert`."""
    noun, _, rest = what.partition(" ")
    plural = what if number == 1 else f"{_PLURALS.get(noun, noun + 's')}{rest and ' ' + rest}"
    return f"{number} {plural}"
