"""Nuclei for QuPath: a table of points (TSV), and detections with outlines (GeoJSON, streamed).

QuPath counts from the corner of the image: the pixel in column 10 reaches from x = 10 to x = 11. Contours and
centroids of ours are pixel centres, so half a pixel is added on the way out, x -> (x + 0.5) * scale. At scale 1 that
is exact (10 becomes 10.5), and `x / scale - 0.5` gives the integers back. To draw these outlines as pixels again,
subtract the half first.

If a slide says which part of level 0 was scanned (`openslide.bounds-*`: MIRAX, Leica and others), QuPath shows only
that part, and counts from its corner, `origin_xy`. Only this module subtracts it.
"""

from __future__ import annotations

import contextlib
import gzip
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import orjson

from misc.files import atomic_path, full_stem
from misc.nuclei import Nuclei
from misc.nuclei_features import pixel_areas, touches_itself
from misc.type_info import RGB, TypeInfo

# Decimals of a level-0 px: a hundredth is far below the precision of a contour.
COORDINATE_DECIMALS = 2
MEASUREMENT_DECIMALS = 4
# A polygon has at least three corners.
MIN_POINTS = 3
# Grid on which outlines that touch themselves are drawn apart, per px; they move by 1 / FINE.
FINE = 4
_SQUARE = np.ones((3, 3), np.uint8)
# Features turned into text at once.
WRITE_NUCLEI = 5_000
# Outlines shrink to about a fifth; higher levels take several times as long for a few per cent.
GZIP_LEVEL = 4
# UUIDs are made from this, the image's name and the id: the same nucleus has the same UUID in every run.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "hovernet-toolkit/nucleus")


def qupath_colour(rgb: RGB) -> int:
    """Return a colour as QuPath's signed 32-bit ARGB, opaque: (255, 0, 0) is -65536."""
    red, green, blue = (int(value) for value in rgb)
    return ((red << 16) | (green << 8) | blue) - (1 << 24)


