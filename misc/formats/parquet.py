"""Nuclei as GeoParquet 1.1: outlines and every column of the table, for geopandas, DuckDB, QGIS and R.

https://geoparquet.org/releases/v1.1.0/. Outlines are polygons (WKB) in level-0 px counted from the corner of the
image, as in GeoJSON for QuPath, and no coordinate reference system. The column `bbox` and the order of the rows let
a reader of a part of the slide skip the rest: nuclei are sorted by squares of `CELL_PX` within `SORT_NUCLEI`.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from misc.extras import require
from misc.files import atomic_path
from misc.formats.nuclei_table import Columns, NucleiTable
from misc.formats.qupath import valid_outlines
from misc.nuclei import Nuclei

if TYPE_CHECKING:
    import pyarrow

# Nuclei in a row group.
GROUP_NUCLEI = 20_000
# Nuclei sorted at once, and the squares they are sorted by: a row group covers some squares, not a band of the slide.
SORT_NUCLEI = 100_000
CELL_PX = 1024
BBOX = ("xmin", "ymin", "xmax", "ymax")
_INTEGERS, _TEXTS = ("id", "type"), ("name",)
_REPEATED = ("type", "name")
# Bytes before the points of a polygon in WKB (OGC 06-103r4, 8.2): little-endian, kind 3, one ring.
_WKB_HEAD = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4")])
_WKB_POLYGON = 1, 3, 1


def write_parquet(path: str | Path, table: NucleiTable) -> int:
    """Write the nuclei, a row group of `GROUP_NUCLEI` after the other.

    Returns:
        Number of rows; nuclei with fewer than three contour points have no outline and are left out.

    Raises:
        ValueError: the types' names lack a type, or pyarrow is not installed.
    """
    require("pyarrow.parquet", "parquet")
    schema = schema_of(table.names)
    return write_row_groups(path, schema, by_square(table).each(functools.partial(_rows, schema=schema)))


def _rows(table: NucleiTable, piece: Nuclei, schema: pyarrow.Schema) -> pyarrow.Table:
    return rows_of(table, piece, table.columns(piece), schema)


def write_row_groups(
    path: str | Path, schema: pyarrow.Schema, pieces: Iterable[pyarrow.Table], as_index: bool = False
) -> int:
    """Write rows in groups of `GROUP_NUCLEI`, and the metadata of GeoParquet.

    Args:
        path: the file.
        schema: of all of them, see `schema_of`.
        pieces: as `rows_of` makes them.
        as_index: tell pandas that the ids are the index of the rows.

    Returns:
        Number of rows.
    """
    import pyarrow.parquet as pq

    count, extent = 0, np.array([np.inf, np.inf, -np.inf, -np.inf])
    # numbers hardly repeat: dictionaries of them only make the file larger
    options = {"compression": "zstd", "use_dictionary": [name for name in _REPEATED if name in schema.names]}
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for group in _groups(pieces):
            writer.write_table(group, row_group_size=GROUP_NUCLEI)
            sides = np.stack([side.to_numpy() for side in group["bbox"].combine_chunks().flatten()])
            extent[:2] = np.minimum(extent[:2], sides[:2].min(axis=1))
            extent[2:] = np.maximum(extent[2:], sides[2:].max(axis=1))
            count += len(group)
        writer.add_key_value_metadata({"geo": json.dumps(_geo(extent if count else None))})
        if as_index:
            writer.add_key_value_metadata({"pandas": _id_is_index(schema)})
    return count


def _groups(pieces: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Join pieces to groups of `GROUP_NUCLEI` rows; the last one has what is left."""
    import pyarrow as pa

    waiting = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= GROUP_NUCLEI:
            joined = pa.concat_tables(waiting)
            yield joined[:GROUP_NUCLEI]
            waiting = [joined[GROUP_NUCLEI:]]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def by_square(table: NucleiTable) -> NucleiTable:
    """Return the table of the nuclei that have an outline, square by square within `SORT_NUCLEI` or more."""
    return replace(table, nuclei=_by_square(table.drawn()))


def _by_square(table: NucleiTable) -> Iterator[Nuclei]:
    waiting: list[Nuclei] = []
    for part in table.parts():
        waiting.append(part)
        if sum(map(len, waiting)) >= SORT_NUCLEI:
            yield from _sorted(waiting)
    if sum(map(len, waiting)):
        yield from _sorted(waiting)


def _sorted(waiting: list[Nuclei]) -> Iterator[Nuclei]:
    """Join and sort what waits, and empty the list; yield row group by row group, so that it is not held twice."""
    nuclei = Nuclei.concat(waiting)
    waiting.clear()
    cells = np.floor(nuclei.centroids_xy / CELL_PX)
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    for start in range(0, len(order), GROUP_NUCLEI):
        yield nuclei.select(order[start : start + GROUP_NUCLEI])


def schema_of(names: list[str]) -> pyarrow.Schema:
    """Return the types of columns of these names, of the boxes and of the outlines."""
    import pyarrow as pa

    kinds = dict.fromkeys(names, pa.float64())
    kinds |= {name: pa.int64() for name in _INTEGERS if name in kinds}
    kinds |= {name: pa.string() for name in _TEXTS if name in kinds}
    bbox = pa.struct([(side, pa.float64()) for side in BBOX])
    return pa.schema([*kinds.items(), ("bbox", bbox), ("geometry", pa.binary())])


def rows_of(table: NucleiTable, piece: Nuclei, columns: Columns, schema: pyarrow.Schema) -> pyarrow.Table:
    """Return one or more nuclei with the columns that the schema names, their boxes and outlines."""
    import pyarrow as pa

    points, offsets = valid_outlines(piece, table.scale)
    sides = [pick.reduceat(side, offsets[:-1]) for pick in (np.minimum, np.maximum) for side in points.T]
    return pa.Table.from_arrays(
        [
            *(pa.array(columns[field.name], field.type, from_pandas=True) for field in schema if field.name in columns),
            pa.StructArray.from_arrays([pa.array(side) for side in sides], fields=list(schema.field("bbox").type)),
            _polygons(points, offsets),
        ],
        schema=schema,
    )


def _polygons(points: np.ndarray, offsets: np.ndarray) -> pyarrow.BinaryArray:
    """Return outlines, as `valid_outlines` has them, as WKB: polygons of one ring each.

    We assemble the bytes directly: twenty times as fast as with shapely's objects.
    """
    import pyarrow as pa

    heads = np.empty(len(offsets) - 1, _WKB_HEAD)
    heads["order"], heads["kind"], heads["rings"], heads["points"] = *_WKB_POLYGON, np.diff(offsets)
    parts = zip(_cut(heads, np.arange(len(offsets))), _cut(points.astype("<f8", copy=False), offsets), strict=True)
    text = b"".join(itertools.chain.from_iterable(parts))
    starts = offsets * points.itemsize * 2 + np.arange(len(offsets)) * _WKB_HEAD.itemsize
    buffers = [None, pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(text)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(heads), buffers)


def _cut(rows: np.ndarray, offsets: np.ndarray) -> Iterator[bytes]:
    """Yield the bytes of rows `offsets[i]` to `offsets[i + 1]`."""
    text, size = memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8)), rows.nbytes // max(len(rows), 1)
    return (text[start:end] for start, end in itertools.pairwise((offsets * size).tolist()))


def _id_is_index(schema: pyarrow.Schema) -> bytes:
    """Return pandas' metadata for a table with the index `id`."""
    import pyarrow as pa

    index_alone = schema.empty_table().to_pandas().set_index("id")[[]]
    return pa.Schema.from_pandas(index_alone).metadata[b"pandas"]


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
