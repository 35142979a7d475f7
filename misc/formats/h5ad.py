"""Nuclei as AnnData (`.h5ad`), as scanpy and squidpy read it: a row a nucleus, a variable each measurement.

    X: all numbers of the table except ids and positions, float32; NaN where unknown.
    obs: index the id as text; `instance_id`, `cell_type`, `type_prob`.
    obsm["spatial"]: (N, 2) x and y in um from the corner of the image.
    uns: `mpp` (um per level-0 px) and `cell_type_colors`.

All of it is appended piece by piece; types (4 bytes a nucleus) are held until the end, when their names are known.
Groups and their attributes are as https://anndata.readthedocs.io/en/latest/fileformat-prose.html has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from misc.extras import require
from misc.files import atomic_path
from misc.formats.nuclei_table import COLUMNS, Columns, NucleiTable
from misc.nuclei import Nuclei

if TYPE_CHECKING:
    import h5py

# Nuclei in a chunk of an array.
CHUNK_NUCLEI = 20_000
_NOT_MEASURED = (
    *("id", "type", "name", "type_prob"),
    *(name for name in COLUMNS if name.startswith("centroid")),
)
_ARRAY, _TEXTS = ({"encoding-type": kind, "encoding-version": "0.2.0"} for kind in ("array", "string-array"))
_FRAME = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
_UNTYPED = -1


def write_h5ad(path: str | Path, table: NucleiTable) -> int:
    """Write the nuclei, piece by piece.

    Returns:
        Number of rows.

    Raises:
        ValueError: no pixel size, the types' names lack a type, or anndata is not installed.
    """
    import h5py  # here, as importing it starts a process

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        rows = TableRows(file, table)
        for piece, columns in table.each(_measured):
            rows.add(piece, columns)
        return rows.close()


def _measured(table: NucleiTable, piece: Nuclei) -> tuple[Nuclei, Columns]:
    return piece, table.columns(piece)


class TableRows:
    """The rows of a table in an open file; the file is whole when they are closed.

    Args:
        file: to write to.
        table: the table of the rows.

    Raises:
        ValueError: no pixel size, or anndata is not installed.
    """

    def __init__(self, file: h5py.File, table: NucleiTable):
        self.io = require("anndata.io", "anndata")
        if table.mpp is None:
            raise ValueError(
                "positions are in um there, and nothing says the pixel size; give --mpp=<um per level-0 px>"
            )
        import h5py

        self.file, self.table = file, table
        self.measured = [name for name in table.names if name not in _NOT_MEASURED]
        self.x = self._array("X", np.float32, len(self.measured))
        self.spatial = self._array("obsm/spatial", np.float64, 2)
        self.index = self._array("obs/_index", h5py.string_dtype())
        self.index.attrs.update(_TEXTS)
        self.ids = self._array("obs/instance_id", np.int64)
        self.probs = self._array("obs/type_prob", np.float32)
        self.types = [np.zeros(0, np.int32)]

    def _array(self, name: str, dtype, *width: int) -> h5py.Dataset:
        chunk = (CHUNK_NUCLEI, *width)
        array = self.file.create_dataset(name, (0, *width), dtype, maxshape=(None, *width), chunks=chunk)
        array.attrs.update(_ARRAY)
        return array

    def add(self, piece: Nuclei, columns: Columns) -> None:
        """Append one or more nuclei; `columns` are the table's of them."""
        _append(self.x, np.stack([columns[name] for name in self.measured], axis=1))
        _append(self.spatial, np.stack([columns["centroid_x_um"], columns["centroid_y_um"]], axis=1))
        _append(self.index, np.array([str(number) for number in piece.ids.tolist()], object))
        _append(self.ids, piece.ids)
        _append(self.probs, columns["type_prob"])
        self.types.append(np.full(len(piece), _UNTYPED, np.int32) if piece.types is None else piece.types)

    def close(self) -> int:
        """Write the types and all parts without a value per nucleus; returns the number of rows."""
        import pandas as pd

        found, codes = np.unique(np.concatenate(self.types), return_inverse=True)
        info = [self.table.type_info[None if type_id == _UNTYPED else type_id] for type_id in found.tolist()]
        colours = {name: "#" + bytes(rgb).hex() for name, rgb in info}
        kinds = list(colours)  # two types may have one name
        codes = np.array([kinds.index(name) for name, _ in info], np.int64)[codes]
        write = self.io.write_elem
        write(self.file["obs"], "cell_type", pd.Categorical.from_codes(codes, kinds))
        self.file["obs"].attrs.update({**_FRAME, "column-order": ["instance_id", "cell_type", "type_prob"]})
        self.file["obsm"].attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        self.file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write(self.file, "var", pd.DataFrame(index=self.measured))
        write(self.file, "uns", {"mpp": self.table.mpp, "cell_type_colors": np.array(list(colours.values()), object)})
        for name in ("layers", "obsp", "varm", "varp"):
            write(self.file, name, {})
        return len(codes)


def _append(array: h5py.Dataset, values: np.ndarray) -> None:
    array.resize(len(array) + len(values), axis=0)
    array[-len(values) :] = values
