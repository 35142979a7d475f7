"""Density maps of the slides of a run: kept as numbers, and drawn when all are there, in one range of colours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from misc.files import atomic_path
from misc.ihc.dab.density_pictures import DensityMap, MapOnSlide, density_map, density_picture
from misc.ihc.dab.slide import DabSlide, origin
from misc.ihc.dab.table import caption_lines
from misc.ihc.panel import Caption, save_picture
from misc.ihc.region_files import load_regions
from misc.ihc.regions import TISSUE, union
from misc.ihc.scores import NEGATIVE
from misc.slides.image import find_image


@dataclass(frozen=True)
class KeptMap:
    """A density map on disk.

    Attributes:
        found: the map.
        lines: what stands beside it.
        mpp: um per level-0 px, or `None`.
        excluded: names of the regions that count nowhere, and have no colour.
        drawn_to: density of the last colour in its picture, 0 where there is none yet.
    """

    found: DensityMap
    lines: Sequence[str]
    mpp: float | None
    excluded: Sequence[str]
    drawn_to: float = 0.0

    def save(self, path: Path) -> None:
        """Write it as `.npz`: `density` is the map, the rest is for drawing."""
        about = {"tile_px": self.found.tile_px, "unit": self.found.unit, "lines": list(self.lines), "mpp": self.mpp}
        about |= {"excluded": list(self.excluded), "drawn_to": self.drawn_to}
        with atomic_path(path) as temporary:
            density = self.found.density.astype(np.float32)
            np.savez_compressed(temporary, density=density, about=json.dumps(about))

    @classmethod
    def load(cls, path: Path) -> KeptMap:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            found = DensityMap(file["density"], about["tile_px"], about["unit"])
        return cls(found, about["lines"], about["mpp"], about["excluded"], about["drawn_to"])


def keep_map(slide: DabSlide, path: Path) -> None:
    """Count the positive nuclei of a slide by bin, and write the map."""
    counted = slide.scores.parts[0].members & (slide.nuclei.types > NEGATIVE)
    size = slide.image.width, slide.image.height
    excluded = slide.chosen.excluded
    tissue = union(slide.tissue) - union(excluded)
    found = density_map(slide.nuclei.centroids_xy[counted], tissue, size, slide.mpp_xy)
    lines = [*caption_lines(slide.scores.overall, slide.marker), *slide.words()]
    KeptMap(found, lines, slide.mpp, [region.name for region in excluded]).save(path)


def draw_maps(maps: Mapping[str, Path], regions: Mapping[str, Path], image_dir: Path, vmax: float | None) -> float:
    """Draw the maps that are not yet drawn in this range of colours, beside the numbers, as `<slide>.png`.

    Args:
        maps: by slide, as `keep_map` wrote them.
        regions: by slide, GeoJSON with its tissue, regions and hot spots.
        image_dir: the slides.
        vmax: density of the last colour; `None`: the highest of all maps.

    Returns:
        The density of the last colour.
    """
    top = vmax or max((KeptMap.load(path).found.top for path in maps.values()), default=0.0)
    for name, path in maps.items():
        kept, picture = KeptMap.load(path), path.with_suffix(".png")
        if kept.drawn_to == top and picture.is_file():
            continue
        image = find_image(name, image_dir)
        outlines = load_regions(regions[name], origin(image)) if regions[name].is_file() else []
        tissue = union(region for region in outlines if region.label == TISSUE)
        tissue -= union(region for region in outlines if region.name in kept.excluded)
        thumbnail = image.thumbnail()
        slide = MapOnSlide(thumbnail, image.width / thumbnail.shape[1], tissue, outlines, kept.mpp)
        save_picture(density_picture(kept.found, slide, Caption(image.name, {}, kept.lines), top), picture)
        replace(kept, drawn_to=top).save(path)
    return top
