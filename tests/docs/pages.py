"""The pages that users read, the command blocks in them, and what these name that does not exist.

A block is a fence ```bash (or sh, console). It runs, unless `<!-- not run: reason -->` stands before it. A fence
```text right after it is what it prints first; `...` is anything in a line, and as a line any number of lines.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from conftest import ROOT

from docs.make_options import help_texts
from misc.usage import option_names

# CHANGELOG.md tells of options that are gone.
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md"), *ROOT.glob("*/static/*.md")} - {ROOT / "CHANGELOG.md"})
COMMANDS = ("bash", "sh", "console")  # languages of fences
# Options of other programs that are spoken of alone.
FOREIGN = {"--build-arg", "--resources"}  # docker, Dask
_FENCE = re.compile(r"^( *)```(\w*) *\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run:((?:(?!-->).)*)-->\s*$", re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_NUMBER = r"-?\d+(?:[.,]\d+)*"
_PART = re.compile(rf"(\.\.\.|(?<![\w.]){_NUMBER}(?!\w)|\s+)")
_STARTS_SCRIPTS = {"python", "python3", "torchrun"}


@dataclass(frozen=True)
class Block:
    """Commands of a page.

    Attributes:
        line: where on the page.
        prints: what the page says that they print; `None` where it does not.
        not_run: why they are not run; `None` where they are.
    """

    line: int
    commands: str
    prints: str | None
    not_run: str | None


def blocks(page: str) -> list[Block]:
    """Return the command blocks of a page, from its text."""
    fences, found = list(_FENCE.finditer(page)), []
    for fence, after in zip_longest(fences, fences[1:]):
        if fence[2] in COMMANDS:
            not_run = _NOT_RUN.search(page[: fence.start()])
            follows = after is not None and after[2] == "text" and not page[fence.end() : after.start()].strip()
            line = page.count("\n", 0, fence.start()) + 1
            reason = not_run and not_run[1].strip()
            found.append(Block(line, _inner(fence), _inner(after) if follows else None, reason))
    return found


def _inner(fence: re.Match) -> str:
    return re.sub(rf"^{fence[1]}", "", fence[3], flags=re.MULTILINE)


def begins(printed: str, page_says: str) -> bool:
    """Say whether an output begins with the lines that a page shows, whatever its numbers are (but 0 is 0).

    Numbers depend on weights, on the precision that the machine has, and on how small the inputs of a test are.
    """
    lines = [
        r"(?:.*\n)*?" if line.strip() == "..." else rf" *{''.join(map(_pattern, _PART.split(line.strip())))} *\n"
        for line in page_says.splitlines()
    ]
    return re.match("".join(lines), printed + "\n") is not None


def _pattern(part: str) -> str:
    """Return the expression that a number, a blank, `...` or what stands between them matches."""
    if part == "...":
        return ".*"
    if part.isspace():
        return " +"
    return _NUMBER if part != "0" and re.fullmatch(_NUMBER, part) else re.escape(part)


def stale(page: str) -> Iterator[str]:
    """Yield what is wrong with the fences of a page, and scripts and options that it names and that do not exist."""
    for fence in _FENCE.finditer(page):
        if not fence[2]:
            yield f"line {page.count(chr(10), 0, fence.start()) + 1}: a fence says no language"
    for block in blocks(page):
        if block.not_run == "":
            yield f"line {block.line}: is not run, and no reason is given"
        yield from unknown(block.commands)
    every = set().union(*map(_options, _texts().values()))
    for code in (" ".join(code.split()) for code in _INLINE.findall(_FENCE.sub("", page))):
        if code.startswith(("python ", "./", "torchrun ")):
            yield from unknown(code)
        elif code.startswith("--"):
            for option in re.findall(r"(?<!\S)--\w[\w-]*", code):
                if option not in every | FOREIGN:
                    yield f"no script has {option}"


def unknown(commands: str) -> Iterator[str]:
    """Yield scripts, their options and requirements in shell commands that do not exist."""
    for words in simple_commands(commands):
        for word in words:
            if re.fullmatch(r"(\./)?[\w/.]+\.sh|requirements[\w-]*\.txt", word) and not (ROOT / word).is_file():
                yield f"there is no {word}"
        script, rest = _script(words)
        if script is not None and not (ROOT / script).is_file():
            yield f"there is no {script}"
        elif script is not None:
            texts = [_texts().get(script, "")] + [_texts().get(f"{script} {word}", "") for word in rest]
            known = set().union(*map(_options, texts)) if any(texts) else None
            for option in (word.split("=")[0] for word in rest if word.startswith("--")):
                if known is not None and option not in known:
                    yield f"{script} has no {option}"


def simple_commands(commands: str) -> list[list[str]]:
    """Split shell commands into words; `;`, `&`, `|`, brackets and ends of lines separate commands."""
    joined = re.sub(r"(?m)(^|\s)#.*$", "", commands.replace("\\\n", " "))
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|()\n"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def _script(words: list[str]) -> tuple[str | None, list[str]]:
    """Return the script of ours that a command runs, and the words behind its name."""
    start = next((index for index, word in enumerate(words) if Path(word).name in _STARTS_SCRIPTS), len(words))
    for index, word in enumerate(words[start + 1 :], start + 1):
        if word.endswith(".py"):
            return word, words[index + 1 :]
        if words[index - 1] == "-m" and (ROOT / word.split(".")[0]).is_dir():
            return f"{word.replace('.', '/')}.py", words[index + 1 :]
    return None, []


def _texts() -> dict[str, str]:
    """Return the help texts of all scripts, those of benchmarks/ too."""
    if not _KNOWN:
        _KNOWN.update(help_texts())
        for path in ROOT.glob("benchmarks/*.py"):
            _KNOWN[f"benchmarks/{path.name}"] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _KNOWN


_KNOWN: dict[str, str] = {}


def _options(text: str) -> set[str]:
    return set(option_names(text)) if "Usage:\n" in text else set()
