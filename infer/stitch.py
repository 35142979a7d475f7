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
from dataclasses import replace

import numpy as np
from scipy import ndimage

from infer.grid import Box, TileGrid
from infer.stitch_state import Key, OpenTile, Shape, StitchState
from infer.tile_nuclei import TileNuclei
from misc.nuclei import Nuclei
from models.hovernet.post_proc import MIN_SIZE_PX, measure

SAME_SHARE = 0.5  # share of a nucleus' pixels, inclusive: from here on two nuclei of different tiles are the same


class Stitcher:
    """Joins the nuclei of tiles as they come.

    Args:
        tiles: the tiles of the slide.
        expected: indices of the tiles that come; those without tissue may be left out. Default: all.
        state: where another stitcher of the same slide got to, whose tiles do not come again.

    Attributes:
        state: of the tiles that were taken; one that comes before its turn is not among them.
        trimmed, united: nuclei that were cut back, or put together from two tiles.
    """

    def __init__(self, tiles: TileGrid, expected: Iterable[int] | None = None, state: StitchState | None = None):
        self.tiles = tiles
        self.state = state or StitchState()
        self.trimmed = self.united = 0
        expected = range(len(tiles)) if expected is None else expected
        self._todo = sorted((index for index in expected if index > self.state.taken), reverse=True)
        self._to_come = set(self._todo)
        self._arrived: dict[int, TileNuclei] = {}

    @property
    def done(self) -> bool:
        """All tiles have come, and all nuclei have been returned."""
        return not self._todo and not self.state.open

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
        tile = OpenTile.of(part)
        self.state.open[part.tile], self.state.taken = tile, part.tile
        owned = np.flatnonzero(part.owned)
        contested = self._contested(part.tile, tile.boxes[owned])
        tile.accepted[owned[~contested]] = True
        for i in owned[contested]:
            self._decide((part.tile, int(i)))
        for i in np.flatnonzero(~part.owned):
            rows, cols = self.tiles.cores_touching(tuple(tile.boxes[i].tolist()))
            last = (rows[1] - 1) * self.tiles.cols + cols[1] - 1
            self.state.waiting.append((last, (part.tile, int(i))))
            tile.pending[i] = True
        due = sorted(key for last, key in self.state.waiting if last <= self._last_done)
        self.state.waiting = [entry for entry in self.state.waiting if entry[0] > self._last_done]
        for key in due:
            self.state.open[key[0]].pending[key[1]] = False
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
                yield self.state.open[index].boxes[self.state.open[index].accepted]
        yield np.array([self.state.open[t].boxes[i] for t, i in self.state.grown], np.int64).reshape(-1, 4)

    def _open_near(self, box: Box) -> list[int]:
        rows, cols = self.tiles.tiles_touching(box)
        indices = (row * self.tiles.cols + col for row in range(*rows) for col in range(*cols))
        return [index for index in indices if index in self.state.open]

    def _decide(self, key: Key) -> None:
        """Accept a nucleus, cut it back, unite it with others, or drop it."""
        mine = self._shape(key)
        rivals = self._rivals(key, mine)
        tile = self.state.open[key[0]]
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
            return
        self._cut_back(key, mine, free)

    def _rivals(self, key: Key, mine: Shape) -> dict[Key, int]:
        """Return the accepted nuclei of other tiles that have pixels of this one, and how many."""
        near = [index for index in self._open_near(mine.box) if index != key[0]]
        return self._sharing(mine.mask, mine.box, near)

    def _sharing(self, mask: np.ndarray, box: Box, tiles: Iterable[int]) -> dict[Key, int]:
        """Return the accepted nuclei of some tiles, and the united ones, that have pixels of a mask, and how many."""
        found = set(self.state.grown)
        for index in tiles:
            other = self.state.open[index]
            found |= {(index, int(i)) for i in np.flatnonzero(other.accepted & _overlap(other.boxes, box))}
        shared = {}
        for key in sorted(found):
            if self.state.open[key[0]].accepted[key[1]]:
                pixels = np.count_nonzero(mask & self._shape(key).window(box))
                if pixels:
                    shared[key] = pixels
        return shared

    def _filled(self, mask: np.ndarray, box: Box) -> np.ndarray:
        """Fill the holes of a nucleus and drop the nuclei in them: contours have no holes, so they would overlap."""
        filled = ndimage.binary_fill_holes(mask)
        holes = filled & ~mask
        if holes.any():
            for tile, i in self._sharing(holes, box, self._open_near(box)):
                self.state.open[tile].accepted[i] = False
                self.state.grown.discard((tile, i))
        return filled

    def _shape(self, key: Key) -> Shape:
        tile = self.state.open[key[0]]
        if key[1] in tile.shapes:
            return tile.shapes[key[1]]
        mask = tile.part.mask(key[1])
        return Shape(tuple(tile.boxes[key[1]].tolist()), mask, {key: bool(tile.part.cut[key[1]])})

    def _continues(self, rival: Key, key: Key, mine: Shape, shared: int) -> bool:
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

    def _free(self, mine: Shape, others: Iterable[Key]) -> np.ndarray:
        free = mine.mask.copy()
        for other in others:
            free &= ~self._shape(other).window(mine.box)
        return free

    def _unite(self, key: Key, mine: Shape, partners: list[Key], rivals: Iterable[Key]) -> None:
        """Add the pixels of a nucleus to the first of its partners, and the other partners too."""
        mask = self._free(mine, [rival for rival in rivals if rival not in partners])
        shapes = [Shape(mine.box, mask, mine.parts), *(self._shape(partner) for partner in partners)]
        boxes = np.array([shape.box for shape in shapes])
        box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
        whole = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
        parts: dict[Key, bool] = {}
        for shape in shapes:
            whole |= shape.window(box)
            parts |= shape.parts
        for tile, i in partners[1:]:
            self.state.open[tile].accepted[i] = False
            self.state.grown.discard((tile, i))
        self._set(partners[0], Shape(box, self._filled(whole, box), dict(sorted(parts.items()))))
        self.state.grown.add(partners[0])
        self.united += 1

    def _cut_back(self, key: Key, mine: Shape, free: np.ndarray) -> None:
        """Accept the largest piece of the free pixels of a nucleus."""
        labels, count = ndimage.label(free)
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        piece = labels == sizes.argmax() + 1 if count else free
        if piece.sum() < MIN_SIZE_PX:
            return
        piece = self._filled(piece, mine.box)
        rows, cols = np.flatnonzero(piece.any(axis=1)), np.flatnonzero(piece.any(axis=0))
        y0, x0, y1, x1 = int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1
        box = (mine.box[0] + y0, mine.box[1] + x0, mine.box[0] + y1, mine.box[1] + x1)
        self._set(key, Shape(box, piece[y0:y1, x0:x1], mine.parts))
        self.state.open[key[0]].accepted[key[1]] = True
        self.trimmed += 1

    def _set(self, key: Key, shape: Shape) -> None:
        tile = self.state.open[key[0]]
        tile.shapes[key[1]] = shape
        tile.boxes[key[1]] = shape.box

    def _finish(self) -> list[Nuclei]:
        """Return the nuclei of the first tiles that no later one can see."""
        finished = []
        while self.state.open:
            index, tile = next(iter(self.state.open.items()))
            ends = [self.tiles.tile(index).outer, *(self._shape(k).box for k in self.state.grown if k[0] == index)]
            if max(map(self.tiles.last_touching, ends)) > self._last_done or any(map(self._holds_pending, ends)):
                break
            finished.append(self._written(index, tile))
            self.state.grown = {key for key in self.state.grown if key[0] != index}
            del self.state.open[index]
        return [nuclei for nuclei in finished if len(nuclei)]

    def _holds_pending(self, box: Box) -> bool:
        """Tell whether a nucleus, of any tile, that is still to be decided reaches into a box."""
        near = (self.state.open[index] for index in self._open_near(box))
        return any((tile.pending & _overlap(tile.boxes, box)).any() for tile in near)

    def _written(self, index: int, tile: OpenTile) -> Nuclei:
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
        ids = np.arange(self.state.next_id, self.state.next_id + len(written), dtype=np.int64)
        self.state.next_id += len(written)
        return replace(written, ids=ids)

    def _measured(self, nucleus: Nuclei, shape: Shape) -> Nuclei:
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


def _fill(target: np.ndarray, box: Box, area: Box) -> None:
    """Set the pixels of `target`, which lies in `box`, that lie in `area`."""
    y0, x0 = max(area[0] - box[0], 0), max(area[1] - box[1], 0)
    target[y0 : max(area[2] - box[0], 0), x0 : max(area[3] - box[1], 0)] = True
