"""One pool of worker processes for a whole run, whose results are always read.

A piece of work that fails in a worker, or whose worker is killed, is done once more in this process; if it
fails again, its name and traceback are reported. Nothing is dropped silently.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import cv2

from misc.machine import cpu_count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one piece of work: `value`, or the last line and the traceback of its failure."""

    name: str
    value: Any = None
    error: str | None = None
    details: str = ""


def limit_workers(option: str, asked: int, useful: int) -> int:
    """Return how many workers to start: what was asked for, but no more than there are processors or pieces.

    Args:
        option: name of the option, for the message.
        asked: its value; 0 means "in this process".
        useful: number of pieces of work.

    Raises:
        ValueError: `asked` is negative.
    """
    if asked < 0:
        raise ValueError(f"{option} must be 0 or more, got {asked}")
    granted = min(asked, cpu_count(), max(useful, 1))
    if granted < min(asked, max(useful, 1)):
        logger.info("%s=%d -> %d: this machine has %d processors", option, asked, granted, cpu_count())
    return granted


class WorkerPool:
    """Runs `function(job)` in `nr_workers` spawned processes, or in this one when that is 0.

    Args:
        function: importable at module level; takes one picklable job.
        nr_workers: processes.
        queue: how many pieces may be under way at once; `submit` beyond it first waits.
    """

    def __init__(self, function: Callable[[Any], Any], nr_workers: int, queue: int | None = None):
        self.function = function
        self.nr_workers = nr_workers
        self.queue = max(queue or 2 * nr_workers, 1)
        self._pending: dict[Future, tuple[str, Any]] = {}
        self._finished: list[Outcome] = []
        self._executor = self._start() if nr_workers else None

    def __len__(self) -> int:
        """Pieces that are under way."""
        return len(self._pending)

    def submit(self, name: str, job: Any) -> None:
        """Hand over a piece of work; waits while the queue is full."""
        while len(self._pending) >= self.queue:
            self._collect()
        if self._executor is None:
            self._finished.append(self._attempt(name, job))
            return
        try:
            future = self._executor.submit(self.function, job)
        except BrokenProcessPool:  # a worker died since the last look
            self._replace_pool()
            future = self._executor.submit(self.function, job)
        self._pending[future] = (name, job)

    def wait_one(self) -> None:
        """Wait until a piece that is under way has ended; `finished` then yields it."""
        if self._pending:
            self._collect()

    def finished(self) -> Iterator[Outcome]:
        """Yield what has ended since the last call, without waiting."""
        if any(future.done() for future in self._pending):
            self._collect()
        while self._finished:
            yield self._finished.pop(0)

    def wait_all(self) -> Iterator[Outcome]:
        """Yield everything that is still under way as it ends."""
        while self._pending or self._finished:
            self.wait_one()
            yield from self.finished()

    def close(self, cancel: bool = False) -> None:
        """End the processes; `cancel` drops what has not begun."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=cancel)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.nr_workers, mp_context=context, initializer=_init_worker)

    def _collect(self) -> None:
        done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        broken = False
        for future in done:
            name, job = self._pending.pop(future)
            try:
                self._finished.append(Outcome(name, value=future.result()))
            except BrokenProcessPool:
                broken = True
                logger.warning("%s: its worker process was killed; doing it again in this process", name)
                self._finished.append(self._attempt(name, job))
            except Exception as error:
                logger.warning("%s: failed in a worker (%s); doing it again in this process", name, error)
                self._finished.append(self._attempt(name, job))
        if broken:
            self._replace_pool()

    def _replace_pool(self) -> None:
        """Start a new pool and do what the broken one still had."""
        left, self._pending = self._pending, {}
        self._executor.shutdown(wait=False)
        self._executor = self._start()
        for future, (name, job) in left.items():
            intact = future.done() and not future.cancelled() and future.exception() is None
            self._finished.append(Outcome(name, value=future.result()) if intact else self._attempt(name, job))

    def _attempt(self, name: str, job: Any) -> Outcome:
        try:
            return Outcome(name, value=self.function(job))
        except Exception as error:
            return Outcome(name, error=f"{type(error).__name__}: {error}", details=traceback.format_exc())


def _init_worker() -> None:
    """Leave Ctrl-C to the parent, and parallelism to the number of processes; end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent closes no queue: its workers would wait for the next piece of work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
