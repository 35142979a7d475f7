"""What a run of `run_ihc.py` was asked for, typed; the text of the script explains each option."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from misc.files import check_folder
from misc.ihc.markers import Marker
from misc.ihc.stain import StainModel

# How nuclei get their class: by DAB density and thresholds, by three-way k-means of all slides, by the network's types.
BY_OD, BY_KMEANS, BY_TYPES = CLASSES = "od", "kmeans", "types"


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
        vmax: density of the last colour of all maps, or `None`: the highest of the run.
        compare: table of scores to compare with, or `None`.
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
    vmax: float | None
    compare: Path | None
    overwrite: bool


def check(options: DabOptions) -> DabOptions:
    """Return the options.

    Raises:
        ValueError, FileNotFoundError: in one line, which option is wrong and why.
    """
    for name in ("mpp", "vmax"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} is a positive number, got {value}")
    if options.classes not in CLASSES:
        raise ValueError(f"--classes is {', '.join(CLASSES)}, got {options.classes!r}")
    for folder in (options.image_dir, options.regions):
        if folder is not None:
            check_folder(folder)
    if options.output_dir.resolve() == options.image_dir.resolve():
        raise ValueError(f"{options.output_dir} holds the images: give --output_dir a folder of its own, also in it")
    if options.compare is not None and not options.compare.is_file():
        raise FileNotFoundError(f"no such file: {options.compare} (--compare)")
    if (options.include or options.exclude) and options.regions is None:
        raise ValueError("--include and --exclude choose among regions; give --regions")
    return options
