"""Nuclei as GeoParquet 1.1: outlines and every column of the table, for geopandas, DuckDB, QGIS and R.

https://geoparquet.org/releases/v1.1.0/. Outlines are polygons (WKB) in level-0 px counted from the corner of the
image, as in GeoJSON for QuPath, and no coordinate reference system. The column `bbox` and the order of the rows let
a reader of a part of the slide pass over the rest: nuclei are sorted by squares of `CELL_PX` within `SORT_NUCLEI`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from misc.extras import require
from misc.files import atomic_path
from misc.formats import csv_table
from misc.formats.csv_table import columns, in_pieces
from misc.formats.qupath import MIN_POINTS, valid_rings
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo

if TYPE_CHECKING:
    import pyarrow

# Nuclei sorted at once, and the squares they are sorted by: a row group covers some squares, not a band of the slide.
SORT_NUCLEI = 100_000
CELL_PX = 1024
BBOX = ("xmin", "ymin", "xmax", "ymax")
_INTEGERS, _TEXTS = ("id", "type"), ("name",)


def write_parquet(
    path: str | Path,
    nuclei: Nuclei | Iterable[Nuclei],
    type_info: TypeInfo,
    scale: float = 1.0,
    mpp: float | None = None,
    image: SlideImage | None = None,
    stain: str = "he",
    as_index: bool = False,
) -> int:
    """Write the nuclei, a row group of `csv_table.WRITE_NUCLEI` after the other.

    Args:
        path, nuclei, type_info, scale, mpp, image, stain: as of `csv_table.write_csv`.
        as_index: tell pandas that the ids are the index of the rows.

    Returns:
        Number of rows; nuclei with fewer than three contour points have no outline and are left out.

    Raises:
        ValueError: `type_info` lacks a type, or pyarrow is not installed.
    """
    pq = require("pyarrow.parquet", "parquet")
    count, extent = 0, np.array([np.inf, np.inf, -np.inf, -np.inf])
    schema = _schema(csv_table.stain_columns(image, stain))
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for piece in in_pieces(_sorted(nuclei)):
            rings = valid_rings(piece, scale)
            bounds = _bounds(rings)
            table = columns(piece, type_info, scale, mpp, image, stain)
            writer.write_table(_table(table, rings, bounds, schema))
            extent[:2] = np.minimum(extent[:2], bounds[:, :2].min(axis=0))
            extent[2:] = np.maximum(extent[2:], bounds[:, 2:].max(axis=0))
            count += len(piece)
        writer.add_key_value_metadata({"geo": json.dumps(_geo(extent if count else None))})
        if as_index:
            writer.add_key_value_metadata({"pandas": _id_is_index(schema)})
    return count


def _sorted(nuclei: Nuclei | Iterable[Nuclei]) -> Iterator[Nuclei]:
    """Yield the nuclei that have an outline, `SORT_NUCLEI` or more at a time, square by square."""
    waiting: list[Nuclei] = []
    for part in [nuclei] if isinstance(nuclei, Nuclei) else nuclei:
        waiting.append(part.select(np.diff(part.offsets) >= MIN_POINTS))
        if sum(map(len, waiting)) >= SORT_NUCLEI:
            yield _by_square(Nuclei.concat(waiting))
            waiting = []
    if sum(map(len, waiting)):
        yield _by_square(Nuclei.concat(waiting))


def _by_square(nuclei: Nuclei) -> Nuclei:
    cells = np.floor(nuclei.centroids_xy / CELL_PX)
    return nuclei.select(np.lexsort((cells[:, 1], cells[:, 0])))


def _bounds(rings: list[np.ndarray]) -> np.ndarray:
    """Return (N, 4) float64, the columns in the order of `BBOX`."""
    starts = np.cumsum([0, *map(len, rings[:-1])])
    points = np.concatenate(rings)
    return np.hstack([pick.reduceat(points, starts) for pick in (np.minimum, np.maximum)])


def _schema(stains: list[str]) -> pyarrow.Schema:
    import pyarrow as pa

    kinds = dict.fromkeys([*csv_table.COLUMNS, *stains], pa.float64())
    kinds |= dict.fromkeys(_INTEGERS, pa.int64()) | dict.fromkeys(_TEXTS, pa.string())
    bbox = pa.struct([(side, pa.float64()) for side in BBOX])
    return pa.schema([*kinds.items(), ("bbox", bbox), ("geometry", pa.binary())])


def _id_is_index(schema: pyarrow.Schema) -> bytes:
    """Return what pandas writes of a table of which `id` is the index."""
    import pyarrow as pa

    index_alone = schema.empty_table().to_pandas().set_index("id")[[]]
    return pa.Schema.from_pandas(index_alone).metadata[b"pandas"]


def _table(
    table: dict[str, list], rings: list[np.ndarray], bounds: np.ndarray, schema: pyarrow.Schema
) -> pyarrow.Table:
    import pyarrow as pa

    lengths = [0, *(len(ring) for ring in rings)]
    polygons = shapely.polygons(
        shapely.linearrings(np.concatenate(rings), indices=np.repeat(np.arange(len(rings)), lengths[1:]))
    )
    arrays = [pa.array(values, schema.field(name).type) for name, values in table.items()]
    sides = [pa.array(side) for side in bounds.T]
    bbox = pa.StructArray.from_arrays(sides, fields=list(schema.field("bbox").type))
    return pa.Table.from_arrays([*arrays, bbox, pa.array(shapely.to_wkb(polygons), pa.binary())], schema=schema)


def _geo(extent: np.ndarray | None) -> dict:
    """Return the file's metadata, as the specification has it."""
    geometry = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None,
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in BBOX}},
    }
    if extent is not None:
        geometry["bbox"] = extent.tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
