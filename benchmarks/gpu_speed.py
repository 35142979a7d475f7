"""A step of gpu.py: speed of the networks. The most important rows come first, in case time runs out.

Usage: gpu_speed.py <rows> [--rehearse]
"""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np
import torch

from benchmarks.gpu_common import NR_TYPES, PRECISIONS, Step, as_input, computing_in, patches, seeded_net

# Windows in px; `original` needs 8n + 6.
WINDOWS = {"fast": (256, 600, 1024), "original": (270, 598, 1022)}
COMPILED = (("fast", 256, "bf16"), ("fast", 256, "tf32"), ("fast", 600, "bf16"))
WARM_UPS = 3


def main() -> None:
    step = Step(sys.argv[1:])
    nets = {mode: seeded_net(mode, NR_TYPES, step.size.width, step.device) for mode in WINDOWS}
    # fp16 on a CPU that lacks it takes minutes
    precisions = PRECISIONS[:-1] if step.rehearse else PRECISIONS
    for index in range(1 if step.rehearse else len(WINDOWS["fast"])):
        for mode, precision, last in itertools.product(WINDOWS, precisions, (True, False)):
            plain(step, nets[mode], mode, WINDOWS[mode][index], precision, last)
    for mode, window, precision in COMPILED[:1] if step.rehearse else COMPILED:
        compiled(step, nets[mode], mode, window, precision)


def named(mode: str, window: int, precision: str, last: bool, compiled: bool) -> dict:
    """Return the columns that describe a measurement."""
    layout = "channels last" if last else "channels first"
    return {"mode": mode, "window": window, "precision": precision, "layout": layout, "compiled": compiled}


def plain(step: Step, net, mode: str, window: int, precision: str, last: bool) -> None:
    """Add the row of a network that is not compiled."""
    layout = torch.channels_last if last else torch.contiguous_format
    name = named(mode, window, precision, last, False)
    step.row(name, lambda: speed(step, net.to(memory_format=layout), mode, window, precision, layout))


def compiled(step: Step, net, mode: str, window: int, precision: str) -> None:
    """Add the row of a compiled network, with the time of compiling, s."""

    def measure() -> dict:
        # a rehearsal only traces the network
        backend, start = "eager" if step.rehearse else "inductor", time.perf_counter()
        model = torch.compile(net.to(memory_format=torch.channels_last), backend=backend)
        with computing_in(precision, step.device):
            model(batch(step, window, torch.channels_last))
            step.wait()
        seconds = time.perf_counter() - start
        values = speed(step, model, mode, window, precision, torch.channels_last)
        return {**values, "compiling, s": round(seconds, 1)}

    step.row(named(mode, window, precision, True, True), measure)


def batch(step: Step, window: int, layout: torch.memory_format) -> torch.Tensor:
    """Return a batch of the step's number of px."""
    count = max(step.size.batch_px // window**2, 1)
    return as_input(patches(count, window), step.device).contiguous(memory_format=layout)


def speed(step: Step, model, mode: str, window: int, precision: str, layout) -> dict:
    """Return patches and predicted Mpx per second, by the median time of a batch, without transfers."""
    from models.hovernet.net_desc import output_size

    images, seconds = batch(step, window, layout), []
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with computing_in(precision, step.device):
        for _ in range(1 if step.rehearse else WARM_UPS):
            model(images)
        step.wait()
        while len(seconds) < (1 if step.rehearse else 3) or sum(seconds) < step.size.seconds:
            start = time.perf_counter()
            model(images)
            step.wait()
            seconds.append(time.perf_counter() - start)
    a_second = len(images) / float(np.median(seconds))
    memory = torch.cuda.max_memory_allocated() / 1e9 if step.device.type == "cuda" else None
    mpx = a_second * output_size(mode, window) ** 2 / 1e6
    return {"batch": len(images), "patches/s": a_second, "Mpx/s": mpx, "GPU memory, GB": memory}


if __name__ == "__main__":
    main()
