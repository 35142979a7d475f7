"""Find the program that wrote a file of nuclei, and its reader."""

from __future__ import annotations

from pathlib import Path

from misc.files import full_stem
from misc.formats.foreign_json import read_cellvit, read_geojson
from misc.formats.foreign_labels import Measure, read_hovernext, read_labels
from misc.formats.foreign_outlines import Foreign
from misc.formats.foreign_tiatoolbox import SQLITE_MAGIC, read_dat, read_store
from misc.formats.nuclei_json import iter_json, read_header
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo

OURS = "hovernet"
# Ends of the file names of each kind, in lower case.
NAMES = {
    OURS: (".json",),
    "tiatoolbox": (".db", ".dat"),
    "cellvit": ("cells.json", "cells.geojson"),
    "hovernext": ("pinst_pp.zip",),
    "geojson": (".geojson", ".geojson.gz", ".json"),
    "labels": (".tif", ".tiff", ".png", ".npy"),
}
_SNIFF_BYTES = 4096
# Programs that give the results of all slides the same name, in folders named after the slides; and subfolders there.
_SAME_NAMES = ("cells", "pinst_pp")
_INNER_FOLDERS = ("cell_detection",)


def kind_of(path: Path) -> str:
    """Return the program that wrote a file, a key of `NAMES`, by its first bytes or its name.

    Raises:
        ValueError: the program cannot be found.
    """
    name = path.name.lower()
    with open(path, "rb") as handle:
        start = handle.read(_SNIFF_BYTES)
    if start.startswith(SQLITE_MAGIC):
        return "tiatoolbox"
    if name.endswith(".json"):
        if b'"wsi_metadata"' in start or b'"type_map"' in start:
            return "cellvit"
        is_geojson = b'"FeatureCollection"' in start or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        return "geojson" if is_geojson else OURS
    for kind in ("cellvit", "hovernext", "tiatoolbox", "geojson", "labels"):
        if name.endswith(NAMES[kind]):
            return kind
    return OURS


def has_name_of(path: Path, kind: str) -> bool:
    """Return whether a file has a name of this kind; with `auto`, JSON of all kinds."""
    return path.name.lower().endswith(NAMES[OURS if kind == "auto" else kind])


def result_stem(path: Path) -> str:
    """Return the name for results: the file's, or the slide's folder's where all files of a kind share a name."""
    stem = full_stem(path)
    if stem not in _SAME_NAMES:
        return stem.removesuffix("_cells")
    folder = path.resolve().parent
    return (folder.parent if folder.name in _INNER_FOLDERS else folder).name


def read_nuclei(path: Path, kind: str, image: SlideImage | None, wanted: TypeInfo | None, measure: Measure) -> Foreign:
    """Open a file of nuclei of any kind.

    Args:
        path: the file.
        kind: a key of `NAMES`.
        image: the slide, where it is known.
        wanted: types that the user named; they give the numbers of the file's types.
        measure: makes nuclei of an instance map.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this `kind`, or broken.
    """
    if kind == OURS:
        return Foreign(read_header(path), lambda: iter_json(path))
    if kind == "labels":
        return read_labels(path, measure)
    if kind == "geojson":
        return read_geojson(path, wanted)
    if kind == "cellvit":
        is_geojson = path.suffix.lower() == ".geojson"
        return read_geojson(path, wanted, of_cellvit=True) if is_geojson else read_cellvit(path, wanted)
    if kind == "hovernext":
        return read_hovernext(path, wanted, image, measure)
    return read_dat(path, wanted) if path.suffix.lower() == ".dat" else read_store(path, wanted)
