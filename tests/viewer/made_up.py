"""What tests of the viewer share: nuclei at random places, and a slide with results of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from misc.formats.nuclei_json import types_to_header, write_json
from misc.nuclei import Nuclei
from misc.slides.images import read_image
from models.hovernet.post_proc import measure

TYPES = {1: ("round", (230, 30, 30)), 2: ("flat", (0, 90, 220))}
CMU = "CMU-1-Small-Region"


def random_nuclei(count: int, size: int, seed: int = 0, radius: int = 9) -> Nuclei:
    """Return ellipses, some over the edges of cells and tiles, of two types."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(2 * radius, size - 2 * radius, (count, 2))
    axes = rng.integers(3, radius, (count, 2))
    angles = rng.integers(0, 180, count)
    draw = zip(centres.tolist(), axes.tolist(), angles.tolist(), strict=True)
    rings = [cv2.ellipse2Poly(xy, ab, angle, 0, 345, 15).astype(np.int32) for xy, ab, angle in draw]
    boxes = [[ring.min(axis=0)[::-1], ring.max(axis=0)[::-1] + 1] for ring in rings]
    types = rng.integers(1, 3, count).astype(np.int32)
    ids = rng.permutation(10 * count)[:count] + 1
    return Nuclei.from_contours(ids, boxes, centres + 0.25, rings, types=types, type_prob=rng.uniform(0, 1, count))


def write_results(folder: Path, stem: str, nuclei: Nuclei, **slide) -> Path:
    """Write the JSON file of a slide as a run does."""
    path = folder / "json" / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"mpp": 0.5, "types": types_to_header(TYPES), "slide": {"scale": 1.0, "bounds": None, **slide}}
    write_json(path, nuclei, 20, header)
    return path


def dark_nuclei(image_path: Path) -> Nuclei:
    """Return the dark spots of a slide that reads as a picture: where its nuclei are, without a network."""
    grey = cv2.GaussianBlur(cv2.cvtColor(read_image(image_path), cv2.COLOR_RGB2GRAY), (0, 0), 2)
    labels = cv2.connectedComponents((grey < 90).astype(np.uint8))[1]
    found = measure(labels)
    areas = np.bincount(labels.ravel())[found.ids]
    found = found.select((areas > 40) & (areas < 900))
    height, width = np.diff(found.boxes_yx, axis=1)[:, 0].T
    types = np.where(np.maximum(height, width) > 1.6 * np.minimum(height, width), 2, 1).astype(np.int32)
    prob = np.random.default_rng(0).uniform(0.3, 1, len(found))
    return Nuclei(found.ids, found.boxes_yx, found.centroids_xy, found.points_xy, found.offsets, types, prob)
