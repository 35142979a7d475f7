"""Nuclei as AnnData (`.h5ad`), as scanpy and squidpy read it: a row a nucleus, a variable each measurement.

    X: every number of the table but ids and positions, float32; NaN where it is not known.
    obs: index the id as text; `instance_id`, `cell_type`, `type_prob`.
    obsm["spatial"]: (N, 2) x and y in um from the corner of the image.
    uns: `mpp` (um per level-0 px) and `cell_type_colors`.

X is appended piece by piece; ids, types and positions (40 bytes a nucleus) are held until the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from misc.extras import require
from misc.files import atomic_path
from misc.formats import csv_table
from misc.formats.csv_table import COLUMNS, columns, in_pieces, stain_columns
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo

if TYPE_CHECKING:
    import h5py

_NOT_MEASURED = ("id", "type", "name", "type_prob", *(name for name in COLUMNS if name.startswith("centroid")))
# Extended file attributes that AnnData writes beside an array.
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_UNTYPED = -1


def write_h5ad(
    path: str | Path,
    nuclei: Nuclei | Iterable[Nuclei],
    type_info: TypeInfo,
    scale: float = 1.0,
    mpp: float | None = None,
    image: SlideImage | None = None,
    stain: str = "he",
) -> int:
    """Write the nuclei, piece by piece.

    Args:
        path, nuclei, type_info, scale, mpp, image, stain: as of `csv_table.write_csv`.

    Returns:
        Number of rows.

    Raises:
        ValueError: no pixel size, `type_info` lacks a type, or anndata is not installed.
    """
    import h5py  # here, as importing it starts a process

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        return sum(map(len, add_table(file, nuclei, type_info, scale, mpp, image, stain)))


def add_table(
    file: h5py.File,
    nuclei: Nuclei | Iterable[Nuclei],
    type_info: TypeInfo,
    scale: float,
    mpp: float | None,
    image: SlideImage | None,
    stain: str,
) -> Iterator[Nuclei]:
    """Write the nuclei to an open file, and pass each piece on when it is written; the file is whole at the end.

    Arguments and errors as of `write_h5ad`.
    """
    io = require("anndata.io", "anndata")
    if mpp is None:
        raise ValueError("positions are in um there, and nothing says the pixel size; give --mpp=<um per level-0 px>")
    names = [name for name in (*COLUMNS, *stain_columns(image, stain)) if name not in _NOT_MEASURED]
    shape = (csv_table.WRITE_NUCLEI, len(names))
    values = file.create_dataset("X", (0, len(names)), np.float32, maxshape=(None, len(names)), chunks=shape)
    values.attrs.update(_ARRAY)
    kept: list[tuple[np.ndarray, ...]] = []
    for piece in in_pieces(nuclei):
        table = columns(piece, type_info, scale, mpp, image, stain)
        values.resize(len(values) + len(piece), axis=0)
        values[-len(piece) :] = np.array([table[name] for name in names], np.float32).T
        types = np.full(len(piece), _UNTYPED, np.int32) if piece.types is None else piece.types
        xy_um = np.stack([table["centroid_x_um"], table["centroid_y_um"]], axis=1).astype(np.float64)
        kept.append((piece.ids, types, np.array(table["type_prob"], np.float32), xy_um))
        yield piece
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 2)))
    joined = [np.concatenate(column) for column in zip(empty, *kept, strict=True)]
    kept.clear()
    _close(file, io, names, joined, type_info, mpp)


def _close(file: h5py.File, io, names: list[str], kept: list[np.ndarray], type_info: TypeInfo, mpp: float) -> None:
    """Write all but X."""
    import pandas as pd

    ids, types, probs, xy_um = kept
    found, codes = np.unique(types, return_inverse=True)
    rows = [type_info[None if type_id == _UNTYPED else type_id] for type_id in found.tolist()]
    kinds = list(dict.fromkeys(name for name, _ in rows))  # two types may have one name
    codes = np.array([kinds.index(name) for name, _ in rows], np.int32)[codes] if rows else codes
    obs = pd.DataFrame(
        {"instance_id": ids, "cell_type": pd.Categorical.from_codes(codes, kinds), "type_prob": probs},
        index=[str(number) for number in ids.tolist()],
    )
    colours = {name: "#" + bytes(rgb).hex() for name, rgb in rows}
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    io.write_elem(file, "obs", obs)
    io.write_elem(file, "var", pd.DataFrame(index=names))
    io.write_elem(file, "obsm", {"spatial": xy_um})
    io.write_elem(file, "uns", {"mpp": mpp, "cell_type_colors": np.array([colours[name] for name in kinds], object)})
    for name in ("layers", "obsp", "varm", "varp"):
        io.write_elem(file, name, {})
