"""Nuclei as SpatialData (`.zarr`): outlines as shapes `nuclei`, measurements as the table `table` that annotates them.

Outlines are in level-0 px: the coordinate system `global`, as of an image of level 0 without a transformation; `um` is
the same in um. The table is that of `h5ad.py`. To save memory, the library writes a store of one nucleus; then streamed
arrays and shapes replace its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from misc.extras import require
from misc.formats.h5ad import CHUNK_NUCLEI, TableRows
from misc.formats.nuclei_table import Columns, NucleiTable
from misc.formats.parquet import by_square, rows_of, schema_of, write_row_groups
from misc.nuclei import Nuclei

if TYPE_CHECKING:
    import anndata
    import h5py
    import pyarrow

SHAPES, TABLE = "nuclei", "table"
_REGION = "region"
# The arrays with one row per nucleus; the codes of `_REGION` are all 0.
_ROWS = ("X", "obs/_index", "obs/instance_id", "obs/type_prob", "obs/cell_type/codes", "obsm/spatial")


def write_spatialdata(path: str | Path, table: NucleiTable) -> int:
    """Write the nuclei; a folder that is there is replaced when the new one is whole.

    Returns:
        Number of nuclei; those with fewer than three contour points have no outline and are left out.

    Raises:
        ValueError: no pixel size, no nuclei, the types' names lack a type, or spatialdata is not installed.
    """
    import h5py

    require("spatialdata", "spatialdata")
    schema = schema_of(["id"])
    with _new_folder(Path(path)) as folder:
        shapes_path = folder / "shapes.parquet"
        with h5py.File(folder / "table.h5ad", "w") as file:
            rows = TableRows(file, table)
            count = write_row_groups(shapes_path, schema, _shapes(table, rows, schema), as_index=True)
            if not count:
                raise ValueError("there are no nuclei, and SpatialData holds no empty shapes")
            rows.close()
            _write_store(folder / "store", file, table.mpp)
        os.replace(shapes_path, folder / "store" / "shapes" / SHAPES / "shapes.parquet")
    return count


def _shapes(table: NucleiTable, rows: TableRows, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """Yield the outlines; add the measurements to `rows` on the way."""
    for piece, columns, shapes in by_square(table).each(functools.partial(_measured, schema=schema)):
        rows.add(piece, columns)
        yield shapes


def _measured(table: NucleiTable, piece: Nuclei, schema: pyarrow.Schema) -> tuple[Nuclei, Columns, pyarrow.Table]:
    columns = table.columns(piece)
    return piece, columns, rows_of(table, piece, columns, schema)


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; its `store` then replaces `path`."""
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as name:
        yield Path(name)
        if path.exists():
            os.replace(path, Path(name) / "before")
        shutil.move(Path(name) / "store", path)


def _write_store(store: Path, file: h5py.File, mpp: float) -> None:
    """Write a store with shapes of one nucleus and the table of all, an AnnData in `file`."""
    import geopandas as gpd
    import shapely
    import zarr
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    first = TableModel.parse(_first_row(file), region=SHAPES, region_key=_REGION, instance_key="instance_id")
    one = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], index=first.obs["instance_id"].to_numpy())
    systems = {"global": Identity(), "um": Scale([mpp, mpp], axes=("x", "y"))}
    data = SpatialData(shapes={SHAPES: ShapesModel.parse(one, transformations=systems)}, tables={TABLE: first})
    with warnings.catch_warnings():  # zarr says for each array what a later version of it will do
        warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)
        data.write(store)
        group = zarr.open_group(store / "tables" / TABLE, use_consolidated=False)
        for name in _ROWS:
            _exchange(group, name, file[name])
        _exchange(group, f"obs/{_REGION}/codes", np.zeros(len(file["X"]), np.int8))
        data.write_consolidated_metadata()


def _first_row(file: h5py.File) -> anndata.AnnData:
    """Return the first row, of the region `SHAPES`, with all categories and all data not stored by row."""
    import anndata
    import pandas as pd

    obs = file["obs"]
    kinds = obs["cell_type/categories"].asstr()[:]
    frame = pd.DataFrame(
        {
            "instance_id": obs["instance_id"][:1],
            "cell_type": pd.Categorical.from_codes(obs["cell_type/codes"][:1], kinds),
            "type_prob": obs["type_prob"][:1],
            _REGION: pd.Categorical([SHAPES]),
        },
        index=obs["_index"].asstr()[:1],
    )
    whole = {name: anndata.io.read_elem(file[name]) for name in ("var", "uns")}
    return anndata.AnnData(X=file["X"][:1], obs=frame, obsm={"spatial": file["obsm/spatial"][:1]}, **whole)


def _exchange(group, name: str, rows: h5py.Dataset | np.ndarray) -> None:
    """Replace the single row of an array of a zarr group; type and attributes stay."""
    one = group[name]
    chunk = (min(CHUNK_NUCLEI, len(rows)), *rows.shape[1:])
    options = {"attributes": dict(one.attrs), "dtype": one.dtype, "overwrite": True}
    array = group.create_array(name, shape=rows.shape, chunks=chunk, **options)
    source = rows.asstr() if rows.dtype.kind == "O" else rows
    for start in range(0, len(rows), chunk[0]):
        array[start : start + chunk[0]] = source[start : start + chunk[0]]
