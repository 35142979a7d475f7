"""A slide on its way through the network: regions are read ahead, patches predicted, tiles handed to post-processing.

The slide is done one row of tiles (a band) after the other, and within it from left to right. Predicted patches are
kept only as long as a tile still waits for them: the strip between two bands, where both look, and the columns around
the tile that comes next. Patches without tissue are not predicted, their maps are 0; nor are they read, but for those
between patches with tissue of one block, which is read at once.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from infer.grid import Band, Box, Range, bands, complete_cols
from infer.predictor import Predictor
from infer.tile_nuclei import TileNuclei
from infer.workers import WorkerPool
from infer.wsi_canvas import Canvas
from infer.wsi_plan import Plan, Strip
from infer.wsi_tile import WsiTileJob

logger = logging.getLogger(__name__)

# Side of what is read at once, px: large enough for the margins to cost little, small enough to read several ahead.
READ_SIDE_PX = 2048
# After so many batches the time of a slide can be told.
BATCHES_TO_ESTIMATE = 8

_Patch = tuple[int, tuple[int, int], np.ndarray]  # number in the order of cutting, (row, column), pixels


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


class SlideFailedError(RuntimeError):
    """A slide cannot be finished; `details` is the traceback of what went wrong in another process."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


@dataclass
class _Block:
    """A block of patches that is read at once.

    Attributes:
        cells: (N, 2) rows and columns of its patches with tissue.
        cols_done: columns of patches, from the left, that are read in all rows of the band once this one is.
        region: the pixels, and where they begin; `None` where there is no tissue.
    """

    cells: np.ndarray
    cols_done: int
    region: Future | None
    top: int = 0
    left: int = 0


