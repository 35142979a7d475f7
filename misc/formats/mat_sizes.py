"""Find the unpacked size of a `.mat` of version 5 before it is unpacked into memory.

MATLAB compresses each variable by itself, and 4 MB can hold 4 GB. (MathWorks, MAT-File Level 5 File Format.)
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

from misc.machine import TooLargeError, check_fits

_HEADER_BYTES, _TAG_BYTES = 128, 8  # of the file, and before each element
_LITTLE_ENDIAN, _COMPRESSED = b"IM", 15
# Where in a variable its class stands, how many bytes its dimensions take, and where they begin.
_CLASS_AT, _DIMS_BYTES_AT, _DIMS_AT = 16, 28, 32
_MAX_DIMS = 32
# Classes whose dimensions say how large they are: text, and numbers that are not sparse.
_NUMBERS_AND_TEXT = frozenset({4, *range(6, 16)})
_LARGEST_ELEMENT = 16  # bytes: a complex double
# Bytes of a variable besides its numbers: tags, class, dimensions, name.
_HEAD_BYTES = 4096
_BLOCK_BYTES = 1 << 20


def check_unpacked(path: Path) -> None:
    """Refuse a version 5 file with numbers that unpack to more than their dimensions need, or than memory holds.

    Raises:
        TooLargeError: there are such.
        zlib.error, struct.error: it is damaged.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        order = "<" if file.read(_HEADER_BYTES).endswith(_LITTLE_ENDIAN) else ">"
        while len(tag := file.read(_TAG_BYTES)) == _TAG_BYTES:
            kind, nr_bytes = struct.unpack(f"{order}II", tag)
            if kind == _COMPRESSED:
                _check_variable(file.read(min(nr_bytes, size)), order)
            else:
                file.seek(nr_bytes, 1)


def _check_variable(packed: bytes, order: str) -> None:
    unpacker = zlib.decompressobj()
    head = unpacker.decompress(packed, _HEAD_BYTES)
    if struct.unpack_from(f"{order}I", head, _CLASS_AT)[0] & 0xFF not in _NUMBERS_AND_TEXT:
        return
    nr_dims = min(struct.unpack_from(f"{order}I", head, _DIMS_BYTES_AT)[0] // 4, _MAX_DIMS)
    dims = struct.unpack_from(f"{order}{nr_dims}i", head, _DIMS_AT)
    needed = _LARGEST_ELEMENT * math.prod(max(side, 0) for side in dims)
    check_fits(needed, "what it declares")
    unpacked = len(head)
    while unpacker.unconsumed_tail and not unpacker.eof:
        unpacked += len(unpacker.decompress(unpacker.unconsumed_tail, _BLOCK_BYTES))
        if unpacked > needed + _HEAD_BYTES:
            raise TooLargeError(f"a variable unpacks to more than the {needed} bytes that its dimensions need")
