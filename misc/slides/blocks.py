"""Regions assembled from the tiles or strips of a fixed grid; a cache keeps those used last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

CACHE_BYTES = 64 << 20  # size of the cache; neighbouring regions share blocks


class BlockCache:
    """The blocks used last, up to `CACHE_BYTES` but at least one; thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Hashable, np.ndarray | None] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """Return a block; a missing one is made outside the lock, so that threads decode in parallel."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        block = make()
        with self._lock:
            if block is not None and key not in self._blocks:
                self._blocks[key] = block
                self._bytes += block.nbytes
            while self._bytes > CACHE_BYTES and len(self._blocks) > 1:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block


def fill(
    region: np.ndarray, x: int, y: int, block_wh: tuple[int, int], block_at: Callable[[int, int], np.ndarray | None]
) -> np.ndarray:
    """Fill a region from the blocks that it touches, and return it.

    Args:
        region: (height, width, C), changed in place.
        x, y: its top left corner on the grid's plane, px.
        block_wh: width and height of a block, px.
        block_at: gives the block in a row and column, (h, w, C), smaller at the edges; `None` leaves its part as it is.
    """
    (height, width), (block_w, block_h) = region.shape[:2], block_wh
    for row in range(y // block_h, -(-(y + height) // block_h)):
        for col in range(x // block_w, -(-(x + width) // block_w)):
            block = block_at(row, col)
            if block is None:
                continue
            top, left = row * block_h, col * block_w
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + height, top + block.shape[0]), min(x + width, left + block.shape[1])
            region[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top : y1 - top, x0 - left : x1 - left]
    return region
