"""JSON text of any size, read piece by piece; errors name the byte in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import orjson

# Bytes read and parsed at once: about 2,000 nuclei, with about 10 MB of Python objects.
BLOCK_BYTES = 1 << 20
# A longer value means a broken file, and the search for its end stops (a contour of 400,000 points is shorter).
MAX_VALUE_BYTES = 8 << 20

_SPACE = re.compile(rb"[ \t\r\n]*+")
# A whole string, or a mark that opens, closes or parts values; a lone quote is a string cut off by the block's end.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|"'
_MARKS = re.compile(_STRING + rb"|[{}\[\],]", re.DOTALL)
# The same inside brackets, where commas tell nothing; a list of numbers or points is one mark.
_NUMBERS = rb'[^][{}"]*+'
_POINTS = rb"\[" + _NUMBERS + rb"(?:\[" + _NUMBERS + rb"\]" + _NUMBERS + rb")*+\]"
_BRACKETS = re.compile(_STRING + rb"|" + _POINTS + rb"|[{}\[\]]", re.DOTALL)
# Brackets within brackets that the parser takes.
_MAX_DEPTH, _TOO_DEEP = 1024, -1


class JsonText:
    """The text of a file, a block at a time; all methods raise `ValueError` naming the file and the byte.

    Attributes:
        text: the block, bytes.
        at: where in it reading goes on.
        max_value_bytes: the longest value that is read.
    """

    def __init__(self, path: Path, handle: BinaryIO, max_value_bytes: int | None = None):
        self.max_value_bytes = max_value_bytes or MAX_VALUE_BYTES
        self.path, self.handle = path, handle
        self.offset = 0  # byte of the file at which `text` starts
        self.text = handle.read(BLOCK_BYTES)
        self.at = 3 if self.text.startswith(b"\xef\xbb\xbf") else 0  # byte-order mark

    def more(self) -> bool:
        """Drop what was read, append the next block; return whether there was one.

        An incomplete value is parsed again from its start. So each new piece is as long as the text so far: otherwise
        the time would grow with the square of the length.
        """
        waiting = len(self.text) - self.at
        block = self.handle.read(max(BLOCK_BYTES, waiting))
        if block and waiting > self.max_value_bytes:
            self.fail(f"a value of more than {self.max_value_bytes >> 20} MB starts here; a bracket is missing")
        self.offset += self.at
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def is_ahead(self, pattern: re.Pattern, longest: int) -> bool:
        """Return whether the rest of the file holds the pattern, of `longest` bytes at most; nothing is taken."""
        back, rest = self.handle.tell(), self.text[self.at :]
        while not (found := pattern.search(rest)) and (block := self.handle.read(BLOCK_BYTES)):
            rest = rest[-longest:] + block
        self.handle.seek(back)
        return found is not None

    def peek(self) -> bytes:
        """Skip white space; return the next byte without taking it."""
        if self._at_end():
            self.fail("the file ends here: it is truncated")
        return self.text[self.at : self.at + 1]

    def _at_end(self) -> bool:
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return False
            if not self.more():
                return True

    def expect(self, mark: bytes) -> None:
        """Read `mark`; refuse any other byte."""
        if (found := self.peek()) != mark:
            self.fail(f"broken JSON: expected {mark.decode()!r}, found {found.decode(errors='replace')!r}")
        self.at += 1

    def expect_end(self) -> None:
        """Read the brace that closes the file; refuse text after it."""
        self.expect(b"}")
        if not self._at_end():
            self.fail("more text after the end of the JSON object")

    def members(self) -> Iterator[str]:
        """Read the object of the file; yield each key, and the caller reads its value before the next key."""
        self.expect(b"{")
        while self.peek() != b"}":
            key = self.value()
            self.expect(b":")
            yield key
            if self.peek() != b"}":
                self.expect(b",")
        self.expect_end()

    def value(self) -> Any:
        """Return the next value, parsed."""
        self.peek()
        while (end := _value_end(self.text, self.at)) is None:
            if not self.more():
                self.fail("the file ends inside the value that starts here: it is truncated")
        if end == _TOO_DEEP:
            self.fail("brackets within brackets, too deep to be of use")
        try:
            value = orjson.loads(self.text[self.at : end])
        except orjson.JSONDecodeError as error:
            self.fail(f"broken JSON: {error.msg}", error.pos)
        self.at = end
        return value

    def fail(self, reason: str, ahead: int = 0) -> NoReturn:
        """Refuse the file: `reason` holds at the next byte, or `ahead` bytes after it."""
        raise ValueError(f"{self.path}: byte {self.offset + self.at + ahead}: {reason}")


def _value_end(text: bytes, at: int) -> int | None:
    """Return where the value that starts at `at` ends; `None` when the text ends first, `_TOO_DEEP`."""
    depth = 0
    marks = _BRACKETS if text[at : at + 1] in (b"{", b"[") else _MARKS
    for mark in marks.finditer(text, at):
        kind = mark[0]
        if kind in (b"{", b"["):
            depth += 1
            if depth > _MAX_DEPTH:
                return _TOO_DEEP
        elif kind in (b"}", b"]"):
            if depth <= 1:
                return mark.end() if depth else mark.start()
            depth -= 1
        elif kind == b'"':
            return None
        elif depth == 0:  # a string is a value of its own, a comma ends a number
            return mark.end() if len(kind) > 1 else mark.start()
    return None
