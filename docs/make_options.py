"""Write docs/options.md: all options of all scripts, from their help texts.

Usage:
  make_options.py
  make_options.py (-h | --help)
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options of all scripts

Made from the help texts by `python docs/make_options.py`: change an option's text in its script, then run it again. An
option left empty, as `--mpp=`, has its default; only `--gpu=` means the CPU.
"""
_TABLE = "| option | default | what it does |\n|---|---|---|"
_DEFAULT = re.compile(r"\s*\[default: (.*)\]")
# `  -n --name=<x>  text`, or a command and its text; a name alone has its text on the next lines.
_ENTRY = re.compile(r" {2}(\S+(?: -\S+)*) *(.*)")


def help_texts() -> dict[str, str]:
    """Return the help text of every script and of the commands of run_infer.py, by what a user types."""
    texts = {}
    for path in sorted(ROOT.glob("*.py"), key=lambda path: path.name.lower()):
        source = path.read_text(encoding="utf-8")
        if "run_command(__doc__" in source:
            texts[path.name] = ast.get_docstring(ast.parse(source))
            if path.name == "run_infer.py":
                sys.path.insert(0, str(ROOT))
                from run_infer import commands

                common, own = commands()
                texts[path.name] %= common.strip("\n")
                texts |= {f"{path.name} {command}": text for command, text in own.items()}
    return texts


def options_page() -> str:
    """Return the page, in Markdown."""
    return "\n".join([HEAD, *(section(name, text) for name, text in help_texts().items())])


def section(name: str, text: str) -> str:
    """Return what the page says of a script, or of one of its commands."""
    purpose, rest = text.strip().split("Usage:\n")
    usage, _, rest = rest.partition("\n\n")
    level = "###" if " " in name else "##"
    parts = [f"{level} {name}", escaped(purpose.strip()), f"```text\n{dedent(usage)}\n```"]
    for part in rest.split("\n\n"):
        lines = [line for line in part.splitlines() if line and line not in ("Options:", "Commands:")]
        parts.append(table(lines) if lines[0][0] == " " else escaped("\n".join(lines)))
    return "\n\n".join(parts) + "\n"


def table(lines: list[str]) -> str:
    """Return options, their defaults and meanings as a table."""
    entries = []
    for line in lines:
        if match := _ENTRY.fullmatch(line):
            entries.append([*match.groups()])
        else:
            entries[-1][1] += f" {line.strip()}"
    return "\n".join([_TABLE, *(row(*entry) for entry in entries)])


def row(name: str, text: str) -> str:
    default = _DEFAULT.search(text)
    said = f"`{default[1]}`" if default else ""
    return f"| `{name}` | {said} | {escaped(_DEFAULT.sub('', text).strip())} |".replace("|  |", "| |")


def escaped(text: str) -> str:
    """Return a text so that Markdown shows every character of it; what stands in backticks is shown as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([<*|\[\]])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    from docopt import docopt

    docopt(__doc__)
    PAGE.write_text(options_page(), encoding="utf-8")
