"""From the maps of a block to its instance map and nuclei; runs in the worker processes, without torch.

The only place that knows the order of the channels: type (typed networks only), probability of nucleus, horizontal and
vertical distance, probabilities of the types (where asked for), ink (where nuclei in ink are dropped).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np

from infer.grid import BlockGrid, Box, Planes
from misc.nuclei import Nuclei
from misc.slides.resample import enlarge
from models.hovernet.post_proc import DROP, REFERENCE, PostProc, count_dropped, process_nuclei

_NUCLEI_COLUMNS = [field.name for field in fields(Nuclei)]


def segment(
    maps: np.ndarray,
    nr_types: int | None,
    planes: Planes,
    outer: Box,
    core: Box,
    how: PostProc = REFERENCE,
) -> tuple[np.ndarray, Nuclei, int]:
    """Find the nuclei of a block in the output plane; the constants of post-processing are for nuclei of its scale.

    If the network's plane is coarser, its maps are enlarged first. If it is finer, nuclei are found there, since shrunk
    maps would make them too small, and are then mapped to the output plane.

    Args:
        maps: (C, h, w) float32, of `planes.net_box(outer)`.
        outer: what the block sees, px of the output plane.
        core: the part that the block owns; its extremes stretch the maps, as the reference does with its tiles.
        how: how nuclei are found.

    Returns:
        (H, W) int32 instance map of `outer`, the nuclei in its px, and the number of nuclei in the map without an
        outline.
    """
    finer = planes.net_yx > planes.out_yx  # compared in order: a small image may have as many rows in both
    if not finer and planes.net_yx != planes.out_yx:
        maps = _enlarged(maps, nr_types is not None, planes, outer)
    box = planes.net_box(outer) if finer else outer
    inner = None if core == outer else _slices(planes.net_box(core) if finer else core, box)
    count = 3 if nr_types is None else 4
    ink = maps[-1] if how.ink == DROP else None
    channels_last = np.moveaxis(maps if ink is None else maps[:-1], 0, -1)
    probs = channels_last[..., count:] if channels_last.shape[-1] > count else None
    inst_map, nuclei = process_nuclei(channels_last[..., :count], nr_types, probs, inner, how, ink)
    dropped = count_dropped(inst_map, nuclei)  # before the map shrinks: small nuclei may vanish from it
    if finer:
        inst_map, nuclei = _to_output(inst_map, nuclei, planes, outer, box)
    return inst_map, nuclei, dropped


def _slices(inner: Box, box: Box) -> tuple[slice, slice]:
    return slice(inner[0] - box[0], inner[2] - box[0]), slice(inner[1] - box[1], inner[3] - box[1])


def _enlarged(maps: np.ndarray, typed: bool, planes: Planes, outer: Box) -> np.ndarray:
    """Return the maps in the output plane; types, which cannot be interpolated, by nearest neighbour."""
    axis_y, axis_x = planes.axes
    larger = np.empty((len(maps), outer[2] - outer[0], outer[3] - outer[1]), np.float32)
    for channel, plane in enumerate(maps):
        if typed and channel == 0:
            rows, cols = axis_y.nearest(*outer[::2]), axis_x.nearest(*outer[1::2])
            larger[channel] = plane[rows][:, cols]
        else:
            larger[channel] = enlarge(plane, axis_y, axis_x, outer)
    return larger


def _to_output(inst_map: np.ndarray, nuclei: Nuclei, planes: Planes, outer: Box, box: Box) -> tuple[np.ndarray, Nuclei]:
    """Map the nuclei of `box` in the network's plane to `outer` in the coarser output plane."""
    axis_y, axis_x = planes.axes
    rows, cols = axis_y.nearest(*outer[::2]), axis_x.nearest(*outer[1::2])
    whole = nuclei.shift(*box[:2]).scale(*(out / net for out, net in zip(planes.out_yx, planes.net_yx, strict=True)))
    return np.ascontiguousarray(inst_map[rows][:, cols]), whole.shift(-outer[0], -outer[1])


# ------------------------------------------------------------------------------------------ what stitching gets


