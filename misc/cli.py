"""The command line of a script: options as its help text lists them, and one line for any error in them.

Until it runs, a script imports only this and Python's own library, so that we can report a missing package in one line.
"""

from __future__ import annotations

import ast
import os
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from misc.batch import run_script
from misc.machine import share_one_arena
from misc.usage import UsageError, explain, option_names, program

VERSION = "1.0.0"
OLDEST_PYTHON = (3, 11)
# Exit code for wrong options.
MISUSED = 2


def run_command(
    text: str | None,
    work: Callable[[dict], int],
    argv: Sequence[str] | None = None,
    commands: Callable[[], tuple[str, Mapping[str, str]]] | None = None,
) -> int:
    """Run a script and return its exit code; any error becomes one line.

    Args:
        text: its help text, in docopt's language. `None` under `python -OO`: then it is read from its file.
        work: the script's work; takes the options by name and returns the exit code.
        argv: the command line, without the script's name; the process' own when left out.
        commands: returns the options of all commands, which go where `text` has `%s`, and the help text of each.
    """
    open_streams()
    share_one_arena()
    text = text or ast.get_docstring(ast.parse(Path(work.__code__.co_filename).read_bytes()), clean=False)
    name = program(text)
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if sys.version_info < OLDEST_PYTHON:
            return _ask_for_environment(name, f"Python {sys.version.split()[0]} is too old")
        args = read_commands(text, argv, *commands()) if commands else read(text, argv)
        return run_script(name, lambda: work(args))
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return MISUSED
    except BrokenPipeError:  # --help | head: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        return _ask_for_environment(name, f"{error.name} is not installed for this Python")


def open_streams() -> None:
    """Open closed output and error streams (`2>&-`) as an empty device, or the next file would take their number."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.set_inheritable(number, True)  # for worker processes
            setattr(sys, name, open(number, "w", closefd=False))


def read(text: str, argv: list[str], elsewhere: Mapping[str, str] | None = None) -> dict:
    """Return the options by name, as docopt does.

    Args:
        text: help text, in docopt's language.
        argv: the command line, without the script's name.
        elsewhere: options that do not belong here, and what they go with.

    Raises:
        UsageError: an option or a word is unknown, in the wrong place, missing, or one too many.
    """
    from docopt import DocoptExit, docopt

    try:
        return dict(docopt(text, argv, version=f"HoVer-Net toolkit {VERSION}"))
    except DocoptExit:
        raise UsageError(explain(text, argv, elsewhere or {})) from None


def read_commands(text: str, argv: list[str], common: str, commands: Mapping[str, str]) -> dict:
    """Return the options of a script and of its command together; see `read` and `run_command`."""
    known = {name: option_names(own) for name, own in commands.items()}
    options = ChainMap(option_names(common), *known.values())
    takes_value = {name for name, option in options.items() if option.argcount}
    # `--model_path wsi tile`: a word after an option may be its value
    words = [word for before, word in pairwise(["", *argv]) if before not in takes_value]
    command = next((word for word in words if word in commands), None)
    others = {
        option: "with " + " or ".join(f"`{name}`" for name in commands if option in known[name])
        for options in known.values()
        for option in options
        if option not in known.get(command, ())
    }
    if command is None:  # a mistake, --help or --version
        return read(text % common, argv, others)
    return dict.fromkeys(commands, False) | read(f"{commands[command]}\nOptions of all commands:{common}", argv, others)


def numbers(args: Mapping[str, Any], option: str, kind: type = float) -> list | None:
    """Return the numbers of an option, separated by commas; `None` where it was left out.

    Raises:
        ValueError: it is something else.
    """
    try:
        return [kind(text) for text in args[option].split(",")] if args[option] is not None else None
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{option} takes {what}, got `{args[option]}`") from None


def number(args: Mapping[str, Any], option: str, kind: type = float, zero: bool = False) -> Any:
    """Return the number of an option, above 0, or from 0 on with `zero`; `None` where it was left out.

    Raises:
        ValueError: it is something else.
    """
    text = args[option]
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not (0 < value < float("inf") or (zero and value == 0)):
        what = "whole number" if kind is int else "number"
        raise ValueError(f"{option} is a {what} {'from 0 on' if zero else 'above 0'}, got `{text}`")
    return value


def _ask_for_environment(name: str, why: str) -> int:
    print(f"{name}: {why}; activate the environment: . .venv/bin/activate (./run_tile.sh makes it)", file=sys.stderr)
    return 1
