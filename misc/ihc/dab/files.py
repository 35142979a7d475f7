"""What is written of one slide: nuclei with their classes, regions, and pictures."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from misc.files import atomic_path
from misc.formats.nuclei_json import types_to_header, write_json
from misc.formats.qupath import MIN_POINTS, write_geojson
from misc.formats.sedeen import LAB_PENS, Graphic, nuclei_graphics, write_session
from misc.ihc.dab.class_pictures import Outlines, field_picture, overview_picture
from misc.ihc.dab.parts import Part
from misc.ihc.dab.slide import DabSlide
from misc.ihc.dab.table import caption_lines
from misc.ihc.panel import CLASS_TYPES, Caption, save_picture
from misc.ihc.region_files import region_graphics, write_regions
from misc.ihc.regions import Region
from misc.ihc.scores import NOT_COUNTED
from misc.nuclei import Nuclei
from misc.slides.image import SlideImage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A picture of up to this many px is drawn whole, with every nucleus; of larger ones their hot spots.
WHOLE_PX = 25_000_000
# Room around a hot spot in its picture, share of its side.
AROUND = 0.04
# How far outside a field the centre of a nucleus may lie that reaches into it, px.
BESIDE_PX = 50
# Nuclei that are turned into text at once.
PIECE = 50_000
# Decimals of positions and densities in the table of nuclei.
DECIMALS = 3
# Sedeen and QuPath want a pixel size; where none is known the unit is the px.
UNKNOWN_PIXEL_UM = 1.0


def paths_of(name: str, folder: Path) -> dict[str, Path]:
    """Return the files of a slide that are always written; the JSON file is written last, so it stands for all."""
    return {
        "nuclei": folder / "nuclei" / f"{name}.csv",
        "qupath": folder / "qupath" / f"{name}.geojson",
        "sedeen": folder / "sedeen" / f"{name}.session.xml",
        "regions": folder / "regions" / f"{name}.geojson",
        "overlay": folder / "overlay" / f"{name}.png",
        "histogram": folder / "histogram" / f"{name}.png",
        "density": folder / "density" / f"{name}.npz",
        "json": folder / "json" / f"{name}.json",
    }


def write_files(slide: DabSlide, folder: Path) -> None:
    """Write nuclei and regions of a slide: a table, and for QuPath and Sedeen."""
    paths = paths_of(slide.name, folder)
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    write_table(paths["nuclei"], slide.nuclei)
    write_geojson(paths["qupath"], slide.nuclei, CLASS_TYPES, name=slide.name, origin_xy=slide.origin_xy)
    numbers = {part.name: _numbers(part) for part in slide.scores.parts if part.region}
    write_regions(paths["regions"], slide.regions, numbers, slide.origin_xy)
    image = slide.image
    write_session(
        paths["sedeen"],
        image.name,
        image.width,
        image.height,
        slide.mpp_xy or UNKNOWN_PIXEL_UM,
        itertools.chain(region_graphics(slide.regions), _nuclei_graphics(slide.nuclei)),
    )


def write_table(path: Path, nuclei: Nuclei) -> None:
    """Write a row for each nucleus: id, pixel centre at level 0, class and densities; what is not known is empty."""
    names = np.array([CLASS_TYPES[class_id][0] for class_id in sorted(CLASS_TYPES)])
    columns = {"x_px": nuclei.centroids_xy[:, 0], "y_px": nuclei.centroids_xy[:, 1], **nuclei.measured}
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["id", "class", *columns])
        for part in _pieces(len(nuclei)):
            texts = [np.char.mod(f"%.{DECIMALS}f", column[part]) for column in columns.values()]
            texts = [np.where(text == "nan", "", text).tolist() for text in texts]
            table.writerows(zip(nuclei.ids[part].tolist(), names[nuclei.types[part]].tolist(), *texts, strict=True))


def write_classes(slide: DabSlide, folder: Path, made: dict) -> None:
    """Write the JSON file of a slide, the last of its files: nuclei whose type is their class.

    Args:
        slide: the slide.
        folder: of the results.
        made: more keys of the file: what its results depend on.
    """
    image = slide.image
    size = {"width": image.width, "height": image.height, "scale": 1.0, "mpp": slide.mpp, "bounds": image.bounds_xywh}
    header = {"mpp": slide.mpp, "slide": {"name": image.name, **size}, "types": types_to_header(CLASS_TYPES)}
    write_json(paths_of(slide.name, folder)["json"], slide.nuclei, image.mag, header | made)


def draw_overlay(slide: DabSlide, folder: Path) -> None:
    """Draw the nuclei in the colours of their classes: an image whole, of a slide its hot spots, and where they lie."""
    path, image = paths_of(slide.name, folder)["overlay"], slide.image
    for old in path.parent.glob(f"{slide.name}_hotspot*.png"):
        old.unlink()  # an earlier run may have found more of them
    overall = _caption(slide, slide.scores.overall, image.name)
    if image.width * image.height <= WHOLE_PX:
        save_picture(_field(slide, (0, 0, image.width, image.height), overall, _shown(slide)), path)
        return
    thumbnail = image.thumbnail()
    figure = overview_picture(
        thumbnail, [*slide.tissue, *_shown(slide)], overall, image.width / thumbnail.shape[1], slide.mpp
    )
    save_picture(figure, path)
    for part in slide.scores.hot_spots:
        figure = _field(slide, _box(part, image), _caption(slide, part, f"{image.name}\n{part.name}"), [part.region])
        save_picture(figure, path.with_name(f"{slide.name}_hotspot{part.rank}.png"))


def _shown(slide: DabSlide) -> list[Region]:
    """Return the regions that pictures show beside the tissue; the name says which count nowhere."""
    excluded = [replace(region, name=f"{region.name} (excluded)") for region in slide.chosen.excluded]
    return [*slide.chosen.scored, *excluded, *(part.region for part in slide.scores.hot_spots)]


def _box(part: Part, image: SlideImage) -> tuple[int, int, int, int]:
    """Return the px around a hot spot, x0, y0, x1, y1, inside the slide."""
    x0, y0, x1, y1 = part.region.area.bounds
    room = AROUND * max(x1 - x0, y1 - y0)
    low = np.maximum(np.floor([x0 - room, y0 - room]), 0).astype(int).tolist()
    high = np.minimum(np.ceil([x1 + room, y1 + room]), [image.width, image.height]).astype(int).tolist()
    return (*low, *high)


def _field(slide: DabSlide, box: tuple[int, int, int, int], caption: Caption, regions: list[Region]) -> Figure:
    """Draw the nuclei of a box of the slide, and regions."""
    x0, y0, x1, y1 = box
    rgb = slide.image.read(y0, x0, y1 - y0, x1 - x0)
    nuclei, margin = slide.nuclei, BESIDE_PX
    xy = nuclei.centroids_xy
    near = np.flatnonzero(((xy >= (x0 - margin, y0 - margin)) & (xy < (x1 + margin, y1 + margin))).all(axis=1))
    near = near[np.diff(nuclei.offsets)[near] > 0]
    outlines = Outlines([nuclei.contour(i) - (x0, y0) for i in near], nuclei.types[near])
    moved = [replace(region, area=shapely.transform(region.area, lambda p: p - (x0, y0))) for region in regions]
    return field_picture(rgb, outlines, caption, slide.mpp, moved)


def _caption(slide: DabSlide, part: Part, title: str) -> Caption:
    """Return what stands beside a picture of a part."""
    counts = np.bincount(slide.nuclei.types[part.members], minlength=len(CLASS_TYPES)).tolist()
    lines = [*caption_lines(part, slide.marker), *slide.words()]
    return Caption(title, {class_id: counts[class_id] for class_id in CLASS_TYPES}, lines)


def _numbers(part: Part) -> dict[str, float]:
    """Return what QuPath shows of a region."""
    scored = part.scored.score
    values = {"nuclei": scored.measured, "positive %": 100 * scored.index, "H-score": scored.h_score}
    if part.tissue_share is not None:
        values["tissue %"] = 100 * part.tissue_share
    return {name: round(float(value), 2) for name, value in values.items()}


def _nuclei_graphics(nuclei: Nuclei) -> Iterator[Graphic]:
    """Yield nuclei for Sedeen in the lab's pens, their density as the name; those not counted have no pen."""
    drawn = np.flatnonzero((np.diff(nuclei.offsets) >= MIN_POINTS) & (nuclei.types != NOT_COUNTED))
    for part in _pieces(len(drawn)):
        chosen = nuclei.select(drawn[part])
        density = chosen.measured["dab_median_od"].tolist()
        for graphic, value in zip(nuclei_graphics(chosen, CLASS_TYPES, pens=LAB_PENS), density, strict=True):
            yield replace(graphic, name=f"DAB {value:.3f}")


def _pieces(count: int) -> Iterator[slice]:
    """Yield slices that cover a number of nuclei, so that no text of all of them is held at once."""
    for start in range(0, count, PIECE):
        yield slice(start, start + PIECE)
