"""Places to look at on a slide: hot spots of `plot_heat_map.py`, and regions in GeoJSON files beside them."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misc.files import full_stem
from misc.tables import read_table

HOT_SPOTS = "hotspots.csv"
# Files of outlined nuclei have the same form as those of regions, but a million lines. Larger files are not read.
MAX_GEOJSON_BYTES = 16 << 20
# Regions with more corners are thinned out for the page.
MAX_CORNERS = 2_000
_ANNOTATION = "annotation"


@dataclass(frozen=True)
class Place:
    """A box on the slide, and the outline of a region in it.

    Attributes:
        kind: `hot spot` or `region`.
        name: in the list.
        detail: a second line of the list.
        box_xywh: level-0 px.
        ring: (N, 2) outline, x, y in level-0 px; `None` for the box itself.
    """

    kind: str
    name: str
    detail: str
    box_xywh: tuple[float, float, float, float]
    ring: np.ndarray | None = None

    def as_json(self) -> dict:
        """Return the place in the form that the page reads."""
        ring = None if self.ring is None else np.round(self.ring, 1).tolist()
        return {"kind": self.kind, "name": self.name, "detail": self.detail, "box": list(self.box_xywh), "ring": ring}


def find_places(name: str, folders: list[Path], origin_xy: tuple[int, int] = (0, 0)) -> tuple[list[Place], list[str]]:
    """Return the places of a slide, hot spots first, and a note for each file that cannot be read.

    Args:
        name: stem of the slide.
        folders: where to look, without their subfolders.
        origin_xy: corner of the part of level 0 that QuPath shows, level-0 px; GeoJSON counts from it.
    """
    hot_spots, regions, notes = [], [], []
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]
    for path in dict.fromkeys(files):
        try:
            if path.name == HOT_SPOTS:
                hot_spots += _hot_spots(path, name)
            elif _belongs(path, name):
                regions += _regions(path, origin_xy)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zlib.error) as error:
            notes.append(f"{path.name} cannot be read ({type(error).__name__}: {error})")
    # a hot spot may be in both kinds of file
    boxes = {tuple(np.rint(place.box_xywh).astype(int)) for place in hot_spots}
    return [*hot_spots, *(r for r in regions if tuple(np.rint(r.box_xywh).astype(int)) not in boxes)], notes


def _belongs(path: Path, name: str) -> bool:
    lower = path.name.lower()
    if not lower.endswith((".geojson", ".geojson.gz")) or path.stat().st_size > MAX_GEOJSON_BYTES:
        return False
    stem = full_stem(path)
    return stem == name or stem.startswith((f"{name}.", f"{name}_", f"{name}-"))


def _hot_spots(path: Path, name: str) -> list[Place]:
    places = []
    for row in read_table(path):
        if row["slide"] == name:
            x0, y0, x1, y1 = (float(row[key]) for key in ("x0_px", "y0_px", "x1_px", "y1_px"))
            places.append(Place("hot spot", f"Hot spot {row['rank']}", _detail(row), (x0, y0, x1 - x0, y1 - y0)))
    return places


def _detail(row: dict[str, str]) -> str:
    words = [f"{row['nuclei']} nuclei"] if row.get("nuclei") else []
    if row.get("positive_share"):
        words.append(f"{100 * float(row['positive_share']):.0f} % positive")
    return ", ".join(words)


def _regions(path: Path, origin_xy: tuple[int, int]) -> list[Place]:
    data = path.read_bytes()
    content = json.loads(gzip.decompress(data) if path.name.lower().endswith(".gz") else data)
    features = content.get("features", [content]) if isinstance(content, dict) else content
    places = []
    for feature in features:
        properties = feature.get("properties") or {}
        if properties.get("objectType") == _ANNOTATION:
            geometry = feature["geometry"]
            shapes = {"Polygon": [geometry["coordinates"]], "MultiPolygon": geometry["coordinates"]}
            kind = properties.get("classification") or {}
            said = properties.get("name") or (kind.get("name") if isinstance(kind, dict) else kind)
            for polygon in shapes.get(geometry["type"], []):
                places.append(_region(polygon[0], str(said or f"Region {len(places) + 1}"), origin_xy))
    return places


def _region(ring: list, name: str, origin_xy: tuple[int, int]) -> Place:
    points = np.array([point[:2] for point in ring], np.float64) + origin_xy
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f"the outline of {name} needs at least three points with finite coordinates")
    low, size = points.min(axis=0), np.ptp(points, axis=0)
    thinned = points[:: -(-len(points) // MAX_CORNERS)]
    return Place("region", name, "", (*low.tolist(), *size.tolist()), thinned)
