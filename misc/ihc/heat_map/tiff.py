"""A density map as pyramidal OME-TIFF, which QuPath opens beside the slide at the right size.

The map is that of what QuPath shows of the slide, see `misc.formats.qupath`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from misc.files import atomic_path

# Levels are halved until the longest side is no longer than this, px; tiles of the file have this side.
SMALLEST_LEVEL_PX = 256
TILE_PX = 256
UM_PER_CM = 10_000


def write_ome_tiff(
    path: str | Path, density: np.ndarray, pixel_um_xy: tuple[float, float] | None, name: str, unit: str
) -> int:
    """Write a map as one-channel float32 image.

    Args:
        path: the file, `*.ome.tif`.
        density: (rows, columns).
        pixel_um_xy: side of a bin in um along x and y, or `None`: the file then has no pixel size.
        name: of the image.
        unit: what the values are; becomes the channel's name.

    Returns:
        Number of levels.
    """
    import tifffile

    levels = pyramid(np.asarray(density, np.float32))
    metadata = {"axes": "YX", "Name": name, "Channel": {"Name": [unit]}}
    options = {"tile": (TILE_PX, TILE_PX), "compression": "zlib", "photometric": "minisblack"}
    resolutions: list[dict] = [{} for _ in levels]
    if pixel_um_xy is not None:
        um_x, um_y = pixel_um_xy
        metadata |= {
            "PhysicalSizeX": um_x,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": um_y,
            "PhysicalSizeYUnit": "µm",
        }
        resolutions = [
            {"resolution": (UM_PER_CM / um_x / 2**i, UM_PER_CM / um_y / 2**i), "resolutionunit": "CENTIMETER"}
            for i in range(len(levels))
        ]
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as tif:
        tif.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **options, **resolutions[0])
        for level, resolution in zip(levels[1:], resolutions[1:], strict=True):
            tif.write(level, subfiletype=1, metadata=None, **options, **resolution)
    return len(levels)


def pyramid(density: np.ndarray) -> list[np.ndarray]:
    """Return the map, and it again at half the size as often as `SMALLEST_LEVEL_PX` asks for.

    A pixel of a level is the mean of the (up to four) pixels under it.
    """
    levels = [density]
    while max(levels[-1].shape) > SMALLEST_LEVEL_PX:
        levels.append(_halve(levels[-1]))
    return levels


def _halve(density: np.ndarray) -> np.ndarray:
    """Average blocks of 2 x 2; a last odd row or column is doubled first, so that it counts by itself."""
    rows, columns = density.shape
    even = np.pad(density, ((0, rows % 2), (0, columns % 2)), mode="edge")
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3), dtype=density.dtype)
