"""Nuclei as SpatialData (`.zarr`): outlines as shapes `nuclei`, measurements as the table `table` that annotates them.

Outlines are in level-0 px: the coordinate system `global`, as of an image of level 0 without a transformation; `um` is
the same in um. The table is that of `h5ad.py`. Neither lies in memory as a whole: the library writes a table whose X is
read from a file, and shapes of one nucleus, whose file is then exchanged for the streamed one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from misc.extras import require
from misc.formats import csv_table
from misc.formats.h5ad import add_table
from misc.formats.parquet import write_parquet
from misc.formats.qupath import MIN_POINTS
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo

SHAPES, TABLE = "nuclei", "table"
_REGION = "region"


def write_spatialdata(
    path: str | Path,
    nuclei: Nuclei | Iterable[Nuclei],
    type_info: TypeInfo,
    scale: float = 1.0,
    mpp: float | None = None,
    image: SlideImage | None = None,
    stain: str = "he",
) -> int:
    """Write the nuclei; a folder that is there is replaced when the new one is whole.

    Args:
        path, nuclei, type_info, scale, mpp, image, stain: as of `csv_table.write_csv`.

    Returns:
        Number of nuclei; those with fewer than three contour points have no outline and are left out.

    Raises:
        ValueError: no pixel size, no nuclei, `type_info` lacks a type, or spatialdata is not installed.
    """
    import h5py

    require("spatialdata", "spatialdata")
    with _new_folder(Path(path)) as folder:
        table_path, shapes_path = folder / "table.h5ad", folder / "shapes.parquet"
        with h5py.File(table_path, "w") as file:
            written = add_table(file, _drawn(nuclei), type_info, scale, mpp, image, stain)
            count = write_parquet(shapes_path, written, type_info, scale, mpp, as_index=True)
        if not count:
            raise ValueError("there are no nuclei, and SpatialData holds no empty shapes")
        _write_store(folder / "store", table_path, mpp)
        os.replace(shapes_path, folder / "store" / "shapes" / SHAPES / "shapes.parquet")
    return count


def _drawn(nuclei: Nuclei | Iterable[Nuclei]) -> Iterator[Nuclei]:
    for part in [nuclei] if isinstance(nuclei, Nuclei) else nuclei:
        yield part.select(np.diff(part.offsets) >= MIN_POINTS)


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; what is then in its `store` takes the place of `path`."""
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as name:
        yield Path(name)
        if path.exists():
            os.replace(path, Path(name) / "before")
        shutil.move(Path(name) / "store", path)


def _write_store(store: Path, table_path: Path, mpp: float) -> None:
    """Write a store with the table, and with shapes of one nucleus."""
    import anndata
    import dask.array as da
    import geopandas as gpd
    import h5py
    import pandas as pd
    import shapely
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    with h5py.File(table_path) as file:
        elements = {name: anndata.io.read_elem(file[name]) for name in ("obs", "var", "obsm", "uns")}
        x = da.from_array(file["X"], chunks=(csv_table.WRITE_NUCLEI, -1))
        table = anndata.AnnData(X=x, **elements)
        table.obs[_REGION] = pd.Categorical.from_codes(np.zeros(len(table), np.int8), [SHAPES])
        table = TableModel.parse(table, region=SHAPES, region_key=_REGION, instance_key="instance_id")
        one = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], index=table.obs["instance_id"][:1].to_numpy())
        systems = {"global": Identity(), "um": Scale([mpp, mpp], axes=("x", "y"))}
        shapes = ShapesModel.parse(one, transformations=systems)
        with warnings.catch_warnings():  # zarr says for each array what a later version of it will do
            warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)
            SpatialData(shapes={SHAPES: shapes}, tables={TABLE: table}).write(store)
