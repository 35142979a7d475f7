"""Tile nuclei to slide nuclei: none lost, none doubled, no two overlapping.

A nucleus belongs to the tile whose core its centroid lies in. Tiles are post-processed apart, so two of them may draw a
nucleus near their line differently, and its centroid may fall on different sides. Tiles are therefore taken in
row-major order, whatever order they come in, and each of their nuclei is compared with the pixels that nuclei of other
tiles already have:

1. A tile's own nuclei come first. Free pixels: accepted. Mostly taken (`SAME_SHARE`): the same nucleus again, dropped.
   Otherwise it keeps the largest piece of what is free.
2. A nucleus that reaches into a tile's core from outside waits until all tiles whose cores it touches have come.
   Whoever owns it has it by then, and it is dropped; when nobody does (each tile saw its centroid on the other's side),
   it is accepted.
3. A nucleus that a tile does not see to its end, being larger than the margin, is united with what the neighbour
   sees of it.

The result depends on the tiles' contents alone: not on the order they come in, nor on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from infer.grid import Box, TileGrid
from infer.tile_nuclei import TileNuclei
from misc.nuclei import Nuclei
from models.hovernet.post_proc import MIN_SIZE_PX, measure

SAME_SHARE = 0.5  # share of a nucleus' pixels, inclusive: from here on two nuclei of different tiles are the same

_Key = tuple[int, int]  # tile, position in the tile's nuclei


@dataclass
class _Shape:
    """Pixels of a nucleus that are not (only) those its tile saw.

    Attributes:
        box: (y0, x0, y1, x1) of the slide, px; `mask` lies in it.
        parts: the nuclei that it is made of, and whether their tiles saw them cut off; kept here, since a tile may be
            gone when a later one asks.
    """

    box: Box
    mask: np.ndarray
    parts: dict[_Key, bool]


@dataclass
class _Open:
    """A tile that later tiles may still contradict."""

    part: TileNuclei
    boxes: np.ndarray
    accepted: np.ndarray
    pending: np.ndarray  # (N,) bool, not decided yet
    shapes: dict[int, _Shape] = field(default_factory=dict)

    @classmethod
    def of(cls, part: TileNuclei) -> _Open:
        boxes = part.nuclei.boxes_yx.reshape(-1, 4).astype(np.int64)
        return cls(part, boxes, np.zeros(len(part), bool), np.zeros(len(part), bool))


class Stitcher:
    """Joins the nuclei of tiles as they come.

    Args:
        tiles: the tiles of the slide.
        expected: indices of the tiles that will come; those without tissue may be left out. Default: all.

    Attributes:
        doubled, trimmed, united: nuclei that were dropped as doubles, cut back, or put together from two tiles.
    """

    def __init__(self, tiles: TileGrid, expected: Iterable[int] | None = None):
        self.tiles = tiles
        self.doubled = self.trimmed = self.united = 0
        self._todo = sorted(range(len(tiles)) if expected is None else expected, reverse=True)
        self._to_come = set(self._todo)
        self._arrived: dict[int, TileNuclei] = {}
        self._open: dict[int, _Open] = {}  # in row-major order
        self._waiting: list[tuple[int, _Key]] = []  # foreign nuclei, with the tile after which they are decided
        self._grown: set[_Key] = set()
        self._next_id = 1

    @property
    def done(self) -> bool:
        """All tiles have come, and all nuclei have been returned."""
        return not self._todo and not self._open

    def add(self, part: TileNuclei) -> list[Nuclei]:
        """Take a tile.

        Returns:
            The nuclei that nothing can change any more, in px of the slide, tile after tile in row-major order; ids
            count from 1 (a slide of one tile keeps the ids of its instance map). The last tile brings the rest.

        Raises:
            ValueError: the tile is not expected, or has come already.
        """
        if part.tile not in self._to_come:
            raise ValueError(f"tile {part.tile} is not expected, or has come already")
        self._to_come.remove(part.tile)
        self._arrived[part.tile] = part
        finished: list[Nuclei] = []
        while self._todo and self._todo[-1] in self._arrived:
            self._take(self._arrived.pop(self._todo.pop()))
            finished += self._finish()
        return finished

    @property
    def _last_done(self) -> int:
        """All tiles up to this index have been taken."""
        return self._todo[-1] - 1 if self._todo else len(self.tiles)

    def _take(self, part: TileNuclei) -> None:
        tile = _Open.of(part)
        self._open[part.tile] = tile
        owned = np.flatnonzero(part.owned)
        contested = self._contested(part.tile, tile.boxes[owned])
        tile.accepted[owned[~contested]] = True
        for i in owned[contested]:
            self._decide((part.tile, int(i)))
        for i in np.flatnonzero(~part.owned):
            rows, cols = self.tiles.cores_touching(tuple(tile.boxes[i].tolist()))
            last = (rows[1] - 1) * self.tiles.cols + cols[1] - 1
            self._waiting.append((last, (part.tile, int(i))))
            tile.pending[i] = True
        due = sorted(key for last, key in self._waiting if last <= self._last_done)
        self._waiting = [entry for entry in self._waiting if entry[0] > self._last_done]
        for key in due:
            self._open[key[0]].pending[key[1]] = False
            self._decide(key)

    def _contested(self, index: int, boxes: np.ndarray) -> np.ndarray:
        """Tell which of a tile's own nuclei, (N, 4) boxes, may share pixels with accepted ones of other tiles; (N,)."""
        tile = self.tiles.tile(index)
        near = np.concatenate([np.zeros((0, 4), np.int64), *self._accepted_boxes(tile.outer, index)])
        near = near[_overlap(near, tile.outer)]
        inside = ((boxes[:, :2] >= tile.core[:2]) & (boxes[:, 2:] <= tile.core[2:])).all(axis=1)
        # what lies in the core meets only what reaches into the core: few on both sides, so all pairs are looked at
        contested = _meet(boxes, near[_overlap(near, tile.core)])
        contested[~inside] |= _meet(boxes[~inside], near)
        return contested

    def _accepted_boxes(self, box: Box, but: int) -> Iterable[np.ndarray]:
        for index in self._open_near(box):
            if index != but:
                yield self._open[index].boxes[self._open[index].accepted]
        yield np.array([self._open[t].boxes[i] for t, i in self._grown], np.int64).reshape(-1, 4)

    def _open_near(self, box: Box) -> list[int]:
        rows, cols = self.tiles.tiles_touching(box)
        indices = (row * self.tiles.cols + col for row in range(*rows) for col in range(*cols))
        return [index for index in indices if index in self._open]

    def _decide(self, key: _Key) -> None:
        """Accept a nucleus, cut it back, unite it with others, or drop it."""
        mine = self._shape(key)
        rivals = self._rivals(key, mine)
        tile = self._open[key[0]]
        if not rivals:
            tile.accepted[key[1]] = True
            return
        partners = [rival for rival in sorted(rivals) if self._continues(rival, key, mine, rivals[rival])]
        if partners:
            self._unite(key, mine, partners, rivals)
            return
        free = self._free(mine, rivals)
        owned = tile.part.owned[key[1]]
        matched = not owned and any(n >= SAME_SHARE * self._shape(r).mask.sum() for r, n in rivals.items())
        if matched or free.sum() <= (1 - SAME_SHARE) * mine.mask.sum():
            self.doubled += 1
            return
        self._cut_back(key, mine, free)

    def _rivals(self, key: _Key, mine: _Shape) -> dict[_Key, int]:
        """Return the accepted nuclei of other tiles that have pixels of this one, and how many."""
        near = [index for index in self._open_near(mine.box) if index != key[0]]
        return self._sharing(mine.mask, mine.box, near)

    def _sharing(self, mask: np.ndarray, box: Box, tiles: Iterable[int]) -> dict[_Key, int]:
        """Return the accepted nuclei of some tiles, and the united ones, that have pixels of a mask, and how many."""
        found = set(self._grown)
        for index in tiles:
            other = self._open[index]
            found |= {(index, int(i)) for i in np.flatnonzero(other.accepted & _overlap(other.boxes, box))}
        shared = {}
        for key in sorted(found):
            if self._open[key[0]].accepted[key[1]]:
                pixels = np.count_nonzero(mask & _window(self._shape(key), box))
                if pixels:
                    shared[key] = pixels
        return shared

    def _filled(self, mask: np.ndarray, box: Box) -> np.ndarray:
        """Fill the holes of a nucleus and drop the nuclei in them: contours have no holes, so they would overlap."""
        filled = ndimage.binary_fill_holes(mask)
        holes = filled & ~mask
        if holes.any():
            for tile, i in self._sharing(holes, box, self._open_near(box)):
                self._open[tile].accepted[i] = False
                self._grown.discard((tile, i))
                self.doubled += 1
        return filled

    def _shape(self, key: _Key) -> _Shape:
        tile = self._open[key[0]]
        if key[1] in tile.shapes:
            return tile.shapes[key[1]]
        mask = tile.part.mask(key[1])
        return _Shape(tuple(tile.boxes[key[1]].tolist()), mask, {key: bool(tile.part.cut[key[1]])})

    def _continues(self, rival: _Key, key: _Key, mine: _Shape, shared: int) -> bool:
        """Tell whether an accepted nucleus was cut off by the end of its tile, and this one is the same."""
        theirs = self._shape(rival)
        if not any(theirs.parts.values()):
            return False
        # compared where both could be seen
        seen_mine = np.zeros(mine.mask.shape, bool)
        for tile, _ in theirs.parts:
            _fill(seen_mine, mine.box, self.tiles.tile(tile).outer)
        seen_theirs = np.zeros(theirs.mask.shape, bool)
        _fill(seen_theirs, theirs.box, self.tiles.tile(key[0]).outer)
        smaller = min((mine.mask & seen_mine).sum(), (theirs.mask & seen_theirs).sum())
        return shared >= SAME_SHARE * smaller

    def _free(self, mine: _Shape, others: Iterable[_Key]) -> np.ndarray:
        free = mine.mask.copy()
        for other in others:
            free &= ~_window(self._shape(other), mine.box)
        return free

    def _unite(self, key: _Key, mine: _Shape, partners: list[_Key], rivals: Iterable[_Key]) -> None:
        """Add the pixels of a nucleus to the first of its partners, and the other partners too."""
        mask = self._free(mine, [rival for rival in rivals if rival not in partners])
        shapes = [_Shape(mine.box, mask, mine.parts), *(self._shape(partner) for partner in partners)]
        boxes = np.array([shape.box for shape in shapes])
        box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
        whole = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
        parts: dict[_Key, bool] = {}
        for shape in shapes:
            whole |= _window(shape, box)
            parts |= shape.parts
        for tile, i in partners[1:]:
            self._open[tile].accepted[i] = False
            self._grown.discard((tile, i))
        self._set(partners[0], _Shape(box, self._filled(whole, box), dict(sorted(parts.items()))))
        self._grown.add(partners[0])
        self.united += 1

    def _cut_back(self, key: _Key, mine: _Shape, free: np.ndarray) -> None:
        """Accept the largest piece of the free pixels of a nucleus."""
        labels, count = ndimage.label(free)
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        piece = labels == sizes.argmax() + 1 if count else free
        if piece.sum() < MIN_SIZE_PX:
            self.doubled += 1
            return
        piece = self._filled(piece, mine.box)
        rows, cols = np.flatnonzero(piece.any(axis=1)), np.flatnonzero(piece.any(axis=0))
        y0, x0, y1, x1 = int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1
        box = (mine.box[0] + y0, mine.box[1] + x0, mine.box[0] + y1, mine.box[1] + x1)
        self._set(key, _Shape(box, piece[y0:y1, x0:x1], mine.parts))
        self._open[key[0]].accepted[key[1]] = True
        self.trimmed += 1

    def _set(self, key: _Key, shape: _Shape) -> None:
        tile = self._open[key[0]]
        tile.shapes[key[1]] = shape
        tile.boxes[key[1]] = shape.box

    def _finish(self) -> list[Nuclei]:
        """Return the nuclei of the first tiles that no later one can see."""
        finished = []
        while self._open:
            index, tile = next(iter(self._open.items()))
            ends = [self.tiles.tile(index).outer, *(self._shape(k).box for k in self._grown if k[0] == index)]
            if max(map(self.tiles.last_touching, ends)) > self._last_done or any(map(self._holds_pending, ends)):
                break
            finished.append(self._written(index, tile))
            self._grown = {key for key in self._grown if key[0] != index}
            del self._open[index]
        return [nuclei for nuclei in finished if len(nuclei)]

    def _holds_pending(self, box: Box) -> bool:
        """Tell whether a nucleus, of any tile, that is still to be decided reaches into a box."""
        near = (self._open[index] for index in self._open_near(box))
        return any((tile.pending & _overlap(tile.boxes, box)).any() for tile in near)

    def _written(self, index: int, tile: _Open) -> Nuclei:
        """Return the accepted nuclei of a tile in its order, those with another shape measured anew."""
        nuclei, pieces, start = tile.part.nuclei, [], 0
        for i in sorted(i for i in tile.shapes if tile.accepted[i]):
            before = np.arange(start, i)
            pieces.append(nuclei.select(before[tile.accepted[start:i]]))
            pieces.append(self._measured(nuclei.select([i]), tile.shapes[i]))
            start = i + 1
        rest = np.arange(start, len(nuclei))
        written = Nuclei.concat([*pieces, nuclei.select(rest[tile.accepted[start:]])])
        if len(self.tiles) == 1:
            return written
        ids = np.arange(self._next_id, self._next_id + len(written), dtype=np.int64)
        self._next_id += len(written)
        return replace(written, ids=ids)

    def _measured(self, nucleus: Nuclei, shape: _Shape) -> Nuclei:
        """Return a nucleus (none, if it is a dot or a line now) with the box, centroid and contour of a shape.

        Its type stays the one that the tile which decided it gave the part it saw.
        """
        measured = measure(shape.mask.astype(np.int32)).shift(*shape.box[:2])
        return replace(nucleus.select([0] if len(measured) else []), **_geometry(measured))


