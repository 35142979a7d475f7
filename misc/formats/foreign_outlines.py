"""Nuclei of other programs: the result of a reader, numbers for named types, outlines as border pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import shapely

from misc.formats.nuclei_json import MAX_NUCLEUS_PX, MAX_PX, types_to_header
from misc.formats.scanline import Box, fill_edges
from misc.nuclei import Nuclei
from misc.type_info import TypeInfo, default_type_info, find_ids

# Nuclei made at once.
PART_NUCLEI = 5_000
# Outlines up to this size are filled in one image, as wide as the largest of them.
_TOGETHER_PX = 64


@dataclass(frozen=True)
class Foreign:
    """A file of another program.

    Attributes:
        header: the keys of our own files (see `nuclei_json`), `mag` included.
        parts: starts reading; yields the nuclei, some thousand at a time.
        notes: assumptions, for the user.
    """

    header: dict
    parts: Callable[[], Iterator[Nuclei]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outline:
    """A nucleus of a file.

    Attributes:
        ring_xy: (N, 2) float64, px; whole numbers are pixel centres. Closed or open.
        type_name: empty where it has no type.
        prob: of the type, or `None`.
        centroid_xy: as the file has it, px, or `None`.
    """

    ring_xy: np.ndarray
    type_name: str = ""
    prob: float | None = None
    centroid_xy: Sequence[float] | None = None


@dataclass(frozen=True)
class Types:
    """Numbers of the types of a file.

    Attributes:
        ids: id by name; empty for a file without types.
        info: names and colours, or `None` where the types are numbers.
    """

    ids: Mapping[str, int]
    info: TypeInfo | None

    def header(self) -> dict:
        return {} if self.info is None else {"types": types_to_header(self.info)}


def number_types(colours: Mapping[str, str], wanted: TypeInfo | None) -> Types:
    """Number the types of a file.

    Args:
        colours: `#rrggbb` by name, empty where the file has none.
        wanted: types that the user named: these numbers, by name. Without them a name that is a number is that number,
            and names are counted in alphabetical order.

    Raises:
        ValueError: `wanted` lacks a name.
    """
    if wanted and colours:
        found = {name: [int(name)] if name.isdecimal() else find_ids(name, wanted) for name in colours}
        missing = [name for name, ids in found.items() if not ids]
        if missing:
            raise ValueError(
                f"type_info has no type called {', '.join(map(repr, sorted(missing)))}; add what is missing"
            )
        return Types({name: ids[0] for name, ids in found.items()}, wanted)
    if all(name.isdecimal() for name in colours):
        return Types({name: int(name) for name in colours}, None)
    ids = {name: number for number, name in enumerate(sorted(colours), start=1)}
    return Types(ids, named_types(ids, colours))


def named_types(ids: Mapping[str, int], colours: Mapping[str, str] | None = None) -> TypeInfo:
    """Return names and colours of types; those without a colour of their own have the palette's."""
    info = default_type_info(max(ids.values(), default=0) + 1)
    for name, number in ids.items():
        colour = (colours or {}).get(name)
        rgb = tuple(bytes.fromhex(colour[1:])) if colour else info[number][1]
        info[number] = (name, rgb)
    return info


def in_parts(outlines: Iterator[Outline], types: Types) -> Iterator[Nuclei]:
    """Yield nuclei of outlines, `PART_NUCLEI` at a time; ids count from 1."""
    waiting: list[Outline] = []
    first_id = 1
    for outline in outlines:
        waiting.append(outline)
        if len(waiting) == PART_NUCLEI:
            yield _nuclei(waiting, types, first_id)
            first_id += len(waiting)
            waiting = []
    if waiting:
        yield _nuclei(waiting, types, first_id)


