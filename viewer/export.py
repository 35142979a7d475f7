"""Places of slides as a page that opens from disk: no server, no Python, no slide.

A page on disk may load scripts and pictures beside it, but may not read the px of those pictures. So the tiles of a
place are text in one script, `place_<n>.js`. The page itself is the server's.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from misc.batch import recorded
from misc.files import write_atomic
from viewer.places import Place
from viewer.results import Result
from viewer.server import POLICY, STATIC
from viewer.slides import Library, OpenSlide
from viewer.tiles import TILE_PX, jpeg, png

# A place is read at once (110 MB at this size), and the browser loads its script at once (about 30 MB).
MAX_SIDE_PX = 6_000
# Outlines are drawn at up to twice the slide's own zoom; beyond, the page enlarges them.
MAX_ZOOM = 1
THUMBNAIL_PX = 360
_LICENCE = "openseadragon.LICENSE.txt"
# A page cannot set `frame-ancestors` itself; some browsers allow scripts beside it only as `file:`.
_META = POLICY.replace("frame-ancestors 'none'", "").replace("'self'", "'self' file:").strip("; ")
_HEAD = '<meta charset="utf-8">'


def export_places(
    library: Library, folder: Path, region: tuple[int, int, int, int] | None
) -> tuple[int, dict[str, str]]:
    """Write the places of all slides, or one region of each.

    Args:
        library: the slides.
        folder: where to write; created if missing.
        region: x, y, width, height, level-0 px; `None` for the hot spots and regions.

    Returns:
        The number of places written, and the reason for each slide that failed, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    listing: list[dict] = []
    for number, entry in enumerate(library.entries):
        with recorded(failed, entry.name):
            slide = library.slide(number)
            places = [Place("region", "Region", "", region)] if region else slide.places
            if not places:
                raise ValueError("has no hot spots or regions; give --region, or run plot_heat_map.py")
            for place in places:
                listing.append(_write(folder, len(listing), slide, place))
    title = "Places" if len(library.entries) > 1 else f"Places of {library.entries[0].name}"
    write_atomic(folder / "data.js", f"window.EXPORTED = {json.dumps({'title': title, 'slides': listing})};\n")
    for path in STATIC.iterdir():
        if path.suffix in (".css", ".js") and path.name != "data.js":
            write_atomic(folder / path.name, path.read_bytes())
    write_atomic(folder / _LICENCE, (STATIC / _LICENCE).read_bytes())
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    policy = f'{_HEAD}\n<meta http-equiv="Content-Security-Policy" content="{_META}">'
    write_atomic(folder / "index.html", page.replace(_HEAD, policy, 1))
    return len(listing), failed


def _write(folder: Path, number: int, slide: OpenSlide, place: Place) -> dict:
    """Write the script of a place, and return its entry for the list."""
    x, y, width, height = _box(slide, place)
    rgb = slide.image.read(y, x, height, width)
    levels = max(int(np.ceil(np.log2(max(width, height) / TILE_PX))), 0) + 1
    name = f"{slide.entry.name}, {place.name}"
    info = slide.info() | {"name": name, "size": [width, height], "levels": levels, "places": [], "density": None}
    info |= {"outlineZoom": 1 - levels, "maxZoom": MAX_ZOOM}
    tiles = _pixels(rgb, levels)
    nuclei = [_nuclei(result, (x, y, width, height)) for result in slide.results]
    for which, (result, found) in enumerate(zip(info["results"], nuclei, strict=True)):
        tiles |= _outlines(slide, which, (x, y, width, height), levels)
        counts = Counter(nucleus["code"] for nucleus in found)
        result |= {"total": len(found)}
        result["types"] = [kind | {"count": counts[code]} for code, kind in enumerate(result["types"])]
    content = {"info": info, "tiles": tiles, "nuclei": nuclei}
    write_atomic(folder / f"place_{number}.js", f"window.EXPORTED.put({json.dumps(content)});\n")
    share = min(1.0, THUMBNAIL_PX / max(width, height))
    small = cv2.resize(rgb, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    return {"name": name, "reason": "", "thumbnail": _url("jpeg", jpeg(small))}


def _pixels(rgb: np.ndarray, levels: int) -> dict[str, str]:
    """Return the tiles of a place's pixels (H, W, 3), of all levels."""
    tiles, (height, width) = {}, rgb.shape[:2]
    for zoom in range(1 - levels, 1):
        side = tuple(max(round(length * 2.0**zoom), 1) for length in (width, height))
        plane = rgb if zoom == 0 else cv2.resize(rgb, side, interpolation=cv2.INTER_AREA)
        for column, row in _grid(width, height, zoom):
            part = plane[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
            if part.size:
                tiles[f"tile/{zoom}/{column}_{row}"] = _url("jpeg", jpeg(part))
    return tiles


def _box(slide: OpenSlide, place: Place) -> tuple[int, int, int, int]:
    """Return the part of a place on the slide, in whole px: x, y, width, height."""
    low = np.maximum(np.floor(place.box_xywh[:2]), 0).astype(int)
    high = np.ceil(np.add(place.box_xywh[:2], place.box_xywh[2:])).astype(int)
    size = np.minimum(high, (slide.image.width, slide.image.height)) - low
    if size.min() < 1:
        raise ValueError(f"{place.name} lies outside the slide of {slide.image.width} x {slide.image.height} px")
    if size.max() > MAX_SIDE_PX:
        raise ValueError(f"{place.name} is {size[0]} x {size[1]} px; at most {MAX_SIDE_PX} px a side can be exported")
    return (*low.tolist(), *size.tolist())


def _grid(width: int, height: int, zoom: int) -> list[tuple[int, int]]:
    """Return (column, row) of all tiles at a zoom."""
    columns, rows = (int(np.ceil(length * 2.0**zoom / TILE_PX)) for length in (width, height))
    return [(column, row) for row in range(rows) for column in range(columns)]


def _outlines(slide: OpenSlide, which: int, box: tuple[int, int, int, int], levels: int) -> dict[str, str]:
    """Return the tiles with nuclei of one result, for each value that the slider offers."""
    x, y, width, height = box
    tiles = {}
    for value in slide.ranges or ("none",):
        for zoom in range(1 - levels, MAX_ZOOM + 1):
            for column, row in _grid(width, height, zoom):
                corner = np.array([x, y]) * 2.0**zoom + np.array([column, row]) * TILE_PX
                tile = slide.outlines(which, value, zoom, corner)
                if tile.any():
                    tiles[f"nuclei/{which}/{value}/{zoom}/{column}_{row}"] = _url("png", png(tile))
    return tiles


def _nuclei(result: Result, box: tuple[int, int, int, int]) -> list[dict]:
    """Return the values of the nuclei of a place; contours count from its corner."""
    x, y, width, height = box
    low, high = ((np.array(corner) + 0.5) / result.facts.scale - 0.5 for corner in ((x, y), (x + width, y + height)))
    found = result.index.field(*low, *high)
    values = result.values(found.nuclei, found.rows)
    for value in values:
        value["contour"] = [[round(px - x, 2), round(py - y, 2)] for px, py in value["contour"]]
    return values


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
