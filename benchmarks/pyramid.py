"""A made-up slide of any size that is written at once: its tiles share a few places in the file.

A tiled TIFF stores where the bytes of every tile are. Here all tiles of glass point at the same bytes, and so do all
tiles of tissue. So a slide of 100,000 x 100,000 px is a file of a few MB, which readers open as any other slide.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

TILE_PX = 512
DOWNSAMPLES = (1, 4, 16)
MIN_BLOCKS = 8  # of a slide, so that tissue and glass both have room
NUCLEI_A_SIDE = 13  # of a tile: 169 in 512 x 512 px, 645 per million px
RADII_PX = (7, 12)
_LONG8, _LONG, _SHORT, _RATIONAL = 16, 4, 3, 5
_SIZES = {_LONG8: "Q", _LONG: "I", _SHORT: "H"}


@dataclass(frozen=True)
class Pyramid:
    """A made-up slide.

    Attributes:
        path: the file.
        nr_nuclei: approximate number of nuclei.
        tissue: (rows, cols) bool, which of its blocks are tissue, see `block_px`.
    """

    path: Path
    nr_nuclei: int
    tissue: np.ndarray


def write_pyramid(
    path: Path,
    shape_yx: tuple[int, int],
    tissue_share: float = 0.3,
    mpp: float = 0.25,
    seed: int = 0,
    pattern: np.ndarray | None = None,
) -> Pyramid:
    """Write a slide with tissue in a share of its blocks.

    Args:
        path: the file to write.
        shape_yx: height and width, px. The number of nuclei is exact if these are multiples of `block_px`.
        tissue_share: below 1, since Otsu's threshold needs glass beside the tissue; at least one block has tissue.
        mpp: um/px.
        seed: of the places of tissue and of the nuclei.
        pattern: (TILE_PX, TILE_PX, 3) uint8, a tile of tissue; `None` paints nuclei as `tests/stubs.py` reads them.
    """
    rng = np.random.default_rng(seed)
    block, downsamples = block_px(shape_yx)
    rows, cols = (-(-length // block) for length in shape_yx)
    tissue = np.zeros(rows * cols, bool)
    tissue[rng.permutation(rows * cols)[: max(round(tissue_share * rows * cols), 1)]] = True
    tissue = tissue.reshape(rows, cols)
    pattern = _tissue_tile(rng) if pattern is None else pattern
    with open(path, "wb") as out:
        out.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))  # BigTIFF; the offset of the first directory is set below
        places = [[_put(out, _shrunk(picture, factor)) for picture in (None, pattern)] for factor in downsamples]
        link = 8
        for factor, shared in zip(downsamples, places, strict=True):
            size = tuple(-(-length // factor) for length in shape_yx)
            link = _directory(out, link, size, tissue, block // TILE_PX // factor, shared, mpp * factor)
    heights, widths = (np.diff(np.minimum(np.arange(-(-length // block) + 1) * block, length)) for length in shape_yx)
    nr_nuclei = round((np.outer(heights, widths) * tissue).sum() * (NUCLEI_A_SIDE / TILE_PX) ** 2)
    return Pyramid(path, nr_nuclei, tissue)


def block_px(shape_yx: tuple[int, int]) -> tuple[int, tuple[int, ...]]:
    """Return the side of a block, px, and the downsampling factors of the slide's levels.

    A block is all tissue or all glass, and is one tile of the smallest level. Small slides have fewer levels, and so
    smaller blocks.
    """
    for count in range(len(DOWNSAMPLES), 0, -1):
        side = TILE_PX * DOWNSAMPLES[count - 1]
        if np.prod([-(-length // side) for length in shape_yx]) >= MIN_BLOCKS:
            break
    return side, DOWNSAMPLES[:count]


def _tissue_tile(rng: np.random.Generator) -> np.ndarray:
    """Paint nuclei as `tests/stubs.py` reads them; nuclei over an edge continue on the next tile."""
    tile = np.full((TILE_PX, TILE_PX, 3), 128, np.uint8)
    tile[..., 0] = 170
    spacing = TILE_PX / NUCLEI_A_SIDE
    for y, x in np.argwhere(np.ones((NUCLEI_A_SIDE, NUCLEI_A_SIDE))) * spacing:
        axes, window = rng.integers(*RADII_PX, 2).tolist(), 2 * RADII_PX[1] + 1
        mask = np.zeros((window, window), np.uint8)
        cv2.ellipse(mask, (RADII_PX[1],) * 2, tuple(axes), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        ys, xs = np.nonzero(mask)
        rows, cols = (np.rint([y, x]).astype(int)[:, None] + [ys, xs]) % TILE_PX
        tile[rows, cols, 0] = 0
        for channel, values in ((1, xs), (2, ys)):
            offset = values - values.mean()
            tile[rows, cols, channel] = np.rint(128 + 120 * offset / np.abs(offset).max())
    return tile


def _shrunk(picture: np.ndarray | None, factor: int) -> np.ndarray:
    """Return a tile of a smaller level: glass, or `factor` x `factor` reduced tiles of tissue."""
    if picture is None:
        return np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    small = cv2.resize(picture, (TILE_PX // factor,) * 2, interpolation=cv2.INTER_AREA)
    return np.tile(small, (factor, factor, 1))


def _put(out, picture: np.ndarray) -> tuple[int, int]:
    """Write a deflated tile, and return its offset and its length, bytes."""
    data = zlib.compress(picture.tobytes(), 6)
    place = out.tell()
    out.write(data + b"\0" * (-len(data) % 8))
    return place, len(data)


def _directory(out, link: int, shape_yx, tissue: np.ndarray, tiles_a_block: int, shared, mpp: float) -> int:
    """Write the directory of a level, set the pointer at `link` to it, and return the offset of the next pointer."""
    blocks = [np.arange(-(-length // TILE_PX)) // tiles_a_block for length in shape_yx]
    which = tissue[np.ix_(*blocks)].ravel().astype(int)
    offsets, lengths = (np.array([entry[k] for entry in shared])[which] for k in (0, 1))
    per_cm = round(1e4 / mpp * 1000)
    tags = {
        254: (_LONG, [int(link > 8)]),  # whether it is a smaller level
        256: (_LONG, [shape_yx[1]]),
        257: (_LONG, [shape_yx[0]]),
        258: (_SHORT, [8, 8, 8]),
        259: (_SHORT, [8]),  # deflate
        262: (_SHORT, [2]),  # RGB
        277: (_SHORT, [3]),
        282: (_RATIONAL, [per_cm, 1000]),
        283: (_RATIONAL, [per_cm, 1000]),
        284: (_SHORT, [1]),
        296: (_SHORT, [3]),  # per cm
        322: (_LONG, [TILE_PX]),
        323: (_LONG, [TILE_PX]),
        324: (_LONG8, offsets.tolist()),
        325: (_LONG, lengths.tolist()),
    }
    entries = []
    for tag, (kind, values) in tags.items():
        data = struct.pack(f"<{len(values)}{_SIZES.get(kind, 'I')}", *values)
        length = 1 if kind == _RATIONAL else len(values)
        if len(data) > 8:
            place, data = out.tell(), data + b"\0" * (-len(data) % 8)
            out.write(data)
            data = struct.pack("<Q", place)
        entries.append(struct.pack("<HHQ", tag, kind, length) + data.ljust(8, b"\0"))
    start = out.tell()
    out.write(struct.pack("<Q", len(entries)) + b"".join(entries) + struct.pack("<Q", 0))
    out.seek(link)
    out.write(struct.pack("<Q", start))
    out.seek(0, 2)
    return start + 8 + 20 * len(entries)
