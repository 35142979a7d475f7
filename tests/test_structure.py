"""The rules of the tree: who may import whom, that importing does nothing, that files can be read at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

from conftest import ROOT

from docs.make_architecture import MODULES, PACKAGES, SCRIPTS, SOURCE, imported, room, tree

# Each package imports from lower levels, and from its own as long as nothing goes in circles; scripts from all.
LEVELS = ({"misc"}, {"models"}, {"infer", "viewer", "run_utils", "dataloader", "metrics"})
RECIPE = "models.hovernet.opt"  # the one exception: it says what training does, and only configurations import it
ROOMS = {"slides", "formats", "ihc"}  # of misc
MAX_LINES = 400
MAX_INFER_MODULES = 16
HEAVY = ("numpy", "torch", "cv2", "scipy", "skimage", "matplotlib")  # a second or more to import


def level(name: str) -> int:
    return next(index for index, packages in enumerate(LEVELS) if name.split(".")[0] in packages)


def test_packages_import_only_what_lies_below():
    assert set(PACKAGES) <= set.union(*LEVELS)
    for name in MODULES:
        for other in imported(name):
            assert other.split(".")[0] in PACKAGES, f"{name} imports the script {other}"
            if name != RECIPE or other.split(".")[0] != "run_utils":
                assert level(other) <= level(name), f"{name} imports {other}"


def test_nothing_is_imported_in_circles():
    """Neither modules, where they are imported, nor packages of one level."""
    TopologicalSorter({name: imported(name) - {name} for name in SOURCE}).prepare()
    packages = {
        package: {other.split(".")[0] for name in MODULES if name.startswith(f"{package}.") for other in imported(name)}
        for package in PACKAGES
    }
    packages["models"].discard("run_utils")  # by the recipe
    TopologicalSorter({package: others - {package} for package, others in packages.items()}).prepare()


def test_recipes_are_imported_by_configurations_and_recipes_alone():
    for name in SOURCE:
        if any(other.startswith(RECIPE) for other in imported(name)):
            assert name == "config" or name.startswith((RECIPE, "pretrained.")), name


def test_misc_has_three_rooms_and_no_module_that_nobody_uses():
    misc = ROOT / "misc"
    assert {path.parent.name for path in misc.glob("*/__init__.py")} == ROOMS
    used = set().union(*(imported(name) - {name} for name in SOURCE))
    commands = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.sh"))
    for name in MODULES:
        if name.startswith("misc.") and SOURCE[name].name != "__init__.py" and not is_a_name_for_others(name):
            assert name in used or f"-m {name} " in commands, f"nobody imports {name}"


def test_what_one_package_alone_imports_lies_in_that_package():
    """Misc is for what several packages share; scripts are no package, so what serves only them may lie there too."""
    users = {
        name: {room(other) for other in SOURCE if name in imported(other) - {other}} - {"benchmarks"}
        for name in MODULES
        if name.startswith("misc.") and SOURCE[name].name != "__init__.py"
    }
    assert not {name: only for name, only in users.items() if len(only) == 1 and not only <= {"", room(name)}}


def is_a_name_for_others(name: str) -> bool:
    """Say whether a module only imports and passes on, under a name that code outside the repository knows."""
    text, *statements = tree(name).body
    kinds = {type(statement) for statement in statements}
    return isinstance(text, ast.Expr) and ast.ImportFrom in kinds and kinds <= {ast.ImportFrom, ast.Assign}


def test_inference_stays_in_sixteen_modules():
    assert len([name for name in MODULES if name.startswith("infer.")]) <= MAX_INFER_MODULES


def test_help_imports_nothing_heavy_and_tells_how_to_use_each_script():
    code = f"""
import contextlib, io, runpy, sys
for script in {[f"{name}.py" for name in SCRIPTS if "run_command" in SOURCE[name].read_text(encoding="utf-8")]!r}:
    sys.argv, out = [script, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert "Usage:" in out.getvalue(), script
    assert not set({HEAVY!r}) & set(sys.modules), script
"""
    ended = subprocess.run([sys.executable, "-Bc", f"import sys; sys.path[:0] = ['']{code}"], cwd=ROOT, **CAPTURED)
    assert ended.returncode == 0, ended.stderr


def test_a_worker_starts_without_what_its_first_job_may_not_need():
    """Parts of SciPy and scikit-image load when they are used: a worker starts in half the time."""
    slow = {"torch", "scipy.ndimage", "scipy.sparse", "skimage.morphology"}
    code = f"import sys, infer.sinks; print(*{slow} & {{*sys.modules}})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, **CAPTURED)
    assert (ended.stdout, ended.stderr) == ("\n", "")


CAPTURED = {"capture_output": True, "text": True}
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
if "matplotlib" in sys.modules:
    backend = dict.__getitem__(sys.modules["matplotlib"].rcParams, "backend")  # as an attribute it would be chosen now
    assert not isinstance(backend, str), f"the plot backend was set to {{backend}}"
assert set(os.listdir(".")) == files, "files appeared"
assert not hasattr(sys.modules.get("numpy"), "sctypes"), "np.sctypes was left behind"
"""


def import_all(names: list[str], *folders) -> subprocess.CompletedProcess:
    """Import modules that lie in `folders` in a fresh process, whose working directory is the first of them."""
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]}\n" + IMPORT_ALL.format(modules=names)
    return subprocess.run([sys.executable, "-Bc", code], cwd=folders[0], **CAPTURED)


def test_p41_importing_every_module_does_nothing(tmp_path):
    """No output, no start method, no backend, no warning filter, no replaced function, no file."""
    ended = import_all([*MODULES, *[name for name in SCRIPTS if name != "config"]], tmp_path, ROOT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr == ""


def test_the_check_of_imports_finds_what_it_looks_for(tmp_path_factory, subtests):
    cases = [
        ("import warnings; warnings.simplefilter('ignore')", "guilty.py"),
        ("import warnings; warnings.filterwarnings('ignore')", "guilty.py"),
        ("import warnings; warnings.warn = print", "warnings.warn"),
        ("import multiprocessing; multiprocessing.set_start_method('spawn')", "start method"),
        ("import matplotlib; matplotlib.use('Agg')", "backend"),
        ("import numpy; numpy.sctypes = {}", "sctypes"),
        ("open('left', 'w').close()", "files"),
    ]
    for deed, said in cases:
        with subtests.test(deed=deed):
            folder = tmp_path_factory.mktemp("guilty")
            (folder / "guilty.py").write_text(deed)
            ended = import_all(["guilty"], folder)
            assert ended.returncode == 1
            assert said in ended.stderr.splitlines()[-1]


def test_p35_no_names_are_mangled():
    """A private name inside a class is mangled with the class's own name: renaming one class breaks another."""
    for module in SOURCE:
        for node in ast.walk(tree(module)):
            name = getattr(node, "attr", None) or getattr(node, "name", None)
            if isinstance(name, str) and name.startswith("__"):
                assert name.endswith("__"), f"{module}: {name}"


def test_files_stay_readable():
    for path in SOURCE.values():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path
