"""Nuclei as a table: one row a nucleus, units in the header, at level 0.

Positions in px are pixel centres, as in the JSON; positions in um count from the corner of the image. A value that
is not known (no pixel size, no type) is an empty field, so that tables of several images have the same columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from misc.files import atomic_path, safe_cell
from misc.formats.qupath import check_types
from misc.ihc.stain import STAINS
from misc.nuclei import Nuclei
from misc.nuclei_features import nuclear_densities, shapes
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo

# Nuclei measured at once.
WRITE_NUCLEI = 20_000
# Decimals of lengths and areas, and of the numbers between 0 and a few that shares and densities are.
LENGTH_DECIMALS = 3
SHARE_DECIMALS = 4

COLUMNS = (
    *("id", "type", "name", "type_prob"),
    *("centroid_x_px", "centroid_y_px", "centroid_x_um", "centroid_y_um"),
    *("area_px", "area_um2", "perimeter_px", "perimeter_um"),
    *("major_axis_px", "major_axis_um", "minor_axis_px", "minor_axis_um"),
    *("eccentricity", "solidity"),
)


def write_csv(
    path: str | Path,
    nuclei: Nuclei | Iterable[Nuclei],
    type_info: TypeInfo,
    scale: float = 1.0,
    mpp: float | None = None,
    image: SlideImage | None = None,
    stain: str = "he",
) -> int:
    """Write the table, one piece after the other.

    Args:
        path: the file.
        nuclei: nuclei, or an iterable of them.
        type_info: `{type: (name, (red, green, blue))}`, with the entry `None` for nuclei without a type.
        scale: level-0 px per px of the coordinates.
        mpp: um per level-0 px; without it the columns in um stay empty.
        image: where to measure the stains; without it there are no columns for them.
        stain: a key of `misc.ihc.stain.STAINS`.

    Returns:
        Number of rows.

    Raises:
        ValueError: `type_info` lacks a type, or there is no such stain.
    """
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow([*COLUMNS, *stain_columns(image, stain)])
        for piece in in_pieces(nuclei):
            table = columns(piece, type_info, scale, mpp, image, stain)
            table["name"] = [safe_cell(name) for name in table["name"]]
            rows.writerows(zip(*table.values(), strict=True))
            count += len(piece)
    return count


def in_pieces(nuclei: Nuclei | Iterable[Nuclei]) -> Iterator[Nuclei]:
    """Yield nuclei, at most `WRITE_NUCLEI` at a time."""
    for part in [nuclei] if isinstance(nuclei, Nuclei) else nuclei:
        for start in range(0, len(part), WRITE_NUCLEI):
            yield part.select(slice(start, start + WRITE_NUCLEI))


def stain_columns(image: SlideImage | None, stain: str) -> list[str]:
    """Return the names of the columns of optical densities; there are none without an image."""
    return [f"{name}_mean_od" for name in STAINS[stain]] if image else []


def columns(
    nuclei: Nuclei, type_info: TypeInfo, scale: float, mpp: float | None, image: SlideImage | None, stain: str
) -> dict[str, list]:
    """Return the columns of the table by name, `None` where a value is not known; arguments as of `write_csv`."""
    types = [None] * len(nuclei) if nuclei.types is None else nuclei.types.tolist()
    check_types(set(types), type_info)
    blank = np.full(len(nuclei), np.nan)
    um = np.nan if mpp is None else mpp
    shape = shapes(nuclei)
    x, y = ((nuclei.centroids_xy + 0.5) * scale).T
    values = [
        nuclei.ids.tolist(),
        types,
        [type_info[t][0] for t in types],
        _numbers(blank if nuclei.type_prob is None else nuclei.type_prob, SHARE_DECIMALS),
        *(_numbers(v, LENGTH_DECIMALS) for v in (x - 0.5, y - 0.5, x * um, y * um)),
        *(_numbers(shape.area * scale**2 * unit, LENGTH_DECIMALS) for unit in (1, um**2)),
        *(
            _numbers(length * scale * unit, LENGTH_DECIMALS)
            for length in (shape.perimeter, shape.major_axis, shape.minor_axis)
            for unit in (1, um)
        ),
        *(_numbers(v, SHARE_DECIMALS) for v in (shape.eccentricity, shape.solidity)),
    ]
    if image is not None:
        at_level0 = nuclei if scale == 1 else nuclei.scale(scale, scale)
        densities = nuclear_densities(at_level0, image.read, (image.height, image.width), stain)
        values.extend(_numbers(v, SHARE_DECIMALS) for v in densities.T)
    return dict(zip([*COLUMNS, *stain_columns(image, stain)], values, strict=True))


def _numbers(values: np.ndarray, decimals: int) -> list[float | None]:
    """Return rounded numbers, `None` (an empty field) for NaN."""
    return [None if value != value else value for value in np.round(values, decimals).tolist()]
