"""Tables of nuclei, for all formats: one row a nucleus, units in the column names, at level 0.

Positions in px are pixel centres, as in the JSON; positions in um count from the corner of the image. Unknown values
(no pixel size, no type) keep their columns, so that tables of several images have the same columns.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from misc.formats.ahead import map_in_threads, map_in_workers
from misc.formats.qupath import check_types, with_outline
from misc.ihc.stain import STAINS
from misc.nuclei import Nuclei
from misc.nuclei_features import nuclear_densities, shapes
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo

T = TypeVar("T")

# Nuclei measured at once, in about 20 MB.
PIECE_NUCLEI = 2_000
# Threads or processes that measure; more would wait for the reader and the writer.
MEASURING = 2
# A process takes about a second to start, in which this one measures 40,000 nuclei.
PIECES_BEFORE_WORKERS = 20
# So that the workers stay busy while more nuclei are read and sorted; nuclei and rows of 20 pieces take some 40 MB.
PIECES_AHEAD = 20
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

# A table's columns by name: types and names as lists, `None` for no type; ids as int64, other numbers as float64 with
# NaN where they are not known, (N,).
Columns = dict[str, list | np.ndarray]


@dataclass(frozen=True)
class NucleiTable:
    """Nuclei, and all data for a table of them.

    Attributes:
        nuclei: nuclei, or an iterable of them, which serves once.
        type_info: `{type: (name, (red, green, blue))}`, with the entry `None` for nuclei without a type.
        scale: level-0 px per px of the coordinates.
        mpp: um per level-0 px; without it the columns in um are not known.
        image: where to measure the stains; without it there are no columns for them.
        stain: a key of `misc.ihc.stain.STAINS`.
        workers: whether processes may be started to measure many nuclei, see `each`.
    """

    nuclei: Nuclei | Iterable[Nuclei]
    type_info: TypeInfo
    scale: float = 1.0
    mpp: float | None = None
    image: SlideImage | None = None
    stain: str = "he"
    workers: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [*COLUMNS, *(f"{name}_mean_od" for name in STAINS[self.stain] if self.image)]

    def parts(self) -> Iterator[Nuclei]:
        """Yield the nuclei as they come."""
        yield from [self.nuclei] if isinstance(self.nuclei, Nuclei) else self.nuclei

    def pieces(self) -> Iterator[Nuclei]:
        """Yield the nuclei, at most `PIECE_NUCLEI` at a time."""
        for part in self.parts():
            for start in range(0, len(part), PIECE_NUCLEI):
                yield part.select(slice(start, start + PIECE_NUCLEI))

    def each(self, make: Callable[[NucleiTable, Nuclei], T]) -> Iterator[T]:
        """Yield `make(table, piece)` for all pieces in order, by several processes, or threads.

        Args:
            make: function of this table, without nuclei, and a piece; can be pickled, as its results.
        """
        call, pieces = functools.partial(make, replace(self, nuclei=())), self.pieces()
        if self.workers and self.image is None:  # an open image stays in its process
            yield from map(call, itertools.islice(pieces, PIECES_BEFORE_WORKERS))
            yield from map_in_workers(call, pieces, MEASURING, PIECES_AHEAD)
        else:
            yield from map_in_threads(call, pieces, MEASURING)

    def drawn(self) -> NucleiTable:
        """Return the table of those nuclei that have an outline."""
        return replace(self, nuclei=map(with_outline, self.parts()))

    def types_of(self, piece: Nuclei) -> list[int | None]:
        """Return the type of each nucleus; one that `type_info` lacks is a `ValueError`."""
        types = [None] * len(piece) if piece.types is None else piece.types.tolist()
        check_types(set(types), self.type_info)
        return types

    def columns(self, piece: Nuclei) -> Columns:
        """Measure some of the nuclei; raises `ValueError` if `type_info` lacks a type."""
        types = self.types_of(piece)
        blank = np.full(len(piece), np.nan)
        um = np.nan if self.mpp is None else self.mpp
        shape, scale = shapes(piece), self.scale
        x, y = ((piece.centroids_xy + 0.5) * scale).T
        lengths = [x - 0.5, y - 0.5, x * um, y * um]
        lengths += [shape.area * scale**2 * unit for unit in (1, um**2)]
        for length in (shape.perimeter, shape.major_axis, shape.minor_axis):
            lengths += [length * scale, length * scale * um]
        shares = [shape.eccentricity, shape.solidity]
        if self.image is not None:
            at_level0 = piece if scale == 1 else piece.scale(scale, scale)
            shape_px = (self.image.height, self.image.width)
            shares.extend(nuclear_densities(at_level0, self.image.read, shape_px, self.stain).T)
        values = [
            piece.ids,
            types,
            [self.type_info[t][0] for t in types],
            np.round(blank if piece.type_prob is None else piece.type_prob, SHARE_DECIMALS),
            *(np.round(column, LENGTH_DECIMALS) for column in lengths),
            *(np.round(column, SHARE_DECIMALS) for column in shares),
        ]
        return dict(zip(self.names, values, strict=True))
