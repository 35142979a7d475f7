"""What stitching knows between two tiles, and the plain arrays it is kept as while a slide is not done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from infer.grid import Box
from infer.tile_nuclei import TileNuclei, pack, unpack

Key = tuple[int, int]  # tile, position in the tile's nuclei


@dataclass
class Shape:
    """Pixels of a nucleus that are not (only) those its tile saw.

    Attributes:
        box: (y0, x0, y1, x1) of the slide, px; `mask` lies in it.
        mask: (h, w) bool.
        parts: the nuclei that it is made of, and whether their tiles saw them cut off; kept here, since a tile may be
            gone when a later one asks.
    """

    box: Box
    mask: np.ndarray
    parts: dict[Key, bool]

    def window(self, box: Box) -> np.ndarray:
        """Return the pixels of the shape in another box of the slide, (h, w) bool."""
        window = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
        y0, x0 = max(self.box[0], box[0]), max(self.box[1], box[1])
        y1, x1 = min(self.box[2], box[2]), min(self.box[3], box[3])
        if y0 < y1 and x0 < x1:
            source = self.mask[y0 - self.box[0] : y1 - self.box[0], x0 - self.box[1] : x1 - self.box[1]]
            window[y0 - box[0] : y1 - box[0], x0 - box[1] : x1 - box[1]] = source
        return window


@dataclass
class OpenTile:
    """A tile that later tiles may still contradict.

    Attributes:
        part: its N nuclei, as it saw them.
        boxes: (N, 4) int64, (y0, x0, y1, x1) of the slide, px, of what they are now.
        accepted, pending: (N,) bool; those that are neither were dropped.
        shapes: of the nuclei that are not what the tile saw.
    """

    part: TileNuclei
    boxes: np.ndarray
    accepted: np.ndarray
    pending: np.ndarray
    shapes: dict[int, Shape] = field(default_factory=dict)

    @classmethod
    def of(cls, part: TileNuclei) -> OpenTile:
        """Return a tile of whose nuclei nothing is decided."""
        boxes = part.nuclei.boxes_yx.reshape(-1, 4).astype(np.int64)
        return cls(part, boxes, np.zeros(len(part), bool), np.zeros(len(part), bool))


@dataclass
class StitchState:
    """All that decides what becomes of the tiles that are still to come.

    Attributes:
        taken: index of the last tile that was taken; all that are expected before it were, too.
        open: tiles by index, in row-major order.
        waiting: foreign nuclei, with the tile after which they are decided.
        grown: accepted nuclei that were united with others.
        next_id: of the next nucleus that is returned.
    """

    taken: int = -1
    open: dict[int, OpenTile] = field(default_factory=dict)
    waiting: list[tuple[int, Key]] = field(default_factory=list)
    grown: set[Key] = field(default_factory=set)
    next_id: int = 1

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the state as arrays that `np.savez` takes without pickling."""
        tiles = list(self.open.values())
        shapes = [(index, i, shape) for index, tile in self.open.items() for i, shape in tile.shapes.items()]
        rest = {
            "taken": self.taken,
            "next_id": self.next_id,
            "waiting": self.waiting,
            "grown": sorted(self.grown),
            "shapes": [(index, i, shape.box, list(shape.parts.items())) for index, i, shape in shapes],
        }
        join = lambda arrays, dtype: np.concatenate([np.zeros(0, dtype), *arrays])  # noqa: E731
        return {
            **pack([tile.part for tile in tiles]),
            "boxes": np.concatenate([np.zeros((0, 4), np.int64), *(tile.boxes for tile in tiles)]),
            "accepted": join((tile.accepted for tile in tiles), bool),
            "pending": join((tile.pending for tile in tiles), bool),
            "shape_bits": join((np.packbits(shape.mask) for _, _, shape in shapes), np.uint8),
            "stitching": np.array(json.dumps(rest)),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> StitchState:
        """Undo `to_arrays`."""
        rest = json.loads(str(arrays["stitching"]))
        state = cls(rest["taken"], next_id=rest["next_id"])
        state.waiting = [(last, tuple(key)) for last, key in rest["waiting"]]
        state.grown = {tuple(key) for key in rest["grown"]}
        columns = {name: arrays[name] for name in ("boxes", "accepted", "pending")}
        start = 0
        for part in unpack(arrays):
            which = slice(start, start + len(part))
            state.open[part.tile] = OpenTile(part, **{name: column[which] for name, column in columns.items()})
            start += len(part)
        bits, start = arrays["shape_bits"], 0
        for index, i, (y0, x0, y1, x1), parts in rest["shapes"]:
            size = (y1 - y0) * (x1 - x0)
            mask = np.unpackbits(bits[start : start + (size + 7) // 8], count=size)
            start += (size + 7) // 8
            shape = Shape((y0, x0, y1, x1), mask.reshape(y1 - y0, x1 - x0).view(bool), {tuple(k): c for k, c in parts})
            state.open[index].shapes[i] = shape
        return state