@dataclass
class SlideStream:
    """Runs one slide.

    Args:
        name: of the slide, for messages.
        read: returns the pixels of a box of the slide; called from several threads.
        pool: runs `finish_wsi_tile`; it must be empty.
        batch_size: patches that go to the network together, for the whole slide and in every run of it: when memory
            runs out the predictor parts them by itself, and a run that is resumed still makes the same batches.
        readers: threads that read ahead; at least one is used.
        chunk_px: largest side of what is read at once.
        keep_row: called with (row of tiles, its `TileNuclei`) as rows are finished.
        nuclei: how many there are in the rows that are done already.
        tell_estimate: say how long it takes after the first batches.
    """

    name: str
    plan: Plan
    read: Callable[[Box], np.ndarray]
    predictor: Predictor
    pool: WorkerPool
    nr_types: int | None
    batch_size: int
    readers: int
    chunk_px: int
    keep_row: Callable[[int, list[TileNuclei]], None]
    nuclei: int = 0
    tell_estimate: bool = True
    seconds: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.canvas = Canvas(self.plan.patches, self.predictor.channels)
        self._bands = bands(self.plan.patches, self.plan.tiles)
        self._expected = set(self.plan.expected())
        self._waiting: dict[int, set[int]] = {}  # row of tiles -> tiles that are not back
        self._parts: dict[int, list[TileNuclei]] = {}

    def run(self, strips: Sequence[Strip], bar: tqdm) -> None:
        """Do strips of the plan, from top to bottom.

        Args:
            strips: see `Plan.strips`.
            bar: counts px that are predicted.

        Raises:
            SlideError: the slide cannot be read somewhere.
            SlideFailedError: the network or post-processing failed twice on the same piece.
        """
        wanted = {strip.band.tile_row for strip in strips}
        for index in self._expected:
            if (row := index // self.plan.tiles.cols) in wanted:
                self._waiting.setdefault(row, set()).add(index)
        self._start = time.perf_counter()
        self._batches, self._todo = 0, self.plan.nr_patches(strips)
        with ThreadPoolExecutor(max(self.readers, 1)) as threads:
            try:
                for strip in strips:
                    self.canvas.forget_above(strip.band.needed_from)
                    self._run_strip(strip, threads, bar)
                self._collect(bar, wait=True)
            finally:
                threads.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------------------------------ one band

    def _run_strip(self, strip: Strip, threads: ThreadPoolExecutor, bar: tqdm) -> None:
        self._next_col = 0  # of tiles
        groups = self._groups(strip)
        # patches that wait for the network; batches are of one group each
        waiting: list[list[_Patch]] = [[] for _ in groups]
        marks: deque[tuple[int, int]] = deque()  # (patches cut so far, columns that are complete with them)
        cut = 0
        for group, block in self._read_ahead(groups, threads):
            for cell, patch in self._cut(block):
                waiting[group].append((cut, cell, patch))
                cut += 1
                if len(waiting[group]) >= self.batch_size:
                    self._predict(waiting[group], bar)
                    waiting[group] = []
            marks.append((cut, block.cols_done))
            first_waiting = min((patches[0][0] for patches in waiting if patches), default=cut)
            while marks and marks[0][0] <= first_waiting:
                self._hand_on(strip.band, marks.popleft()[1], bar)
        for patches in waiting:
            if patches:
                self._predict(patches, bar)
        self._hand_on(strip.band, self.plan.patches.cols, bar)

    def _groups(self, strip: Strip) -> list[Range]:
        """Part the rows of a strip: above its band, its own, and those that the next band looks at too.

        A resumed run predicts the last of them again. In batches of their own, so that a patch comes in the same
        company, and to the last bit with the same numbers, in both.
        """
        (first, last), band = strip.rows, strip.band
        following = self._bands[band.tile_row + 1 :][:1]
        cuts = [first, band.rows[0], *(min(max(b.needed_from, first), last) for b in following), last]
        cuts = sorted({min(max(cut, first), last) for cut in cuts})
        return list(itertools.pairwise(cuts))

    def _read_ahead(self, groups: list[Range], threads: ThreadPoolExecutor) -> Iterator[tuple[int, _Block]]:
        """Yield the blocks of a band from left to right, with their group, with some more being read meanwhile."""
        side = min(self.chunk_px, max(READ_SIDE_PX, self.plan.patches.patch_input))
        if not groups:
            return
        queue: deque[tuple[int, _Block]] = deque()
        for _, cols in self.plan.patches.chunks((0, 1), (0, self.plan.patches.cols), side):
            for group, rows in enumerate(groups):
                for block_rows, _ in self.plan.patches.chunks(rows, cols, side):
                    is_last = block_rows[1] == groups[-1][1]
                    queue.append((group, self._block(block_rows, cols, cols[is_last], threads)))
                    if len(queue) > max(self.readers, 1) + 1:
                        yield queue.popleft()
        yield from queue

    def _block(self, rows: Range, cols: Range, cols_done: int, threads: ThreadPoolExecutor) -> _Block:
        cells = np.argwhere(self.plan.tissue[rows[0] : rows[1], cols[0] : cols[1]]) + (rows[0], cols[0])
        if not len(cells):
            return _Block(cells, cols_done, None)
        # only as much as the patches with tissue need
        (r0, c0), (r1, c1) = cells.min(axis=0).tolist(), (cells.max(axis=0) + 1).tolist()
        box = self.plan.patches.input_box((r0, r1), (c0, c1))
        return _Block(cells, cols_done, threads.submit(self.read, box), box[0], box[1])

    def _cut(self, block: _Block) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        if block.region is None:
            return
        start = time.perf_counter()
        region = block.region.result()
        self.seconds["waiting for the slide"] += time.perf_counter() - start
        grid = self.plan.patches
        first = grid.start - grid.margin
        for row, col in block.cells.tolist():
            y, x = row * grid.patch_output + first - block.top, col * grid.patch_output + first - block.left
            yield (row, col), region[y : y + grid.patch_input, x : x + grid.patch_input]

    def _predict(self, waiting: list[_Patch], bar: tqdm) -> None:
        """Predict a batch and keep what comes out."""
        start = time.perf_counter()
        patches = np.stack([patch for _, _, patch in waiting])
        missing = self.batch_size - len(patches)
        if missing > 0:
            # every batch has one size: a patch gets the same numbers in whatever company it is, resumed or not
            patches = np.concatenate([patches, np.repeat(patches[-1:], missing, axis=0)])
        for (row, col), output in zip([cell for _, cell, _ in waiting], self._network(patches), strict=False):
            self.canvas.put(row, col, output)
        self.seconds["network"] += time.perf_counter() - start
        bar.update(len(waiting) * self.plan.patches.patch_output**2)
        self._batches += 1
        if self._batches == BATCHES_TO_ESTIMATE and self.tell_estimate:
            done = self._batches * self.batch_size / max(self._todo, 1)
            rest = (time.perf_counter() - self._start) * max(1 / done - 1, 0)
            logger.info("%s: about %s for the rest", self.name, duration(rest))
        self._collect(bar)

    def _network(self, patches: np.ndarray) -> np.ndarray:
        try:
            return self.predictor(patches)
        except Exception as error:
            logger.warning("the network failed on a batch (%s); trying once more", error)
        return self.predictor(patches)

    # ------------------------------------------------------------------------------------------ tiles

    def _hand_on(self, band: Band, cols_done: int, bar: tqdm) -> None:
        """Submit the tiles of the band that have all they see, and forget what only they needed."""
        tiles = self.plan.tiles
        ready = complete_cols(self.plan.patches, tiles, cols_done)
        while self._next_col < ready:
            index = band.tile_row * tiles.cols + self._next_col
            if index in self._expected:
                start = time.perf_counter()
                job = WsiTileJob(tiles, index, self.canvas.assemble(tiles.tile(index).outer), self.nr_types)
                self.pool.submit(self._job_name(index), job)
                self.seconds["waiting for post-processing"] += time.perf_counter() - start
                self._collect(bar)
            self._next_col += 1
            if self._next_col < tiles.cols:
                grid = self.plan.patches
                below = grid.rows * grid.patch_output + grid.start  # nobody looks at the last row again
                if band.tile_row + 1 < tiles.rows:
                    below = tiles.tile(index + tiles.cols).outer[0]
                self.canvas.forget_left(tiles.tile(index + 1).outer[1], below)

    def _job_name(self, index: int) -> str:
        y0, x0, y1, x1 = self.plan.tiles.tile(index).core
        return f"{self.name}, tile {index} (x {x0} to {x1}, y {y0} to {y1} px)"

    def _collect(self, bar: tqdm, wait: bool = False) -> None:
        """Take what post-processing has finished; with `wait`, all of it."""
        for outcome in self.pool.wait_all() if wait else self.pool.finished():
            if outcome.error is not None:
                raise SlideFailedError(f"{outcome.name}: {outcome.error}", outcome.details)
            part: TileNuclei = outcome.value
            row = part.tile // self.plan.tiles.cols
            self._parts.setdefault(row, []).append(part)
            self._waiting[row].discard(part.tile)
            self.nuclei += int(part.owned.sum())
            bar.set_postfix_str(f"{self.nuclei} nuclei")
            if not self._waiting[row]:
                self.keep_row(row, sorted(self._parts.pop(row), key=lambda p: p.tile))
