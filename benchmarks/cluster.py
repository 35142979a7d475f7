"""Measure the overhead of a slide that Dask distributes, and time and memory of the scheduler with many tasks.

Usage:
  cluster.py slides [--count=<n>] [--workers=<n>] [--folder=<path>]
  cluster.py tasks [--count=<n>]

Commands:
  slides  tiny slides (200 x 260 px, 4 patches) and an eighth-width network: nearly all time is overhead
  tasks   tasks that do nothing: time and memory of the scheduler's process

Options:
  --count=<n>      Slides or tasks. [default: 200]
  --workers=<n>    Workers on this machine. [default: 1]
  --folder=<path>  Folder for slides and results; replaced if it exists. [default: cluster_benchmark]
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import tifffile
from docopt import docopt

from misc import cluster
from misc.shard import ASKED, ENDED, Shard

ROOT = Path(__file__).resolve().parents[1]
MB = 2**20
# Answers each shard as `run_infer.py wsi --shard=-` does, without any work.
ANSWER = f"import sys\nfor line in sys.stdin: print({ENDED!r}.format(shard=line.strip(), code=0), flush=True)"


def main() -> None:
    args = docopt(__doc__)
    count = int(args["--count"])
    if args["tasks"]:
        time_tasks(count)
    else:
        time_slides(count, int(args["--workers"]), Path(args["--folder"]))


def time_slides(count: int, workers: int, folder: Path) -> None:
    """Print CPU and wall seconds per slide, without the start of Dask and of the workers' processes."""
    import torch

    from models.hovernet.checkpoint import save_weights
    from models.hovernet.net_desc import create_model

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    torch.manual_seed(1)
    save_weights(folder / "net.tar", create_model("fast", width=0.125).state_dict(), {"mpp": 0.5})
    for index in range(count):
        write_slide(folder / "in" / f"{index:05d}.tif", index)
    few = folder / "few.csv"  # one slide per worker: little more than the start
    few.write_text("path\n" + "".join(f"in/{index:05d}.tif\n" for index in range(workers)))
    start_cpu, start_s = run(folder, f"--slides={few}", "few", workers)
    cpu, seconds = run(folder, f"--input_dir={folder / 'in'}", "all", workers)
    more = count - workers
    print(f"start: {start_cpu:.1f} CPU-s, {start_s:.1f} s, {workers} slides in it")
    print(f"{count} slides, {workers} workers: {cpu:.1f} CPU-s, {seconds:.1f} s")
    print(
        f"each further slide: {(cpu - start_cpu) / more:.3f} CPU-s, {(seconds - start_s) / more * workers:.3f} s of a "
        "worker"
    )


def write_slide(path: Path, seed: int) -> None:
    """Write a slide of 0.5 um/px with a dark square on glass."""
    image = np.full((200, 260, 3), 245, np.uint8)
    image[30:170, 40:220] = np.random.default_rng(seed).integers(60, 200, (140, 180, 3))
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 128), resolution=(2e4, 2e4), resolutionunit=3)


def run(folder: Path, what: str, out: str, workers: int) -> tuple[float, float]:
    """Return CPU seconds of a run and all its processes, and the seconds it took."""
    command = [
        sys.executable,
        str(ROOT / "run_infer.py"),
        "--gpu=",
        "--no_report",
        f"--model_path={folder / 'net.tar'}",
    ]
    command += ["wsi", what, f"--output_dir={folder / out}", "--cluster=local", f"--nr_workers={workers}"]
    before, start = children_cpu(), time.perf_counter()
    subprocess.run(command, check=True)
    return children_cpu() - before, time.perf_counter() - start


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_tasks(count: int) -> None:
    """Print, now and then, the time so far, and the memory of this process, which runs the scheduler."""
    shards = {str(index): Shard(index, count) for index in range(count)}
    command, start = [sys.executable, "-c", ANSWER, f"--shard={ASKED}"], time.perf_counter()
    logs = Path("cluster_benchmark_logs")
    logs.mkdir(exist_ok=True)
    try:
        for done, (name, reason) in enumerate(cluster._run(command, shards, logs, cluster.LOCAL, 1, []), 1):
            if reason:
                raise RuntimeError(f"{name}: {reason}")
            if done == 1:
                print(f"first after {time.perf_counter() - start:.1f} s")
            if done == 100 or done % max(count // 4, 1) == 0:
                me, seconds = psutil.Process(), time.perf_counter() - start
                cpu, memory = sum(me.cpu_times()[:2]), me.memory_info().rss / MB
                print(f"{done} tasks: {seconds:.1f} s, {cpu:.1f} CPU-s, {memory:.0f} MB")
    finally:
        shutil.rmtree(logs)


if __name__ == "__main__":
    main()
