"""Explain in one line what is wrong with a command line that docopt refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

# Smallest difflib ratio of a name and its misspelling: `-g` and `--gpu` just pass.
ALIKE = 0.55
# What options begin with; word processors make a long dash of two short ones.
DASHES = ("-", "–", "—")

_OPTION = re.compile(r"(?<!\S)[\[(]?(--?\w+)")


class UsageError(ValueError):
    """A wrong command line; the message says in one line what to change."""


def program(text: str) -> str:
    """Return the name of the script that a help text is of."""
    return re.search(r"Usage:\s+(\S+)", text)[1]


def option_names(text: str) -> dict[str, Any]:
    """Return docopt's options of a help text, each by its name and its letter."""
    from docopt import parse_options

    found = parse_options(re.split(r"Usage:\n.*?\n\n", text, maxsplit=1, flags=re.DOTALL)[-1])
    return {name: option for option in found for name in (option.short, option.longer) if name}


def explain(text: str, argv: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    """Return what is wrong with a command line that docopt refused, and how to see all options.

    Args:
        text: help text, in docopt's language.
        argv: the command line, without the script's name.
        elsewhere: options that do not belong here, and what they go with.
    """
    options, name = option_names(text), program(text)
    usage = re.search(r"Usage:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL)[1]
    lines = re.split(rf"^ *{re.escape(name)} ", usage, flags=re.MULTILINE)[1:]
    usages = [_Usage(line, usage, options) for line in lines if not re.match(r"\(?-(h|-help|-version)\b", line)]
    commands = sorted(set().union(*(usage.commands for usage in usages)))
    try:
        reason = _mismatch(usages, commands, *_split(argv, options, elsewhere))
    except UsageError as error:
        reason = str(error)
    named = [word for word in argv if word in commands][:1]
    return f"{reason} ({' '.join([name, *named])} --help shows all options)"


class _Usage:
    """One way to call a script: a line of its usage.

    Attributes:
        allowed: options that it may have.
        needed: what it must have; each a list of alternatives.
        commands: words that it must have.
        free: whether it takes other words too.
    """

    def __init__(self, line: str, usage: str, options: Iterable[str]):
        named = set(_OPTION.findall(line))
        self.allowed = named | (set(options) - set(_OPTION.findall(usage)) if "[options]" in line else set())
        groups = re.findall(r"\(([^)]*)\)|(\S+)", re.sub(r"\[[^]]*\]", "", line))
        self.needed = [(group or term).replace("|", " ").split() for group, term in groups]
        self.commands = {word for group in self.needed for word in group if word[0] not in "-<"}
        self.free = bool(re.search(r"(^|[\s\[])<", line))

    def missing(self, given: Sequence[str], words: Sequence[str]) -> list[str]:
        """Return the required parts that a command line lacks."""
        there, others = {*given, *words}, set(words) - self.commands
        return [
            " or ".join(group)
            for group in self.needed
            if not any(others if term[0] == "<" else term.split("=")[0] in there for term in group)
        ]

    def fit(self, given: Sequence[str], words: Sequence[str]) -> tuple[int, int]:
        """Return how well a command line fits: more allowed parts and fewer missing ones are better."""
        there = len(self.allowed.intersection(given)) + len(self.commands.intersection(words))
        return there, -len(self.missing(given, words))


def _mismatch(usages: Sequence[_Usage], commands: Sequence[str], given: Sequence[str], words: Sequence[str]) -> str:
    """Return why a command line of known options fits none of the usages."""
    twice = [option for option in given if given.count(option) > 1]
    if twice:
        return f"{twice[0]} is given twice"
    meant = max(usages, key=lambda usage: usage.fit(given, words))
    missing, others = meant.missing(given, words), [word for word in words if word not in meant.commands]
    if others and commands and not set(words) & set(commands):
        return f"no command `{others[0]}`; {_nearest(others[0], commands) or 'there are: ' + ', '.join(commands)}"
    if missing:
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if others and not meant.free:
        return f"`{others[0]}` belongs to no option"
    alien = [option for option in given if option not in meant.allowed]
    rest = [*words, *(option for option in given if option not in alien)]
    return f"{', '.join(alien)} does not go with {', '.join(rest)}"


def _split(
    argv: Sequence[str], options: Mapping[str, Any], elsewhere: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the options of a command line, by their whole names, and its other words.

    Raises:
        UsageError: an option is not known, or has no value or one too many.
    """
    given, words, rest = [], [], iter(argv)
    for word in rest:
        if word[:1] not in DASHES or re.match(r"-(\.?\d|-?$)", word):
            words += [word] if word != "--" else []
            words += rest if word == "--" else []
            continue
        name, equals, value = word.partition("=")
        option = options[_find(name, options, elsewhere)]
        if equals and not option.argcount:
            raise UsageError(f"{option.name} takes no value, got `{value}`")
        if option.argcount and not equals and next(rest, "--") == "--":
            raise UsageError(f"{option.name} needs a value, as in {option.name}=...")
        given.append(option.name)
    return given, words


def _find(name: str, options: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """Return an option by its name or, as docopt does, by the beginning of it."""
    if name in options:
        return name
    found = [option for option in options if name[2:] and option.startswith(name)]
    if len(found) > 1:
        raise UsageError(f"{name} may be {' or '.join(found)}; write it out")
    if found:
        return found[0]
    for option, where in elsewhere.items():
        if option == name or (name[2:] and option.startswith(name)):
            raise UsageError(f"{option} goes {where}")
    near = _nearest(name, [*options, *elsewhere])
    where = next((f", which goes {where}" for option, where in elsewhere.items() if f"`{option}`" in near), "")
    raise UsageError(f"no option {name}{near and '; ' + near + where}")


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return what the user may have meant, if anything."""
    near = get_close_matches(name, known, 1, ALIKE)
    return f"the nearest is `{near[0]}`" if near else ""
