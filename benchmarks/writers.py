"""Seconds and memory of writing nuclei in each format of `convert_format.py`, from a JSON of made-up nuclei.

Each format is written by its own process. CPU seconds are of all its threads and processes. RSS is read from /proc
(Linux), and includes its processes. The last row is only reading the JSON.

Usage:
  writers.py [options]

Options:
  -h --help          Show this text.
  --nuclei=<n>       Number of nuclei. [default: 2000000]
  --formats=<list>   As `convert_format.py --to`, comma-separated. [default: csv,parquet,h5ad,spatialdata,geojson]
  --work_dir=<path>  Folder for the files; the JSON is kept and used again. Left out: a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.1
# Side of a square of made-up tissue, which is repeated: 700 nuclei with outlines of 30 points (real ones at 40x have 30
# to 45).
SQUARE_PX = 1000
HEADER = {"mpp": 0.25, "types": {"1": ["tumour", [255, 0, 0]], "2": ["stroma", [0, 255, 0]]}}
READ = "import sys; from misc.formats.nuclei_json import iter_json; print(sum(map(len, iter_json(sys.argv[1]))))"


def main() -> int:
    args = docopt(__doc__)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="writers_") as temporary:
        folder = Path(args["--work_dir"] or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / f"n{args['--nuclei']}.json"
        if not source.exists():
            write_source(source, int(args["--nuclei"]))
        print(f"reading {source.stat().st_size / 1e6:.0f} MB")
        print(f"{'format':<12} {'wall s':>7} {'CPU s':>7} {'RSS MB':>7} {'file MB':>8}")
        script = [sys.executable, str(ROOT / "convert_format.py"), "--overwrite", f"--input={source}"]
        for name in args["--formats"].split(","):
            out = folder / name
            report(name, [*script, f"--output_dir={out}", f"--to={name}"], out)
        report("(reading)", [sys.executable, "-c", READ, str(source)], folder / "nothing")
    return 0


def write_source(path: Path, count: int) -> None:
    """Write a JSON of `count` nuclei."""
    from misc.formats.nuclei_json import write_json

    print(f"{write_json(path, squares(count), 40, HEADER)} nuclei in {path}", flush=True)


def squares(count: int) -> Iterator:
    """Yield `count` nuclei, a square of tissue at a time, row by row as in a slide's bands."""
    from dataclasses import replace

    import numpy as np

    from benchmarks.synthetic import nuclei_labels
    from models.hovernet.post_proc import measure

    label = nuclei_labels(SQUARE_PX)
    square = measure(label, label % 2 + 1)
    per_row = int(np.ceil(np.sqrt(count / len(square))))
    for start in range(0, count, len(square)):
        row, column = divmod(start // len(square), per_row)
        part = square.select(slice(0, min(len(square), count - start))).shift(row * SQUARE_PX, column * SQUARE_PX)
        yield replace(part, ids=np.arange(start, start + len(part)) + 1)


def report(name: str, command: list[str], out: Path) -> None:
    """Run a command, and print its time, memory and file size."""
    from benchmarks.slide_memory import family_rss, folder_size

    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    before = os.times()
    while process.poll() is None:
        peak = max(peak, sum(family_rss(process.pid)))
        time.sleep(POLL_S)
    after, wall = os.times(), time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{name}: ended with {process.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{name:<12} {wall:>7.1f} {cpu:>7.1f} {peak / 1e6:>7.0f} {folder_size(out) / 1e6:>8.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
