"""What the tests share: where the real data lie, and one thread for each network.

Small networks are slower with two threads than with one, the more so where tests run beside other work.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the commands that tests start

os.fsync = lambda file: None  # no test cuts the power, and a busy disk would keep tests waiting

ROOT = Path(__file__).resolve().parents[1]
# The real images stay outside the repository (their licences do); tests that need them say so when they are skipped.
SHARED = Path(os.environ.get("HOVERNET_TEST_DATA", ROOT.parent / "shared")).resolve()


# Files that take longest, by a name of their folder; begun first, so that no process still has one where the others
# have none left (./run_tests.sh gives each process a file at a time, in the order in which tests are collected).
LONGEST_FIRST = (
    "docs/test_pages.py",
    "scripts/test_run_train_resume.py",
    "scripts/test_run_ihc.py",
    "infer/test_tile_faults.py",
    "scripts/test_end_to_end.py",
    "infer/test_wsi.py",
)

# What takes long to import in the workers of tests.
SLOW = "torch infer.wsi scipy.ndimage scipy.io skimage.morphology benchmarks.mutated_readers pytest".split()


def pytest_configure() -> None:
    """Fork workers from a process that has imported what is slow.

    Scripts that tests start, and the tests of the pool itself, spawn theirs as a user's do.
    """
    import misc.workers

    misc.workers.CONTEXT = multiprocessing.get_context("forkserver")
    misc.workers.CONTEXT.set_forkserver_preload(SLOW)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays
    gc.set_threshold(50_000)  # looking for cycles was 6 % of all work


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images, labels, slides and annotations."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no test data at {SHARED}; set HOVERNET_TEST_DATA")
    return SHARED


@pytest.fixture(scope="session")
def kumar(shared: Path) -> Path:
    return shared / "data" / "kumar"


@pytest.fixture(scope="session")
def browser():
    """A real browser, without a window: Debian's Chromium, driven by Playwright."""
    where = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if where is None:
        pytest.skip("no Chromium here; `apt-get install chromium` brings it")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="`pip install -r requirements-browser.txt` is needed"
    )
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """A Python that starts at once; see `warm_python.py`."""
    from warm_python import WarmPython

    with WarmPython(tmp_path_factory.mktemp("warm")) as python:
        yield python


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder with a training run that nobody interrupted, in `logs`; see `training_runs.py`."""
    from training_runs import make_project, run_here

    root = tmp_path_factory.mktemp("training")
    run_here(make_project(root))
    return root


def count_calls(function: Callable, *args) -> int:
    """Return how often a function calls compiled ones, NumPy's for example, on its way.

    A loop over nuclei or positions shows in it on a machine of any speed.
    """
    counted = 0

    def count(frame, event, arg):
        nonlocal counted
        counted += event == "c_call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
    return counted
