"""Check whether two pictures show the same tissue, whatever their names: held-out images must not be in training.

Pictures are reduced to small grey ones, and tiles of one are searched in the other. This finds copies, crops of each
other, other compression, and half or twice the magnification. It does not find rotated or mirrored copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from misc.files import full_stem

# Pictures are compared at 1/8 of their size: a nucleus is then a few pixels wide.
REDUCTION = 8
# Factors between the magnifications of two pictures at which they are compared.
ZOOMS = (1.0, 0.5, 2.0)
TILE_PX = 32  # of the small pictures
LEAST_SD = 4.0  # grey values; flatter tiles are not compared
# Least normalised correlation of equal tiles. Of 861 pairs of unrelated images of Kumar and CoNSeP the best tiles
# reach 0.60 (half of the pairs 0.30); 42 crops at odd places, as JPEG of quality 70, have 0.79 or more (half 0.95).
SAME = 0.7


class Picture:
    """A picture, reduced for each of `ZOOMS`.

    Args:
        rgb: (H, W, 3) uint8.
    """

    def __init__(self, rgb: np.ndarray):
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self.small = {zoom: _reduced(grey, REDUCTION * zoom) for zoom in ZOOMS}

    def shows_tissue_of(self, other: Picture, zooms: Sequence[float] = ZOOMS) -> bool:
        """Whether a tile of one picture is in the other; the other may have `zooms` times the magnification."""
        mine = self.small[1.0]
        return any(_share_a_tile(mine, other.small[zoom]) for zoom in zooms)


def same_names(held: Iterable[Path], trained: Iterable[Path]) -> list[str]:
    """Return the names, without endings, that are in both lists of files."""
    return sorted({full_stem(path) for path in held} & {full_stem(path) for path in trained})


def same_pictures(
    held: Sequence[Path],
    trained: Sequence[Path],
    read: Callable[[Path], np.ndarray],
    zooms: Sequence[float] = ZOOMS,
) -> list[tuple[Path, Path]]:
    """Return the pairs of a held-out and a training picture that show the same tissue.

    Args:
        held, trained: files.
        read: returns (H, W, 3) uint8.
        zooms: magnifications of the training pictures relative to the held-out ones.
    """
    pictures = [Picture(read(path)) for path in trained]
    pairs = []
    for path in held:
        picture = Picture(read(path))
        pairs += [
            (path, other)
            for other, candidate in zip(trained, pictures, strict=True)
            if picture.shows_tissue_of(candidate, zooms)
        ]
    return pairs


def _reduced(grey: np.ndarray, factor: float) -> np.ndarray:
    height, width = (max(round(side / factor), 1) for side in grey.shape)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


def _share_a_tile(first: np.ndarray, second: np.ndarray) -> bool:
    return _holds_a_tile(first, second) or _holds_a_tile(second, first)


def _holds_a_tile(whole: np.ndarray, part: np.ndarray) -> bool:
    """Whether `whole` has one of the tiles of `part` anywhere."""
    if min(*whole.shape, *part.shape) < TILE_PX:
        return False
    for y in range(0, part.shape[0] - TILE_PX + 1, TILE_PX):
        for x in range(0, part.shape[1] - TILE_PX + 1, TILE_PX):
            tile = part[y : y + TILE_PX, x : x + TILE_PX]
            if tile.std() >= LEAST_SD and cv2.matchTemplate(whole, tile, cv2.TM_CCOEFF_NORMED).max() >= SAME:
                return True
    return False
