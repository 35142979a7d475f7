"""The report of a folder of nuclei: results of run_infer.py, run_ihc.py, plot_heat_map.py, or the original."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from misc.batch import recorded
from misc.files import full_stem
from misc.formats.nuclei_json import iter_json, read_header, types_from_header
from misc.formats.slide_facts import SlideFacts, slide_facts
from misc.ihc.density import mm2
from misc.nuclei import Nuclei
from misc.nuclei_features import pixel_areas
from misc.slides.image import SlideImage, find_image
from misc.slides.tissue import find_tissue, load_mask
from misc.type_info import TypeInfo, default_type_info, type_name
from viewer.report import pictures
from viewer.report.fields import FIELD_UM, FIELD_UNKNOWN_PX, Field, choose
from viewer.report.page import Bars, Picture, Section, Table

# Edges of the histogram of equivalent diameters: um if the pixel size is known, else px.
SIZE_EDGES = {"um": np.array([0, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, np.inf]), "px": np.array([*range(0, 66, 6), np.inf])}


@dataclass(frozen=True)
class Found:
    """The nuclei of one slide or image, without their outlines.

    Attributes:
        path: the JSON file.
        header: its top-level keys.
        facts: of its slide.
        types: names and colours.
        centroids_xy: (N, 2) float32, px of the JSON.
        type_ids: (N,) int32, or `None`.
        doubt: (N,) float32, 1 - probability of the type; without types, how far the size is from the median size.
        areas_px: (N,) float32, px^2 of the JSON.
    """

    path: Path
    header: dict
    facts: SlideFacts
    types: TypeInfo
    centroids_xy: np.ndarray
    type_ids: np.ndarray | None
    doubt: np.ndarray
    areas_px: np.ndarray

    def __len__(self) -> int:
        return len(self.centroids_xy)

    @property
    def mpp(self) -> float | None:
        """Micrometres per px of the JSON."""
        return None if self.facts.mpp_xy is None else sum(self.facts.mpp_xy) / 2 * self.facts.scale

    @property
    def by_type(self) -> Counter:
        return Counter([None] * len(self) if self.type_ids is None else self.type_ids.tolist())

    def name(self, type_id: int | None) -> str:
        return self.types[None][0] if type_id is None else type_name(type_id, self.types)


def load(path: Path, image: SlideImage | None) -> Found:
    """Read the nuclei of a file, piece by piece."""
    header = read_header(path)
    parts = [(p.centroids_xy.astype(np.float32), p.types, p.type_prob, pixel_areas(p)) for p in iter_json(path)]
    centroids, types, probs, areas = zip(*parts, strict=True) if parts else ((), (), (), ())
    join = lambda arrays, empty: np.concatenate(arrays) if arrays else np.zeros(empty)  # noqa: E731
    typed = bool(types) and types[0] is not None
    areas = join(areas, 0).astype(np.float32)
    size = np.log(np.maximum(areas, 1))
    return Found(
        path=path,
        header=header,
        facts=slide_facts(path, header, image),
        types=types_from_header(header) or default_type_info(256),
        centroids_xy=join(centroids, (0, 2)),
        type_ids=np.concatenate(types) if typed else None,
        doubt=1 - np.concatenate(probs) if typed else np.abs(size - np.median(size)) if len(size) else size,
        areas_px=areas,
    )


def slide_section(found: Found, image: SlideImage | None, spots: Sequence[Mapping[str, str]], drawn: Path) -> Section:
    """Return the section of one slide or image.

    Args:
        found: its nuclei.
        image: the slide; `None` leaves only pictures that the run drew.
        spots: its rows of `hotspots.csv`.
        drawn: the results folder.
    """
    name = full_stem(found.path)
    section = Section(key="", title=name, facts=facts_of(found), notes=list(found.facts.notes))
    section.bars = [bar for bar in (class_bars(found), size_bars(found)) if bar]
    section.galleries = [("", overviews(found, image, spots, drawn))]
    if image is not None:
        section.galleries += field_galleries(found, image, spots)
    section.galleries = [(title, shown) for title, shown in section.galleries if shown]
    return section


def facts_of(found: Found) -> list[tuple[str, str]]:
    """Return facts about a slide and its nuclei, as pairs of words."""
    facts, area = [], area_mm2(found)
    facts.append(("Nuclei", f"{len(found):,}"))
    if found.facts.width:
        facts.append(("Size", f"{found.facts.width:,} x {found.facts.height:,} px"))
    if found.facts.mpp_xy:
        facts.append(("Pixel size", f"{sum(found.facts.mpp_xy) / 2:.4g} um"))
    if area:
        facts.append(("Nuclei per mm2", f"{len(found) / area:,.0f} (in {area:.3g} mm2)"))
    if area and (share := tissue_share(found)):
        facts.append(("Nuclei per mm2 of tissue", f"{len(found) / area / share:,.0f} (in {area * share:.3g} mm2)"))
    if len(found):
        unit = "um" if found.mpp else "px"
        facts.append(("Median diameter", f"{np.median(diameters(found)):.1f} {unit}"))
    return facts


def area_mm2(found: Found) -> float | None:
    """Return the area of the whole slide, mm2; `None` if its size or pixel size is unknown."""
    if not found.facts.width or not found.facts.mpp_xy:
        return None
    return mm2(found.facts.width * found.facts.height, found.facts.mpp_xy)


def tissue_share(found: Found) -> float | None:
    """Return the share of the slide that is tissue, 0 to 1; `None` if the file of nuclei does not say it."""
    slide = found.header.get("slide")
    return slide.get("tissue_share") if isinstance(slide, dict) else None


def diameters(found: Found) -> np.ndarray:
    """Return (N,) diameters of circles with the nuclei's areas: um if the pixel size is known, else px."""
    return np.sqrt(4 / np.pi * found.areas_px) * (found.mpp or 1)


