"""The tree as its own imports describe it: which modules there are, and who imports whom."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from conftest import ROOT


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCE = {
    module_name(path): path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in (".venv", "tests")
}
SCRIPTS = sorted(name for name in SOURCE if "." not in name and SOURCE[name].name != "__init__.py")
PACKAGES = sorted({name.split(".")[0] for name in SOURCE if "." in name} - {"benchmarks", "pretrained"})
MODULES = sorted(name for name in SOURCE if "." in name and name.split(".")[0] in PACKAGES)


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(SOURCE[name].read_text(encoding="utf-8"))


@functools.cache
def imported(name: str) -> set[str]:
    """Return the modules of ours that a module imports, wherever in the file it does."""
    package = name if SOURCE[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for part in ast.walk(tree(name)):
        if isinstance(part, ast.Import):
            found |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - part.level] if part.level else []
            origin = ".".join([*above, *([part.module] if part.module else [])])
            names = {f"{origin}.{alias.name}" for alias in part.names}
            found |= {full if full in SOURCE else origin for full in names}
    return found & set(SOURCE)


def room(name: str) -> str:
    """Return the package that a module lies in, of misc its room; nothing for a script."""
    parts = name.split(".")[:-1]
    return ".".join(parts[:2] if parts[:1] == ["misc"] else parts[:1])
