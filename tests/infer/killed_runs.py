"""Slide runs in a process of their own that are killed, or stopped, at a moment that has a name."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infer.sinks import BlockJob, SlideJob
from infer.spool import Spool

_CONTEXT = multiprocessing.get_context("forkserver")  # forked from a process that conftest.py describes


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when.

    Attributes:
        who: `main`, `worker` (where the moment is one of a worker), or `group`: all of them.
        event: `batch`: the network is given one; `remove`: the spool is about to be; else the suffix of a file, which
            is written and has not its name yet.
        count: at which of these events.
        signal: what they are sent.
        log: a file with a byte for each event so far, in whichever process.
    """

    who: str
    event: str
    count: int
    log: Path
    signal: int = signal.SIGKILL

    def at(self, event: str) -> None:
        if event != self.event:
            return
        with open(self.log, "ab") as file:
            file.write(b".")
            file.flush()
            count = file.tell()
        if count != self.count:
            return
        if self.who == "group":
            os.killpg(os.getpgid(0), self.signal)
        else:
            os.kill(os.getpid() if self.who == "worker" else os.getsid(0), self.signal)


@functools.cache
def watch(kill: Kill) -> None:
    """Say what happens in this process from now on; once."""
    replace, remove = os.replace, Spool.remove
    os.replace = lambda source, target: (kill.at(Path(target).suffix), replace(source, target))[1]
    Spool.remove = lambda self: (kill.at("remove"), remove(self))[1]


def watched(kind: type, kill: Kill) -> Callable:
    """Return what makes jobs of a kind that are watched wherever they run."""
    return lambda *args, **kwargs: WatchedJob(kind(*args, **kwargs), kill)


@dataclass(frozen=True)
class WatchedJob:
    job: BlockJob | SlideJob
    kill: Kill

    def run(self):
        watch(self.kill)
        return self.job.run()


def _run(weights: Path, options: dict, kill: Kill, alive: Path) -> None:
    # workers import this module, too, and need no torch
    from stubs import StubNet

    import infer.wsi
    from misc.slides.tissue import whole_mask

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
    os.dup2(os.open(alive, os.O_WRONLY), 1)  # which the workers inherit
    watch(kill)
    infer.wsi.otsu_mask = lambda thumb: whole_mask()
    infer.wsi.BlockJob, infer.wsi.SlideJob = watched(BlockJob, kill), watched(SlideJob, kill)
    manager = infer.wsi.InferManager({"model_path": weights}, gpu="")
    manager.net = StubNet()
    forward = manager.net.forward
    manager.net.forward = lambda imgs: (kill.at("batch"), forward(imgs))[1]
    raise SystemExit(manager.process_wsi_list(options).exit_code)


def killed_run(weights: Path, options: dict, kill: Kill) -> int:
    """Run slides and be killed; returns the exit code once all processes have ended."""
    alive = kill.log.with_suffix(".alive")
    os.mkfifo(alive)
    process = _CONTEXT.Process(target=_run, args=(weights, options, kill, alive))
    process.start()
    with open(alive) as processes:
        processes.read()
    process.join()
    alive.unlink()
    return process.exitcode
