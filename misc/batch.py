"""What all scripts do alike: end with one line instead of a traceback, and go on after a bad file of a batch."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping

# What a shell expects of a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED = 130
# Errors that say what a user can do; all others are defects of ours, or of a file in a batch.
OF_USERS = (ValueError, OSError, FloatingPointError)

logger = logging.getLogger(__name__)


def run_script(name: str, work: Callable[[], int]) -> int:
    """Run a script and return its exit code; what is wrong with its options or its machine is one line.

    Args:
        name: of the script, as the line begins.
        work: all that the script does; returns the exit code. A `KeyboardInterrupt` of its own may say how to go on.
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
    """Run a block for one file of a batch; whatever goes wrong in it is recorded, and the batch goes on.

    Files of others can make a library raise almost anything, so this catches all errors: it is the one place that does.

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
