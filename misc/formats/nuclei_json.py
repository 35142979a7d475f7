"""The JSON file of nuclei, written and read as a stream.

The layout is upstream's, `{"mag": ..., "nuc": {"1": {"bbox", "centroid", "contour", "type_prob", "type"}}}`, plus
our own top-level keys, which upstream's readers ignore. A slide has a million nuclei and its file a gigabyte:
neither the writer nor the reader ever holds more than a piece of it.

Keys of ours, all optional:
    mpp: um per px of the coordinates in the file, or null; mpp_from: what says it.
    slide: {"name": full file name, "width", "height": level-0 px, "scale": level-0 px per px of the coordinates,
        "mpp": um per level-0 px, "bounds": [x, y, width, height] of the part of level 0 that was scanned, where the
        slide says it, "tissue_share": share of the slide that is tissue, 0 to 1}.
    types: {"1": ["name", [red, green, blue]], ...}.
    model, version: what made the file; run: what its nuclei depend on (checkpoint, window, ...), for reruns to compare.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import orjson

from misc.files import atomic_path
from misc.formats.json_text import JsonText
from misc.nuclei import Nuclei
from misc.type_info import UNTYPED, TypeInfo, types_of_json

# Nuclei turned into text at once: some MB, which is where a larger piece stops being faster.
WRITE_NUCLEI = 5_000
# Bytes at the end of a file in which its last nucleus should start (a contour of 4,000 points is 50 KB).
TAIL_BYTES = 1 << 16

SEPARATOR, TAIL = b",", b"}}"

# Coordinates are int32.
MAX_PX = np.iinfo(np.int32).max
# No nucleus, real or predicted, is larger; drawing one would take a gigabyte.
MAX_NUCLEUS_PX = 20_000

# Errors of values with a wrong kind or size, when they are converted to arrays.
_WRONG_VALUES = (KeyError, TypeError, ValueError, OverflowError, AttributeError)
# Values of N nuclei by key, for each number of a key (`bbox` has four) a list of N.
Columns = dict[str, list[list] | np.ndarray]
_DUMP = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
# Where the last nucleus and the object around it close, in files whose nuclei hold no objects.
_CLOSES = re.compile(rb"\}[ \t\r\n]*+\}")
_CONTOUR = b'"contour":[['
_SPACES = b" ", b"\t", b"\r", b"\n"
# Spaces, so that what stands around a bracket never becomes one number.
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
# What a number, or null, is written with.
_IN_NUMBERS = b"0123456789.+-eEnul"
# A nucleus that has a type; no longer than `_TYPE_BYTES`.
_TYPE = re.compile(rb'"type"[ \t\r\n]*+:[ \t\r\n]*+[0-9]')
_TYPE_BYTES = 256
# The file ends with its nuclei: with the last one, or with none.
_ENDS_WITH_NUCLEI = re.compile(rb'("contour"[^{}]*+\}\s*+\}|"nuc"\s*+:\s*+\{\s*+\})\s*+\}\s*+\Z')


# ---------------------------------------------------------------------------------------------- writing


def write_json(
    path: str | Path, nuclei: Nuclei | Iterable[Nuclei], mag: float | None = None, header: dict | None = None
) -> int:
    """Write nuclei as JSON, one piece after the other; the file is whole or not there.

    Args:
        path: the file.
        nuclei: nuclei, or an iterable of them; only one piece is held at a time. Ids differ over all pieces.
        mag: objective power of the coordinates, `None` in tile mode.
        header: more top-level keys (see the module).

    Returns:
        Number of nuclei written.

    Raises:
        ValueError: an id occurs twice, or `header` holds `mag` or `nuc`.
    """
    head = head_text(mag, header)
    parts = [nuclei] if isinstance(nuclei, Nuclei) else nuclei
    seen = [np.zeros(0, np.int64)]
    with atomic_path(path) as temporary, open(temporary, "wb") as out:
        out.write(head)
        separator = b""
        for part in parts:
            seen.append(part.ids)
            for text in nuclei_text(part):
                out.write(separator + text)
                separator = SEPARATOR
        out.write(TAIL)
        # inside the block: an error here leaves no file
        return _check_ids(np.concatenate(seen), path)


def head_text(mag: float | None, header: dict | None = None) -> bytes:
    """Return the start of a file; after it come texts of nuclei, with `SEPARATOR` between them, and `TAIL`."""
    header = dict(header or {})
    if taken := {"mag", "nuc"} & header.keys():
        raise ValueError(f"header may not hold {sorted(taken)}: they have their own place in the file")
    return orjson.dumps({"mag": mag, **header}, option=_DUMP)[:-1] + b',"nuc":{'


def nuclei_text(nuclei: Nuclei) -> Iterator[bytes]:
    """Yield the text of nuclei, some thousand at a time."""
    for start in range(0, len(nuclei), WRITE_NUCLEI):
        yield _dump(nuclei, start, min(start + WRITE_NUCLEI, len(nuclei)))


def _dump(nuclei: Nuclei, start: int, stop: int) -> bytes:
    """Text of nuclei `start` to `stop`, without the braces around them."""
    points = np.ascontiguousarray(nuclei.points_xy)
    ends = nuclei.offsets[start : stop + 1].tolist()
    nobody = itertools.repeat(None)
    columns = zip(
        nuclei.ids[start:stop].tolist(),
        nuclei.boxes_yx[start:stop].tolist(),
        nuclei.centroids_xy[start:stop].tolist(),
        itertools.pairwise(ends),
        nobody if nuclei.type_prob is None else nuclei.type_prob[start:stop].tolist(),
        nobody if nuclei.types is None else nuclei.types[start:stop].tolist(),
        strict=False,
    )
    infos = {
        str(key): {"bbox": box, "centroid": xy, "contour": points[a:b], "type_prob": prob, "type": type_id}
        for key, box, xy, (a, b), prob, type_id in columns
    }
    if nuclei.class_probs is not None:
        for info, probs in zip(infos.values(), nuclei.class_probs[start:stop], strict=True):
            info["type_probs"] = np.ascontiguousarray(probs)
    return orjson.dumps(infos, option=_DUMP)[1:-1]


def _check_ids(ids: np.ndarray, path: str | Path) -> int:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: nucleus id {values[counts > 1][0]} occurs more than once; ids must differ")
    return len(ids)


def types_to_header(type_info: TypeInfo) -> dict[str, list]:
    """Return names and colours in the form of the header's `types`."""
    return {str(key): [name, list(rgb)] for key, (name, rgb) in type_info.items() if key is not None}


