"""One pool of worker processes for a whole run, whose results are always read.

A job that fails in a worker, or whose worker is killed, is done once more in this process; if it fails again, its name
and traceback are reported. No job is dropped silently.

Each worker has a pipe of its own that no other process holds, so its end is seen at once whenever it is killed.
`ProcessPoolExecutor` has one queue for all: a worker that is killed while it writes a result takes the queue's lock
with it, and its half of a result keeps the reader waiting for ever.
"""

from __future__ import annotations

import itertools
import logging
import math
import mmap
import multiprocessing
import multiprocessing.reduction
import os
import pickle
import queue
import signal
import threading
import traceback
import weakref
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import cv2
import numpy as np

from misc.batch import reason
from misc.machine import cpu_count, reused_memory_pages
from misc.threads import thread_pool

logger = logging.getLogger(__name__)

# Time that an idle worker has to end by itself at the close, s.
GRACE_S = 10
# How processes start: with nothing of this one, neither its threads nor its files.
CONTEXT = multiprocessing.get_context("spawn")
# Workers have a lower priority than the process that feeds the network, so that the GPU is never idle.
NICENESS = 10


class WorkerKilledError(RuntimeError):
    """The process of a job is gone."""


class NoWorkerError(RuntimeError):
    """The system has no room for one more process."""


class WorkerError(RuntimeError):
    """A job failed in a worker; the message is the last line of the error."""


class Job(Protocol):
    """A job; it can be pickled."""

    def run(self) -> Any: ...


@dataclass(frozen=True)
class Outcome:
    """The result of one job: `value`, or the last line and the traceback of its error."""

    name: str
    value: Any = None
    error: str | None = None
    details: str = ""

    @classmethod
    def of(cls, name: str, error: BaseException, expected: tuple[type[Exception], ...] = ()) -> Outcome:
        """Return the outcome of an error; an expected error needs no traceback."""
        if isinstance(error, expected):
            said = reason(error) if isinstance(error, MemoryError) else " ".join(str(error).split())
            return cls(name, error=said, details=getattr(error, "details", ""))
        details = "".join(traceback.format_exception(error))
        return cls(name, error=f"{type(error).__name__}: {error}", details=details)


def limit_workers(option: str, asked: int, useful: int = 1 << 30) -> int:
    """Return how many workers to start: the number asked for, but no more than there are processors or jobs.

    Args:
        option: name of the option, for the message.
        asked: its value; 0 means "in this process".
        useful: number of jobs.

    Raises:
        ValueError: `asked` is negative.
    """
    if asked < 0:
        raise ValueError(f"{option} must be 0 or more, got {asked}")
    granted = min(asked, cpu_count(), max(useful, 1))
    if granted < min(asked, max(useful, 1)):
        logger.info("%s=%d -> %d: this machine has %d processors", option, asked, granted, cpu_count())
    return granted


class _Memory:
    """Unnamed memory that several processes map; it is released when the last of them ends.

    Its maker keeps it mapped, since new pages are slow; a worker maps it during a job.

    Args:
        key: its number, the same in all processes.
        size: bytes.
        fd: of memory that another process made.
    """

    def __init__(self, key: int, size: int, fd: int | None = None):
        self.key, self.size = key, size
        self.fd = os.memfd_create("maps") if fd is None else fd
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, size)
        self._kept = mmap.mmap(self.fd, size) if fd is None else None

    def map(self) -> mmap.mmap:
        return self._kept or mmap.mmap(self.fd, self.size)


class SharedArray:
    """An array that reaches a worker without being copied, see `WorkerPool.array`.

    Attributes:
        array: the array.
        memory: the memory of the array; `None` where it is pickled with the rest of its job.
    """

    def __init__(self, shape: tuple[int, ...], dtype, memory: _Memory | None = None):
        self.memory = memory
        if memory is None:
            self.array = np.empty(shape, dtype)
        else:
            self.array = np.frombuffer(memory.map(), dtype, math.prod(shape)).reshape(shape)

    def __reduce__(self):
        if self.memory is None:
            return _copied, (self.array,)
        _passing.memories.append(self.memory)
        return _mapped, (self.array.shape, self.array.dtype, self.memory.key)


def _copied(array: np.ndarray) -> SharedArray:
    shared = SharedArray((0,), array.dtype)
    shared.array = array
    return shared


def _mapped(shape: tuple[int, ...], dtype: np.dtype, key: int) -> SharedArray:
    return SharedArray(shape, dtype, _known[key])


class _Passing(threading.local):
    """The memories in the job that this thread is sending."""

    def __init__(self):
        self.memories: list[_Memory] = []


_passing = _Passing()
_keys = itertools.count()  # of all pools: a worker may outlive its own
_known: dict[int, _Memory] = {}  # in a worker: the memories that it maps


