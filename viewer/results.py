"""An open file of nuclei: its index, its position on the slide, and the values of its nuclei."""

from __future__ import annotations

import csv
import errno
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.formats.labels import read_label, types_by_id, types_of
from misc.formats.nuclei_json import iter_json, read_header, types_from_header
from misc.formats.slide_facts import SlideFacts, slide_facts
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage
from misc.type_info import TypeInfo, default_type_info
from models.hovernet.post_proc import measure
from viewer.index import NucleiIndex, build_index, open_index

INDEX_DIR = ".viewer"  # beside the results; hidden, so that no run reads it as a result
LABEL_SUFFIXES = (".mat", ".npy")
# Errors of folders that this user may not write to.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The nuclei of a slide from one file: its label in the page, its index, its position on the slide, its types."""

    label: str
    index: NucleiIndex
    facts: SlideFacts
    type_info: TypeInfo

    def types(self) -> list[dict]:
        """Return the types in the order of their codes, in the form that the page reads."""
        ids, counts = self.index.meta["types"], self.index.meta["counts"]
        named = [(type_id, *self.type_info.get(type_id, (str(type_id), None))) for type_id in ids]
        defaults = default_type_info(max((i or 0 for i in ids), default=0) + 1)
        return [
            {"id": type_id, "name": name, "colour": list(rgb or defaults[type_id][1]), "count": count}
            for (type_id, name, rgb), count in zip(named, counts, strict=True)
        ]

    def near(self, x: float, y: float) -> list[dict]:
        """Return the values of the nuclei whose box holds a point (level-0 px); see `values`."""
        at = (np.array([x, y]) + 0.5) / self.facts.scale - 0.5
        field_ = self.index.field(*(at - 0.5), *(at + 0.5))
        return self.values(field_.nuclei, field_.rows)

    def values(self, nuclei: np.ndarray, rows: np.ndarray) -> list[dict]:
        """Return the values of some nuclei as in the file; only `contour` is in level-0 px.

        Args:
            nuclei: (N,) records of the index.
            rows: (N,) their rows in the index.
        """
        points, offsets = self.index.contours(nuclei)
        points = (points + 0.5) * self.facts.scale - 0.5
        names = self.types()
        found = []
        for i, nucleus in enumerate(nuclei):
            left, top = nucleus["corner"]
            right, bottom = nucleus["corner"] + (nucleus["side"].astype(np.int32) << nucleus["shift"]) + 1
            kind = names[nucleus["code"]]
            probs = self.index.probs[rows[i]]
            found.append(
                {"id": int(nucleus["id"]), "type": kind["id"], "name": kind["name"], "code": int(nucleus["code"])}
                | {"prob": _number(nucleus["prob"], 6), "area": _number(nucleus["area"], 1)}
                | {"dab": _number(nucleus["dab"], 4), "probs": [_number(p, 4) for p in probs]}
                | {"centroid": np.round(nucleus["corner"] + nucleus["centre"].astype(np.float64), 3).tolist()}
                | {"bbox": [[int(top), int(left)], [int(bottom), int(right)]]}
                | {"contour": np.round(points[offsets[i] : offsets[i + 1]], 2).tolist()}
            )
        return found


def _number(value: float, decimals: int) -> float | None:
    return None if np.isnan(value) else round(float(value), decimals)


def open_result(
    path: Path,
    image: SlideImage,
    type_info: TypeInfo | None = None,
    mpp: float | None = None,
    scale: float | None = None,
    score: Path | None = None,
    first: Result | None = None,
) -> Result:
    """Open the index of a file of nuclei; make it if there is none.

    Args:
        path: the file.
        image: its slide.
        type_info, mpp, scale: options of the user; they go before the values in the file.
        score: the table with its DAB densities, if any.
        first: the result to compare it with; its names of types are used if the file has none.

    Raises:
        ValueError, OSError: the file or its table cannot be read, or fits no slide.
    """
    key = {"file": stamp(path), "score": score and stamp(score)}
    if path.suffix.lower() in LABEL_SUFFIXES:
        content, header = read_label(path), {}
        names, parts = types_of(content), lambda: iter([_nuclei_of(content)])
    else:
        header = read_header(path)
        names, parts = types_from_header(header), lambda: iter_json(path)
    facts = slide_facts(path, header, image, scale, mpp)
    folder = path.parent / INDEX_DIR / path.stem
    index = open_index(folder, key)
    if index is None:
        logger.info("%s: making the index of its nuclei (once)", path.name)
        dab = None if score is None else _read_dab(score)
        index = _build(folder, key, parts, dab)
    names = type_info or names or (first and first.type_info) or default_type_info(None)
    label = (path.parent.parent if path.parent.name == "json" else path.parent).name
    return Result(f"{label}, compared" if first and label == first.label else label, index, facts, names)


def _build(folder: Path, key: dict, parts: Callable[[], Iterable[Nuclei]], dab: np.ndarray | None) -> NucleiIndex:
    try:
        return build_index(folder, key, parts(), dab)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        other = Path(tempfile.gettempdir()) / f"viewer_{digest}" / folder.name
        logger.warning("%s cannot be written; the index goes to %s", folder, other)
        return build_index(other, key, parts(), dab)


def stamp(path: Path) -> list[int]:
    """Return size in bytes and time of change, ns: they change with the file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _nuclei_of(content: dict) -> Nuclei:
    """Return the nuclei of a label map."""
    nuclei = measure(content["inst_map"])
    if "inst_type" not in content:
        return nuclei
    every = np.unique(content["inst_map"])
    ids, types = types_by_id(content, every[every > 0], "inst_type", "inst_uid")
    by_id = dict(zip(ids.tolist(), types.tolist(), strict=True))
    typed = np.array([by_id[i] for i in nuclei.ids.tolist()], np.int32)
    return Nuclei(nuclei.ids, nuclei.boxes_yx, nuclei.centroids_xy, nuclei.points_xy, nuclei.offsets, typed)


def _read_dab(path: Path) -> np.ndarray:
    """Return the DAB densities of `plot_heat_map.py --score`, (N,) float32, in the order of the JSON file."""
    with open(path, encoding="utf-8", newline="") as handle:
        return np.array([float(row["dab_od"] or "nan") for row in csv.DictReader(handle)], np.float32)