@dataclass(frozen=True)
class BlockNuclei:
    """Nuclei of one block (its index) that lie in its core or reach into it.

    Attributes:
        nuclei: N nuclei in px of the output plane, with the ids of the block's instance map.
        owned: (N,) bool, the centroid lies in the block's core.
        cut: (N,) bool, the nucleus touches the edge of what the block sees, so a part may be missing.
        mask_bits: (B,) uint8, `np.packbits` of the nuclei's pixels in their boxes, one after the other.
        mask_starts: (N + 1,) int64, nucleus i has bytes `mask_starts[i]:mask_starts[i + 1]`; none where no other block
            sees it.
    """

    block: int
    nuclei: Nuclei
    owned: np.ndarray
    cut: np.ndarray
    mask_bits: np.ndarray
    mask_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.nuclei)

    def mask(self, i: int) -> np.ndarray:
        """Return the pixels of nucleus i in its box, (h, w) bool; filled from its outline where no mask was stored.

        No other block sees such a nucleus, but a nucleus united from several blocks can reach it.
        """
        (y0, x0), (y1, x1) = self.nuclei.boxes_yx[i].tolist()
        bits = self.mask_bits[self.mask_starts[i] : self.mask_starts[i + 1]]
        if not len(bits):
            drawn = np.zeros((y1 - y0, x1 - x0), np.uint8)
            return cv2.fillPoly(drawn, [self.nuclei.contour(i)], 1, offset=(-x0, -y0)).view(bool)
        return np.unpackbits(bits, count=(y1 - y0) * (x1 - x0)).reshape(y1 - y0, x1 - x0).view(bool)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return plain arrays, for `np.savez`."""
        columns = {f"nuclei_{name}": getattr(self.nuclei, name) for name in _NUCLEI_COLUMNS}
        rest = {name: getattr(self, name) for name in ("owned", "cut", "mask_bits", "mask_starts")}
        return {name: column for name, column in columns.items() if column is not None} | rest

    @classmethod
    def from_arrays(cls, block: int, arrays: Mapping[str, np.ndarray]) -> BlockNuclei:
        """Undo `to_arrays`."""
        nuclei = Nuclei(**{name: arrays[f"nuclei_{name}"] for name in _NUCLEI_COLUMNS if f"nuclei_{name}" in arrays})
        return cls(block, nuclei, *(arrays[name] for name in ("owned", "cut", "mask_bits", "mask_starts")))


def hand_over(blocks: BlockGrid, index: int, inst_map: np.ndarray, nuclei: Nuclei) -> BlockNuclei:
    """Select what stitching needs from a block's nuclei; these and `inst_map`, (H, W), are in px of `outer`."""
    block = blocks.block(index)
    top, left, bottom, right = block.outer
    assert inst_map.shape == (bottom - top, right - left)
    owned = blocks.index_at(nuclei.centroids_xy[:, ::-1] + (top, left)) == index
    boxes = nuclei.boxes_yx.reshape(-1, 4)
    core = np.array(block.core) - (top, left, top, left)
    keep = owned.copy()
    reaches = (boxes[:, :2] < core[2:]).all(axis=1) & (boxes[:, 2:] > core[:2]).all(axis=1)
    for i in np.flatnonzero(reaches & ~owned):
        y0, x0 = np.maximum(boxes[i, :2], core[:2])
        y1, x1 = np.minimum(boxes[i, 2:], core[2:])
        keep[i] = (inst_map[y0:y1, x0:x1] == nuclei.ids[i]).any()
    kept, inner = nuclei.select(keep), boxes[keep]
    slide_boxes = inner + (top, left, top, left)
    private = np.array(blocks.private_box(block))
    shared = (slide_boxes[:, :2] < private[:2]).any(axis=1) | (slide_boxes[:, 2:] > private[2:]).any(axis=1)
    bits, starts = _pack_masks(inst_map, kept.ids, inner, shared)
    # a nucleus at the edge of the slide is complete
    at_end = (slide_boxes == block.outer) & (np.array(block.outer) != (0, 0, *blocks.shape_yx))
    return BlockNuclei(index, kept.shift(top, left), owned[keep], at_end.any(axis=1), bits, starts)


def _pack_masks(
    inst_map: np.ndarray, ids: np.ndarray, boxes: Sequence, shared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the packed masks of the nuclei that `shared` (N,) names, and where each of all begins, (N + 1,)."""
    packed, lengths = [np.zeros(0, np.uint8)], np.zeros(len(ids), np.int64)
    for i in np.flatnonzero(shared):
        y0, x0, y1, x1 = boxes[i]
        mask = np.zeros((y1 - y0, x1 - x0), bool)  # a box that was scaled may reach over the edge by a px
        part = inst_map[y0:y1, x0:x1] == ids[i]
        mask[: part.shape[0], : part.shape[1]] = part
        packed.append(np.packbits(mask))
        lengths[i] = len(packed[-1])
    return np.concatenate(packed), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
