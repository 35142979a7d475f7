"""Shared by all scripts: end with one line instead of a traceback, and continue after a bad file of a batch."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping

# Exit code that a shell expects after Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130
# Errors that tell a user what to do; all others are bugs, or come from a bad file in a batch.
OF_USERS = (ValueError, OSError, FloatingPointError)

logger = logging.getLogger(__name__)


def run_script(name: str, work: Callable[[], int]) -> int:
    """Run a script and return its exit code; errors of its options or its machine become one line.

    Args:
        name: of the script; the line begins with it.
        work: the script's work; returns the exit code. The text of its own `KeyboardInterrupt` may say how to continue.
    """
    rank = os.environ.get("RANK", "0")  # torchrun starts a script several times
    name += f" (process {rank})" * (rank != "0")
    try:
        return work()
    except KeyboardInterrupt as stopped:
        how = str(stopped) or "finished files are complete and stay"
        print(f"{name}: stopped by Ctrl-C; {how}", file=sys.stderr)
        return INTERRUPTED
    except (*OF_USERS, MemoryError) as error:
        print(f"{name}: {reason(error)}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def recorded(failed: dict[str, str], name: str) -> Iterator[None]:
    """Run a block for one file of a batch; record its error, if any, and let the batch continue.

    Files of other programs can make a library raise almost any error, so this, and only this, catches all errors.

    Args:
        failed: reason by name; filled in.
        name: of the file.
    """
    try:
        yield
    except Exception as error:
        logger.debug("%s", name, exc_info=True)
        failed[name] = reason(error)


def reason(error: Exception) -> str:
    """Return what went wrong, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"not enough memory{': ' if text else ''}{text}"
    if isinstance(error, OF_USERS):
        return text
    return f"has unexpected content: {type(error).__name__}: {text}"


def print_failed(script: str, failed: Mapping[str, str]) -> None:
    """Print a line for each file that failed; its name first."""
    for name, why in sorted(failed.items()):
        print(f"{script}: failed: {why if why.startswith(name) else f'{name}: {why}'}", file=sys.stderr)
