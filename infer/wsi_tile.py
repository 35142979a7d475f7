"""Post-processing of one tile of a slide, as the worker processes run it: they need no network, and load none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infer.grid import TileGrid
from infer.tile_nuclei import TileNuclei, hand_over
from models.hovernet.post_proc import process_nuclei


@dataclass(frozen=True)
class WsiTileJob:
    """A tile whose maps are complete: (h, w, C) float32 of its outer box."""

    tiles: TileGrid
    index: int
    maps: np.ndarray
    nr_types: int | None


def finish_wsi_tile(job: WsiTileJob) -> TileNuclei:
    """Post-process a tile.

    The maps are stretched by the extremes of the core, as the reference stretches those of its tiles.
    """
    tile = job.tiles.tile(job.index)
    core = tuple(slice(tile.core[axis] - tile.outer[axis], tile.core[axis + 2] - tile.outer[axis]) for axis in (0, 1))
    channels = 3 if job.nr_types is None else 4
    probs = job.maps[..., channels:] if job.maps.shape[2] > channels else None
    inst_map, nuclei = process_nuclei(job.maps[..., :channels], job.nr_types, probs, core)
    return hand_over(job.tiles, job.index, inst_map, nuclei)