class WorkerPool:
    """Runs jobs in spawned processes, or in the thread that submits them when there are none.

    Args:
        nr_workers: processes; they are started when they are needed.
        limit: how many jobs may be in progress at once; `submit` beyond it first waits.
        idle: processes of an earlier pool; those of this one are left there at the close.

    Attributes:
        outcomes: `(key, Outcome)` of every job that was submitted, as they end.
    """

    def __init__(self, nr_workers: int, limit: int | None = None, idle: list[_Worker] | None = None):
        self.nr_workers = nr_workers
        self.outcomes: queue.SimpleQueue[tuple[Any, Outcome]] = queue.SimpleQueue()
        self._places = threading.Semaphore(max(limit or 2 * nr_workers, 1))
        self._threads = thread_pool(nr_workers) if nr_workers else None
        self._idle, self._kept = ([], False) if idle is None else (idle, True)
        self._started, self._said = 0, False
        self._lock = threading.Lock()
        self._free: list[_Memory] = []  # smallest first

    def array(self, shape: tuple[int, ...], dtype) -> SharedArray:
        """Return an array for a job; it still has its old content.

        Memory is used again once its job is done, since new pages are slow.
        """
        size = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        if self._threads is None or not hasattr(os, "memfd_create"):
            return SharedArray(shape, dtype)
        with self._lock:
            fitting = next((memory for memory in self._free if memory.size >= size), None)
            memory = fitting or _Memory(next(_keys), size)
            if fitting:
                self._free.remove(fitting)
            else:
                del self._free[:1]  # keeps as many as jobs in progress, of the sizes in use
        return SharedArray(shape, dtype, memory)

    def submit(self, name: str, job: Job, key: Any = None) -> None:
        """Submit a job; waits while too many are in progress."""
        if self._threads is None:
            self.outcomes.put((key, _attempt(name, job)))
            return
        self._places.acquire()
        self._threads.submit(self._do, name, job, key)

    def close(self, cancel: bool = False) -> None:
        """Wait for running jobs and end the processes; `cancel` drops jobs that have not begun."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=cancel)
        while self._idle and not self._kept:
            self._idle.pop().end()
        self._free.clear()

    def _do(self, name: str, job: Job, key: Any) -> None:
        _passing.memories = []
        try:
            outcome = Outcome(name, value=self._in_a_worker(job))
        except NoWorkerError as error:
            with self._lock:  # two threads may come here at once
                said, self._said = self._said, True
            if not said:
                logger.warning("%d worker processes: no more can start (%s); this process helps", self._started, error)
            outcome = _attempt(name, job)
        except WorkerKilledError:
            logger.warning("%s: its worker process was killed; doing it again in this process", name)
            outcome = _attempt(name, job)
        except Exception as error:
            logger.warning("%s: failed in a worker (%s); doing it again in this process", name, error)
            outcome = _attempt(name, job)
        with self._lock:
            self._free = sorted([*self._free, *_passing.memories], key=lambda memory: memory.size)
        del job
        self._places.release()
        self.outcomes.put((key, outcome))

    def _in_a_worker(self, job: Job) -> Any:
        with self._lock:  # one start at a time, too
            worker = self._idle.pop() if self._idle else self._start()
        try:
            value = worker.call(job)
        except WorkerError:
            self._idle.append(worker)
            raise
        except BaseException:  # killed, or an object that cannot be pickled: the content of its pipe is not known
            worker.process.kill()
            worker.end()
            raise
        self._idle.append(worker)
        return value

    def _start(self) -> _Worker:
        try:
            worker = _Worker()
        except OSError as error:
            raise NoWorkerError(reason(error)) from error
        self._started += 1
        return worker


def _attempt(name: str, job: Job) -> Outcome:
    try:
        return Outcome(name, value=job.run())
    except Exception as error:
        return Outcome.of(name, error, (OSError, MemoryError))


class _Worker:
    """One process, and the only other end of its pipe."""

    def __init__(self):
        self.pipe, other = CONTEXT.Pipe()
        # a daemon, so that a run that ends without closing its pool does not wait for it
        self.process = CONTEXT.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        self.known: dict[int, weakref.ref] = {}  # the memories that it maps
        other.close()  # the worker has the last one: reading ends when the worker ends

    def call(self, job: Job) -> Any:
        """Do a job.

        Raises:
            WorkerKilledError: the process ended meanwhile.
            WorkerError: the work failed.
        """
        try:
            self._send(job)
            done, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerKilledError("the process ended") from error
        if not done:
            raise WorkerError(value)
        return value

    def _send(self, job: Job) -> None:
        data = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
        gone = [key for key, memory in self.known.items() if memory() is None]
        new = [memory for memory in _passing.memories if memory.key not in self.known]
        self.pipe.send((gone, [(memory.key, memory.size) for memory in new]))
        for memory in new:
            multiprocessing.reduction.send_handle(self.pipe, memory.fd, self.process.pid)
            self.known[memory.key] = weakref.ref(memory)
        for key in gone:
            del self.known[key]
        self.pipe.send_bytes(data)

    def end(self) -> None:
        """Close the pipe so that the process ends; kill it if it does not."""
        self.pipe.close()
        self.process.join(GRACE_S)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _serve(pipe: Connection) -> None:
    """Do the jobs from the pipe until it is closed or the parent is killed; runs in a worker.

    Only the parent handles Ctrl-C. Workers use one thread each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    with reused_memory_pages():
        _serve_jobs(pipe)


def _serve_jobs(pipe: Connection) -> None:
    while True:
        try:
            job = _receive(pipe)
        except (EOFError, OSError):
            return
        try:
            reply = True, job.run()
        except Exception as error:
            reply = False, f"{type(error).__name__}: {error}"
        del job
        try:
            _reply(pipe, reply)
        except OSError:  # the parent no longer waits
            return
        del reply


def _receive(pipe: Connection) -> Job:
    gone, new = pipe.recv()
    for key in gone:
        del _known[key]
    for key, size in new:
        _known[key] = _Memory(key, size, multiprocessing.reduction.recv_handle(pipe))
    return pickle.loads(pipe.recv_bytes())


def _reply(pipe: Connection, reply: tuple[bool, Any]) -> None:
    try:
        pipe.send(reply)
    except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
        pipe.send((False, f"its result cannot be sent: {error}"))
