"""A full disk while a run writes: which file, and that nothing but the newest lines is lost."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)


class SaveError(OSError):
    """A file of the run could not be written; the checkpoint before is still whole."""


def is_disk_full(error: BaseException) -> bool:
    """Whether the system said that there is no room, or that the user's quota is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Give errors of the block the name of the file; a failed `write` knows none, a temporary one tells nobody much."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextlib.contextmanager
def closing(writer) -> Iterator[None]:
    """Close a TensorBoard writer (or `None`) after the block; an error of the block is the one that is raised."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # its disk may be the one that is full
            _close(writer)
        raise
    _close(writer)


def _close(writer) -> None:
    if writer is not None:
        with writing(f"TensorBoard's events in {writer.log_dir}"):
            writer.close()
