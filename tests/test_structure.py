"""The rules of the tree: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

LEVELS = {"infer": 2, "run_utils": 2, "dataloader": 2, "metrics": 2, "models": 1, "misc": 0}
PACKAGES = {name: level for name, level in LEVELS.items() if (ROOT / name).is_dir()}
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)


def imported(path) -> set[str]:
    """Top-level names of absolute imports, wherever in the file they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below(package):
    for path in (ROOT / package).rglob("*.py"):
        allowed = {name for name, level in PACKAGES.items() if level < PACKAGES[package]} | {package}
        if path.parent.name == "hovernet" and path.name.startswith("opt"):
            allowed.add("run_utils")  # a recipe
        if PACKAGES[package] == 2:
            allowed |= {"metrics", "dataloader", "infer"}  # one level
        ours = imported(path) & (set(PACKAGES) | set(SCRIPTS))
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {ours - allowed}"


def test_recipes_are_imported_by_the_configuration_alone():
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in (".venv", "tests") or relative.name == "config.py" or relative.name.startswith("opt"):
            continue
        assert "hovernet.opt" not in path.read_text(encoding="utf-8"), relative


IMPORT_ALL = """
import importlib, multiprocessing, os, sys, warnings
warn, filters, files = warnings.warn, list(warnings.filters), set(os.listdir("."))
for name in {modules!r}:
    importlib.import_module(name)
assert warnings.warn is warn, "warnings.warn was replaced"
assert multiprocessing.get_start_method(allow_none=True) is None, "a start method was set"
if "matplotlib" in sys.modules:
    import matplotlib
    assert "backend" not in matplotlib.rcParams._get_changed() if hasattr(matplotlib.rcParams, "_get_changed") else True
assert set(os.listdir(".")) == files, "files appeared"
import numpy
assert not hasattr(numpy, "sctypes"), "np.sctypes was left behind"
"""


def test_p41_importing_every_module_does_nothing(tmp_path):
    """No output, no start method, no replaced function, no file."""
    names = [*MODULES, *[name for name in SCRIPTS if name != "config"]]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + IMPORT_ALL.format(modules=names)
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr == ""


def test_p35_no_names_are_mangled():
    """A private name inside a class is mangled with the class's own name: renaming one class breaks another."""
    for path in ROOT.rglob("*.py"):
        if ".venv" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "name", None)
            if isinstance(name, str) and name.startswith("__"):
                assert name.endswith("__"), f"{path}: {name}"


def test_files_stay_readable():
    for path in [
        *ROOT.glob("*.py"),
        *(p for package in (*PACKAGES, "benchmarks") for p in (ROOT / package).rglob("*.py")),
    ]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path
