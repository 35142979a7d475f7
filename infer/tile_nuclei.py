"""What a post-processed tile hands to stitching: its nuclei, and the exact pixels of those that other tiles may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np

from infer.grid import TileGrid
from misc.nuclei import Nuclei

_NUCLEI_COLUMNS = [field.name for field in fields(Nuclei)]


@dataclass(frozen=True)
class TileNuclei:
    """Nuclei of one tile that lie in its core or reach into it.

    Attributes:
        tile: index of the tile.
        nuclei: N nuclei in px of the slide; `ids` are those of the tile's instance map.
        owned: (N,) bool, the centroid lies in the tile's core.
        cut: (N,) bool, the nucleus touches the end of what the tile sees, so that some of it may be missing.
        mask_bits: (B,) uint8, `np.packbits` of the nuclei's pixels in their boxes, one after the other.
        mask_starts: (N + 1,) int64, nucleus i has bytes `mask_starts[i]:mask_starts[i + 1]`; none where no other tile
            sees it.
    """

    tile: int
    nuclei: Nuclei
    owned: np.ndarray
    cut: np.ndarray
    mask_bits: np.ndarray
    mask_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.nuclei)

    def mask(self, i: int) -> np.ndarray:
        """Return the pixels of nucleus i in its box, (h, w) bool; those in its outline where none were handed over.

        No other tile sees such a nucleus, but one that neighbours put together from several tiles can reach it.
        """
        (y0, x0), (y1, x1) = self.nuclei.boxes_yx[i].tolist()
        bits = self.mask_bits[self.mask_starts[i] : self.mask_starts[i + 1]]
        if not len(bits):
            drawn = np.zeros((y1 - y0, x1 - x0), np.uint8)
            return cv2.fillPoly(drawn, [self.nuclei.contour(i)], 1, offset=(-x0, -y0)).view(bool)
        return np.unpackbits(bits, count=(y1 - y0) * (x1 - x0)).reshape(y1 - y0, x1 - x0).view(bool)


def hand_over(tiles: TileGrid, index: int, inst_map: np.ndarray, nuclei: Nuclei) -> TileNuclei:
    """Choose what stitching needs of a tile's nuclei; runs where the tile was post-processed.

    Args:
        tiles: the tiles of the slide.
        index: this tile.
        inst_map: (H, W) integers, the tile's outer box.
        nuclei: what `post_proc.measure` found in it, in px of the tile.

    Raises:
        ValueError: `inst_map` has not the size of the tile's outer box.
    """
    tile = tiles.tile(index)
    top, left, bottom, right = tile.outer
    if inst_map.shape != (bottom - top, right - left):
        raise ValueError(f"tile {index} is {bottom - top}x{right - left} px, its instance map {inst_map.shape}")
    owned = tiles.index_at(nuclei.centroids_xy[:, ::-1] + (top, left)) == index
    boxes = nuclei.boxes_yx.reshape(-1, 4)
    core = np.array(tile.core) - (top, left, top, left)
    keep = owned.copy()
    reaches = (boxes[:, :2] < core[2:]).all(axis=1) & (boxes[:, 2:] > core[:2]).all(axis=1)
    for i in np.flatnonzero(reaches & ~owned):
        y0, x0 = np.maximum(boxes[i, :2], core[:2])
        y1, x1 = np.minimum(boxes[i, 2:], core[2:])
        keep[i] = (inst_map[y0:y1, x0:x1] == nuclei.ids[i]).any()
    kept, inner = nuclei.select(keep), boxes[keep]
    slide_boxes = inner + (top, left, top, left)
    private = np.array(tiles.private_box(tile))
    shared = (slide_boxes[:, :2] < private[:2]).any(axis=1) | (slide_boxes[:, 2:] > private[2:]).any(axis=1)
    bits, starts = _pack_masks(inst_map, kept.ids, inner, shared)
    # what ends with the slide is whole
    at_end = (slide_boxes == tile.outer) & (np.array(tile.outer) != (0, 0, *tiles.shape_yx))
    return TileNuclei(index, kept.shift(top, left), owned[keep], at_end.any(axis=1), bits, starts)


def _pack_masks(inst_map, ids, boxes, shared) -> tuple[np.ndarray, np.ndarray]:
    """Return the packed masks of the nuclei that `shared` (N,) names, and where each of all begins, (N + 1,)."""
    packed, lengths = [np.zeros(0, np.uint8)], np.zeros(len(ids), np.int64)
    for i in np.flatnonzero(shared):
        y0, x0, y1, x1 = boxes[i]
        packed.append(np.packbits(inst_map[y0:y1, x0:x1] == ids[i]))
        lengths[i] = len(packed[-1])
    return np.concatenate(packed), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def pack(parts: Sequence[TileNuclei]) -> dict[str, np.ndarray]:
    """Return several tiles as plain arrays, for `np.savez` on one spool file."""
    nuclei = Nuclei.concat([part.nuclei for part in parts if len(part)])
    columns = {f"nuclei_{name}": getattr(nuclei, name) for name in _NUCLEI_COLUMNS}
    join = lambda arrays, dtype: np.concatenate([np.zeros(0, dtype), *arrays])  # noqa: E731
    return {name: column for name, column in columns.items() if column is not None} | {
        "tiles": np.array([part.tile for part in parts], np.int64),
        "counts": np.array([len(part) for part in parts], np.int64),
        "owned": join((part.owned for part in parts), bool),
        "cut": join((part.cut for part in parts), bool),
        "mask_bits": join((part.mask_bits for part in parts), np.uint8),
        "mask_lengths": join((np.diff(part.mask_starts) for part in parts), np.int64),
    }


def unpack(arrays: Mapping[str, np.ndarray]) -> list[TileNuclei]:
    """Undo `pack`."""
    nuclei = Nuclei(**{name: arrays[f"nuclei_{name}"] for name in _NUCLEI_COLUMNS if f"nuclei_{name}" in arrays})
    ends = np.cumsum(arrays["counts"])
    bytes_before = np.concatenate([[0], np.cumsum(arrays["mask_lengths"])]).astype(np.int64)
    parts = []
    for tile, end, count in zip(arrays["tiles"].tolist(), ends.tolist(), arrays["counts"].tolist(), strict=True):
        which = slice(end - count, end)
        starts = bytes_before[end - count : end + 1]
        bits = arrays["mask_bits"][starts[0] : starts[-1]]
        columns = arrays["owned"][which], arrays["cut"][which], bits, starts - starts[0]
        parts.append(TileNuclei(tile, nuclei.select(which), *columns))
    return parts
