"""Locks and checks of a log folder: one run at a time writes there, and never over the results of another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from misc.files import remove_if_empty
from misc.locks import locked

from . import checkpoint_io, distributed
from .log_files import read_stats

LOCK = ".run.lock"  # hidden, so that it does not count as a result
# Loading processes share the lock of their run. If the run is killed, they notice within 5 s, so a new run waits.
_PATIENCE_S = 10.0


@contextlib.contextmanager
def held(folder: Path, writes: bool) -> Iterator[None]:
    """Lock a folder against other runs while the block runs; rank 0 does it for all processes.

    Args:
        folder: created if missing; removed at the end if it is empty.
        writes: whether this run writes anything; if not, there is no lock.

    Raises:
        ValueError: another run is at work there.
    """
    with contextlib.ExitStack() as stack:
        if writes:
            distributed.on_main(_hold, stack, folder)
        yield


def _hold(stack: contextlib.ExitStack, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stack.callback(remove_if_empty, folder)
    deadline = time.monotonic() + _PATIENCE_S
    while not stack.enter_context(locked(folder / LOCK)):
        if time.monotonic() >= deadline:
            raise ValueError(f"another run is at work in {folder}: wait for its end, or name another log_dir")
        time.sleep(0.2)


def find_moment(root: Path, folders: list[Path], resume: bool, writes: bool) -> tuple[int, checkpoint_io.Resume]:
    """Return the phase and the moment to start from, after checking that nothing would be overwritten.

    Args:
        root: `log_dir`.
        folders: of the phases, inside `root`; or `root` itself.
        resume: whether to resume the run that is there.
        writes: whether this run writes anything.

    Raises:
        ValueError: the folder holds another run, or results without a checkpoint to resume from.
    """
    if resume:
        return _last_moment(root, folders)
    found = [path.name for path in root.glob("*") if not path.name.startswith(".")] if writes else []
    if found:
        raise ValueError(
            f"{root} holds another run ({min(found)}, ...): go on with it by --resume, or name another log_dir in the "
            "configuration; existing results are never deleted"
        )
    return 0, checkpoint_io.Resume()


def _last_moment(root: Path, folders: list[Path]) -> tuple[int, checkpoint_io.Resume]:
    for index in reversed(range(len(folders))):
        moment = checkpoint_io.read_resume(folders[index])
        if moment.path is not None:
            return index, moment
        _refuse_results(folders[index])
    # results of a recipe with more or fewer phases
    for folder in (root, *sorted(root.glob("[0-9][0-9]"))):
        _refuse_results(folder)
    tqdm.write(f"{root} holds no checkpoint to resume from: starting at the beginning")
    return 0, checkpoint_io.Resume()


def _refuse_results(folder: Path) -> None:
    """Raise if a new start would overwrite results; files of a run that was killed in its first epoch do not count."""
    found = {path.name for path in folder.glob("*.tar") if not path.name.startswith(".")}  # hidden ones: unfinished
    epochs = list(read_stats(folder / "stats.json"))
    if epochs == ["1"]:
        found.discard("net_best.tar")
    elif epochs:
        found.add("stats.json")
    if found:
        raise ValueError(
            f"{folder} holds {', '.join(sorted(found)[:3])}, but no checkpoint that this recipe resumes from: put back "
            "net_epoch=N.tar or the number of phases, or name another log_dir; existing results are never deleted"
        )


def tidy(folders: list[Path], moment: checkpoint_io.Resume) -> None:
    """Remove unfinished files and replaced checkpoints that a killed run left."""
    for folder in folders:
        checkpoint_io.remove_parts(folder)
    if moment.path is not None:
        checkpoint_io.remove_obsolete(moment)