def _geometry(nuclei: Nuclei) -> dict[str, np.ndarray]:
    return {name: getattr(nuclei, name) for name in ("boxes_yx", "centroids_xy", "points_xy", "offsets")}


def _overlap(boxes: np.ndarray, box: Box) -> np.ndarray:
    """Tell which of (N, 4) boxes share px with one; (N,) bool."""
    return (boxes[:, :2] < box[2:]).all(axis=1) & (boxes[:, 2:] > box[:2]).all(axis=1)


def _meet(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tell which of (N, 4) boxes share px with any of (M, 4) others; (N,) bool."""
    a, b = boxes[:, None], others[None]
    return ((a[..., :2] < b[..., 2:]) & (a[..., 2:] > b[..., :2])).all(axis=2).any(axis=1)


def _window(shape: _Shape, box: Box) -> np.ndarray:
    """Return the pixels of a shape in another box."""
    window = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
    y0, x0 = max(shape.box[0], box[0]), max(shape.box[1], box[1])
    y1, x1 = min(shape.box[2], box[2]), min(shape.box[3], box[3])
    if y0 < y1 and x0 < x1:
        source = shape.mask[y0 - shape.box[0] : y1 - shape.box[0], x0 - shape.box[1] : x1 - shape.box[1]]
        window[y0 - box[0] : y1 - box[0], x0 - box[1] : x1 - box[1]] = source
    return window


def _fill(target: np.ndarray, box: Box, area: Box) -> None:
    """Set the pixels of `target`, which lies in `box`, that lie in `area`."""
    y0, x0 = max(area[0] - box[0], 0), max(area[1] - box[1], 0)
    target[y0 : max(area[2] - box[0], 0), x0 : max(area[3] - box[1], 0)] = True
