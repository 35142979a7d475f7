"""A step of gpu.py: a made-up slide from end to end, with a network of full width.

The network computes, but its maps are replaced by maps full of nuclei, since random weights would find none.

Usage: gpu_slide.py <rows> [--rehearse]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.gpu_common import NR_TYPES, Step, seeded_net

MODE, WINDOW = "fast", 256
TISSUE = 0.3  # share of the slide
SLIDE_MPP = 0.25
RUNS = ((0.25, "auto"), (0.5, "auto"), (0.25, "bf16"), (0.5, "bf16"))  # um/px that the network reads, precision
TYPE_LOGIT = 10.0
POLL_S = 0.5


def main() -> None:
    from benchmarks.pyramid import NUCLEI_A_SIDE, TILE_PX, write_pyramid

    step = Step(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        root, side = Path(folder), step.size.slide_px
        (root / "in").mkdir()
        slide = write_pyramid(root / "in" / "made_up.tif", (side, side), TISSUE, SLIDE_MPP)
        mm2 = slide.nr_nuclei * (TILE_PX / NUCLEI_A_SIDE * SLIDE_MPP / 1000) ** 2
        for mpp, precision in RUNS[::3] if step.rehearse else RUNS:
            name = {"network, um/px": mpp, "precision": precision}
            step.row(name, lambda m=mpp, p=precision: run(step, root, m, p, mm2))


class Painted(nn.Module):
    """A timed network whose maps are replaced by maps full of nuclei.

    Attributes:
        marks: (start, end) of each batch: events of the GPU, or seconds.
    """

    def __init__(self, net: nn.Module, window: int, device: torch.device):
        from benchmarks.synthetic import periodic_map
        from models.hovernet.net_desc import output_size

        super().__init__()
        self.net, self.device = net, device
        self.nr_types, self.output_ch, self.mode = net.nr_types, net.output_ch, net.mode
        nucleus, *hv = torch.from_numpy(periodic_map(output_size(net.mode, window))).permute(2, 0, 1)
        logit = torch.logit(nucleus, eps=1e-4)
        types = torch.zeros(net.nr_types, *nucleus.shape)
        types[0], types[1] = TYPE_LOGIT * (nucleus < 0.5), TYPE_LOGIT * (nucleus >= 0.5)
        for name, one in (("tp", types), ("np", torch.stack([-logit / 2, logit / 2])), ("hv", torch.stack(hv))):
            self.register_buffer(name, one, persistent=False)
        self.marks: list[tuple] = []

    def forward(self, imgs):
        start = self._now()
        self.net(imgs)
        self.marks.append((start, self._now()))
        return {name: getattr(self, name).expand(len(imgs), -1, -1, -1) for name in ("tp", "np", "hv")}

    def busy(self) -> float:
        """Return the share of time in which the network computed, from the first batch to the end of the last."""
        return sum(self._between(*mark) for mark in self.marks) / self._between(self.marks[0][0], self.marks[-1][1])

    def _now(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start, end) -> float:
        return start.elapsed_time(end) if self.device.type == "cuda" else end - start


class Watch:
    """Measures memory, and the use of the GPU if there is one, while a block runs."""

    def __enter__(self) -> Watch:
        self.rss, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        self._smi = None
        if shutil.which("nvidia-smi"):
            query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
            self._smi = subprocess.Popen(["nvidia-smi", "-i", "0", *query], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        lines = []
        if self._smi:
            self._smi.terminate()
            lines = self._smi.communicate()[0].splitlines()
        samples = [tuple(map(float, line.split(","))) for line in lines if line.count(",") == 1]
        self.utilization = sum(use for use, _ in samples) / len(samples) / 100 if samples else None
        self.gpu_gb = max(used for _, used in samples) * 2**20 / 1e9 if samples else None

    def _poll(self) -> None:
        from benchmarks.slide_memory import family_rss

        while not self._stop.wait(POLL_S):
            self.rss = max(self.rss, sum(family_rss(os.getpid())))


def run(step: Step, root: Path, mpp: float, precision: str, mm2: float) -> dict:
    """Segment the slide with `mm2` of tissue, and return time, memory and nuclei."""
    from infer.wsi import InferManager
    from models.hovernet.checkpoint import save_weights
    from models.hovernet.net_desc import create_model

    weights = create_model(MODE, nr_types=NR_TYPES, width=0.125).state_dict()  # replaced below
    save_weights(root / "net.tar", weights, {} if mpp == SLIDE_MPP else {"mpp": mpp})
    manager = InferManager({"model_path": root / "net.tar"}, gpu=step.gpu, precision=precision)
    net = seeded_net(MODE, NR_TYPES, step.size.width, step.device)
    manager.net = painted = Painted(net, WINDOW, step.device)
    out, start = root / f"out_{mpp}_{precision}", time.perf_counter()
    with Watch() as watch:
        options = {"input_dir": root / "in", "output_dir": out, "patch_input_shape": WINDOW}
        report = manager.process_wsi_list(options)
    seconds = time.perf_counter() - start
    step.wait()
    shutil.rmtree(out)
    if report.failed:
        raise ValueError(str(report.failed))
    return {
        "s": seconds,
        "s/mm2 of tissue": seconds / mm2,
        "network busy": painted.busy(),
        "GPU in use": watch.utilization,
        "nuclei": report.found.total(),
        "GPU memory, GB": watch.gpu_gb,
        "RSS, GB": watch.rss / 1e9,
    }


if __name__ == "__main__":
    main()
