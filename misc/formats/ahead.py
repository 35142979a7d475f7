"""Call a function for many items in threads or processes; results come in the order of the items.

Python runs one thread at a time. So threads serve work that waits for files, and processes all other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from misc.threads import thread_pool
from misc.workers import Outcome, WorkerPool

T, U = TypeVar("T"), TypeVar("U")


def map_in_threads(function: Callable[[T], U], items: Iterable[T], count: int) -> Iterator[U]:
    """Yield `function(item)` in the order of the items, which `count` threads work on; few of them wait at a time."""
    with thread_pool(count) as pool:
        ahead: deque[Future[U]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@dataclass(frozen=True)
class _Call:
    """A job that calls a function."""

    function: Callable[[Any], Any]
    item: Any

    def run(self) -> Any:
        return self.function(self.item)


def map_in_workers(function: Callable[[T], U], items: Iterable[T], nr_workers: int, ahead: int) -> Iterator[U]:
    """Yield `function(item)` in the order of the items, which worker processes work on.

    Args:
        function: can be pickled, as its items and results.
        items: taken as there is room for them.
        nr_workers: processes.
        ahead: items in progress, and results that wait, at once.

    Raises:
        Exception: whatever `function` raises.
    """
    pool = WorkerPool(nr_workers, ahead)
    calls: dict[int, _Call] = {}
    outcomes: dict[int, Outcome] = {}

    def first() -> U:
        number = next(iter(calls))
        while number not in outcomes:
            done, outcomes[done] = pool.outcomes.get()
        call, outcome = calls.pop(number), outcomes.pop(number)
        return call.run() if outcome.error else outcome.value  # an outcome has the text of an error, not the error

    try:
        for number, item in enumerate(items):
            calls[number] = _Call(function, item)
            pool.submit(f"piece {number + 1}", calls[number], number)
            if len(calls) == ahead:
                yield first()
        while calls:
            yield first()
    finally:
        pool.close(cancel=True)