def types_from_header(header: dict) -> TypeInfo | None:
    """Return the header's `types` as `load_type_info` would, or `None` where there are none."""
    types = header.get("types")
    if not types:
        return None
    try:
        return {None: UNTYPED, **types_of_json(types)}
    except ValueError as error:
        raise ValueError(f'"types" is not valid: {error}') from error


# ---------------------------------------------------------------------------------------------- reading


def read_json(path: str | Path) -> tuple[Nuclei, dict]:
    """Read all nuclei of a file, and its other top-level keys (`mag` is one of them).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, truncated, or no file of nuclei; file and byte are named.
    """
    header: dict = {}
    nuclei = Nuclei.concat(list(_walk(Path(path), header)))
    _check_ids(nuclei.ids, path)
    return nuclei, header


def iter_json(path: str | Path, chunk: int = 50_000) -> Iterator[Nuclei]:
    """Yield the nuclei of a file in its order, at least `chunk` at a time (the last time: the rest).

    Memory is bounded by the chunk. The whole file has been checked when the iteration ends, not before.

    Raises:
        As `read_json`; but an id that comes back in a later chunk goes unnoticed.
    """
    waiting: list[Nuclei] = []
    count = 0
    for part in _walk(Path(path), {}):
        waiting.append(part)
        count += len(part)
        if count >= chunk:
            yield Nuclei.concat(waiting)
            waiting, count = [], 0
    if waiting:
        yield Nuclei.concat(waiting)


