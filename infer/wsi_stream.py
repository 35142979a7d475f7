"""A slide on its way through the network: regions are read ahead, patches predicted, tiles handed to post-processing.

The slide is done one row of tiles (a band) after the other, and within it from left to right. Predicted patches are
kept only as long as a tile still waits for them: the strip between two bands, where both look, and the columns around
the tile that comes next. Patches without tissue are neither read nor predicted; their maps are 0.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from infer.grid import Band, Box, PatchGrid, Range, TileGrid, bands, complete_cols
from infer.predictor import Predictor
from infer.tile_nuclei import TileNuclei, hand_over
from infer.workers import WorkerPool
from misc.wsi_handler import FileHandler, read_reflect
from models.hovernet.post_proc import process_nuclei

logger = logging.getLogger(__name__)

# Side of what is read at once, px: large enough for the margins to cost little, small enough to read several ahead.
READ_SIDE_PX = 2048
# After so many batches the time of a slide can be told.
BATCHES_TO_ESTIMATE = 8


class SlideFailedError(RuntimeError):
    """A slide cannot be finished; `details` is the traceback of what went wrong in another process."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class WsiTileJob:
    """A tile whose maps are complete: (h, w, C) float32 of its outer box."""

    tiles: TileGrid
    index: int
    maps: np.ndarray
    nr_types: int | None


def finish_wsi_tile(job: WsiTileJob) -> TileNuclei:
    """Post-process a tile; runs in the worker processes."""
    channels = 3 if job.nr_types is None else 4
    probs = job.maps[..., channels:] if job.maps.shape[2] > channels else None
    inst_map, nuclei = process_nuclei(job.maps[..., :channels], job.nr_types, class_probs_map=probs)
    return hand_over(job.tiles, job.index, inst_map, nuclei)


