"""One pool of worker processes for a whole run, whose results are always read.

A piece of work that fails in a worker, or whose worker is killed, is done once more in this process; if it
fails again, its name and traceback are reported. Nothing is dropped silently.

Each worker has a pipe of its own that no other process holds, so its end is seen at once whenever it is killed.
`ProcessPoolExecutor` has one queue for all: a worker that is killed while it writes a result takes the queue's lock
with it, and its half of a result keeps the reader waiting for ever.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cv2

from misc.machine import cpu_count

logger = logging.getLogger(__name__)

# Time that an idle worker has to end by itself at the close, s.
GRACE_S = 10


class WorkerKilledError(RuntimeError):
    """The process that did a piece of work is gone."""


class WorkerError(RuntimeError):
    """A piece of work failed in a worker; the message is the last line of its failure."""


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
        self._processes = _Processes(function, nr_workers) if nr_workers else None

    def __len__(self) -> int:
        """Pieces that are under way."""
        return len(self._pending)

    def submit(self, name: str, job: Any) -> None:
        """Hand over a piece of work; waits while the queue is full."""
        while len(self._pending) >= self.queue:
            self._collect()
        if self._processes is None:
            self._finished.append(self._attempt(name, job))
        else:
            self._pending[self._processes.submit(job)] = (name, job)

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
        if self._processes is not None:
            self._processes.close(cancel)

    def _collect(self) -> None:
        done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in done:
            name, job = self._pending.pop(future)
            try:
                self._finished.append(Outcome(name, value=future.result()))
            except WorkerKilledError:
                logger.warning("%s: its worker process was killed; doing it again in this process", name)
                self._finished.append(self._attempt(name, job))
            except Exception as error:
                logger.warning("%s: failed in a worker (%s); doing it again in this process", name, error)
                self._finished.append(self._attempt(name, job))

    def _attempt(self, name: str, job: Any) -> Outcome:
        try:
            return Outcome(name, value=self.function(job))
        except Exception as error:
            return Outcome(name, error=f"{type(error).__name__}: {error}", details=traceback.format_exc())


class _Worker:
    """One process, and the only other end of its pipe."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        # a daemon, lest a run that ends without closing its pool waits for it
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
        self.process.start()
        other.close()  # the worker has the last one: reading ends when it does

    def call(self, job: Any) -> Any:
        """Do a piece of work.

        Raises:
            WorkerKilledError: the process ended meanwhile.
            WorkerError: the work failed.
        """
        try:
            self.pipe.send(job)
            done, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerKilledError("the process ended") from error
        if not done:
            raise WorkerError(value)
        return value

    def end(self) -> None:
        """Let the process end: it sees its pipe closed; by force if it does not."""
        self.pipe.close()
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


class _Processes:
    """Processes that are started when needed and stay for the next piece; a thread waits for each that is at work."""

    def __init__(self, function: Callable[[Any], Any], count: int):
        self._function = function
        self._threads = ThreadPoolExecutor(count)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def submit(self, job: Any) -> Future:
        return self._threads.submit(self._run, job)

    def close(self, cancel: bool) -> None:
        self._threads.shutdown(wait=True, cancel_futures=cancel)
        while self._idle:
            self._idle.pop().end()

    def _run(self, job: Any) -> Any:
        with self._lock:  # one start at a time, too
            worker = self._idle.pop() if self._idle else _Worker(self._function)
        try:
            value = worker.call(job)
        except WorkerError:
            self._idle.append(worker)
            raise
        except BaseException:  # killed, or nothing that can be sent: what its pipe holds is not known
            worker.process.kill()
            worker.end()
            raise
        self._idle.append(worker)
        return value


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Do what comes through the pipe until it is closed, or its other end is killed; runs in a worker.

    Ctrl-C is left to the parent, and parallelism to the number of processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            reply = True, function(job)
        except Exception as error:
            reply = False, f"{type(error).__name__}: {error}"
        del job
        try:
            _reply(pipe, reply)
        except OSError:  # nobody waits for it any more
            return
        del reply


def _reply(pipe: Connection, reply: tuple[bool, Any]) -> None:
    try:
        pipe.send(reply)
    except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
        pipe.send((False, f"its result cannot be sent: {error}"))
