"""Nuclei of label images (StarDist, Cellpose, InstanSeg; TIFF, PNG, NumPy) and of HoVer-NeXt's map, read in bands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import orjson
import tifffile

from misc.extras import require
from misc.formats.foreign_outlines import Foreign, Types, named_types
from misc.machine import check_fits
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo, find_ids

Measure = Callable[[np.ndarray], Nuclei]

# Px per band of rows that are measured at once, and the rows above and below that nuclei of the band may reach.
BAND_PX = 1 << 26
MARGIN_ROWS = 256
# Parsed JSON by its text: `"12": [3, [1.5, 2.5]]` is two lists and four numbers.
_PARSED_BY_TEXT = 10

# Names of HoVer-NeXt's types, by training data set; objective power of its coordinates.
LIZARD = (
    *("neutrophil", "epithelial-cell", "lymphocyte", "plasma-cell", "eosinophil"),
    *("connective-tissue-cell", "mitosis"),
)
PANNUKE = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
_MAGS = {LIZARD: 20.0, PANNUKE: 40.0}


def read_labels(path: Path, measure: Measure) -> Foreign:
    """Read a label image: 0 is background, every other number a nucleus; no types.

    Args:
        path: `.tif`, `.png` or `.npy`.
        measure: makes nuclei of an instance map.

    Raises:
        ValueError: it is no image of whole numbers in one channel.
    """
    labels = np.squeeze(_open_labels(path))
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: a label image is one channel of whole numbers, one for each nucleus; this is {labels.shape} "
            f"{labels.dtype}"
        )
    header = {"mag": None, "slide": {"scale": 1.0}}
    notes = ("labels are assumed to be at level 0; if not, give --scale",)
    return Foreign(header, lambda: _in_bands(labels, measure), notes)


def _open_labels(path: Path) -> np.ndarray:
    """Open without reading where the format allows it."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if suffix in (".tif", ".tiff"):
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            if series.dataoffset is not None and series.keyframe.is_memmappable:
                return tifffile.memmap(path, mode="r")
            check_fits(series.nbytes, str(path))
            return series.asarray()
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{path}: no label image; .tif, .png and .npy are read")
    return image


def _in_bands(labels: np.ndarray, measure: Measure) -> Iterator[Nuclei]:
    """Yield the nuclei of a map, band by band; a nucleus belongs to the band that its centroid lies in."""
    height, width = labels.shape
    rows = max(BAND_PX // max(width, 1), 2 * MARGIN_ROWS)
    for y0 in range(0, height, rows):
        top = max(y0 - MARGIN_ROWS, 0)
        found = measure(np.asarray(labels[top : y0 + rows + MARGIN_ROWS])).shift(top, 0)
        y = found.centroids_xy[:, 1]
        yield found.select((y >= y0) & (y < y0 + rows))


def read_hovernext(path: Path, wanted: TypeInfo | None, image: SlideImage | None, measure: Measure) -> Foreign:
    """Read HoVer-NeXt's `pinst_pp.zip`, with `class_inst.json` beside it.

    Its map is in px at 20x (trained on Lizard) or 40x (PanNuke) from the corner of the scanned part of the slide;
    `image` gives that corner.

    Raises:
        ValueError: a file is missing or broken, or zarr is not installed.
    """
    classes, found = _classes(path.with_name("class_inst.json"))
    names, note = _hovernext_names(path.parent, int(classes.max(initial=0)))
    ids = _numbers(names, wanted)
    labels = _open_zarr(path)
    if labels.ndim != 2:
        raise ValueError(f"{path}: holds {labels.shape[0]} images; the map of one slide is read")
    mag = _MAGS[names]
    corner, notes = _corner(image, mag), [note]
    if image is None:
        notes.append("counts from the corner of the scanned part; --wsi_dir tells where that is in MIRAX and Leica")
    type_of = np.array([0, *ids.ids.values()], np.int32)

    def parts() -> Iterator[Nuclei]:
        for part in _in_bands(labels, measure):
            part = part.select(np.isin(part.ids, found))
            types = type_of[classes[np.searchsorted(found, part.ids)]]
            yield Nuclei(
                *(part.ids, part.boxes_yx, part.centroids_xy, part.points_xy, part.offsets),
                types=types,
                type_prob=np.full(len(part), np.nan),
            ).shift(corner[1], corner[0])

    return Foreign({"mag": mag, "slide": {}, **ids.header()}, parts, tuple(notes))


def _classes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and ids of nuclei, (N,) each, by ascending id; `{"id": [class, [y, x]]}`."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; HoVer-NeXt writes it beside pinst_pp.zip")
    check_fits(path.stat().st_size * _PARSED_BY_TEXT, str(path))
    try:
        rows = orjson.loads(path.read_bytes())
        ids = np.array([int(key) for key in rows], np.int64)
        classes = np.array([value[0] if isinstance(value, list) else value for value in rows.values()], np.int64)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path}: not as HoVer-NeXt writes it: {error}") from error
    order = np.argsort(ids)
    return classes[order], ids[order]


def _hovernext_names(folder: Path, highest: int) -> tuple[tuple[str, ...], str]:
    """Return the types' names, from the tables beside the map, and a note."""
    if (folder / f"pred_{PANNUKE[0]}.tsv").is_file():
        names, note = PANNUKE, "HoVer-NeXt trained on PanNuke, 40x, as the tables beside it say"
    elif (folder / f"pred_{LIZARD[0]}.tsv").is_file():
        names, note = LIZARD, "HoVer-NeXt trained on Lizard, 20x, as the tables beside it say"
    else:
        names, note = LIZARD, "no pred_<type>.tsv beside it: assumed to be HoVer-NeXt trained on Lizard, 20x"
    if highest > len(names):
        raise ValueError(f"{folder}/class_inst.json has class {highest}; {len(names)} are known")
    return names, note


def _numbers(names: tuple[str, ...], wanted: TypeInfo | None) -> Types:
    if wanted is None:
        ids = {name: number for number, name in enumerate(names, start=1)}
        return Types(ids, named_types(ids))
    missing = [name for name in names if not find_ids(name, wanted)]
    if missing:
        raise ValueError(f"type_info has no type called {', '.join(map(repr, missing))}; add what is missing")
    return Types({name: find_ids(name, wanted)[0] for name in names}, wanted)


def _open_zarr(path: Path):
    zarr = require("zarr", "zarr")
    try:
        return zarr.open_array(store=zarr.storage.ZipStore(path, mode="r"), mode="r")
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{path}: no map of HoVer-NeXt: {error}") from error


def _corner(image: SlideImage | None, mag: float) -> tuple[int, int]:
    """Return the corner of the scanned part, px at `mag`, x and y."""
    if image is None or image.bounds_xywh is None or not image.mag:
        return 0, 0
    x, y, _, _ = image.bounds_xywh
    return round(x * mag / image.mag), round(y * mag / image.mag)
