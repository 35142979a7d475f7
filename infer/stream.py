"""One queue of patches over all images or slides of a run: read | cut | predict | place, each in a thread of its own.

The network never waits for the other steps. Readers fetch the next regions. One thread cuts patches out of them into
the next batch. Another puts predictions into their blocks and sends complete blocks to the worker processes. The caller
iterates over `Stream.run` and receives the results. One batch may hold patches of several bands, images or slides.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from infer.canvas import Canvas
from infer.plan import Chunk, Plan
from infer.predictor import Maps, OutOfMemoryError, Predictor, WrongResultError
from infer.spool import SpoolError
from misc.files import full_stem
from misc.threads import Budget, Channel, ClosedError, start_threads, thread_pool
from misc.workers import Job, Outcome, SharedArray, WorkerPool

logger = logging.getLogger(__name__)

# Batches that wait before and after the network.
QUEUED_BATCHES = 2
# How long a batch that is not full waits for the next task, s.
FULL_BATCH_S = 0.05
# Errors that need no traceback.
EXPECTED_ERRORS = (ValueError, OSError, MemoryError, SpoolError, OutOfMemoryError, WrongResultError)
# Events that are not about a block: the plan is known, or the task has failed.
PLANNED, FAILED = "planned", "failed"


class Task:
    """An image or a slide; `infer/tile.py` and `infer/wsi.py` define the work on it.

    Attributes:
        path, name: the file, and the name of its results.
        cost: bytes of memory that it takes while it is in progress.
        source: what the network reads, once it is prepared: `read(box)` may be called from several threads.
        failed: nothing more is done for it.
        predicted: its maps are on disk; `job` finds them, and the network is not needed.
    """

    source: Any = None
    failed = predicted = False

    def __init__(self, path: Path, cost: int = 0):
        self.path = path
        self.name = full_stem(path)
        self.cost = cost

    def prepare(self) -> Plan | None:
        """Open it and plan the work; `None` where the network has nothing to do. Runs in its own thread."""
        raise NotImplementedError

    def job(self, index: int, maps: SharedArray | None) -> Job:
        """Return the job for a complete block; `maps` is `None` where they are on disk."""
        raise NotImplementedError


class Event(NamedTuple):
    """The result of a block (its index), or of a whole task (`PLANNED`, `FAILED`, or what the caller submitted)."""

    task: Task
    what: Any
    outcome: Outcome


class _Flow(NamedTuple):
    """A task that is passing through the network, and its predicted patches."""

    task: Task
    plan: Plan
    canvas: Canvas


_Slot = tuple[_Flow, int, int]  # a patch: row and column


class Stream:
    """Runs tasks through the network.

    Args:
        tasks: in the order in which they are done.
        predictor: the network.
        pool: runs the jobs of complete blocks.
        readers: threads that read ahead; at least one is used.
        ahead: tasks that are prepared ahead.
        budget: memory of the tasks in progress.
    """

    def __init__(
        self, tasks: Iterable[Task], predictor: Predictor, pool: WorkerPool, readers: int, ahead: int, budget: Budget
    ):
        self.tasks = tasks
        self.predictor = predictor
        self.pool = pool
        self.readers = max(readers, 1)
        self.ahead = max(ahead, 1)
        self.budget = budget
        self._flows = Channel(1)
        self._batches, self._outputs = Channel(QUEUED_BATCHES), Channel(QUEUED_BATCHES)
        self._under_way = 0  # jobs
        self._lock = threading.Lock()
        self._batch: Tensor | None = None  # the batch that is being filled, (N, side, side, 3) uint8
        self._slots: list[_Slot] = []  # the patches in it

    def run(self, bar: tqdm) -> Iterator[Event]:
        """Do all tasks; yield their results as they come.

        Args:
            bar: counts px that are predicted.
        """
        self._bar = bar
        work = (self._prepare, self._cut, self._predict, self._place)
        stages = [threading.Thread(target=self._guarded, args=(stage,)) for stage in work]
        try:
            start_threads(stages)
            yield from self._events()
        finally:
            for channel in (self._flows, self._batches, self._outputs):
                channel.close(drop=True)
            self.budget.close()
            for stage in (stage for stage in stages if stage.ident is not None):
                stage.join()

    def submit(self, task: Task, what: Any, job: Job) -> None:
        """Submit a job for a task; `run` yields its outcome."""
        with self._lock:
            self._under_way += 1
        name = f"{task.name}, block {what}" if isinstance(what, int) else task.name
        self.pool.submit(name, job, (task, what))

    def _events(self) -> Iterator[Event]:
        placed = False
        while not placed or self._under_way:
            key, outcome = self.pool.outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if key is None:
                placed = True
                continue
            if key[1] not in (PLANNED, FAILED):
                with self._lock:
                    self._under_way -= 1
            yield Event(*key, outcome)

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except ClosedError:
            pass
        except BaseException as error:  # the main thread handles interruptions, too
            self.pool.outcomes.put((None, error))

    def _say(self, task: Task, what: str, outcome: Outcome) -> None:
        self.pool.outcomes.put(((task, what), outcome))

    def _fail(self, tasks: Iterable[Task], error: Exception) -> None:
        for task in tasks:
            with self._lock:
                first, task.failed = not task.failed, True
            if first:
                self._say(task, FAILED, Outcome.of(task.name, error, EXPECTED_ERRORS))

    def _attempt(self, slots: list[_Slot], step: Callable[[Any], Any], batch: Any) -> Any:
        """Return a step's result for a batch; on an error `None`, and all tasks with a patch in it fail."""
        try:
            return step(batch)
        except Exception as error:
            self._fail((flow.task for flow, *_ in slots), error)
            return None

    # ------------------------------------------------------------------------------------------ prepare

    def _prepare(self) -> None:
        """Prepare tasks, some at a time, and pass on their plans in order."""
        ahead: deque[tuple[Task, Future]] = deque()
        threads = thread_pool(self.ahead)
        try:
            for task in self.tasks:
                self._flows.wait_empty()  # one of the open tasks may wait for the network
                while not self.budget.take(task, wait=not ahead):
                    self._planned(*ahead.popleft())
                ahead.append((task, threads.submit(task.prepare)))
                if len(ahead) >= self.ahead:
                    self._planned(*ahead.popleft())
            while ahead:
                self._planned(*ahead.popleft())
        finally:
            threads.shutdown(cancel_futures=True)
        self._flows.close()

    def _planned(self, task: Task, future: Future) -> None:
        """Pass on the network's work for a task."""
        try:
            plan = future.result()
        except Exception as error:
            self._fail([task], error)
            return
        self._say(task, PLANNED, Outcome(task.name, value=plan))
        if plan is not None and task.predicted:
            self._segment(task, plan)
        elif plan is not None:
            self._flows.put(_Flow(task, plan, Canvas(plan, self.predictor.channels)))

    def _segment(self, task: Task, plan: Plan) -> None:
        """Submit the blocks of a task whose maps are on disk."""
        px = int(plan.wanted.sum()) * plan.patches.patch_output**2
        for index in plan.todo:
            if not task.failed:
                self.submit(task, index, task.job(index, None))
                self._bar.update(px // len(plan.todo))

    # ------------------------------------------------------------------------------------------ read and cut

    def _cut(self) -> None:
        """Read chunks ahead, and cut the patches out of them."""
        reads: deque[tuple[_Flow, Chunk, Future]] = deque()
        threads = thread_pool(self.readers)
        try:
            while (flow := self._next_flow(reads)) is not None:
                for chunk in flow.plan.chunks():
                    if flow.task.failed:
                        break
                    reads.append((flow, chunk, threads.submit(flow.task.source.read, chunk.box)))
                    if len(reads) > self.readers:
                        self._cut_chunk(*reads.popleft())
        finally:
            threads.shutdown(cancel_futures=True)
        self._batches.close()

    def _next_flow(self, reads: deque) -> _Flow | None:
        """Return the next task; `None` at the end, when all regions are cut."""
        while reads and not self._flows.ready():
            self._cut_chunk(*reads.popleft())
        if not self._flows.ready(FULL_BATCH_S):
            self._flush()  # the next task may wait for the memory of the tasks of these patches
        flow = self._flows.get()
        while flow is None and reads:
            self._cut_chunk(*reads.popleft())
        if flow is None:
            self._flush()
        return flow

    def _cut_chunk(self, flow: _Flow, chunk: Chunk, future: Future) -> None:
        try:
            region = future.result()
        except Exception as error:
            self._fail([flow.task], error)
        if flow.task.failed:
            return
        grid = flow.plan.patches
        side, first = grid.patch_input, grid.start - grid.margin
        for row, col in chunk.cells.tolist():
            if self._batch is None or self._batch.shape[1] != side:
                self._flush()
                self._batch = self.predictor.new_batch(side)
            y, x = row * grid.patch_output + first - chunk.box[0], col * grid.patch_output + first - chunk.box[1]
            self._batch.numpy()[len(self._slots)] = region[y : y + side, x : x + side]
            self._slots.append((flow, row, col))
            if len(self._slots) == len(self._batch):
                self._flush()

    def _flush(self) -> None:
        """Send the batch to the network."""
        batch, slots, self._batch, self._slots = self._batch, self._slots, None, []
        if slots:
            batch = self._attempt(slots, self.predictor.upload, batch[: len(slots)])
            if batch is not None:
                self._batches.put((slots, batch))

    # ------------------------------------------------------------------------------------------ predict and place

    def _predict(self) -> None:
        """Run the network."""
        while (item := self._batches.get()) is not None:
            slots, batch = item
            if all(flow.task.failed for flow, *_ in slots):
                continue
            maps = self._attempt(slots, self._try_twice, batch)
            if maps is not None:
                self._outputs.put((slots, maps))
        self._outputs.close()

    def _try_twice(self, batch: Tensor) -> Maps:
        try:
            return self.predictor.forward(batch)
        except Exception as error:
            logger.warning("the network failed on a batch (%s); trying once more", error)
        return self.predictor.forward(batch)

    def _place(self) -> None:
        """Put predictions in their places, and submit the complete blocks."""
        while (item := self._outputs.get()) is not None:
            slots, maps = item
            outputs = self._attempt(slots, self.predictor.download, maps)
            for slot, output in zip(slots, () if outputs is None else outputs, strict=False):
                if not slot[0].task.failed:
                    self._attempt([slot], lambda output, slot=slot: self._put(*slot, output), output)
            self._bar.update(sum(flow.plan.patches.patch_output**2 for flow, *_ in slots))
        self.pool.outcomes.put((None, None))

    def _put(self, flow: _Flow, row: int, col: int, output: np.ndarray) -> None:
        for index in flow.canvas.put(row, col, output):
            maps = self.pool.array(flow.canvas.shape(index), np.float32)
            flow.canvas.take(index, maps.array)
            self.submit(flow.task, index, flow.task.job(index, maps))
