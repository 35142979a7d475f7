"""The list of slides to look at, and open slides: their pixels, nuclei and places."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from misc.files import check_unique_stems, full_stem, list_files
from misc.slides.folder import find_slides
from misc.slides.handler import get_file_handler
from misc.slides.image import open_image
from misc.type_info import TypeInfo
from viewer.places import Place, find_places
from viewer.results import LABEL_SUFFIXES, Result, open_result, stamp
from viewer.tiles import MAX_NUCLEI_ZOOM, RIM_PX, TILE_PX, SlideTiles, draw_outlines, jpeg, min_outline_zoom

THUMBNAIL_PX = 360
UM2_PER_MM2 = 1e6
# Values for the slider: name in the index, words, unit, decimals.
VALUES = {"prob": ("Probability", "", 2), "area": ("Size", "px²", 0), "dab": ("DAB density", "OD", 2)}
AREA_UM = ("Size", "µm²", 0)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What to look at; the help text of `view_slides.py` explains each option."""

    results_dir: Path | None = None
    wsi_dir: Path | None = None
    json: Path | None = None
    slide: Path | None = None
    compare: Path | None = None
    heat_dir: Path | None = None
    type_info: TypeInfo | None = None
    mpp: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Entry:
    """A slide of the list: its file, the files of its nuclei (a second one to compare), or why it is not shown."""

    name: str
    image: Path | None
    results: tuple[Path, ...]
    reason: str = ""


def find_entries(options: Options) -> list[Entry]:
    """Return the slides with results, by name.

    Raises:
        ValueError, FileNotFoundError: there is nothing to look at, or two results share a name.
    """
    if options.json:
        for path in (options.json, options.slide):
            if not path.exists():
                raise FileNotFoundError(f"no such file: {path}")
        other = (_result_of(full_stem(options.json), options.compare),) if options.compare else ()
        return [Entry(full_stem(options.slide), options.slide, (options.json, *filter(None, other)))]
    files = list_files(json_dir(options.results_dir), "*.[jJ][sS][oO][nN]")
    if not files:
        raise FileNotFoundError(f"no JSON file of nuclei in {options.results_dir}, or in its folder json/")
    check_unique_stems(files)
    images = {full_stem(path): path for path in find_slides(options.wsi_dir).slides}
    entries = []
    for path in files:
        name = full_stem(path)
        other = _result_of(name, options.compare) if options.compare else None
        reason = "" if name in images else f"no slide of this name in {options.wsi_dir}"
        entries.append(Entry(name, images.get(name), (path, *([other] if other else [])), reason))
    return entries


def json_dir(folder: Path) -> Path:
    """Return the folder of the JSON files of results: its `json/`, or `folder` itself."""
    return folder / "json" if (folder / "json").is_dir() else folder


def _result_of(name: str, where: Path) -> Path | None:
    """Return the second result of a slide: a file, or the file of its name in a folder of results or labels."""
    if where.is_file():
        return where
    suffixes = (".json", *LABEL_SUFFIXES)
    found = [
        path for path in list_files(json_dir(where)) if full_stem(path) == name and path.suffix.lower() in suffixes
    ]
    return found[0] if found else None


# ---------------------------------------------------------------------------------------------- one slide


