"""What a run of `run_ihc.py` was asked for, typed; the text of the script explains each option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from misc.ihc.markers import Marker
from misc.ihc.stain import StainModel

# How nuclei get their class: by DAB density and thresholds, by three-way k-means of all slides, by the network's types.
BY_OD, BY_KMEANS, BY_TYPES = "od", "kmeans", "types"


@dataclass(frozen=True)
class DabOptions:
    """Options of a run.

    Attributes:
        image_dir: images and slides.
        output_dir: results.
        json_dir: nuclei of these, a JSON file each.
        marker: thresholds, hot spots, categories.
        stain: vectors, or `None`: of each slide.
        classes: one of the words above.
        regions: folder with outlines, or `None`.
        include, exclude: classes of regions.
        mpp: um per level-0 px, before what the files say.
        default_mpp: the same where no file says it.
        vmax: density of the last colour of all maps, or `None`: the highest of the run.
        overwrite: do again what is there.
    """

    image_dir: Path
    output_dir: Path
    json_dir: Path
    marker: Marker
    stain: StainModel | None
    classes: str
    regions: Path | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    mpp: float | None
    default_mpp: float | None
    vmax: float | None
    overwrite: bool
