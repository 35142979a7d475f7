"""The parts of a report page, and how they become one HTML file that needs no other file.

Pictures are data in the page. Its Content-Security-Policy allows only inline style and script, by hash: the page loads
no file and no address. Names come from the files of users, so the template engine escapes everything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2

from misc.files import is_number, write_atomic

STATIC = Path(__file__).resolve().parent / "static"
SCRIPTS = ("sortable.min.js", "sortable.a11y.min.js", "page.js")


@dataclass(frozen=True)
class Picture:
    """A picture: its data URI, a description (`alt`) for readers who do not see it, and the words below it."""

    uri: str
    alt: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Bars:
    """A bar chart of counts; `colours` are (r, g, b), one per bar, or empty."""

    title: str
    labels: Sequence[str]
    counts: Sequence[float]
    colours: Sequence[tuple[int, int, int]] = ()
    unit: str = ""

    @property
    def shares(self) -> list[float]:
        """Length of each bar, 0 to 100."""
        most = max(self.counts, default=0) or 1
        return [round(100 * count / most, 1) for count in self.counts]


@dataclass(frozen=True)
class Table:
    """A table of texts, row by row. `links` holds an address, or an empty text, for each row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: Sequence[str] = ()

    def is_number(self, column: int) -> bool:
        """Whether all cells of a column are numbers or empty; such columns are right-aligned."""
        cells = [row[column] for row in self.rows if row[column] != ""]
        return bool(cells) and all(is_number(cell) for cell in cells)


@dataclass
class Section:
    """A part of the page, in the order in which it is shown.

    Attributes:
        key: its address in the page.
        facts: pairs of a name and a value.
        notes: warnings.
        galleries: rows of pictures, each with a title.
    """

    key: str
    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    galleries: list[tuple[str, list[Picture]]] = field(default_factory=list)


@dataclass
class Page:
    """A page; `back` is the address of the report that it belongs to, if it is the page of one slide."""

    title: str
    subtitle: str
    sections: list[Section]
    back: str = ""


def write_page(path: Path, page: Page) -> None:
    """Write a page; the file is never half written."""
    write_atomic(path, render(page))


def render(page: Page) -> str:
    """Return a page as HTML."""
    style, script = _static("page.css"), "\n".join(_static(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _template().render(page=page, style=style, script=script, policy=policy)


def data_uri(data: bytes, kind: str) -> str:
    """Return the content of a file as a data URI; `kind` is its MIME type (`image/jpeg`)."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the hash by which a policy allows an inline element with exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _template() -> jinja2.Template:
    engine = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return engine.from_string(_static("page.html.j2"))
