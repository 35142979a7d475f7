"""Find input files, and write output files atomically.

Every result is written under a temporary name in its folder, flushed, and renamed. So a killed run leaves no
half-written file that looks finished to a later run.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import glob
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

# File names that end in two suffixes which belong together; `Path.stem` would leave the first one on.
_DOUBLE_SUFFIXES = (".session.xml", ".geojson.gz", ".ome.tiff", ".ome.tif", ".ome.zarr")
# Bytes of a name on the file systems in use.
MAX_NAME_BYTES = 255
# Bytes of a result's name that the names of locks, temporary files and spools repeat.
MAX_STEM_BYTES = 150
_DIGEST_LENGTH = 16
# Errors of a full disk, quota or limit; number of bytes written to test for them.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE_BYTES = 1 << 20
# A file that is being written: by which process, and on which machine.
_PART = re.compile(r"\..+\.(?P<pid>\d+)-(?P<machine>\w+)\.part(\..+)?", re.DOTALL)

# Spreadsheets run a cell that begins with one of these as a formula; an apostrophe before it makes it text.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TEXT = "'"


def full_stem(path: str | Path) -> str:
    """Return the file name without its extension; dots inside the name stay (`TCGA-1.2.svs` -> `TCGA-1.2`).

    A folder, which a DICOM slide may be, has no extension, unless it is a Zarr.
    """
    name = Path(path).name
    if Path(path).is_dir() and not name.lower().endswith(".zarr"):
        return name
    for suffix in _DOUBLE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def check_folder(folder: Path) -> None:
    """Raise `FileNotFoundError` where there is no such folder, `NotADirectoryError` where it is a file."""
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: give its folder and, for it alone, --pattern={folder.name}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")


def list_files(folder: str | Path, pattern: str = "*", recursive: bool = False) -> list[Path]:
    """List the files of a folder in a fixed order.

    Args:
        folder: the folder to look into; its name may hold any character, glob's included.
        pattern: shell pattern that a file's name must match, e.g. `*.png`.
        recursive: look into sub-folders too.

    Returns:
        Paths sorted by name; hidden files (leading dot) are left out.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder, or it is a file.
    """
    folder = Path(folder)
    check_folder(folder)
    found = folder.rglob(pattern) if recursive else folder.glob(pattern)
    return sorted(p for p in found if p.is_file() and not p.name.startswith("."))


def unusable_name(path: str | Path) -> str | None:
    """Return why a path's name cannot be used, or `None`.

    A name that is not UTF-8, as on older systems, crashes OpenCV, and no result file can hold it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    return None


def check_name_lengths(paths: Iterable[Path]) -> None:
    """Refuse names of results that are too long for a file, before any work.

    Raises:
        OSError: one is too long.
    """
    for path in paths:
        if (length := len(os.fsencode(path.name))) > MAX_NAME_BYTES:
            raise OSError(
                f"its {path.suffix} file would have a name of {length} bytes, not {MAX_NAME_BYTES}; rename it"
            )


def printable(path: str | Path) -> str:
    """Return a path as printable text; one that is not UTF-8 as `ascii` shows it."""
    return ascii(str(path)) if unusable_name(path) else str(path)


def file_digest(path: Path) -> str:
    """Return the start of a file's SHA-256: enough to tell files of one purpose apart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if it is empty; another process may be writing into it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def check_unique_stems(paths: Iterable[Path], stem_of: Callable[[Path], str] = full_stem) -> None:
    """Refuse inputs whose results would have the same name.

    Args:
        paths: the inputs.
        stem_of: gives the name of an input's results.

    Raises:
        ValueError: two paths share a stem; both are named.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        stem = stem_of(path)
        if stem in seen:
            raise ValueError(
                f"two inputs would write the same results: {seen[stem]} and {path}; rename one or narrow --pattern"
            )
        seen[stem] = path


def short_stem(stem: str) -> str:
    """Return a stem short enough for prefixes and suffixes: long ones are cut and end in a digest of the whole."""
    data = stem.encode()
    if len(data) <= MAX_STEM_BYTES:
        return stem
    digest = hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH]
    return f"{data[: MAX_STEM_BYTES - _DIGEST_LENGTH - 1].decode(errors='ignore')}~{digest}"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, remove it otherwise.

    The temporary name keeps the suffix, since some writers choose the format by it. A process that first writes to a
    folder removes the half-written files of killed runs there.

    Raises:
        OSError: it cannot be written. The error names `path`, and a full disk even where the library does not.
    """
    path = Path(path)
    _remove_dead_parts(path.parent)
    temporary = path.with_name(f".{short_stem(path.stem)}.{os.getpid()}-{_machine()}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        said = error if isinstance(error, OSError) and error.errno is not None else _full_disk(temporary)
        if said is None or said.filename not in (None, str(temporary)):
            raise
        raise OSError(said.errno, said.strerror, str(path)) from error  # a full disk does not say whose file it was
    finally:
        temporary.unlink(missing_ok=True)


def _full_disk(temporary: Path) -> OSError | None:
    """Return the system's error if nothing more can be written to a file, else `None`.

    PyTorch, NumPy and OpenCV have errors of their own for it, or none.
    """
    try:
        with open(temporary, "ab") as out:
            out.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error if error.errno in _FULL else None
    return None


@functools.cache
def _remove_dead_parts(folder: Path) -> None:
    """Remove the half-written files of processes of this machine that have ended."""
    for part in folder.glob(".*.part*") if os.name == "posix" else ():
        found = _PART.fullmatch(part.name)
        if found and found["machine"] == _machine() and not _is_alive(int(found["pid"])):
            part.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # only asks, sends no signal
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def remove_parts(path: Path) -> None:
    """Remove the half-written versions of a file that killed runs left; no other process may be writing it."""
    stem = short_stem(path.stem)
    name = re.compile(rf"\.{re.escape(stem)}\.\d+(-\w+)?\.part{re.escape(path.suffix)}")
    for part in path.parent.glob(f".{glob.escape(stem)}.*.part{path.suffix}"):
        if name.fullmatch(part.name):
            part.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` to `path` atomically: the file is either the old one or the complete new one."""
    if isinstance(data, str):
        data = data.encode("utf-8")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


class CsvWriter:
    """Writes CSV rows as `csv.writer` does, with lines that end in one character and cells that no spreadsheet runs."""

    def __init__(self, out: TextIO):
        self._rows = csv.writer(out, lineterminator="\n")

    def writerow(self, row: Iterable) -> None:
        self._rows.writerow([safe_cell(value) for value in row])

    def writerows(self, rows: Iterable[Iterable]) -> None:
        self._rows.writerows([safe_cell(value) for value in row] for row in rows)


def safe_cell(value):
    """Return a value for a CSV file: an apostrophe goes before text that a spreadsheet would run."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not is_number(value):
        return _TEXT + value
    return value


def plain_cell(text: str) -> str:
    """Return the text that `safe_cell` was given."""
    return text[1:] if text.startswith(tuple(_TEXT + first for first in _FORMULA)) else text


def is_number(text: str) -> bool:
    """Tell whether a cell of a table is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