def _nuclei(outlines: list[Outline], types: Types, first_id: int) -> Nuclei:
    contours = border_pixels([outline.ring_xy for outline in outlines])
    lengths = np.array([len(contour) for contour in contours])
    points = np.concatenate(contours)
    starts = np.cumsum(lengths) - lengths
    low, high = (pick.reduceat(points, starts)[:, ::-1] for pick in (np.minimum, np.maximum))
    centroids = _centroids(contours)
    for centroid, outline in zip(centroids, outlines, strict=True):
        if outline.centroid_xy is not None:
            centroid[:] = outline.centroid_xy
    columns = {}
    if types.ids:
        columns["types"] = np.array([types.ids[o.type_name] if o.type_name else 0 for o in outlines], np.int32)
        columns["type_prob"] = np.array([np.nan if o.prob is None else o.prob for o in outlines], np.float64)
    ids = np.arange(first_id, first_id + len(outlines))
    return Nuclei.from_contours(ids, np.stack([low, high + 1], axis=1), centroids, contours, **columns)


def _centroids(contours: list[np.ndarray]) -> np.ndarray:
    """Return (N, 2) centroids of what the border pixels enclose, those of dots and lines included."""
    closed = [np.concatenate([contour, contour[:1], contour[:1], contour[:1]]) for contour in contours]
    index = np.repeat(np.arange(len(closed)), [len(ring) for ring in closed])
    rings = shapely.linearrings(np.concatenate(closed).astype(np.float64), indices=index)
    return shapely.get_coordinates(shapely.centroid(shapely.polygons(rings)))


def border_pixels(rings_xy: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the border pixels of outlines, (N, 2) int32 each, open rings.

    An outline of whole numbers goes through the centres of border pixels. Any other becomes the border of the pixels
    whose centres lie inside; one without a centre inside is rounded.

    Raises:
        ValueError: one is no list of finite points, or larger than any nucleus.
    """
    rings = [_checked(ring) for ring in rings_xy]
    contours: list[np.ndarray | None] = [None] * len(rings)
    small, large = [], []
    for index, ring in enumerate(rings):
        if (ring == np.rint(ring)).all():
            contours[index] = ring.astype(np.int32)
        else:
            (large if np.ptp(ring, axis=0).max() > _TOGETHER_PX else small).append(index)
    for group in (small, *([index] for index in large)):
        if group:
            for index, traced in zip(group, _trace([rings[i] for i in group]), strict=True):
                contours[index] = (
                    np.unique(np.rint(rings[index]), axis=0).astype(np.int32) if traced is None else traced
                )
    return contours


def _checked(ring_xy: np.ndarray) -> np.ndarray:
    """Return an outline as an open ring, (N, 2) float64."""
    ring = np.asarray(ring_xy, np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or not len(ring):
        raise ValueError(f"an outline is a list of points [x, y], got shape {ring.shape}")
    if not (np.abs(ring) <= MAX_PX).all():
        raise ValueError(f"an outline exceeds the range of +-{MAX_PX} px")
    if (side := np.ptp(ring, axis=0).max()) > MAX_NUCLEUS_PX:
        raise ValueError(f"an outline of {side:.0f} px is no nucleus; at most {MAX_NUCLEUS_PX} px are read")
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _trace(rings: list[np.ndarray]) -> list[np.ndarray | None]:
    """Fill rings in one image, one below the other, and return the border of each, `None` where no pixel is in it."""
    lengths = np.array([len(ring) for ring in rings])
    starts = np.cumsum(lengths) - lengths
    points = np.concatenate(rings)
    low = np.floor(np.minimum.reduceat(points, starts)).astype(np.int64)
    width, heights = np.split(np.ceil(np.maximum.reduceat(points, starts)).astype(np.int64) - low + 1, 2, axis=1)
    stops = np.cumsum(heights + 1)  # an empty row between two, so that they do not touch
    corners = low - np.stack([np.zeros_like(stops), stops - heights[:, 0] - 1], axis=1)
    moved = points - np.repeat(corners, lengths, axis=0)
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    mask = fill_edges(moved, moved[following], Box(0, 0, int(stops[-1]), int(width.max())))
    traced: list[np.ndarray | None] = [None] * len(rings)
    for contour in cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        index = int(np.searchsorted(stops, contour[0, 0, 1], side="right"))
        if traced[index] is None or len(traced[index]) < len(contour):
            traced[index] = (contour[:, 0] + corners[index]).astype(np.int32)
    return traced