@dataclass(frozen=True)
class Plan:
    """What there is to do on a slide.

    Attributes:
        patches, tiles: their grids.
        tissue: (rows, cols) bool, which patches have tissue.
    """

    patches: PatchGrid
    tiles: TileGrid
    tissue: np.ndarray

    def expected(self) -> list[int]:
        """Return the tiles that see a patch with tissue."""
        sums = np.pad(self.tissue.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)

        def has_tissue(index: int) -> bool:
            (r0, r1), (c0, c1) = self.patches.touching(self.tiles.tile(index).outer)
            return bool(sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0])

        return [index for index in range(len(self.tiles)) if has_tissue(index)]


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
        open_handler: opens the slide, prepared for reading; called once in every reading thread.
        pool: runs `finish_wsi_tile`; it must be empty.
        readers: threads that read ahead; at least one is used.
        chunk_px: largest side of what is read at once.
        keep_row: called with (row of tiles, its `TileNuclei`) as rows are finished.
    """

    plan: Plan
    open_handler: Callable[[], FileHandler]
    predictor: Predictor
    pool: WorkerPool
    nr_types: int | None
    readers: int
    chunk_px: int
    keep_row: Callable[[int, list[TileNuclei]], None]
    seconds: Counter = field(default_factory=Counter)
    nuclei: int = 0

    def __post_init__(self):
        self._maps: dict[int, dict[int, np.ndarray]] = {}  # column, row -> what a patch predicts
        self._local = threading.local()
        self._handlers: list[FileHandler] = []
        self._expected = set(self.plan.expected())
        self._waiting: dict[int, set[int]] = {}  # row of tiles -> tiles that are not back
        self._parts: dict[int, list[TileNuclei]] = {}
        for index in self._expected:
            self._waiting.setdefault(index // self.plan.tiles.cols, set()).add(index)

    def run(self, done_rows: set[int], bar: tqdm) -> None:
        """Do all rows of tiles but those at the beginning that are done already.

        Raises:
            SlideError: the slide cannot be read somewhere.
            SlideFailedError: the network or post-processing failed twice on the same piece.
        """
        todo = [band for band in bands(self.plan.patches, self.plan.tiles) if band.tile_row in self._waiting]
        first = next((band.tile_row for band in todo if band.tile_row not in done_rows), None)
        if first is None:
            return
        everything = self._bands = bands(self.plan.patches, self.plan.tiles)
        self._waiting = {row: tiles for row, tiles in self._waiting.items() if row >= first}
        self._start = time.perf_counter()
        self._batches = 0
        self._todo = int(self.plan.tissue[everything[first].needed_from :].sum())
        with ThreadPoolExecutor(max(self.readers, 1)) as threads:
            try:
                for band in everything[first:]:
                    # the strip above belongs to the band before, which a resumed run has not predicted
                    rows = (band.needed_from, band.rows[1]) if band.tile_row == first else band.rows
                    self._run_band(band, rows, threads, bar)
                    self._forget_rows(everything, band.tile_row + 1)
                self._collect(bar, wait=True)
            finally:
                threads.shutdown(cancel_futures=True)
                for handler in self._handlers:
                    handler.close()

    # ------------------------------------------------------------------------------------------ one band

    def _run_band(self, band: Band, rows: Range, threads: ThreadPoolExecutor, bar: tqdm) -> None:
        self._next_col = 0  # of tiles
        groups = self._groups(band, rows)
        # patches that wait for the network, with their number in the order of cutting; batches are of one group each
        waiting: list[list[tuple[int, tuple[int, int], np.ndarray]]] = [[] for _ in groups]
        marks: deque[tuple[int, int]] = deque()  # (patches cut so far, columns that are complete with them)
        cut = 0
        for group, block in self._read_ahead(groups, threads):
            for cell, patch in self._cut(block):
                waiting[group].append((cut, cell, patch))
                cut += 1
                if len(waiting[group]) == self.predictor.batch_size:
                    self._predict(waiting[group], bar)
                    waiting[group] = []
            marks.append((cut, block.cols_done))
            first_waiting = min((patches[0][0] for patches in waiting if patches), default=cut)
            while marks and marks[0][0] <= first_waiting:
                self._hand_on(band, marks.popleft()[1], bar)
        for patches in waiting:
            if patches:
                self._predict(patches, bar)
        self._hand_on(band, self.plan.patches.cols, bar)

    def _groups(self, band: Band, rows: Range) -> list[Range]:
        """Part the rows of a band: above it, its own, and those that the next band looks at too.

        A resumed run predicts the last of them again. In batches of their own, so that a patch comes in the same
        company, and to the last bit with the same numbers, in both.
        """
        following = self._bands[band.tile_row + 1 :][:1]
        cuts = [rows[0], band.rows[0], *(min(max(b.needed_from, rows[0]), rows[1]) for b in following), rows[1]]
        cuts = sorted({min(max(cut, rows[0]), rows[1]) for cut in cuts})
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
        return _Block(cells, cols_done, threads.submit(self._read, box), box[0], box[1])

    def _read(self, box: Box) -> np.ndarray:
        if not hasattr(self._local, "handler"):
            self._local.handler = self.open_handler()
            self._handlers.append(self._local.handler)
        y0, x0, y1, x1 = box
        return read_reflect(self._local.handler, y0, x0, y1 - y0, x1 - x0)

    def _cut(self, block: _Block) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        if block.region is None:
            return
        start = time.perf_counter()
        region = block.region.result()
        self.seconds["waiting for the slide"] += time.perf_counter() - start
        grid = self.plan.patches
        for row, col in block.cells.tolist():
            y, x = row * grid.patch_output - grid.margin - block.top, col * grid.patch_output - grid.margin - block.left
            yield (row, col), region[y : y + grid.patch_input, x : x + grid.patch_input]

    def _predict(self, waiting: list[tuple[int, tuple[int, int], np.ndarray]], bar: tqdm) -> None:
        """Predict a batch and keep what comes out."""
        start = time.perf_counter()
        patches = np.stack([patch for _, _, patch in waiting])
        missing = self.predictor.batch_size - len(patches)
        if missing > 0:
            # every batch has one size: a patch gets the same numbers in whatever company it is, resumed or not
            patches = np.concatenate([patches, np.repeat(patches[-1:], missing, axis=0)])
        for (row, col), output in zip([cell for _, cell, _ in waiting], self._network(patches), strict=False):
            self._maps.setdefault(col, {})[row] = output.copy()  # a view would keep the whole batch
        self.seconds["network"] += time.perf_counter() - start
        bar.update(len(waiting) * self.plan.patches.patch_output**2)
        self._batches += 1
        if self._batches == BATCHES_TO_ESTIMATE:
            done = self._batches * self.predictor.batch_size / max(self._todo, 1)
            rest = (time.perf_counter() - self._start) * max(1 / done - 1, 0)
            logger.info("about %.1f minutes for the rest of this slide", rest / 60)
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
                job = WsiTileJob(tiles, index, self._assemble(tiles.tile(index).outer), self.nr_types)
                self.pool.submit(str(index), job)
                self.seconds["waiting for post-processing"] += time.perf_counter() - start
                self._collect(bar)
            self._next_col += 1
            if self._next_col < tiles.cols:
                below = self.plan.patches.rows * self.plan.patches.patch_output  # nobody looks at the last row again
                if band.tile_row + 1 < tiles.rows:
                    below = tiles.tile(index + tiles.cols).outer[0]
                self._forget(tiles.tile(index + 1).outer[1], below)

    def _assemble(self, outer: Box) -> np.ndarray:
        """Put together the maps of a tile from the patches that predict them."""
        top, left, bottom, right = outer
        size = self.plan.patches.patch_output
        maps = np.zeros((bottom - top, right - left, self.predictor.channels), np.float32)
        rows, cols = self.plan.patches.touching(outer)
        for row, col in itertools.product(range(*rows), range(*cols)):
            output = self._maps.get(col, {}).get(row)
            if output is not None:
                y0, x0 = max(row * size, top), max(col * size, left)
                y1, x1 = min((row + 1) * size, bottom), min((col + 1) * size, right)
                maps[y0 - top : y1 - top, x0 - left : x1 - left] = output[
                    y0 - row * size : y1 - row * size, x0 - col * size : x1 - col * size
                ]
        return maps

    def _forget(self, left: int, below: int) -> None:
        """Drop patches that end left of `left`, where the next tile begins, and above the next band's first px."""
        size = self.plan.patches.patch_output
        for col in [col for col in self._maps if (col + 1) * size <= left]:
            self._drop_rows(col, below // size)

    def _forget_rows(self, everything: list[Band], next_row: int) -> None:
        """Drop the patches that no later band looks at."""
        first = everything[next_row].needed_from if next_row < len(everything) else self.plan.patches.rows
        for col in list(self._maps):
            self._drop_rows(col, first)

    def _drop_rows(self, col: int, first: int) -> None:
        kept = {row: output for row, output in self._maps[col].items() if row >= first}
        if kept:
            self._maps[col] = kept
        else:
            del self._maps[col]

    def _collect(self, bar: tqdm, wait: bool = False) -> None:
        """Take what post-processing has finished; with `wait`, all of it."""
        for outcome in self.pool.wait_all() if wait else self.pool.finished():
            if outcome.error is not None:
                raise SlideFailedError(f"tile {outcome.name}: {outcome.error}", outcome.details)
            part: TileNuclei = outcome.value
            row = part.tile // self.plan.tiles.cols
            self._parts.setdefault(row, []).append(part)
            self._waiting[row].discard(part.tile)
            self.nuclei += int(part.owned.sum())
            bar.set_postfix_str(f"{self.nuclei} nuclei")
            if not self._waiting[row]:
                self.keep_row(row, sorted(self._parts.pop(row), key=lambda p: p.tile))
