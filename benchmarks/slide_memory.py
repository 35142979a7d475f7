"""Peak memory and cache of a slide run: made-up slides of several sizes, and a stub in place of the network.

It measures everything except the network: reading, batches, maps, post-processing, stitching and writing. Each size
runs in its own process. RSS is read from /proc (Linux), and includes the worker processes.

Usage:
  slide_memory.py [options]

Options:
  -h --help          Show this text.
  --sizes=<list>     Sides of the slides in px, comma-separated. [default: 50000,100000]
  --tissue=<share>   Share of the slide that is tissue. [default: 0.3]
  --workers=<n>      As `run_infer.py --nr_post_proc_workers`, limited to this machine as there. [default: 16]
  --readers=<n>      As `run_infer.py --nr_inference_workers`, limited as well. [default: 8]
  --tile_shape=<px>  As `run_infer.py wsi`. [default: 2048]
  --batch_size=<n>   Patches per batch. [default: 4]
  --work_dir=<path>  Folder for slides and results, which are removed at the end. Left out: a temporary folder.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.2


def main() -> int:
    args = docopt(__doc__)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from benchmarks.pyramid import write_pyramid

    folder = Path(args["--work_dir"] or tempfile.mkdtemp(prefix="slide_memory_"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'px':>8} {'painted':>9} {'found':>9} {'s':>7} {'main GB':>8} {'all GB':>8} {'cache MB':>9} {'json MB':>8}")
    for size in (int(text) for text in args["--sizes"].split(",")):
        place = folder / str(size)
        (place / "in").mkdir(parents=True)
        slide = write_pyramid(place / "in" / "made_up.tif", (size, size), float(args["--tissue"]))
        peak = measure(place, args)
        nuclei = _nr_nuclei(place / "out" / "summary.csv")
        written = (place / "out" / "json" / "made_up.json").stat().st_size
        print(
            f"{size:>8} {slide.nr_nuclei:>9} {nuclei:>9} {peak['seconds']:>7.0f} {peak['main'] / 1e9:>8.2f} "
            f"{peak['all'] / 1e9:>8.2f} {peak['cache'] / 1e6:>9.0f} {written / 1e6:>8.0f}",
            flush=True,
        )
        shutil.rmtree(place)
    if not args["--work_dir"]:
        shutil.rmtree(folder)
    return 0


def measure(place: Path, args: dict) -> dict:
    """Run the slide in a process, watch it, and return the peaks in bytes, and the seconds."""
    process = multiprocessing.get_context("spawn").Process(target=segment, args=(place, args))
    start, peak = time.perf_counter(), {"main": 0, "all": 0, "cache": 0}
    process.start()
    while process.is_alive():
        family = family_rss(process.pid)
        now = {"main": family[0], "all": sum(family), "cache": folder_size(place / "cache")}
        peak = {name: max(peak[name], value) for name, value in now.items()}
        process.join(POLL_S)
    if process.exitcode:
        raise SystemExit(f"the run ended with {process.exitcode}")
    return {**peak, "seconds": time.perf_counter() - start}


def segment(place: Path, args: dict) -> None:
    """Run slide inference with the stub in place of the network."""
    import logging

    import torch
    from stubs import StubNet

    from infer.wsi import InferManager
    from models.hovernet.checkpoint import save_weights
    from models.hovernet.net_desc import create_model

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    save_weights(place / "net.tar", create_model("fast", width=0.125).state_dict())
    manager = InferManager({"model_path": place / "net.tar"}, gpu="")
    manager.net = StubNet()
    options = {name: int(args[f"--{name}"]) for name in ("tile_shape", "batch_size")}
    workers = {"nr_post_proc_workers": int(args["--workers"]), "nr_inference_workers": int(args["--readers"])}
    places = {"input_dir": place / "in", "output_dir": place / "out", "cache_path": place / "cache"}
    sys.exit(manager.process_wsi_list({**places, **options, **workers}).exit_code)


def _nr_nuclei(summary: Path) -> int:
    import csv

    with open(summary, newline="", encoding="utf-8") as handle:
        return int(next(csv.DictReader(handle))["nuclei"])


def family_rss(pid: int) -> list[int]:
    """Return the RSS of a process and of all its descendants, bytes; its own comes first."""
    return [_rss(member) for member in _family(pid)]


def folder_size(folder: Path) -> int:
    """Return the bytes of the files in a folder, which may change meanwhile."""
    return sum(size for path in folder.rglob("*") if (size := _size(path)))


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [member for child in task.read_text().split() for member in _family(int(child))]
        except OSError:  # the thread has ended
            continue
    return found


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
