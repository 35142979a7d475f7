"""The viewer with a million nuclei or more: seconds to open a slide, milliseconds per tile, and memory.

The slide and the nuclei in its tissue are made up. The server is a process of its own, with requests over HTTP as from
a browser. Tiles lie at random places of the tissue: tiles of the slide are requested six at a time as browsers do,
outlines and density one at a time.

Usage:
  viewer.py [options]

Options:
  -h --help          Show this text.
  --nuclei=<list>    Numbers of nuclei, comma-separated. [default: 1000000]
  --side=<px>        Side of the slide. [default: 50000]
  --tiles=<n>        Number of tiles of each kind. [default: 300]
  --work_dir=<path>  Folder for slides and results, which are removed at the end. Left out: a temporary folder.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
# Number of different shapes of nuclei; made-up slides repeat them.
PIECE = 50_000
AT_ONCE = 6
TYPES = {1: ("neoplastic", (230, 30, 30)), 2: ("inflammatory", (0, 158, 115)), 3: ("connective", (0, 90, 220))}


def main() -> int:
    args = docopt(__doc__)
    sys.path[:0] = [str(ROOT)]
    folder = Path(args["--work_dir"] or tempfile.mkdtemp(prefix="viewer_"))
    print(f"{'':49}{'outlines ms':>16} {'density ms':>16} {'slide ms':>16}  CPU ms  RSS MB")
    print("  nuclei  JSON MB  index s  index MB  open s " + 3 * "  median    95 % " + "  a tile    peak")
    for count in (int(text) for text in args["--nuclei"].split(",")):
        place = folder / str(count)
        place.mkdir(parents=True)
        print(one_slide(place, count, int(args["--side"]), int(args["--tiles"])), flush=True)
        shutil.rmtree(place)
    return 0


def one_slide(place: Path, count: int, side: int, tiles: int) -> str:
    """Make a slide, open it in the viewer, and return the row of the table."""
    xy = write_slide(place, count, side)
    with serving(place) as (_, port):  # the first request makes the index
        index_s, _ = timed(lambda: ask(port, "/slide/0/info.json"))
    with serving(place) as (process, port):
        open_s, info = timed(lambda: open_slide(port))
        rng = np.random.default_rng(0)
        before = cpu_ms(process)
        times = {kind: ask_tiles(port, kind, info, xy, tiles, rng) for kind in ("nuclei", "density", "tile")}
        cpu = (cpu_ms(process) - before) / sum(map(len, times.values()))
        rss = int(
            next(x for x in Path(f"/proc/{process.pid}/status").read_text().split("\n") if "VmHWM" in x).split()[1]
        )
    json_mb = (place / "json" / "made_up.json").stat().st_size / 1e6
    index_mb = sum(path.stat().st_size for path in (place / "json" / ".viewer").rglob("*") if path.is_file()) / 1e6
    shown = " ".join(f"{np.median(ms):8.1f} {np.quantile(ms, 0.95):7.1f}" for ms in times.values())
    start = f"{count:8} {json_mb:8.0f} {index_s:8.1f} {index_mb:9.0f} {open_s:7.2f}"
    return f"{start} {shown} {cpu:7.1f} {rss / 1024:7.0f}"


def write_slide(place: Path, count: int, side: int) -> np.ndarray:
    """Write `slides/made_up.tif` and `json/made_up.json`; return centres of some nuclei, (M, 2) x, y in px."""
    from benchmarks.pyramid import block_px, write_pyramid
    from misc.formats.nuclei_json import types_to_header, write_json

    for name in ("slides", "json"):
        (place / name).mkdir()
    tissue = write_pyramid(place / "slides" / "made_up.tif", (side, side)).tissue
    blocks, block = np.argwhere(tissue), block_px((side, side))[0]
    rng = np.random.default_rng(0)
    centres = blocks[rng.integers(0, len(blocks), count)] * block + rng.uniform(0, block, (count, 2))
    centres = np.clip(centres[:, ::-1], 20, side - 20).astype(np.int32)
    slide = {"name": "made_up.tif", "width": side, "height": side, "scale": 1.0, "mpp": 0.25, "bounds": None}
    header = {"mpp": 0.25, "slide": slide, "types": types_to_header(TYPES)}
    write_json(place / "json" / "made_up.json", made_up(centres, rng), 40, header)
    return centres[:: max(count // 10_000, 1)]


def made_up(centres: np.ndarray, rng: np.random.Generator) -> Iterator:
    """Yield nuclei in pieces, with contours of about twenty points; pieces have the same shapes at other places."""
    from misc.nuclei import Nuclei

    axes, angles = rng.integers(7, 14, (PIECE, 2)).tolist(), rng.integers(0, 180, PIECE).tolist()
    rings = [cv2.ellipse2Poly((0, 0), *shape, 0, 345, 15) for shape in zip(axes, angles, strict=True)]
    boxes = [[ring.min(axis=0)[::-1], ring.max(axis=0)[::-1] + 1] for ring in rings]
    types, prob = rng.integers(1, len(TYPES) + 1, PIECE).astype(np.int32), rng.uniform(0.4, 1, PIECE)
    shapes = Nuclei.from_contours(range(PIECE), boxes, np.zeros((PIECE, 2)), rings, types=types, type_prob=prob)
    for start in range(0, len(centres), PIECE):
        xy = centres[start : start + PIECE]
        part = shapes.select(slice(0, len(xy)))
        yield replace(
            part,
            ids=part.ids + start + 1,
            boxes_yx=part.boxes_yx + xy[:, None, ::-1],
            centroids_xy=part.centroids_xy + xy,
            points_xy=part.points_xy + np.repeat(xy, np.diff(part.offsets), axis=0),
        )


class serving:  # noqa: N801 (a context manager)
    """Runs the viewer as a process; the block gets the process and its port."""

    def __init__(self, place: Path):
        command = [sys.executable, "view_slides.py", f"--results_dir={place}", f"--wsi_dir={place / 'slides'}"]
        self.process = subprocess.Popen(
            [*command, "--no_browser"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> tuple[subprocess.Popen, int]:
        said = self.process.stdout.readline()
        return self.process, int(said.split("127.0.0.1:")[1].split("/")[0])

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait()


def open_slide(port: int) -> dict:
    """Request what the page needs to show a slide: its facts, and the tiles of the whole view."""
    info = json.loads(ask(port, "/slide/0/info.json"))
    zoom = 2 - info["levels"]
    for kind in ("tile/{}/{}_{}.jpg", "density/0/7/{}/{}_{}.png"):
        for column, row in np.ndindex(2, 2):
            ask(port, f"/slide/0/{kind.format(zoom, column, row)}")
    return info


def ask_tiles(port: int, kind: str, info: dict, xy: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the ms of each tile, at random places and at all zooms that the page requests."""
    lowest = info["outlineZoom"] if kind == "nuclei" else 1 - info["levels"]
    highest = {"nuclei": info["maxZoom"], "density": info["outlineZoom"] - 1, "tile": 0}[kind]
    paths = []
    for zoom, place in zip(rng.integers(lowest, highest + 1, count), xy[rng.integers(0, len(xy), count)], strict=True):
        column, row = (place * 2.0**zoom // info["tile"]).astype(int)
        form = {
            "nuclei": "nuclei/0/prob/{}/{}_{}.png",
            "density": "density/0/7/{}/{}_{}.png",
            "tile": "tile/{}/{}_{}.jpg",
        }
        paths.append(f"/slide/0/{form[kind].format(zoom, column, row)}")
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE if kind == "tile" else 1) as pool:
        return np.array(list(pool.map(lambda path: 1000 * timed(lambda: ask(port, path))[0], paths)))


def ask(port: int, path: str) -> bytes:
    """Return the server's answer to a request; end the script if it is an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {body[:200]!r}")
    return body


def cpu_ms(process: subprocess.Popen) -> float:
    """Return the CPU time of a process so far, ms: unlike wall time, it is valid on a busy machine too."""
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return 1000 * sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def timed(work) -> tuple[float, object]:
    """Return the seconds that a call took, and what it returned."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    sys.exit(main())
