"""Small real inputs under the names that the pages use, and a folder that looks like a clone of the repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import scipy.io
import tifffile
import torch
from conftest import ROOT
from PIL import Image

from misc.formats.labels import TYPES_KEY, types_text
from misc.formats.qupath import write_geojson
from misc.slides.resolution import INCH_UM
from misc.type_info import load_type_info
from models.hovernet.net_desc import create_model
from models.hovernet.post_proc import measure

MPP = 0.5  # um/px of the H&E images and of the slide
IHC_MPP = 0.25
# One patch each: it is 164 px wide at 30x (H&E) and at 20x (DAB).
SIDE_PX = 108
IHC_SIDE_PX = 320
GLASS = 244
# Sides of the slide: it is two patches wide, and the fewer px it has, the sooner pages have run.
TISSUE_PX, GLASS_PX = 198, 10
OURS = (".git*", ".venv", ".ci", ".*_cache", "tests", "logs", "dataset", "docs", "build", "*.egg-info")


def clone(folder: Path, inputs: Path) -> None:
    """Copy what is tracked and what `write_inputs` wrote into a folder; checkpoints, which nobody changes, as links."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*OURS, "*.tar", "*.jpg"), dirs_exist_ok=True)
    for path in (ROOT / "pretrained").glob("*.tar"):
        (folder / "pretrained" / path.name).symlink_to(path)
    shutil.copytree(inputs, folder, dirs_exist_ok=True)


def write_inputs(folder: Path, shared: Path) -> None:
    """Write images/ with labels/ and annotations/, ihc_images/, slides/, regions/, cohort.csv and weights/.

    Args:
        folder: where to.
        shared: real data, see `conftest.py`.
    """
    for name in ("images", "labels", "annotations", "ihc_images", "slides", "regions", "weights"):
        (folder / name).mkdir()
    types = load_type_info(ROOT / "pretrained" / "he_types.json")
    for number in (1, 10):
        write_labelled(folder, f"colon_{number}", shared / "data" / "consep" / "Train", f"train_{number}", types)
    for name in ("Bladder1", "Lung1"):
        image = read_rgb(shared / "data" / "ihc" / "Images" / f"{name}.png")[:IHC_SIDE_PX, :IHC_SIDE_PX]
        write_png(folder / "ihc_images" / f"{name.lower()}.png", image, IHC_MPP)
        write_region(folder / "regions" / f"{name.lower()}.geojson", "Tumor", (0, 0, IHC_SIDE_PX // 2, IHC_SIDE_PX))
    write_slide(folder / "slides" / "skin.tif", shared / "data" / "slides" / "CMU-1-Small-Region.svs")
    write_region(
        folder / "regions" / "skin.geojson",
        "Tumor",
        (GLASS_PX, GLASS_PX, GLASS_PX + TISSUE_PX // 2, GLASS_PX + TISSUE_PX),
    )
    (folder / "cohort.csv").write_text("path,patient\nslides/skin.tif,p1\n")
    torch.manual_seed(1)  # one that finds nuclei
    weights = {"desc": create_model("fast", nr_types=6, width=0.125).state_dict()}
    torch.save(weights, folder / "weights" / "hovernet_fast_pannuke_type_tf2pytorch.tar")


def write_labelled(folder: Path, name: str, source: Path, source_name: str, types: dict) -> None:
    """Write a corner of a 40x image of CoNSeP at 20x, its label and its contours as QuPath has them."""
    image = read_rgb(source / "Images" / f"{source_name}.png")[: 2 * SIDE_PX, : 2 * SIDE_PX]
    write_png(folder / "images" / f"{name}.png", cv2.resize(image, (SIDE_PX,) * 2, interpolation=cv2.INTER_AREA), MPP)
    label = scipy.io.loadmat(source / "Labels" / f"{source_name}.mat")
    cut = np.s_[: 2 * SIDE_PX : 2, : 2 * SIDE_PX : 2]
    type_map = np.minimum(label["type_map"][cut], max(key for key in types if key))  # spindle is 5 there, 4 here
    inst_map = np.ascontiguousarray(label["inst_map"][cut], np.int32)
    nuclei = measure(inst_map, type_map)
    content = {"inst_map": inst_map, "type_map": type_map, "inst_uid": nuclei.ids[:, None]}
    content |= {"inst_type": nuclei.types[:, None], "inst_centroid": nuclei.centroids_xy}
    scipy.io.savemat(folder / "labels" / f"{name}.mat", {**content, TYPES_KEY: types_text(types)})
    write_geojson(folder / "annotations" / f"{name}.geojson", nuclei, types)


def write_slide(path: Path, source: Path) -> None:
    """Write a slide of two levels: real tissue, surrounded by glass."""
    with tifffile.TiffFile(source) as file:
        tissue = file.pages[0].asarray()[800 : 800 + TISSUE_PX, 900 : 900 + TISSUE_PX]
    image = cv2.copyMakeBorder(tissue, *[GLASS_PX] * 4, cv2.BORDER_CONSTANT, value=(GLASS, GLASS, GLASS))
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for factor in (1, 4):
            level = cv2.resize(image, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
            per_cm = 1e4 / (MPP * factor)
            file.write(level, subfiletype=int(factor > 1), resolution=(per_cm, per_cm), metadata=None, **options)


def write_region(path: Path, name: str, box_xyxy: tuple[int, int, int, int]) -> None:
    """Write a rectangle of a class as QuPath exports it; corners in px of level 0."""
    left, top, right, bottom = box_xyxy
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {"objectType": "annotation", "classification": {"name": name}}
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def write_png(path: Path, image: np.ndarray, mpp: float) -> None:
    """Write an image that says its pixel size."""
    Image.fromarray(image).save(path, dpi=(INCH_UM / mpp,) * 2)
