"""The flow of tiles through the network: read, cut into patches, predict, put together, hand on."""

from __future__ import annotations

import logging
import math
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from misc.files import full_stem
from misc.slides.images import read_image, resize

from .grid import PatchGrid, patch_grid
from .predictor import Predictor
from .tile_output import TileJob, TileSpec
from .workers import Outcome, WorkerPool

logger = logging.getLogger(__name__)

# Working memory of post-processing and drawing, bytes a pixel, measured as peak RSS over map and image.
POST_PROC_BYTES_PX = 90
# Bytes a pixel of an image that was read ahead: as it was decoded, and as RGB.
READ_BYTES_PX = 6


def network_shape(shape_yx: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the size an image of `shape_yx` px has for the network; `scale` = its mpp / the network's."""
    return max(round(shape_yx[0] * scale), 1), max(round(shape_yx[1] * scale), 1)


def tile_bytes(shape_yx: tuple[int, int], net_yx: tuple[int, int], channels: int) -> int:
    """Estimate the bytes that a tile takes from being read to being written, both processes together."""
    image_px, net_px = shape_yx[0] * shape_yx[1], net_yx[0] * net_yx[1]
    return 2 * (3 * image_px + network_bytes(net_yx, channels)) + POST_PROC_BYTES_PX * max(image_px, net_px)


def network_bytes(net_yx: tuple[int, int], channels: int) -> int:
    """Return the bytes of what the network reads of a tile, and of its maps."""
    return (3 + 4 * channels) * net_yx[0] * net_yx[1]


@dataclass
class _Tile:
    """A tile on its way through the network.

    Attributes:
        padded: image at the network's resolution, reflected at its edges so that every patch lies inside.
        pred_map: where the patches' outputs are put together.
        taken, missing: patches handed to the network; patches that have not come back.
        error: why it cannot be finished.
    """

    path: Path
    image: np.ndarray
    padded: np.ndarray
    grid: PatchGrid
    pred_map: np.ndarray
    cost: int
    taken: int = 0
    missing: int = 0
    error: Outcome | None = None

    @property
    def name(self) -> str:
        return full_stem(self.path)


@dataclass
class _Batch:
    """Patches of one or several tiles: (N, H, W, 3) uint8, and for each its tile and place in the tile's grid."""

    patches: np.ndarray | None = None
    slots: list[tuple[_Tile, int]] = field(default_factory=list)


class _Read(NamedTuple):
    """An image that is being read, in `future` or when it is needed, and the bytes that it takes."""

    path: Path
    future: Future | None
    cost: int


class TileStream:
    """Runs tiles through the network, a batch after the other, batches crossing the borders of images.

    Batches are cut out and put together in a thread of their own, so that the network does not wait for it.

    Args:
        sizes: height and width in px by image, in the order they are done; `None` where its header does not tell.
        pool: takes a `TileJob` for every finished tile.
        window: (input, output) side of a patch, px.
        scale: mpp of the images / mpp of the network.
        budget: bytes that the tiles under way and those read ahead may take; one of each is always allowed.
        readers: threads that read ahead; 0 reads when needed.
    """

    def __init__(
        self,
        sizes: Mapping[Path, tuple[int, int] | None],
        predictor: Predictor,
        pool: WorkerPool,
        spec: TileSpec,
        window: tuple[int, int],
        scale: float,
        budget: int,
        readers: int,
    ):
        self.sizes = sizes
        self.paths = deque(sizes)
        self.predictor = predictor
        self.pool = pool
        self.spec = spec
        self.window = window
        self.scale = scale
        self.budget = budget
        self.readers = readers
        self._reads: deque[_Read] = deque()
        self._read_pool = ThreadPoolExecutor(readers) if readers else None
        self._current: _Tile | None = None
        self._waiting: _Tile | None = None
        self._costs: dict[str, int] = {}
        self._outcomes: deque[Outcome] = deque()

    def nr_patches(self, shape_yx: tuple[int, int]) -> int:
        """Return how many patches an image of that size takes."""
        return len(patch_grid(network_shape(shape_yx, self.scale), *self.window))

    def run(self, bar: tqdm) -> Iterator[Outcome]:
        """Do all tiles; yields what became of each as it ends."""
        with ThreadPoolExecutor(1) as side:
            upcoming = side.submit(self._next_batch)
            placing: Future | None = None
            while (batch := upcoming.result()) is not None:
                upcoming = side.submit(self._next_batch)
                if batch.slots:
                    output = self._predict(batch)
                    if placing is not None:
                        placing.result()
                    placing = side.submit(self._place, batch, output)
                    bar.update(len(batch.slots))
                yield from self._ended()
            if placing is not None:
                placing.result()
        if self._read_pool is not None:
            self._read_pool.shutdown()
        for outcome in self.pool.wait_all():
            self._account(outcome)
        yield from self._ended()

    def _ended(self) -> Iterator[Outcome]:
        while self._outcomes:
            yield self._outcomes.popleft()

    def _predict(self, batch: _Batch) -> np.ndarray | Outcome:
        """Run the network; once more if it fails, and then say why."""
        try:
            return self.predictor(batch.patches)
        except Exception as error:
            logger.warning("the network failed on a batch (%s); trying once more", error)
        try:
            return self.predictor(batch.patches)
        except Exception as error:
            return Outcome("", error=f"{type(error).__name__}: {error}", details=traceback.format_exc())

    # Everything below runs in the side thread, one call after the other.

    def _next_batch(self) -> _Batch | None:
        """Cut out the next batch; without slots when memory is full for now, `None` at the end."""
        slots: list[tuple[_Tile, int]] = []
        wanted = self.predictor.batch_size  # read once: the main thread may halve it at any moment
        while len(slots) < wanted:
            tile = self._tile_with_patches(may_wait=not slots)
            if tile is None:
                break
            take = min(wanted - len(slots), len(tile.grid) - tile.taken)
            slots += [(tile, tile.taken + k) for k in range(take)]
            tile.taken += take
        if not slots:
            return None if self._exhausted() else _Batch()
        size = self.window[0]
        patches = np.empty((len(slots), size, size, 3), np.uint8)
        for k, (tile, index) in enumerate(slots):
            y, x = tile.grid.input_tl_yx[index] - tile.grid.input_tl_yx[0]
            patches[k] = tile.padded[y : y + size, x : x + size]
        return _Batch(patches, slots)

    def _exhausted(self) -> bool:
        return self._waiting is None and not self._reads and not self.paths

    def _tile_with_patches(self, may_wait: bool) -> _Tile | None:
        """Return a tile that has patches left, beginning a new one if memory allows."""
        if self._current is not None and self._current.taken < len(self._current.grid):
            return self._current
        self._current = None
        for outcome in self.pool.finished():
            self._account(outcome)
        while self._waiting is None and not self._exhausted():
            self._waiting = self._read_next()
        if self._waiting is None:
            return None
        while self._costs and self._taken() + self._waiting.cost > self.budget:
            if not may_wait or not len(self.pool):
                return None
            self.pool.wait_one()
            for outcome in self.pool.finished():
                self._account(outcome)
        self._current, self._waiting = self._waiting, None
        self._costs[self._current.name] = self._current.cost
        return self._current

    def _read_next(self) -> _Tile | None:
        """Read the next image and lay it out; a bad one is reported and `None` returned."""
        self._read_ahead()
        path, future, _ = self._reads.popleft()
        try:
            image = read_image(path) if future is None else future.result()
            return self._lay_out(path, image)
        except Exception as error:
            details = "" if isinstance(error, ValueError) else traceback.format_exc()
            self._outcomes.append(Outcome(full_stem(path), error=f"{path}: {error}", details=details))
            return None

    def _read_ahead(self) -> None:
        """Begin to read the next images, as many as there are readers and memory for."""
        while self.paths and len(self._reads) < max(self.readers, 1):
            cost = READ_BYTES_PX * math.prod(self.sizes[self.paths[0]] or (0,))
            if self._reads and self._taken() + cost > self.budget:
                return
            path = self.paths.popleft()
            future = self._read_pool.submit(read_image, path) if self._read_pool else None
            self._reads.append(_Read(path, future, cost))

    def _taken(self) -> int:
        """Bytes of the tiles under way and of the images read ahead."""
        return sum(self._costs.values()) + sum(read.cost for read in self._reads)

    def _lay_out(self, path: Path, image: np.ndarray) -> _Tile:
        net_yx = network_shape(image.shape[:2], self.scale)
        source = resize(image, net_yx)
        grid = patch_grid(net_yx, *self.window)
        before = -grid.input_tl_yx[0]
        after = grid.input_tl_yx[-1] + self.window[0] - net_yx
        padded = np.pad(source, ((before[0], max(after[0], 0)), (before[1], max(after[1], 0)), (0, 0)), "reflect")
        cost = tile_bytes(image.shape[:2], net_yx, self.predictor.channels)
        pred_map = np.empty((*net_yx, self.predictor.channels), np.float32)
        return _Tile(path, image, padded, grid, pred_map, cost, missing=len(grid))

    def _place(self, batch: _Batch, output: np.ndarray | Outcome) -> None:
        """Put a batch's output into the maps of its tiles, and hand on the tiles that are complete."""
        for k, (tile, index) in enumerate(batch.slots):
            tile.missing -= 1
            if isinstance(output, Outcome):
                tile.error = output
            else:
                y, x = tile.grid.output_tl_yx[index]
                target = tile.pred_map[y : y + self.window[1], x : x + self.window[1]]
                target[:] = output[k, : target.shape[0], : target.shape[1]]
            if tile.missing == 0:
                self._finish(tile)

    def _finish(self, tile: _Tile) -> None:
        if tile.error is not None:
            self._account(Outcome(tile.name, error=tile.error.error, details=tile.error.details))
            return
        self.pool.submit(tile.name, TileJob(self.spec, tile.name, tile.path.name, tile.image, tile.pred_map))

    def _account(self, outcome: Outcome) -> None:
        self._costs.pop(outcome.name, None)
        self._outcomes.append(outcome)
