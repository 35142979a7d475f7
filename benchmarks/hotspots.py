"""Time `plot_heat_map.py` on a made-up slide: a million nuclei on 100,000 x 100,000 px, from JSON file to hot spots.

Usage:
  hotspots.py [--nuclei=<n>] [--side=<px>]
  hotspots.py (-h | --help)

Options:
  -h --help       Show this text.
  --nuclei=<n>    Number of nuclei. [default: 1000000]
  --side=<px>     Side of the slide. [default: 100000]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PART = 50_000  # nuclei made at once
RADIUS_PX = 9
NR_POINTS = 24


def main() -> int:
    args = docopt(__doc__)
    from misc.formats.nuclei_json import write_json

    count, side = int(args["--nuclei"]), int(args["--side"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "json").mkdir()
        slide = {"name": "made_up.svs", "width": side, "height": side, "scale": 1.0, "mpp": 0.25}
        write_json(root / "json" / "made_up.json", made_up(count, side), mag=40, header={"slide": slide, "mpp": 0.25})
        size = (root / "json" / "made_up.json").stat().st_size
        command = [sys.executable, ROOT / "plot_heat_map.py", f"--json_dir={root / 'json'}", f"--output_dir={root}"]
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if ended.returncode:
        print(ended.stderr, file=sys.stderr)
        return 1
    print(
        f"{count} nuclei on {side} x {side} px ({size / 1e6:.0f} MB of JSON): {seconds:.1f} s, "
        f"peak RSS {peak / 1e6:.0f} MB"
    )
    return 0


def made_up(count: int, side: int) -> Iterator:
    """Yield round nuclei of types 1 to 4 at random places, `PART` at a time."""
    from misc.nuclei import Nuclei

    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, NR_POINTS, endpoint=False)
    ring = np.rint(RADIUS_PX * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.int32)
    for start in range(0, count, PART):
        number = min(PART, count - start)
        xy = rng.integers(RADIUS_PX, side - RADIUS_PX, (number, 2))
        low, high = xy[:, ::-1] - RADIUS_PX, xy[:, ::-1] + RADIUS_PX + 1
        yield Nuclei(
            ids=np.arange(start + 1, start + number + 1),
            boxes_yx=np.stack([low, high], axis=1).astype(np.int32),
            centroids_xy=xy.astype(np.float64),
            points_xy=(xy[:, None] + ring).reshape(-1, 2).astype(np.int32),
            offsets=np.arange(number + 1, dtype=np.int64) * NR_POINTS,
            types=rng.integers(1, 5, number).astype(np.int32),
            type_prob=np.ones(number),
        )


if __name__ == "__main__":
    sys.exit(main())
