"""Nuclei of other programs in JSON: GeoJSON (QuPath, InstanSeg) and CellViT's cells, read as a stream.

Whole numbers are corners of pixels in GeoJSON of QuPath and InstanSeg, centres of pixels in CellViT's files, GeoJSON
included, which has one MultiPolygon of all nuclei of a type.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from misc.formats.annotations_geojson import (
    ANNOTATION,
    AROUND_NUCLEI,
    CELL,
    CORNER_TO_CENTRE,
    DETECTION,
    find_objects,
)
from misc.formats.contours import area
from misc.formats.foreign_outlines import Foreign, Outline, Types, in_parts, named_types, number_types
from misc.formats.json_text import JsonText
from misc.machine import available_memory
from misc.type_info import TypeInfo, find_ids

_GZIP_MAGIC = b"\x1f\x8b"
# A feature with all nuclei of a type is parsed at once; memory of a parsed one, as a multiple of its text.
_PARSED_BY_TEXT = 12


class _Nucleus(NamedTuple):
    ring_xy: np.ndarray
    name: str
    colour: str
    kind: str


def read_geojson(path: Path, wanted: TypeInfo | None, of_cellvit: bool = False) -> Foreign:
    """Read nuclei of GeoJSON; where the file holds detections or cells, annotations are regions and left out.

    Args:
        path: the file, `.gz` or not.
        wanted: as of `number_types`.
        of_cellvit: it is CellViT's.

    Raises:
        ValueError: it is broken, or nothing in it outlines a nucleus.
    """
    colours: dict[str, str] = {}
    kinds: set[str] = set()
    for nucleus in _nuclei(path, of_cellvit):
        kinds.add(nucleus.kind)
        if nucleus.name:
            colours.setdefault(nucleus.name, nucleus.colour)
    regions = {ANNOTATION} if kinds & {DETECTION, CELL} else set()
    types = number_types(colours, wanted)

    def outlines() -> Iterator[Outline]:
        for nucleus in _nuclei(path, of_cellvit):
            if nucleus.kind not in regions:
                yield Outline(nucleus.ring_xy, nucleus.name)

    header = {"mag": None, "slide": {"scale": 1.0}, **types.header()}
    return Foreign(header, lambda: in_parts(outlines(), types))


def _nuclei(path: Path, of_cellvit: bool) -> Iterator[_Nucleus]:
    # whole numbers are pixel centres there, but corners in `find_objects`
    move = -CORNER_TO_CENTRE if of_cellvit else 0.0
    others: Counter[str] = Counter()
    found = False
    for feature in items(path, "features", {}):
        for one in find_objects(_one_polygon_each(feature) if of_cellvit else [feature]):
            is_nucleus = one.kind not in AROUND_NUCLEI and (one.kind != CELL or one.is_nucleus)
            for rings in one.outlines if is_nucleus else ():
                found = True
                # the largest piece of a nucleus in pieces; holes are smaller
                ring = rings[0] if len(rings) == 1 else max(rings, key=area)
                yield _Nucleus(ring + move, one.label, one.colour, one.kind)
            if not is_nucleus or not one.outlines:
                others[one.kind if not is_nucleus else str(one.geometry.get("type"))] += 1
    if others and not found:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        raise ValueError(f"{path}: nothing in it outlines a nucleus: {listed}")


def _one_polygon_each(feature) -> list:
    """Return CellViT's feature of all nuclei of a type as one for each of them."""
    geometry = feature.get("geometry") if isinstance(feature, dict) else None
    if not isinstance(geometry, dict) or geometry.get("type") != "MultiPolygon":
        return [feature]
    polygons = geometry.get("coordinates") or []
    return [{**feature, "geometry": {"type": "Polygon", "coordinates": polygon}} for polygon in polygons]


def read_cellvit(path: Path, wanted: TypeInfo | None) -> Foreign:
    """Read CellViT's `cells.json`: outlines, types by name, level-0 px.

    Raises:
        ValueError: it is broken, or the points of `cell_detection.json`, which have no outlines.
    """
    head: dict = {}
    for _ in items(path, "cells", head):
        if "type_map" in head:
            break
    try:
        own = {int(number): str(name) for name, number in (head.get("type_map") or {}).items()}
        facts, notes = _cellvit_facts(head.get("wsi_metadata") or {})
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not as CellViT writes it: {error}") from error
    types = _cellvit_types(own, wanted, path)
    header = {**facts, **types.header()}
    return Foreign(header, lambda: in_parts(_cellvit_outlines(path, own), types), notes)


def _cellvit_types(own: dict[int, str], wanted: TypeInfo | None, path: Path) -> Types:
    """Number CellViT's types: by its own numbers, or as the user's types of the same names; background is none."""
    ids = {name: number for number, name in own.items()}
    if wanted is None:
        return Types(ids, named_types(ids))
    known = {name: found[0] for name in ids if (found := find_ids(name, wanted))}
    missing = [name for name, number in ids.items() if number and name not in known]
    if missing:
        raise ValueError(f"{path}: type_info has no type called {', '.join(map(repr, missing))}; add what is missing")
    return Types(known, wanted)


def _cellvit_facts(metadata: dict) -> tuple[dict, tuple[str, ...]]:
    """Return our header for the file, and notes."""
    downsampling = float(metadata.get("downsampling") or 1)
    mag = metadata.get("base_magnification")
    if mag is None and downsampling == 1:
        mag = metadata.get("magnification")
    mpp = metadata.get("base_mpp") or metadata.get("slide_mpp")
    slide = {"scale": 1.0} | ({"mpp": float(mpp)} if mpp else {})
    notes = ["CellViT: coordinates are assumed to be level-0 px"]
    if downsampling != 1:
        notes.append(f"it saw level 0 downsampled by {downsampling:g}; check that the outlines fit the nuclei")
    return {"mag": float(mag) if mag else None, "slide": slide}, tuple(notes)


def _cellvit_outlines(path: Path, names: dict[int, str]) -> Iterator[Outline]:
    for index, cell in enumerate(items(path, "cells", {})):
        try:
            number = int(cell.get("type") or 0)
            yield Outline(
                np.asarray(cell["contour"], np.float64),
                names[number] if number else "",
                cell.get("type_prob"),
                cell.get("centroid"),
            )
        except KeyError as error:
            raise ValueError(
                f"{path}: cell {index}: {error} is missing (cell_detection.json has no outlines; give cells.json)"
            ) from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: cell {index} is not valid: {error}") from error


def items(path: Path, key: str, others: dict) -> Iterator:
    """Yield the items of a list, parsed one by one; the list is the file's top level, or under a key there.

    Args:
        path: the file, `.gz` or not.
        key: of the list.
        others: filled with the other values at the top, as they are met.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or has no such list.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with open(path, "rb") as handle:
        packed = handle.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    with (gzip.open if packed else open)(path, "rb") as handle:
        text = JsonText(path, handle, available_memory() // _PARSED_BY_TEXT)
        if text.peek() == b"[":
            yield from _list(text)
            return
        yield from _list_in_object(text, key, others)


def _list_in_object(text: JsonText, key: str, others: dict) -> Iterator:
    found = False
    for name in text.members():
        if name == key and text.peek() == b"[":
            found = True
            yield from _list(text)
        else:
            others[name] = text.value()
    if not found:
        raise ValueError(f'{text.path}: no list "{key}" in it')


def _list(text: JsonText) -> Iterator:
    text.expect(b"[")
    while text.peek() != b"]":
        yield text.value()
        if text.peek() != b"]":
            text.expect(b",")
    text.expect(b"]")
