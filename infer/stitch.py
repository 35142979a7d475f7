"""From nuclei of blocks to nuclei of the slide: none lost, none twice, no two overlapping.

A block owns the nuclei whose centroids lie in its core. Blocks are post-processed separately, so two of them may
outline a nucleus near their common border differently, with centroids on different sides. So blocks are taken in
row-major order, and each nucleus is compared with the pixels that accepted nuclei of other blocks have:

1. A block's own nuclei come first. All pixels free: accepted. Mostly taken (`SAME_SHARE`): the same nucleus, dropped.
   Otherwise it keeps the largest piece of what is free.
2. A nucleus that reaches into a block's core from outside waits until all blocks whose cores it touches have come.
   Whoever owns it has it by then, and it is dropped; when nobody does (each block saw its centroid on the
   other's side), it is accepted.
3. A nucleus that is larger than the margin, so that a block sees only a part of it, is united with the part that the
   neighbour sees.

The result depends on the blocks' contents alone, not on the order in which workers finish them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import scipy  # parts load when they are used, so that workers start sooner

from infer.grid import BlockGrid, Box
from infer.segment import BlockNuclei
from misc.nuclei import Nuclei
from models.hovernet.post_proc import MIN_SIZE_PX, measure

Key = tuple[int, int]  # block, position in the block's nuclei
SAME_SHARE = 0.5  # share of a nucleus' pixels, inclusive: from this overlap on, two nuclei are the same


@dataclass
class Shape:
    """Pixels of a nucleus: `mask`, (h, w) bool, lies in `box`, px of the slide.

    `parts` are the nuclei of blocks that it is made of, and whether their blocks saw them cut off; kept here, since a
    block may be released before a later one needs them.
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
class OpenBlock:
    """A block that later blocks may still change: its N nuclei as it saw them, and what was decided about them.

    Attributes:
        boxes: (N, 4) int64, current (y0, x0, y1, x1) in px of the slide.
        accepted, pending: (N,) bool; those that are neither were dropped.
        shapes: of the nuclei that differ from what the block saw.
    """

    part: BlockNuclei
    boxes: np.ndarray
    accepted: np.ndarray
    pending: np.ndarray
    shapes: dict[int, Shape] = field(default_factory=dict)


