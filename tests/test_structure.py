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
        if (
            relative.parts[0] in (".venv", "tests", "pretrained")
            or relative.name == "config.py"
            or relative.name.startswith("opt")
        ):
            continue
        assert "hovernet.opt" not in path.read_text(encoding="utf-8"), relative


# Packages of others do set filters when they are imported; ours are those whose caller is no installed file.
IMPORT_ALL = """
import importlib, multiprocessing, os, sys, warnings
warn, files, callers = warnings.warn, set(os.listdir(".")), []
def recorded(function):
    def call(*args, **kwargs):
        callers.append(sys._getframe(1).f_code.co_filename)
        return function(*args, **kwargs)
    return call
warnings.filterwarnings, warnings.simplefilter = recorded(warnings.filterwarnings), recorded(warnings.simplefilter)
for name in {modules!r}:
    importlib.import_module(name)
ours = [path for path in callers if "site-packages" not in path and not path.startswith(os.path.dirname(os.__file__))]
assert not ours, f"warning filters were set by {{ours}}"
assert warnings.warn is warn, "warnings.warn was replaced"
assert multiprocessing.get_start_method(allow_none=True) is None, "a start method was set"
import matplotlib
backend = dict.__getitem__(matplotlib.rcParams, "backend")  # read as an attribute it would be chosen now
assert not isinstance(backend, str), f"the plot backend was set to {{backend}}"
assert set(os.listdir(".")) == files, "files appeared"
import numpy
assert not hasattr(numpy, "sctypes"), "np.sctypes was left behind"
"""


def import_all(names: list[str], *folders) -> subprocess.CompletedProcess:
    """Import modules that lie in `folders` in a fresh process, whose working directory is the first of them."""
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]}\n" + IMPORT_ALL.format(modules=names)
    return subprocess.run([sys.executable, "-Bc", code], cwd=folders[0], capture_output=True, text=True)


def test_p41_importing_every_module_does_nothing(tmp_path):
    """No output, no start method, no backend, no warning filter, no replaced function, no file."""
    ended = import_all([*MODULES, *[name for name in SCRIPTS if name != "config"]], tmp_path, ROOT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("import warnings; warnings.simplefilter('ignore')", "guilty.py"),
        ("import warnings; warnings.filterwarnings('ignore')", "guilty.py"),
        ("import warnings; warnings.warn = print", "warnings.warn"),
        ("import multiprocessing; multiprocessing.set_start_method('spawn')", "start method"),
        ("import matplotlib; matplotlib.use('Agg')", "backend"),
        ("import numpy; numpy.sctypes = {}", "sctypes"),
        ("open('left', 'w').close()", "files"),
    ],
)
def test_the_check_of_imports_finds_what_it_looks_for(tmp_path, deed, said):
    (tmp_path / "guilty.py").write_text(deed)
    ended = import_all(["guilty"], tmp_path)
    assert ended.returncode == 1
    assert said in ended.stderr.splitlines()[-1]


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
