"""Slides that lie elsewhere: fetched whole to a folder of this machine when they are read, and removed afterwards."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from misc.extras import require

EXTRA = "storage"


def is_uri(text: str) -> bool:
    """Tell whether a text names something by a URI: `s3://`, `https://`, `gs://`, `file://`."""
    return "://" in text


def local_path(uri: str, scratch: Path | None) -> Path:
    """Return where a slide is fetched to: in a folder of this process alone, since it is removed afterwards.

    Args:
        uri: of the slide; its last part is its name.
        scratch: the folder; the system's for temporary files where it is `None`.
    """
    digest = hashlib.sha256(uri.encode()).hexdigest()[:12]
    folder = Path(scratch or tempfile.gettempdir()) / f"hovernet-{os.getpid()}-{digest}"
    return folder / PurePosixPath(uri.split("?")[0]).name


def size_of(uri: str) -> int | None:
    """Return the bytes of a file; `None` where its server does not say.

    Raises:
        FileNotFoundError, ValueError: it is not there, or a package for such storage is missing.
    """
    system, path = _system(uri)
    return system.size(path)


def fetch(uri: str, path: Path) -> None:
    """Copy a file to a path of this machine, whose folder is made; errors as in `size_of`."""
    system, there = _system(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    system.get_file(there, str(path))


def _system(uri: str) -> tuple[Any, str]:
    """Return who holds a file, by fsspec, and the file's path there."""
    try:
        return require("fsspec.core", EXTRA).url_to_fs(uri)
    except ImportError as error:
        raise ValueError(f"{uri}: {error}; pip install -r requirements-{EXTRA}.txt") from error
