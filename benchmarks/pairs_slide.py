"""Run a whole slide with the original and with ours: seconds, memory, bytes of cache, and shared nuclei.

Each runs in its own process, one after the other, so that memory can be measured separately.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .pairs import SHIPPED, Pair, channels_scaled
from .slide_memory import family_rss, folder_size
from .upstream import RUN_ARGS, Upstream

# Distance from the edge of the original's prediction, px: nuclei nearer to it may be cut off in its result.
EDGE_PX = 64
MATCH_IOU = 0.5
POLL_S = 0.05


@dataclass(frozen=True)
class Run:
    """Cost of a run: seconds, peak memory of its processes together, and peak size of its cache, bytes."""

    seconds: float
    peak: int
    cache: int


def slide(upstream: Upstream, path: Path, device: str, mag: float) -> Iterator[Pair]:
    """Segment a slide with the shipped weights at `mag`."""
    from models.hovernet.checkpoint import load_checkpoint, save_weights

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        (root / "in" / path.name).symlink_to(path.resolve())
        save_weights(root / "net.tar", load_checkpoint(SHIPPED).state_dict)  # without `meta`
        theirs = measured(run_theirs, root, upstream.folder, device, mag)
        ours = measured(run_ours, root, upstream.folder, device, mag)
        # the original writes to json/ only if it also writes thumbnails or masks
        files = (next((root / side).rglob(f"{path.stem}.json")) for side in ("theirs", "ours"))
        nuclei = [json.loads(file.read_text())["nuc"] for file in files]
    found, inner, missed = compare(*nuclei)
    remark = (
        f"{found} of {inner} of theirs away from the edges are ours; {missed} more of ours at the edges; peak RSS "
        f"{theirs.peak / 1e9:.2f} and {ours.peak / 1e9:.2f} GB; cache {theirs.cache / 1e6:.0f} and "
        f"{ours.cache / 1e6:.1f} MB"
    )
    yield Pair(f"slide run, {path.name}, {mag:g}x", theirs.seconds, ours.seconds, found >= 0.995 * inner, remark)


def measured(function, root: Path, folder: Path, device: str, mag: float) -> Run:
    """Run a function in a process, and watch it, its helpers and its cache folder."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_report, args=(queue, function, root, folder, device, mag))
    peak = cache = 0
    process.start()
    while process.is_alive():
        peak = max(peak, sum(family_rss(process.pid)))
        cache = max(cache, folder_size(root / "cache"))
        process.join(POLL_S)
    if process.exitcode:
        raise SystemExit(f"{function.__name__} ended with {process.exitcode}")
    return Run(queue.get(), peak, cache)


def _report(queue, function, *arguments) -> None:
    start = time.perf_counter()
    function(*arguments)
    queue.put(time.perf_counter() - start)


def run_ours(root: Path, _: Path, device: str, mag: float) -> None:
    """Segment the slides in `root/in`."""
    from infer.wsi import InferManager

    manager = InferManager({"model_path": root / "net.tar"}, gpu="" if device == "cpu" else "0")
    options = {"input_dir": root / "in", "output_dir": root / "ours", "cache_path": root / "cache"}
    workers = {"nr_inference_workers": 2, "nr_post_proc_workers": 1}
    if manager.process_wsi_list({**options, **workers, "proc_mag": mag, "batch_size": 4}).exit_code:
        raise SystemExit(1)


def run_theirs(root: Path, folder: Path, device: str, mag: float) -> None:
    """Segment the same slides with the original; its processes become threads, since they could not import it."""
    from multiprocessing.pool import ThreadPool

    from models.hovernet.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(SHIPPED)
    upstream = Upstream(folder, device)
    for name in ("theirs", "cache"):
        (root / name).mkdir(exist_ok=True)
    module = upstream.load("infer.wsi")
    module.Pool = ThreadPool
    method = {"model_path": str(root / "net.tar"), "model_args": {"nr_types": None, "mode": checkpoint.mode}}
    run_args = {
        **RUN_ARGS,
        "input_dir": str(root / "in"),
        "output_dir": str(root / "theirs"),
        "input_mask_dir": "",
        "cache_path": str(root / "cache"),
        "proc_mag": mag,
        "ambiguous_size": 128,
        "chunk_shape": 10000,
        "tile_shape": 2048,
        "save_thumb": False,
        "save_mask": False,
    }
    os.chdir(root)  # it writes its log there
    with upstream.active(), channels_scaled(upstream, checkpoint.width):
        manager = module.InferManager(type_info_path=None, method=method)
        manager.process_wsi_list(run_args)


def compare(theirs: dict, ours: dict) -> tuple[int, int, int]:
    """Compare nuclei by IoU.

    Returns:
        Number of their nuclei away from the edges that are ours too, number of all theirs away from the edges, and
        number of ours beyond the area with nuclei of theirs.
    """
    from metrics.stats_utils import get_fast_pq, remap_label

    if not theirs:
        return 0, 0, 0
    points = np.concatenate([np.array(nucleus["contour"]) for nucleus in theirs.values()])
    low, high = points.min(axis=0), points.max(axis=0)
    everything = np.concatenate([points, *(np.array(nucleus["contour"]) for nucleus in ours.values())])
    shape = tuple((everything.max(axis=0) + 1)[::-1].tolist())

    def is_inner(nucleus: dict) -> bool:
        xy = np.array(nucleus["contour"])
        return bool((xy >= low + EDGE_PX).all() and (xy <= high - EDGE_PX).all())

    inner = {key: nucleus for key, nucleus in theirs.items() if is_inner(nucleus)}
    centres = np.array([nucleus["centroid"] for nucleus in ours.values()]).reshape(-1, 2)
    beyond = ((centres < low) | (centres > high)).any(axis=1)
    if not inner or not ours:
        return 0, len(inner), int(beyond.sum())
    true, pred = (remap_label(_painted(nuclei, shape)) for nuclei in (inner, ours))
    paired = get_fast_pq(true, pred, match_iou=MATCH_IOU)[1][0]
    return len(paired), int(true.max()), int(beyond.sum())


def _painted(nuclei: dict, shape: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    for index, nucleus in enumerate(nuclei.values(), 1):
        cv2.fillPoly(labels, [np.array(nucleus["contour"], np.int32)], index)
    return labels
