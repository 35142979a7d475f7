"""How busy does slide inference keep a GPU? Simulates cards of a given speed (predicted Mpx/s) on a made-up slide.

The network sleeps as long as the card would compute, and returns maps full of nuclei. So all other parts do real work:
reading, cutting, placing, post-processing, stitching and writing. Work that a GPU would do but the CPU does here
(pixels to float, logits to probabilities) counts as waiting. Each card runs in its own process.

Usage:
  feed.py [options]

Options:
  -h --help          Show this text.
  --mpx=<list>       Cards to simulate, Mpx/s of predicted px, comma-separated. [default: 5,10,20,50]
  --size=<px>        Side of the slide. [default: 16000]
  --tissue=<share>   Share of the slide that is tissue. [default: 0.6]
  --batch_size=<n>   Patches per batch. [default: 64]
  --window=<px>      Side of the patches that the network reads. [default: 256]
  --workers=<n>      As `run_infer.py --nr_post_proc_workers`, limited to this machine as there. [default: 2]
  --readers=<n>      As `run_infer.py --nr_inference_workers`, limited as well. [default: 2]
  --tile_shape=<px>  As `run_infer.py wsi`. [default: 2048]
  --json=<file>      Also write the numbers to this file.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from docopt import docopt
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MODE = "fast"
NAME = "made_up"  # of the slide
MASK_PX = 16  # px of the slide per px of its mask; sides of blocks are multiples of it
POLL_S = 0.2
MIN_PROB = 1e-4  # of a pixel, so that its logit is finite
# key of the numbers, heading, format
COLUMNS = (
    ("mpx_s", "card, Mpx/s", "g"),
    ("busy", "busy", ".1%"),
    ("extra", "px not needed", "+.1%"),
    ("seconds", "s", ".0f"),
    ("nuclei", "nuclei", "d"),
    ("batch", "patches per batch", ".1f"),
    ("rss", "peak RSS, GB", ".2f"),
    ("cpu_network_thread", "CPU s: network's thread", ".1f"),
    ("cpu_other_threads", "other threads", ".1f"),
    ("cpu_workers", "workers", ".1f"),
)


class SimulatedCard(nn.Module):
    """A network that sleeps, and predicts the same nuclei in every patch, as views of one map.

    Args:
        mpx_s: predicted Mpx per second.
        window: side of the patches that it reads, px.

    Attributes:
        batches: number of patches of each batch; batches follow one another.
        began, ended: start and end of each batch, s of `time.perf_counter`.
        cpu: CPU seconds that each calling thread spent outside the network, since its first call.
    """

    def __init__(self, mpx_s: float, window: int):
        from benchmarks.synthetic import periodic_map
        from models.hovernet.net_desc import output_size

        super().__init__()
        self.nr_types, self.output_ch, self.mode = None, 3, MODE
        self.side = output_size(MODE, window)
        self.unused = nn.Parameter(torch.zeros(1))  # has the device of the network
        self.seconds_a_patch = self.side**2 / (mpx_s * 1e6)
        nucleus, *hv = torch.from_numpy(periodic_map(self.side)).permute(2, 0, 1)
        logit = torch.logit(nucleus, eps=MIN_PROB)
        self.maps = {"np": torch.stack([-logit / 2, logit / 2]), "hv": torch.stack(hv)}
        self.batches: list[int] = []
        self.began: list[float] = []
        self.ended: list[float] = []
        self.cpu: dict[int, float] = defaultdict(float)
        self._left: dict[int, float] = {}
        self._lock = threading.Lock()

    def forward(self, imgs):
        thread, cpu = threading.get_ident(), time.thread_time()
        self.cpu[thread] += cpu - self._left.get(thread, cpu)
        with self._lock:
            start = time.perf_counter()
            time.sleep(len(imgs) * self.seconds_a_patch)
            self.batches.append(len(imgs))
            self.began.append(start)
            self.ended.append(time.perf_counter())
        self._left[thread] = time.thread_time()
        return {name: one.expand(len(imgs), -1, -1, -1) for name, one in self.maps.items()}

    def busy(self) -> float:
        """Return the share of time spent computing, from the start of the first batch to the end of the last."""
        return sum(self.batches) * self.seconds_a_patch / (self.ended[-1] - self.began[0])


def main() -> int:
    args = docopt(__doc__)
    rows = []
    print("| " + " | ".join(heading for _, heading, _ in COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    with tempfile.TemporaryDirectory(prefix="feed_") as folder:
        options = prepare(args, Path(folder))
        for mpx_s in (float(text) for text in args["--mpx"].split(",")):
            rows.append(measured(mpx_s, options, Path(folder)))
            print("| " + " | ".join(f"{rows[-1][key]:{form}}" for key, _, form in COLUMNS) + " |", flush=True)
    if args["--json"]:
        Path(args["--json"]).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def prepare(args: dict, folder: Path) -> dict:
    """Write the slide, its mask, and weights for the manager, whose network is replaced later.

    Returns:
        The run's options.
    """
    from benchmarks.pyramid import block_px, write_pyramid
    from models.hovernet.checkpoint import save_weights
    from models.hovernet.net_desc import create_model

    size = int(args["--size"])
    for name in ("in", "masks"):
        (folder / name).mkdir()
    slide = write_pyramid(folder / "in" / f"{NAME}.tif", (size, size), float(args["--tissue"]))
    side = block_px((size, size))[0] // MASK_PX
    mask = np.kron(slide.tissue, np.ones((side, side), np.uint8))[: size // MASK_PX, : size // MASK_PX]
    cv2.imwrite(str(folder / "masks" / f"{NAME}.png"), 255 * mask)
    save_weights(folder / "net.tar", create_model(MODE, width=0.125).state_dict())
    return {
        "input_dir": folder / "in",
        "input_mask_dir": folder / "masks",  # a computed mask would include glass between tissue
        "batch_size": int(args["--batch_size"]),
        "patch_input_shape": int(args["--window"]),
        "nr_post_proc_workers": int(args["--workers"]),
        "nr_inference_workers": int(args["--readers"]),
        "tile_shape": int(args["--tile_shape"]),
    }


def measured(mpx_s: float, options: dict, folder: Path) -> dict[str, float]:
    """Run the slide in its own process, watch its memory, and return the numbers of `COLUMNS`."""
    from benchmarks.slide_memory import family_rss

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=segment, args=(sender, mpx_s, options, folder))
    process.start()
    sender.close()
    peak = 0
    while process.is_alive() and not receiver.poll(POLL_S):
        peak = max(peak, sum(family_rss(process.pid)))
    try:
        numbers = receiver.recv()
    except EOFError:
        numbers = {}
    process.join()
    if process.exitcode:
        raise SystemExit(f"the run ended with {process.exitcode}")
    return {**numbers, "rss": peak / 1e9}


def segment(sender, mpx_s: float, options: dict, folder: Path) -> None:
    """Run slide inference with the simulated card, and send the measurements."""
    from infer import predictor
    from infer.wsi import InferManager

    torch.set_num_threads(1)
    predictor.MAX_CPU_BATCH = options["batch_size"]  # the limit is for networks that compute
    manager = InferManager({"model_path": folder / "net.tar"}, gpu="")
    manager.net = card = SimulatedCard(mpx_s, options["patch_input_shape"])
    start, before = time.perf_counter(), _cpu_seconds()
    report = manager.process_wsi_list({**options, "output_dir": folder / f"out_{mpx_s:g}"})
    seconds, after = time.perf_counter() - start, _cpu_seconds()
    if report.exit_code:
        sys.exit(f"the slide failed: {report.failed}")
    needed, network = patches_needed(options, card.side), sum(card.cpu.values())
    sender.send(
        {
            "mpx_s": mpx_s,
            "busy": card.busy(),
            "extra": sum(card.batches) / needed - 1,
            "seconds": seconds,
            "nuclei": report.found.total(),
            "batch": float(np.mean(card.batches)),
            "cpu_network_thread": network,
            "cpu_other_threads": after[0] - before[0] - network,
            "cpu_workers": after[1] - before[1],
        }
    )


def _cpu_seconds() -> tuple[float, float]:
    """Return the CPU seconds of this process, and of workers that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, children = (one.ru_utime + one.ru_stime for one in used)
    return own, children


def patches_needed(options: dict, side: int) -> int:
    """Return the number of patches with tissue on the slide."""
    from infer.grid import slide_patch_grid
    from misc.slides.handler import get_file_handler
    from misc.slides.tissue import load_mask

    with get_file_handler(options["input_dir"] / f"{NAME}.tif", "openslide") as slide:
        shape_yx = slide.shape_yx
    tissue = load_mask(options["input_mask_dir"] / f"{NAME}.png", shape_yx)
    corners = slide_patch_grid(shape_yx, options["patch_input_shape"], side).output_tl_yx
    return int(tissue.covers(np.hstack([corners, corners + side]), shape_yx).sum())


if __name__ == "__main__":
    sys.exit(main())
