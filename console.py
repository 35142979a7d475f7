"""The scripts as commands of an installed package: `hovernet-infer` is `run_infer.py`, and so on.

The tree is installed as it is, as the folder `hovernet_toolkit`. Its modules name each other from that folder
(`from infer.run import ...`), as they do in a checkout, so it is put first on the path.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def add_to_path() -> Path:
    """Put the folder of the toolkit on the path, so that its modules can be imported; return it.

    Notebooks and programs call this first: `from hovernet_toolkit import console; console.add_to_path()`. In a clone
    `import console` is enough where the clone itself is on the path.
    """
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return FOLDER


def run(script: str) -> int:
    """Run a script's `main` with the arguments of this process; return its exit code."""
    add_to_path()
    return importlib.import_module(script).main()


def infer() -> int:
    return run("run_infer")


def train() -> int:
    return run("run_train")


def patches() -> int:
    return run("extract_patches")


def masks() -> int:
    return run("GenerateMasks")


def stats() -> int:
    return run("compute_stats")


def convert() -> int:
    return run("convert_format")


def heat_map() -> int:
    return run("plot_heat_map")


def report() -> int:
    return run("make_report")


def ihc() -> int:
    return run("run_ihc")


def view() -> int:
    return run("view_slides")


def convert_checkpoint() -> int:
    return run("convert_chkpt_tf2pytorch")