def read_header(path: str | Path) -> dict:
    """Return the top-level keys other than `nuc`; reads past the nuclei only where something may follow them.

    Raises:
        As `read_json`.
    """
    path, header = Path(path), {}
    for _ in _walk(path, header, stop_at_nuclei=_ends_with_nuclei(path)):
        pass
    return header


def _ends_with_nuclei(path: Path) -> bool:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, "rb") as handle:
        handle.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return _ENDS_WITH_NUCLEI.search(handle.read()) is not None


def _walk(path: Path, header: dict, stop_at_nuclei: bool = False) -> Iterator[Nuclei]:
    """Yield nuclei, a block at a time; put every other top-level key into `header` as it is met."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, "rb") as handle:
        text = JsonText(path, handle)
        found = False
        for key in text.members():
            if key == "nuc":
                found = True
                if stop_at_nuclei:
                    return
                yield from _walk_nuclei(text)
            else:
                header[key] = text.value()
    if not found:
        raise ValueError(f'{path}: no "nuc" in it: this is no file of nuclei')


def _walk_nuclei(text: JsonText) -> Iterator[Nuclei]:
    """Yield the nuclei of the object that starts here, and stop behind it."""
    text.expect(b"{")
    make = _Maker(text)
    fast = True
    while text.peek() != b"}":
        nuclei = _read_block(text, make) if fast else None
        if nuclei is None:  # another layout than upstream's and ours: parse as general JSON from here on
            fast = False
            nuclei = _read_plainly(text, make)
        yield nuclei
        if text.peek() != b"}":
            text.expect(b",")
            if text.peek() != b'"':
                text.fail("expected the next nucleus after the comma")
    text.expect(b"}")


def _read_block(text: JsonText, make: _Maker) -> Nuclei | None:
    """Read every nucleus that is whole in the block, or return `None` and leave the text where it was.

    Python's dictionaries and lists for each nucleus would take most of the reading time. So numpy parses the contours
    from the text, and all other numbers become one list. That works for upstream's and our own layout; where keys or
    counts do not agree, `_read_plainly` reads instead.
    """
    closes = _CLOSES.search(text.text, text.at)
    stop = closes.start() + 1 if closes else text.text.rfind(b"}", text.at) + 1
    if stop <= text.at:
        return _read_block(text, make) if text.more() else None
    block = text.text[text.at : stop]
    if any(space in block for space in _SPACES):
        block = block.translate(None, b"".join(_SPACES))
    head, *pieces = block.split(_CONTOUR)
    pieces = [piece.partition(b"]]") for piece in pieces]
    rings = [ring for ring, _, _ in pieces]
    table = _flat_table(b'"contour":0'.join([head, *(rest for _, _, rest in pieces)]))
    lengths = np.array([ring.count(b"[") + 1 for ring in rings], np.int64)
    points = b"],[".join(rings)
    between = (b",],[" * lengths.sum())[:-3]
    if table is None or len(table[0]) != len(rings) or points.translate(None, b"0123456789-") != between:
        return None
    numbers = np.fromstring(points.translate(None, b"[]"), np.int64, sep=",")
    if len(numbers) != 2 * lengths.sum():
        return None
    nuclei = make(*table, numbers.reshape(-1, 2), lengths)
    text.at = stop
    return nuclei


def _flat_table(text: bytes) -> tuple[list, Columns] | None:
    """Parse `"1":{...},"2":{...}` without white space: return keys and columns, or `None` where layouts differ.

    Without its numbers, the text of each nucleus must be that of the first. Then keys, quotes and brackets carry
    nothing, and what is left without them is a list of numbers.
    """
    first = text[: text.find(b"}") + 1]
    layout = first.translate(None, _IN_NUMBERS) + b","
    layouts = text.translate(None, _IN_NUMBERS) + b","
    try:
        (info,) = orjson.loads(b"{" + first + b"}").values()
        sizes = {key: np.size(value) for key, value in info.items()}
        numbers = text[1:-1]
        for mark, other in ((b'},"', b","), (b'":{', b","), *((orjson.dumps(key) + b":", b"") for key in sizes)):
            numbers = numbers.replace(mark, other.ljust(len(mark)))  # twice as fast as if the text got shorter
        numbers = orjson.loads(b"[" + numbers.translate(_NO_BRACKETS) + b"]")
    except _WRONG_VALUES:  # a JSONDecodeError, too
        return None
    count, width = len(layouts) // len(layout), 1 + sum(sizes.values())
    if layouts != layout * count or len(numbers) != count * width:
        return None
    columns = (numbers[start::width] for start in range(1, width))
    return numbers[::width], {key: list(itertools.islice(columns, size)) for key, size in sizes.items()}


def _read_plainly(text: JsonText, make: _Maker) -> Nuclei:
    """Read one nucleus; other keys of its object are ignored."""
    key = text.value()
    text.expect(b":")
    info = text.value()
    try:
        ring = np.asarray(info["contour"], np.float64).reshape(len(info["contour"]), 2)
        columns = {
            "bbox": np.array(info["bbox"], np.int32).reshape(4, 1),
            "centroid": np.array(info["centroid"], np.float64).reshape(2, 1),
            "type": [[info.get("type")]],
            "type_prob": [[info.get("type_prob")]],
            "type_probs": [[prob] for prob in info.get("type_probs") or [None]],
        }
        return make([int(key)], columns, np.rint(ring), np.array([len(ring)]))
    except _WRONG_VALUES as error:
        text.fail(f"nucleus {key!r} is not valid: {type(error).__name__} {error}")


class _Maker:
    """Makes `Nuclei` of parsed ones: typed if any nucleus of the file is; those without a type then have type 0."""

    def __init__(self, text: JsonText):
        self.text = text
        self.typed: bool | None = None
        self.nr_probs = 0

    def __call__(self, ids: list, columns: Columns, points_xy: np.ndarray, lengths: np.ndarray) -> Nuclei:
        if not (np.abs(points_xy) <= MAX_PX).all():
            self.text.fail(f"a contour exceeds the range of +-{MAX_PX} px")
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        if len(starts):
            sides = np.maximum.reduceat(points_xy, starts) - np.minimum.reduceat(points_xy, starts)
            if sides.max() > MAX_NUCLEUS_PX:
                self.text.fail(f"a contour of {sides.max():.0f} px is no nucleus; at most {MAX_NUCLEUS_PX} px are read")
        try:
            return self._nuclei(ids, columns, points_xy, lengths)
        except _WRONG_VALUES as error:
            self.text.fail(f"a nucleus from here on is not valid: {type(error).__name__} {error}")

    def _nuclei(self, ids: list, columns: Columns, points_xy: np.ndarray, lengths: np.ndarray) -> Nuclei:
        nothing = [[None] * len(ids)]
        (types,) = columns.get("type", nothing)
        probs = columns.get("type_probs", nothing)
        if self.typed is None:
            self.typed = any(t is not None for t in types) or self.text.is_ahead(_TYPE, _TYPE_BYTES)
            self.nr_probs = 0 if probs[0][0] is None else len(probs)
        return Nuclei(
            ids=np.array([operator.index(key) for key in ids], np.int64),
            boxes_yx=_rows(columns["bbox"], np.int32, 4).reshape(-1, 2, 2),
            centroids_xy=_rows(columns["centroid"], np.float64, 2),
            points_xy=points_xy.astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            types=np.array([operator.index(t or 0) for t in types], np.int32) if self.typed else None,
            type_prob=_rows(columns.get("type_prob", nothing), np.float64, 1)[:, 0] if self.typed else None,
            class_probs=_rows(probs, np.float32, self.nr_probs) if self.nr_probs else None,
        )


def _rows(columns: list[list], dtype, width: int) -> np.ndarray:
    """Return (N, width) values of `width` columns."""
    return np.stack([np.array(column, dtype) for column in columns], axis=1).reshape(-1, width)
