"""Time the scores of a made-up DAB slide: 100,000 x 100,000 px, a million nuclei, 50 regions.

It times the parts from nuclei in memory to numbers: stains, DAB of each nucleus in one pass over the slide, classes,
scores of each region, hot spots in all regions. The number of positive nuclei is known, and checked.

Usage:
  ihc_scores.py [options]

Options:
  -h --help          Show this text.
  --nuclei=<n>       Approximate number of nuclei. [default: 1000000]
  --side=<px>        Side of the slide. [default: 100000]
  --regions=<n>      Number of regions. [default: 50]
  --shape=<name>     Shape of hot spots: square or circle. [default: square]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import shapely
from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
MPP = 0.25
RADIUS_PX, NR_POINTS = 9, 24
# Nuclei along a side of a tile; one in `EACH` is positive.
A_SIDE, EACH = 13, 3
GROUND, BLUE, BROWN = (225, 225, 222), (120, 135, 190), (120, 80, 45)


def main() -> int:
    args = docopt(__doc__)
    sys.path[:0] = [str(ROOT)]
    from benchmarks.pyramid import TILE_PX, write_pyramid

    side, wanted = int(args["--side"]), int(args["--nuclei"])
    centres = np.rint((np.argwhere(np.ones((A_SIDE, A_SIDE)))[:, ::-1] + 0.5) * TILE_PX / A_SIDE).astype(np.int32)
    tile = np.full((TILE_PX, TILE_PX, 3), GROUND, np.uint8)
    for i, centre in enumerate(centres.tolist()):
        cv2.circle(tile, centre, RADIUS_PX + 1, BLUE if i % EACH else BROWN, -1)
    share = wanted / len(centres) * TILE_PX**2 / side**2
    with tempfile.TemporaryDirectory() as folder:
        slide = write_pyramid(Path(folder) / "made_up.tif", (side, side), share, MPP, pattern=tile)
        nuclei = place_nuclei(slide.tissue, side, centres)
        score_slide(slide.path, nuclei, int(args["--regions"]), args["--shape"], len(range(0, len(centres), EACH)))
    return 0


def place_nuclei(tissue: np.ndarray, side: int, centres: np.ndarray):
    """Outline the nuclei of all tiles of tissue that lie fully on the slide."""
    from benchmarks.pyramid import TILE_PX, block_px
    from misc.nuclei import Nuclei

    tiles = block_px((side, side))[0] // TILE_PX
    places = np.argwhere(np.kron(tissue, np.ones((tiles, tiles), bool)))[:, ::-1] * TILE_PX
    places = places[(places + TILE_PX <= side).all(axis=1)]
    xy = (places[:, None] + centres).reshape(-1, 2).astype(np.int32)
    angle = np.linspace(0, 2 * np.pi, NR_POINTS, endpoint=False)
    ring = np.rint(RADIUS_PX * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.int32)
    low, high = xy[:, ::-1] - RADIUS_PX, xy[:, ::-1] + RADIUS_PX + 1
    return Nuclei(
        ids=np.arange(1, len(xy) + 1),
        boxes_yx=np.stack([low, high], axis=1),
        centroids_xy=xy.astype(np.float64),
        points_xy=(xy[:, None] + ring).reshape(-1, 2),
        offsets=np.arange(len(xy) + 1, dtype=np.int64) * NR_POINTS,
    )


def score_slide(path: Path, nuclei, nr_regions: int, shape: str, positive_a_tile: int) -> None:
    """Score a slide as `run_ihc.py` does, and print the time of each step."""
    from misc.ihc.dab.hot_spots import find_hot_spots
    from misc.ihc.dab.slide import tissue_region
    from misc.ihc.markers import marker
    from misc.ihc.measure import measure
    from misc.ihc.scores import classify, score_marker
    from misc.ihc.stain_estimate import estimate_stains, tissue_sample
    from misc.slides.image import open_image

    ki67, image, clock = marker("ki67", shape=shape, min_tissue=0.7), open_image(path), Clock()
    model = estimate_stains(tissue_sample(image))
    clock.say(f"stains: {model.words()} {'; '.join(model.warnings)}")
    found = measure(nuclei, image.read, (image.height, image.width), model, MPP)
    clock.say(f"DAB of {len(nuclei)} nuclei")
    ground = found.ground()
    classes = classify(found.dab_median, [t + ground for t in ki67.thresholds])
    xy = nuclei.centroids_xy
    corners = np.random.default_rng(0).uniform(0, 0.8, (nr_regions, 2)) * image.width
    regions = [((xy >= corner) & (xy < corner + image.width / 5)).all(axis=1) for corner in corners]
    scores = [score_marker(classes, ki67, inside) for inside in [None, *regions]]
    clock.say(f"classes, and scores of {nr_regions} regions")
    tissue = shapely.transform(tissue_region(image, (MPP, MPP), xy).area, lambda xy: (xy + 0.5) * MPP)
    clock.say("tissue")
    spots = find_hot_spots(xy * MPP, classes, np.any(regions, axis=0), ki67, tissue)
    clock.say(f"{len(spots)} hot spots, the first {spots[0].score.index:.1%} of {spots[0].score.measured}")
    whole = scores[0].score
    expected = len(nuclei) // A_SIDE**2 * positive_a_tile
    if whole.measured != len(nuclei) or whole.measured - whole.counts[1] != expected:
        raise SystemExit(f"{expected} of {len(nuclei)} nuclei are positive, found {whole.counts}")
    clock.total()


class Clock:
    """Prints the time of each step."""

    def __init__(self):
        self.start = self.last = time.perf_counter(), time.process_time()

    def say(self, what: str) -> None:
        now = time.perf_counter(), time.process_time()
        print(f"{now[0] - self.last[0]:6.1f} s {now[1] - self.last[1]:6.1f} CPU s  {what}", flush=True)
        self.last = now

    def total(self) -> None:
        self.last = self.start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.say(f"total, peak RSS {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