def class_bars(found: Found) -> Bars | None:
    counts = sorted(found.by_type.items(), key=lambda item: (item[0] is None, item[0]))
    if found.type_ids is None or not counts:
        return None
    colours = [found.types.get(t, found.types[None])[1] for t, _ in counts]
    return Bars("Nuclei by type", [found.name(t) for t, _ in counts], [count for _, count in counts], colours)


def size_bars(found: Found) -> Bars | None:
    if not len(found):
        return None
    unit = "um" if found.mpp else "px"
    edges = SIZE_EDGES[unit]
    counts = np.histogram(np.minimum(diameters(found), edges[-2]), edges)[0]
    labels = [
        f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g} and more" for low, high in itertools.pairwise(edges)
    ]
    return Bars(f"Nuclei by diameter, {unit}", labels, counts.tolist())


def overviews(found: Found, image: SlideImage | None, spots: Sequence[Mapping[str, str]], drawn: Path) -> list[Picture]:
    """Return pictures of the whole slide: tissue and hot spots, density, and pictures that a run drew."""
    name, shown = full_stem(found.path), []
    if image is not None:
        thumb = pictures.fit(image.thumbnail())
        tissue = tissue_of(found, image, drawn)
        mpp = sum(found.facts.mpp_xy) / 2 if found.facts.mpp_xy else None
        boxes = [[float(row[side]) for side in ("x0_px", "y0_px", "x1_px", "y1_px")] for row in spots]
        words = ["the whole image", *(["outline of the tissue"] if tissue is not None else [])]
        words += ["numbered hot spots"] if boxes else []
        if len(words) > 1 or not (drawn / "overlay" / f"{name}.png").is_file():
            picture = pictures.overview(thumb, image.width, mpp, tissue, boxes)
            shown.append(pictures.whole(picture, f"{name}: {', '.join(words)}", ", ".join(words).capitalize()))
    if image is not None and not any((drawn / folder / f"{name}.png").is_file() for folder in ("heatmap", "density")):
        level0 = (found.centroids_xy + 0.5) * found.facts.scale - 0.5
        dense = pictures.density(thumb, level0, image.width)
        shown.append(pictures.whole(dense, f"{name}: density of nuclei", "Density of nuclei: the bluer, the denser"))
    is_ihc = (drawn / "density").is_dir()
    over = "Density on the slide" if (drawn / "heatmap").is_dir() else f"Outlines by {'class' if is_ihc else 'type'}"
    maps = [("heatmap", "Density map"), ("density", "Positive nuclei per mm2 of tissue")]
    for folder, words in (("overlay", over), *maps, ("score", "DAB density"), ("histogram", "DAB density")):
        path = drawn / folder / f"{name}.png"
        if path.is_file() and (picture := cv2.imread(str(path))) is not None:
            rgb = pictures.fit(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
            shown.append(pictures.whole(rgb, f"{name}: {words.lower()}", f"{words} ({folder}/{path.name})"))
    return shown


def tissue_of(found: Found, image: SlideImage, drawn: Path) -> np.ndarray | None:
    """Return the tissue mask of a slide's run, (h, w) bool; `None` for images, and if the run's mask is not there.

    That is the mask that the run wrote (--save_mask). If it used no mask of the user, the mask is computed again.
    """
    written, run, mpp = drawn / "mask" / f"{full_stem(found.path)}.png", found.header.get("run"), found.facts.mpp_xy
    if written.is_file():
        return load_mask(written, (image.height, image.width)).mask
    if not found.header.get("mag") or mpp is None or (isinstance(run, dict) and run.get("mask")):
        return None
    thumb = image.thumbnail()
    return find_tissue(thumb, tuple(um * image.width / thumb.shape[1] for um in mpp)).mask


def field_galleries(
    found: Found, image: SlideImage, spots: Sequence[Mapping[str, str]]
) -> list[tuple[str, list[Picture]]]:
    """Return galleries of fields at full resolution with outlines: hot spots, and chosen fields."""
    side = FIELD_UM / found.mpp if found.mpp else FIELD_UNKNOWN_PX
    chosen = choose(found.centroids_xy, found.doubt, side)
    for row in spots:
        x0, x1 = float(row["x0_px"]) / found.facts.scale, float(row["x1_px"]) / found.facts.scale
        y0, y1 = float(row["y0_px"]) / found.facts.scale, float(row["y1_px"]) / found.facts.scale
        wide = max(x1 - x0, y1 - y0)
        chosen.append(Field(f"hot spot {row.get('rank', '')}".strip(), (x0, y0), wide, int(row.get("nuclei") or 0)))
    drawn = draw_fields(found, image, chosen)
    fields = [(f, p) for f, p in zip(chosen, drawn, strict=True) if not f.why.startswith("hot spot")]
    hot = [p for f, p in zip(chosen, drawn, strict=True) if f.why.startswith("hot spot")]
    title = "Fields at full resolution" + ("" if found.type_ids is None else ", outlines in the colours of the types")
    return [("Hot spots", hot), (title, [p for _, p in fields])]


def draw_fields(found: Found, image: SlideImage, fields: Sequence[Field]) -> list[Picture]:
    """Draw fields with the outlines of their nuclei, which are read in one pass over the file."""
    near: list[list[Nuclei]] = [[] for _ in fields]
    for part in iter_json(found.path):
        for kept, field in zip(near, fields, strict=True):
            kept.append(part.select(field.near(part.centroids_xy)))
    shown, scale = [], found.facts.scale
    for field, parts in zip(fields, near, strict=True):
        nuclei = Nuclei.concat(parts)
        side = max(round(field.side * scale), 1)
        limits = zip(field.corner_xy, (image.width, image.height), strict=True)
        corner = tuple(max(min(int(v * scale), size - side), 0) for v, size in limits)  # a field over the edge moves in
        rgb = pictures.field(image, corner, side, nuclei, scale, found.types)
        words = f"{field.why}, {field.nuclei} nuclei, from x {corner[0]:,} y {corner[1]:,} px"
        shown.append(Picture(pictures.inline(rgb), f"{full_stem(found.path)}: {words}", words.capitalize()))
    return shown


def item_row(found: Found, seconds: str = "") -> dict[str, str]:
    """Return the row of an image in the table of all results, for columns that `summary.csv` lacks."""
    area, row = area_mm2(found), {"status": "done", "nuclei": str(len(found))}
    row |= {"per_mm2": f"{len(found) / area:.6g}"} if area else {}
    if area and (share := tissue_share(found)):
        row["per_tissue_mm2"] = f"{len(found) / area / share:.6g}"
    if found.type_ids is not None:
        known = {t for t in types_from_header(found.header) or () if t}  # 0, background, only where a nucleus has it
        row |= {found.name(t): str(found.by_type[t]) for t in sorted(known | {*found.by_type})}
    return row | ({"median_diameter_um": f"{np.median(diameters(found)):.2f}"} if found.mpp and len(found) else {})


def table_of(rows: Mapping[str, Mapping[str, str]], caption: str, links: Mapping[str, str]) -> Table:
    """Return the table of all slides; columns are in the order of their first value, without empty ones."""
    columns = list(
        dict.fromkeys(name for row in rows.values() for name, value in row.items() if value != "" and name != "slide")
    )
    cells = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return Table(caption, ["name", *columns], cells, [links.get(name, "") for name in rows])


def open_image_of(name: str, folder: Path | None, failed: dict[str, str]) -> SlideImage | None:
    """Open the slide or image of this name; `failed` records an error."""
    if folder is None:
        return None
    with recorded(failed, name):
        return find_image(name, folder)
    return None
