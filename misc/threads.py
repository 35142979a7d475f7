"""Threads, and what they share: a memory budget, and channels from one thread to the next."""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger(__name__)


class ClosedError(Exception):
    """This channel or budget is closed."""


def start_threads(threads: Iterable[threading.Thread]) -> None:
    """Start threads.

    Raises:
        OSError: the system has no room for one more.
    """
    for thread in threads:
        try:
            thread.start()
        except RuntimeError as error:
            reason = "no more threads can be started: too little memory, or too many of this user's (`ulimit -u`)"
            raise OSError(errno.EAGAIN, reason) from error


def thread_pool(count: int) -> ThreadPoolExecutor:
    """Return a pool of `count` threads; logs a warning and returns fewer where the system has no room for them."""
    done = threading.Event()
    trial = [threading.Thread(target=done.wait) for _ in range(count)]
    try:
        start_threads(trial)
    except OSError as error:
        started = sum(thread.is_alive() for thread in trial)
        logger.warning("%d threads instead of %d: %s", max(started, 1), count, error.strerror)
        count = max(started, 1)
    finally:
        done.set()
    for thread in trial:
        if thread.ident is not None:
            thread.join()
    return ThreadPoolExecutor(count)


class Budget:
    """Bytes that the tasks in progress may take; one task is always allowed.

    Args:
        size: bytes.
    """

    def __init__(self, size: int):
        self.size = size
        self._taken: dict[Any, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def take(self, task: Any, wait: bool = False) -> bool:
        """Reserve the memory of a task if it is free; with `wait`, wait until it is."""
        with self._changed:
            while self._taken and sum(self._taken.values()) + task.cost > self.size and not self._closed:
                if not wait:
                    return False
                self._changed.wait()
            if self._closed:
                raise ClosedError
            self._taken[task] = task.cost
            return True

    def give(self, task: Any) -> None:
        """Release the memory of a task."""
        with self._changed:
            self._taken.pop(task, None)
            self._changed.notify_all()

    def close(self) -> None:
        """End all waiting and refuse more tasks: the run has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Channel:
    """Passes items from one thread to the next, a few at a time."""

    def __init__(self, size: int):
        self._items, self._size, self._closed = deque(), size, False
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._size or self._closed)
            if self._closed:
                raise ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def wait_empty(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._items or self._closed)

    def close(self, drop: bool = False) -> None:
        """Close the channel; `drop` discards the items in it."""
        with self._changed:
            self._closed = True
            if drop:
                self._items.clear()
            self._changed.notify_all()

    def ready(self, timeout: float | None = 0) -> bool:
        """Tell whether `get` returns at once, or will within a time in s."""
        with self._changed:
            return self._changed.wait_for(lambda: self._items or self._closed, timeout)

    def get(self) -> Any:
        """Return the next item; `None` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            item = self._items.popleft() if self._items else None
            self._changed.notify_all()
            return item
