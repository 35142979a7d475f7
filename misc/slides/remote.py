"""Remote files: fetch slides, upload results, and remove the local copies afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from misc.batch import recorded
from misc.extras import require

EXTRA = "storage"
# Bytes at the start of a result file that hold all keys before its nuclei.
HEADER_BYTES = 1 << 16


def is_uri(text: str) -> bool:
    """Tell whether a text names something by a URI: `s3://`, `https://`, `gs://`, `file://`."""
    return "://" in text


def local_path(uri: str, scratch: Path | None) -> Path:
    """Return the local path of a fetched slide, in a folder of this process only, since it is removed afterwards.

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


def upload(files: Mapping[str, Path], uri: str) -> None:
    """Copy files to `<uri>/<kind>/<name>`, in their order, and remove them here once all are there.

    Raises:
        OSError: one cannot be copied; all local files stay, and the message names them.
    """
    failed: dict[str, str] = {}
    with recorded(failed, uri):
        system, folder = _system(uri)
        for kind, path in files.items():
            there = f"{folder}/{kind}/{path.name}"
            if getattr(system, "local_file", False):
                system.makedirs(f"{folder}/{kind}", exist_ok=True)
            system.put_file(str(path), there)
            system.invalidate_cache()
            if system.size(there) != path.stat().st_size:
                raise OSError(f"{there} is not whole")
    if failed:
        names = ", ".join(map(str, files.values()))
        raise OSError(f"cannot be uploaded to {uri} ({failed[uri]}); its results stay here: {names}")
    for path in files.values():
        path.unlink()


def read_uploaded_header(uri: str) -> dict[str, Any] | None:
    """Return the keys of an uploaded JSON file before its nuclei; `None` where there is no file."""
    system, there = _system(uri)
    try:
        head = system.cat_file(there, end=HEADER_BYTES)
        return json.loads(head[: head.index(b'"nuc"')] + b'"nuc": {}}')
    except (FileNotFoundError, ValueError):
        return None


def _system(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of a file, and the file's path there."""
    try:
        return require("fsspec.core", EXTRA).url_to_fs(uri)
    except ImportError as error:
        raise ValueError(f"{uri}: {error}; pip install -r requirements-{EXTRA}.txt") from error