def qupath_xy(xy: np.ndarray, scale: float = 1.0, origin_xy: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return pixel centres (..., 2) as QuPath coordinates at level 0, which is `scale` times as fine."""
    return np.round((np.asarray(xy, np.float64) + 0.5) * scale - origin_xy, COORDINATE_DECIMALS)


def to_qupath(
    file_path: str | Path,
    nuc_pos_list: Sequence | np.ndarray,
    nuc_type_list: Sequence | np.ndarray,
    type_info_dict: TypeInfo,
) -> None:
    """Write points that QuPath imports: columns `x y class name color`, tab-separated.

    Args:
        file_path: the `.tsv` file.
        nuc_pos_list: (N, 2) positions, x then y, written as they are; `qupath_xy` makes them of centroids.
        nuc_type_list: (N,) type of each, `None` for nuclei without one.
        type_info_dict: `{type: (name, (red, green, blue))}`.

    Raises:
        ValueError: the lists differ in length, or `type_info_dict` lacks a type.
    """
    if len(nuc_pos_list) != len(nuc_type_list):
        raise ValueError(f"{len(nuc_pos_list)} positions, but {len(nuc_type_list)} types")
    check_types(set(nuc_type_list), type_info_dict)
    ends = {}
    for type_id, (name, rgb) in type_info_dict.items():
        word = " ".join(name.split())  # a tab or a line break in a name would shift the columns
        ends[type_id] = f"{word}\t{word}\t{qupath_colour(rgb)}\n"
    positions = np.asarray(nuc_pos_list).reshape(-1, 2)
    with atomic_path(file_path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as out:
        out.write("x\ty\tclass\tname\tcolor\n")
        for start in range(0, len(positions), WRITE_NUCLEI):
            part = slice(start, start + WRITE_NUCLEI)
            rows = zip(positions[part].tolist(), nuc_type_list[part], strict=True)
            out.write("".join(f"{x}\t{y}\t{ends[type_id]}" for (x, y), type_id in rows))


def write_geojson(
    path: str | Path,
    nuclei: Nuclei | Iterable[Nuclei],
    type_info: TypeInfo,
    scale: float = 1.0,
    name: str | None = None,
    origin_xy: tuple[int, int] = (0, 0),
) -> int:
    """Write nuclei as a GeoJSON FeatureCollection of QuPath detections, one piece after the other.

    Args:
        path: the file; compressed when its name ends in `.gz`.
        nuclei: nuclei, or an iterable of them.
        type_info: `{type: (name, (red, green, blue))}`, with the entry `None` for nuclei without a type.
        scale: level-0 px per px of the coordinates.
        name: what the objects' UUIDs are made of besides the id; the file's name where not given.
        origin_xy: corner of the part of level 0 that QuPath shows, level-0 px.

    Returns:
        Number of detections written; nuclei with fewer than three contour points have no outline and are left out.

    Raises:
        ValueError: `type_info` lacks a type.
    """
    path = Path(path)
    namespace = uuid.uuid5(_NAMESPACE, full_stem(path) if name is None else name)
    count, separator = 0, b""
    parts = [nuclei] if isinstance(nuclei, Nuclei) else nuclei
    with atomic_path(path) as temporary, _open_binary(temporary, path.name.lower().endswith(".gz")) as out:
        out.write(b'{"type":"FeatureCollection","features":[')
        for part in _pieces(parts):
            features = list(_features(part, type_info, scale, namespace, origin_xy))
            if features:
                out.write(separator + orjson.dumps(features, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
                separator = b",\n"
                count += len(features)
        out.write(b"]}\n")
    return count


def check_types(types: Iterable[int | None], type_info: TypeInfo) -> None:
    """Refuse types that `type_info` does not name."""
    missing = sorted((t for t in types if t not in type_info), key=str)
    if missing:
        raise ValueError(
            f"nuclei have the types {', '.join(map(str, missing))}, which type_info does not name; "
            "give a type_info.json that does"
        )


@contextlib.contextmanager
def _open_binary(path: Path, compressed: bool) -> Iterator[BinaryIO]:
    with open(path, "wb") as out:
        if not compressed:
            yield out
            return
        # no name and no time inside: the same nuclei make the same file
        with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=out, mtime=0) as packed:
            yield packed


def _pieces(parts: Iterable[Nuclei]) -> Iterator[Nuclei]:
    for part in parts:
        for start in range(0, len(part), WRITE_NUCLEI):
            yield with_outline(part.select(slice(start, start + WRITE_NUCLEI)))


def _features(
    nuclei: Nuclei, type_info: TypeInfo, scale: float, namespace: uuid.UUID, origin_xy: tuple[int, int]
) -> Iterator[dict]:
    types = [None] * len(nuclei) if nuclei.types is None else nuclei.types.tolist()
    check_types(set(types), type_info)
    classes = {t: {"name": type_info[t][0], "color": list(type_info[t][1])} for t in set(types)}
    # arrays, since a Python list per point costs most of the time of writing
    rings = valid_rings(nuclei, scale, origin_xy)
    rows = zip(nuclei.ids.tolist(), types, rings, _measurements(nuclei, type_info, scale), strict=True)
    for nucleus_id, type_id, ring, measurements in rows:
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(namespace, str(nucleus_id))),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "detection",
                "classification": classes[type_id],
                "measurements": measurements,
            },
        }


def with_outline(nuclei: Nuclei) -> Nuclei:
    """Return those nuclei that have an outline: three contour points or more."""
    drawn = np.diff(nuclei.offsets) >= MIN_POINTS
    return nuclei if drawn.all() else nuclei.select(drawn)


def valid_rings(nuclei: Nuclei, scale: float = 1.0, origin_xy: tuple[int, int] = (0, 0)) -> list[np.ndarray]:
    """Return the outlines of `valid_outlines` one by one: N arrays (M, 2) float64."""
    points, offsets = valid_outlines(nuclei, scale, origin_xy)
    return np.split(points, offsets[1:])[:-1]  # the last one is the empty rest


def valid_outlines(
    nuclei: Nuclei, scale: float = 1.0, origin_xy: tuple[int, int] = (0, 0)
) -> tuple[np.ndarray, np.ndarray]:
    """Return each outline as a ring that ends with its first point and never touches itself.

    Returns:
        (P, 2) float64 in QuPath's coordinates (`qupath_xy`), all rings one after the other; and (N + 1,) int64, where
        each starts and the last one ends.
    """
    offsets = nuclei.offsets + np.arange(len(nuclei) + 1)
    which = np.arange(offsets[-1]) - np.repeat(np.arange(len(nuclei)), np.diff(offsets))
    which[offsets[1:] - 1] = nuclei.offsets[:-1]
    points = np.take(nuclei.points_xy, which, axis=0)
    lengths, pieces, at = np.diff(offsets), [], 0
    for i in np.flatnonzero(touches_itself(nuclei)):
        ring = simple_ring(nuclei.contour(i))
        pieces += [points[at : offsets[i]], ring]
        at, lengths[i] = offsets[i + 1], len(ring)
    points = qupath_xy(np.concatenate([*pieces, points[at:]]), scale, origin_xy)
    return points, np.concatenate([[0], np.cumsum(lengths)])


def simple_ring(contour_xy: np.ndarray) -> np.ndarray:
    """Separate the two sides of a contour where they touch, since a valid polygon must not touch itself.

    One nucleus in a hundred has a part one pixel wide. Its outline moves out by 1 / `FINE` px and encloses the same
    pixel centres; holes that the contour closes around are filled.

    Args:
        contour_xy: (M, 2) int32 border pixels.

    Returns:
        (K, 2) float64, closed.
    """
    x, y, width, height = cv2.boundingRect(contour_xy)
    corner = np.array([x - 1, y - 1], contour_xy.dtype)
    mask = np.zeros((height * FINE + 2, width * FINE + 2), np.uint8)
    cv2.fillPoly(mask, [(contour_xy - corner) * FINE], 1)
    mask = cv2.dilate(mask, _SQUARE)
    outline = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0][0].reshape(-1, 2)
    return np.concatenate([outline, outline[:1]]) / FINE + corner


def _measurements(nuclei: Nuclei, type_info: TypeInfo, scale: float) -> Iterator[dict]:
    """Yield the measurements of each nucleus; QuPath reads a NaN only as a string."""
    columns = {"area_px": pixel_areas(nuclei) * scale**2}
    if nuclei.type_prob is not None:
        columns["type_prob"] = nuclei.type_prob
    if nuclei.class_probs is not None:
        for type_id, probs in enumerate(nuclei.class_probs.T):
            columns[f"prob_{type_info[type_id][0] if type_id in type_info else type_id}"] = probs.astype(np.float64)
    columns |= {name: column.astype(np.float64) for name, column in (nuclei.measured or {}).items()}
    values = [np.round(column, MEASUREMENT_DECIMALS) for column in columns.values()]
    rows = (["NaN" if v != v else v for v in column.tolist()] for column in values)
    for row in zip(*rows, strict=True):
        yield dict(zip(columns, row, strict=True))
