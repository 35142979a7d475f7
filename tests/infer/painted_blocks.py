"""Nuclei painted on a slide, and what blocks that are right or wrong about them hand to stitching."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from infer.grid import BlockGrid
from infer.segment import BlockNuclei, hand_over
from models.hovernet.post_proc import measure

LARGEST_PX = 16  # extent of the largest nucleus that `ellipses` paints


def ellipses(shape, seed: int = 0, per_px: float = 1 / 150) -> np.ndarray:
    """Paint ellipses, many of which touch; each label is one piece."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for index in range(1, max(round(shape[0] * shape[1] * per_px), 1) + 1):
        centre = int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0]))
        axes = tuple(rng.integers(3, LARGEST_PX // 2, 2).tolist())
        cv2.ellipse(labels, centre, axes, float(rng.uniform(0, 180)), 0, 360, index, -1)
    return whole_pieces(labels)


def whole_pieces(labels: np.ndarray) -> np.ndarray:
    """Keep the largest piece of each label, and what lies in a hole of it: contours have none."""
    result, count = np.zeros_like(labels), 0
    for index in np.unique(labels)[1:]:
        pieces, _ = ndimage.label(labels == index, np.ones((3, 3)))
        piece = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        if piece.sum() >= 10 and not result[piece].any():
            count += 1
            result[ndimage.binary_fill_holes(piece)] = count
    return result


def block_part(labels: np.ndarray, blocks: BlockGrid, index: int) -> BlockNuclei:
    """Return what a block finds, if post-processing is right about everything it sees."""
    y0, x0, y1, x1 = blocks.block(index).outer
    values, seen = np.unique(labels[y0:y1, x0:x1], return_inverse=True)
    seen = (seen + (values[0] != 0)).reshape(y1 - y0, x1 - x0).astype(np.int32)
    return hand_over(blocks, index, seen, measure(seen))


def parts_of(labels: np.ndarray, blocks: BlockGrid) -> list[BlockNuclei]:
    return [block_part(labels, blocks, index) for index in range(len(blocks))]


def shaken(labels: np.ndarray, seed: int) -> np.ndarray:
    """Draw nuclei as another block might: some wider, some narrower, some missing, some two in one, some cut in two."""
    rng = np.random.default_rng(seed)
    result = np.zeros_like(labels)
    last = labels.max()
    for index in np.unique(labels)[1:]:
        mask = (labels == index).astype(np.uint8)
        what = rng.integers(0, 7)
        if what == 0:
            continue
        if what in (1, 2):
            mask = (cv2.dilate if what == 1 else cv2.erode)(mask, np.ones((3, 3), np.uint8))
        free = (mask > 0) & (result == 0)
        result[free] = max(index - 1, 1) if what == 3 else index
        if what == 4:
            cut = int(np.flatnonzero(free.any(axis=0)).mean()) if free.any() else 0
            last += 1
            result[:, cut:][free[:, cut:]] = last
    return whole_pieces(result)


def parts_that_differ(labels: np.ndarray, blocks: BlockGrid, seed: int = 0) -> list[BlockNuclei]:
    """Return what blocks find that draw the nuclei differently."""
    return [block_part(shaken(labels, seed + index), blocks, index) for index in range(len(blocks))]