class Stitcher:
    """Joins the nuclei of the `expected` blocks (indices; default: all), in the order in which they arrive."""

    def __init__(self, blocks: BlockGrid, expected: Iterable[int] | None = None):
        self.blocks = blocks
        self._todo = sorted(range(len(blocks)) if expected is None else expected, reverse=True)
        self._open: dict[int, OpenBlock] = {}  # by index, in row-major order
        self._waiting: list[tuple[int, Key]] = []  # foreign nuclei, with the block after which they are decided
        self._grown: set[Key] = set()  # accepted nuclei that were united with others
        self._next_id = 1

    @property
    def done(self) -> bool:
        """Whether all blocks were taken and all nuclei returned."""
        return not self._todo and not self._open

    def add(self, part: BlockNuclei) -> list[Nuclei]:
        """Take the next expected block, in row-major order; return the nuclei that no later block can change.

        Ids count from 1; a slide of one block keeps the ids of its instance map. The last block returns the rest.
        """
        if not self._todo or part.block != self._todo[-1]:
            raise ValueError(f"block {part.block} is not the next one that is expected")
        self._todo.pop()
        self._take(part)
        return self._finish()

    @property
    def _last_done(self) -> int:
        """Whether all blocks up to this index were taken."""
        return self._todo[-1] - 1 if self._todo else len(self.blocks)

    def _take(self, part: BlockNuclei) -> None:
        nobody = np.zeros(len(part), bool)
        block = OpenBlock(part, part.nuclei.boxes_yx.reshape(-1, 4).astype(np.int64), nobody, nobody.copy())
        self._open[part.block] = block
        owned = np.flatnonzero(part.owned)
        contested = self._contested(part.block, block.boxes[owned])
        block.accepted[owned[~contested]] = True
        for i in owned[contested]:
            self._decide((part.block, int(i)))
        for i in np.flatnonzero(~part.owned):
            rows, cols = self.blocks.cores_touching(tuple(block.boxes[i].tolist()))
            last = (rows[1] - 1) * self.blocks.cols + cols[1] - 1
            self._waiting.append((last, (part.block, int(i))))
            block.pending[i] = True
        due = sorted(key for last, key in self._waiting if last <= self._last_done)
        self._waiting = [entry for entry in self._waiting if entry[0] > self._last_done]
        for key in due:
            self._open[key[0]].pending[key[1]] = False
            self._decide(key)

    def _contested(self, index: int, boxes: np.ndarray) -> np.ndarray:
        """Tell which of a block's own nuclei, (N, 4) boxes, may share pixels with accepted ones of others; (N,)."""
        block = self.blocks.block(index)
        near = np.concatenate([np.zeros((0, 4), np.int64), *self._accepted_boxes(block.outer, index)])
        near = near[_overlap(near, block.outer)]
        inside = ((boxes[:, :2] >= block.core[:2]) & (boxes[:, 2:] <= block.core[2:])).all(axis=1)
        # nuclei in the core meet only nuclei that reach into it: few on both sides, so all pairs are compared
        contested = _meet(boxes, near[_overlap(near, block.core)])
        contested[~inside] |= _meet(boxes[~inside], near)
        return contested

    def _accepted_boxes(self, box: Box, but: int) -> Iterable[np.ndarray]:
        for index in self._open_near(box):
            if index != but:
                yield self._open[index].boxes[self._open[index].accepted]
        yield np.array([self._open[t].boxes[i] for t, i in self._grown], np.int64).reshape(-1, 4)

    def _open_near(self, box: Box) -> list[int]:
        rows, cols = self.blocks.blocks_touching(box)
        indices = (row * self.blocks.cols + col for row in range(*rows) for col in range(*cols))
        return [index for index in indices if index in self._open]

    def _decide(self, key: Key) -> None:
        """Accept a nucleus, cut it back, unite it with others, or drop it."""
        mine = self._shape(key)
        rivals = self._rivals(key, mine)
        block = self._open[key[0]]
        if not rivals:
            block.accepted[key[1]] = True
            return
        partners = [rival for rival in sorted(rivals) if self._continues(rival, key, mine, rivals[rival])]
        if partners:
            self._unite(mine, partners, rivals)
            return
        free = self._free(mine, rivals)
        owned = block.part.owned[key[1]]
        matched = not owned and any(n >= SAME_SHARE * self._shape(r).mask.sum() for r, n in rivals.items())
        if matched or free.sum() <= (1 - SAME_SHARE) * mine.mask.sum():
            return
        self._cut_back(key, mine, free)

    def _rivals(self, key: Key, mine: Shape) -> dict[Key, int]:
        """Return the accepted nuclei of other blocks that have pixels of this one, and how many."""
        near = [index for index in self._open_near(mine.box) if index != key[0]]
        return self._sharing(mine.mask, mine.box, near)

    def _sharing(self, mask: np.ndarray, box: Box, blocks: Iterable[int]) -> dict[Key, int]:
        """Return the accepted nuclei of some blocks, and the united ones, that have pixels of a mask, and how many."""
        found = set(self._grown)
        for index in blocks:
            other = self._open[index]
            found |= {(index, int(i)) for i in np.flatnonzero(other.accepted & _overlap(other.boxes, box))}
        shared = {}
        for key in sorted(found):
            if self._open[key[0]].accepted[key[1]]:
                pixels = np.count_nonzero(mask & self._shape(key).window(box))
                if pixels:
                    shared[key] = pixels
        return shared

    def _filled(self, mask: np.ndarray, box: Box) -> np.ndarray:
        """Fill the holes of a nucleus and drop the nuclei in them: contours have no holes, so they would overlap."""
        filled = scipy.ndimage.binary_fill_holes(mask)
        holes = filled & ~mask
        if holes.any():
            for block, i in self._sharing(holes, box, self._open_near(box)):
                self._open[block].accepted[i] = False
                self._grown.discard((block, i))
        return filled

    def _shape(self, key: Key) -> Shape:
        block = self._open[key[0]]
        if key[1] in block.shapes:
            return block.shapes[key[1]]
        mask = block.part.mask(key[1])
        return Shape(tuple(block.boxes[key[1]].tolist()), mask, {key: bool(block.part.cut[key[1]])})

    def _continues(self, rival: Key, key: Key, mine: Shape, shared: int) -> bool:
        """Tell whether an accepted nucleus was cut off at the edge of its block, and this one is the same nucleus."""
        theirs = self._shape(rival)
        if not any(theirs.parts.values()):
            return False
        # compared in the area that both blocks saw
        seen_mine = np.zeros(mine.mask.shape, bool)
        for block, _ in theirs.parts:
            _fill(seen_mine, mine.box, self.blocks.block(block).outer)
        seen_theirs = np.zeros(theirs.mask.shape, bool)
        _fill(seen_theirs, theirs.box, self.blocks.block(key[0]).outer)
        smaller = min((mine.mask & seen_mine).sum(), (theirs.mask & seen_theirs).sum())
        return shared >= SAME_SHARE * smaller

    def _free(self, mine: Shape, others: Iterable[Key]) -> np.ndarray:
        free = mine.mask.copy()
        for other in others:
            free &= ~self._shape(other).window(mine.box)
        return free

    def _unite(self, mine: Shape, partners: list[Key], rivals: Iterable[Key]) -> None:
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
        for block, i in partners[1:]:
            self._open[block].accepted[i] = False
            self._grown.discard((block, i))
        self._set(partners[0], Shape(box, self._filled(whole, box), dict(sorted(parts.items()))))
        self._grown.add(partners[0])

    def _cut_back(self, key: Key, mine: Shape, free: np.ndarray) -> None:
        """Accept the largest piece of the free pixels of a nucleus."""
        labels, count = scipy.ndimage.label(free)
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        piece = labels == sizes.argmax() + 1 if count else free
        if piece.sum() < MIN_SIZE_PX:
            return
        piece = self._filled(piece, mine.box)
        rows, cols = np.flatnonzero(piece.any(axis=1)), np.flatnonzero(piece.any(axis=0))
        y0, x0, y1, x1 = int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1
        box = (mine.box[0] + y0, mine.box[1] + x0, mine.box[0] + y1, mine.box[1] + x1)
        self._set(key, Shape(box, piece[y0:y1, x0:x1], mine.parts))
        self._open[key[0]].accepted[key[1]] = True

    def _set(self, key: Key, shape: Shape) -> None:
        block = self._open[key[0]]
        block.shapes[key[1]] = shape
        block.boxes[key[1]] = shape.box

    def _finish(self) -> list[Nuclei]:
        """Return the nuclei of the first blocks that no later block can see."""
        finished = []
        while self._open:
            index, block = next(iter(self._open.items()))
            ends = [self.blocks.block(index).outer, *(self._shape(k).box for k in self._grown if k[0] == index)]
            if max(map(self.blocks.last_touching, ends)) > self._last_done or any(map(self._holds_pending, ends)):
                break
            finished.append(self._written(block))
            self._grown = {key for key in self._grown if key[0] != index}
            del self._open[index]
        return [nuclei for nuclei in finished if len(nuclei)]

    def _holds_pending(self, box: Box) -> bool:
        """Tell whether a nucleus, of any block, that is still to be decided reaches into a box."""
        near = (self._open[index] for index in self._open_near(box))
        return any((block.pending & _overlap(block.boxes, box)).any() for block in near)

    def _written(self, block: OpenBlock) -> Nuclei:
        """Return the accepted nuclei of a block in its order; those with a changed shape are measured again."""
        nuclei, pieces, start = block.part.nuclei, [], 0
        for i in sorted(i for i in block.shapes if block.accepted[i]):
            before = np.arange(start, i)
            pieces.append(nuclei.select(before[block.accepted[start:i]]))
            pieces.append(self._measured(nuclei.select([i]), block.shapes[i]))
            start = i + 1
        rest = np.arange(start, len(nuclei))
        written = Nuclei.concat([*pieces, nuclei.select(rest[block.accepted[start:]])])
        if len(self.blocks) == 1:
            return written
        ids = np.arange(self._next_id, self._next_id + len(written), dtype=np.int64)
        self._next_id += len(written)
        return replace(written, ids=ids)

    def _measured(self, nucleus: Nuclei, shape: Shape) -> Nuclei:
        """Return a nucleus with the box, centroid and contour of a shape; no nucleus if the shape is a dot or a line.

        It keeps the type of the part that the deciding block saw.
        """
        measured = measure(shape.mask.astype(np.int32)).shift(*shape.box[:2])
        geometry = {name: getattr(measured, name) for name in ("boxes_yx", "centroids_xy", "points_xy", "offsets")}
        return replace(nucleus.select([0] if len(measured) else []), **geometry)


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
