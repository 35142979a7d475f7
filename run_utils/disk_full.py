"""A full disk during a run: errors name the file, and the last checkpoint stays whole."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)


class SaveError(OSError):
    """A file of the run could not be written; the checkpoint before is still whole."""


def is_disk_full(error: BaseException) -> bool:
    """Whether the system reports a full disk, or a quota of the user that is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Name the file in errors of the block: a failed `write` names none, and a temporary name helps nobody."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextlib.contextmanager
def closing(writer) -> Iterator[None]:
    """Close a TensorBoard writer (or `None`) after the block; an error of the block goes before one of closing."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # its disk may be full too
            _close(writer)
        raise
    _close(writer)


def _close(writer) -> None:
    if writer is not None:
        with writing(f"TensorBoard's events in {writer.log_dir}"):
            writer.close()