@dataclass
class OpenSlide:
    """An open slide: its image, results and tiles."""

    entry: Entry
    options: Options
    stamp: str = field(init=False)
    results: list[Result] = field(init=False)

    def __post_init__(self):
        self.stamp = stamp_of(self.entry)
        self.image = open_image(self.entry.image)
        scores = [folder / "score" / f"{self.entry.name}.csv" for folder in self._folders]
        score = next((path for path in scores if path.is_file()), None)
        first, *others = self.entry.results
        said = {name: getattr(self.options, name) for name in ("type_info", "mpp", "scale")}
        self.results = [open_result(first, self.image, **said, score=score)]
        self.results += [open_result(path, self.image, **said, first=self.results[0]) for path in others]
        self.tiles = SlideTiles(get_file_handler(self.entry.image, mag=1.0))

    @property
    def _folders(self) -> list[Path]:
        """Folders that may hold scores and places of the slide."""
        own = self.entry.results[0].parent
        own = own.parent if own.name == "json" else own
        known = [own, *([self.options.heat_dir] if self.options.heat_dir else [])]
        return [*known, *(path for path in sorted(own.glob("[!.]*")) if path.is_dir() and path not in known)]

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Ends of the slider for each value, the same for both results; sizes in px^2 of level 0."""
        ends: dict[str, tuple[float, float]] = {}
        for result in self.results:
            for name, (_, high) in result.index.meta["ranges"].items():
                factor = result.facts.scale**2 if name == "area" else 1.0
                ends[name] = (0.0, max(high * factor, ends.get(name, (0.0, 0.0))[1]))
        return {name: ends[name] for name in VALUES if name in ends}

    def range_of(self, name: str, which: int) -> tuple[float, float]:
        """Return the ends of the slider for a value, in the unit of one result's index."""
        low, high = self.ranges.get(name, (0.0, 1.0))
        factor = self.results[which].facts.scale ** 2 if name == "area" else 1.0
        return low / factor, high / factor

    def outlines(self, which: int, value: str, zoom: int, corner: np.ndarray) -> np.ndarray:
        """Draw a tile of one result; of two results, the first has wider lines, to be seen beside the second."""
        result, known = self.results[which], value if value in self.ranges else "area"
        rim = RIM_PX if which + 1 < len(self.results) else 0
        ends = self.range_of(known, which)
        return draw_outlines(result.index, result.facts.scale, known, ends, zoom, corner, rim)

    @cached_property
    def outline_zoom(self) -> int:
        """The smallest zoom at which nuclei are outlined."""
        mean_area = max(result.index.meta["mean_area"] * result.facts.scale**2 for result in self.results)
        return max(min_outline_zoom(mean_area), 1 - self.tiles.levels)

    def _values(self) -> list[dict]:
        """Return the values for the slider in the form that the page reads."""
        mpp, values = self.results[0].facts.mpp_xy, []
        for name, (low, high) in self.ranges.items():
            is_um = name == "area" and mpp is not None
            words, unit, digits = AREA_UM if is_um else VALUES[name]
            factor = mpp[0] * mpp[1] if is_um else 1.0
            ends = [low * factor, high * factor]
            values.append({"key": name, "name": words, "unit": unit, "digits": digits, "ends": ends})
        return values

    @cached_property
    def places(self) -> list[Place]:
        found, notes = find_places(self.entry.name, self._folders, self.results[0].facts.origin_xy)
        for note in notes:
            logger.warning("%s: %s", self.entry.name, note)
        return found

    def info(self) -> dict:
        """Return the facts about the slide that the page needs."""
        facts = self.results[0].facts
        mpp = facts.mpp_xy
        # per level-0 px^2 -> per mm2
        unit = UM2_PER_MM2 / (mpp[0] * mpp[1]) if mpp else 1.0
        peaks = [result.index.meta["peak"] / result.facts.scale**2 * unit for result in self.results]
        return {
            "name": self.entry.name,
            "file": self.image.name,
            "size": [self.image.width, self.image.height],
            "stamp": self.stamp,
            "mpp": mpp and list(mpp),
            "mag": self.image.mag,
            "tile": TILE_PX,
            "levels": self.tiles.levels,
            "outlineZoom": self.outline_zoom,
            "maxZoom": MAX_NUCLEI_ZOOM,
            "results": [
                {
                    "label": result.label,
                    "total": len(result.index),
                    "types": result.types(),
                    "scale": result.facts.scale,
                }
                for result in self.results
            ],
            "values": self._values(),
            "density": {"peaks": peaks, "unit": "nuclei/mm²" if mpp else "nuclei/px²"},
            "places": [place.as_json() for place in self.places],
            "notes": list(facts.notes),
        }


def stamp_of(entry: Entry) -> str:
    """Return a digest that changes with the files of a slide."""
    files = [entry.image, *entry.results]
    return hashlib.sha256(repr([(str(path), *stamp(path)) for path in files]).encode()).hexdigest()[:12]


class Library:
    """The slides of the list, opened on demand; the last few stay open.

    A dropped slide closes when the last thread that reads it has ended.
    """

    KEPT_OPEN = 4

    def __init__(self, options: Options):
        self.options, self.entries = options, find_entries(options)
        self._open: dict[int, OpenSlide] = {}
        self._thumbnails: dict[int, bytes] = {}
        self._locks = [threading.Lock() for _ in self.entries]
        self._thumb_lock = threading.Lock()

    def slide(self, number: int) -> OpenSlide:
        """Return an open slide; make its index if there is none.

        Raises:
            IndexError: there is no such slide.
            ValueError, OSError: the slide, or its file of nuclei, cannot be read.
        """
        entry = self.entries[number]
        if entry.reason:
            raise ValueError(f"{entry.name}: {entry.reason}")
        with self._locks[number]:
            found = self._open.pop(number, None)
            if found is None or found.stamp != stamp_of(entry):  # its files have changed
                found = OpenSlide(entry, self.options)
            self._open[number] = found  # at the end: the last one used is the last one dropped
            for other in list(self._open)[: -self.KEPT_OPEN]:
                self._open.pop(other, None)
        return found

    def thumbnail(self, number: int) -> bytes:
        """Return a small picture of a slide as JPEG; errors as in `slide`."""
        entry = self.entries[number]
        if entry.reason:
            raise ValueError(f"{entry.name}: {entry.reason}")
        with self._thumb_lock:
            if number not in self._thumbnails:
                with get_file_handler(entry.image, mag=1.0) as handler:
                    share = min(1.0, THUMBNAIL_PX / max(handler.shape_yx))
                    self._thumbnails[number] = jpeg(handler.get_full_img(read_mag=share))
        return self._thumbnails[number]

    def listing(self) -> list[dict]:
        """Return the list in the form that the page reads."""
        return [{"name": entry.name, "reason": entry.reason} for entry in self.entries]
