"""Nuclei of tiatoolbox: its AnnotationStore (`.db`, SQLite) and the older `.dat` (a joblib pickle).

A store counts level-0 px; its outlines go through pixel centres. A `.dat` counts px of the network's resolution, which
only some files say; else it is assumed to be `DAT_MAG`.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import numpy as np
import shapely

from misc.formats.foreign_outlines import PART_NUCLEI, Foreign, Outline, in_parts, number_types
from misc.formats.joblib_file import load_plain
from misc.machine import check_fits
from misc.type_info import TypeInfo

SQLITE_MAGIC = b"SQLite format 3\0"
# Objective power at which tiatoolbox's networks of nuclei see (0.25 um/px).
DAT_MAG = 40.0
# Limit for an unpacked outline: 1,000 times that of a nucleus.
_MAX_GEOMETRY_BYTES = 1 << 20
# Memory of a `.dat` when it is read, by its size on disk: dictionaries and small arrays.
_LOADED_BY_FILE = 6


def read_store(path: Path, wanted: TypeInfo | None) -> Foreign:
    """Read an AnnotationStore; points and lines are left out.

    Raises:
        ValueError: it is no such store, or broken.
    """
    with _opened(path) as store:
        packing = _scalar(store, "SELECT value FROM metadata WHERE key = 'compression'")
        names = [row[0] for row in store.execute(f"SELECT DISTINCT {_TYPE} FROM annotations") if row[0] is not None]
    packing = json.loads(packing) if packing else None
    if packing not in (None, "zlib"):
        raise ValueError(f"{path}: its outlines are packed by {packing!r}; zlib and none are read")
    types = number_types({str(name): "" for name in names}, wanted)
    header = {"mag": None, "slide": {"scale": 1.0}, **types.header()}
    return Foreign(header, lambda: in_parts(_store_outlines(path, packing == "zlib"), types))


_TYPE = "json_extract(properties, '$.type')"


class _opened(closing):  # noqa: N801
    """Opens a store for reading; its triggers and views cannot run code, and errors name the file."""

    def __init__(self, path: Path):
        self.path = path
        super().__init__(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True))
        self.thing.execute("PRAGMA trusted_schema = OFF")

    def __exit__(self, kind, error, trace):
        super().__exit__(kind, error, trace)
        if isinstance(error, sqlite3.Error):
            raise ValueError(f"{self.path}: no AnnotationStore of tiatoolbox, or broken: {error}") from error


def _scalar(store: sqlite3.Connection, query: str):
    row = store.execute(query).fetchone()
    return row[0] if row else None


def _store_outlines(path: Path, packed: bool) -> Iterator[Outline]:
    query = f"SELECT geometry, {_TYPE}, json_extract(properties, '$.prob') FROM annotations ORDER BY id"
    with _opened(path) as store:
        rows = store.execute(query)
        while part := rows.fetchmany(PART_NUCLEI):
            geometries = [_geometry(row[0], packed) for row in part]
            for geometry, (_, name, prob) in zip(geometries, part, strict=True):
                if geometry is not None:
                    prob = float(prob) if isinstance(prob, int | float) else None
                    yield Outline(shapely.get_coordinates(geometry), "" if name is None else str(name), prob)


def _geometry(data: bytes | str | None, packed: bool) -> shapely.LinearRing | None:
    """Return the outer ring of an outline, the largest where there are several; `None` for points and lines."""
    if data is None:
        return None
    if packed and isinstance(data, bytes):
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(data, _MAX_GEOMETRY_BYTES)
        if not unpacker.eof:
            raise ValueError(f"an outline of more than {_MAX_GEOMETRY_BYTES >> 10} KB, or cut off")
    geometry = shapely.from_wkt(data) if isinstance(data, str) else shapely.from_wkb(data)
    polygons = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and not part.is_empty]
    return max(polygons, key=shapely.area).exterior if polygons else None


def read_dat(path: Path, wanted: TypeInfo | None) -> Foreign:
    """Read a `.dat`: `{id: {"box", "centroid", "contour", "prob", "type"}}`, or several of these by name (Cerberus).

    Raises:
        ValueError: it holds anything but numbers, texts, lists, dictionaries and arrays, or no outlines.
    """
    check_fits(path.stat().st_size * _LOADED_BY_FILE, str(path))
    data = load_plain(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a dictionary of nuclei was expected, found {type(data).__name__}")
    infos = _instances(data)
    if not infos and data:
        raise ValueError(f"{path}: no nucleus with a contour in it")
    found = Counter(str(info["type"]) for info in infos if info.get("type") is not None)
    types = number_types(dict.fromkeys(found, ""), wanted)
    mag, slide, note = None, {}, ""
    if "base_resolution" in data and "proc_resolution" in data:
        ratio = data["proc_resolution"]["resolution"] / data["base_resolution"]["resolution"]
        slide = {"scale": float(ratio)}
    else:
        mag, note = DAT_MAG, f"the file does not say its resolution: {DAT_MAG:g}x is assumed; --scale goes before it"
    header = {"mag": mag, "slide": slide, **types.header()}
    return Foreign(header, lambda: in_parts(_dat_outlines(infos), types), (note,) if note else ())


def _instances(data: dict) -> list[dict]:
    """Return the nuclei of a dictionary, or of the dictionaries in it."""
    infos = [value for value in data.values() if isinstance(value, dict)]
    nuclei = [info for info in infos if "contour" in info]
    return nuclei or [one for info in infos for one in info.values() if isinstance(one, dict) and "contour" in one]


def _dat_outlines(infos: list[dict]) -> Iterator[Outline]:
    for info in infos:
        name = info.get("type")
        prob = info.get("prob", info.get("type_prob"))
        yield Outline(
            np.asarray(info["contour"], np.float64),
            "" if name is None else str(name),
            None if prob is None else float(prob),
            info.get("centroid"),
        )
