"""The pairs that `compare_upstream.py` times: the original's function and ours on the same input."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from .synthetic import network_like_map, nuclei_labels, tissue_like_image
from .upstream import RUN_ARGS, Upstream

NR_TYPES = 5
# Largest difference of the network's output that counts as the same, relative to the output's scale.
FORWARD_TOLERANCE = 1e-4
METRIC_TOLERANCE = 1e-9
# Without this file the original makes colours that today's OpenCV does not accept.
TYPE_INFO = Path(__file__).resolve().parents[1] / "type_info.json"
SHIPPED = Path(__file__).resolve().parents[1] / "pretrained" / "hovernet_fast_w025_20x.tar"


@dataclass(frozen=True)
class Pair:
    """One row of the table: seconds of each, and the comparison of the results."""

    name: str
    theirs: float
    ours: float
    same: bool
    remark: str

    def row(self) -> str:
        ratio = f"{self.theirs / self.ours:.{1 if self.theirs < 100 * self.ours else 0}f}x"
        return f"| {self.name} | {_seconds(self.theirs)} | {_seconds(self.ours)} | {ratio} | {self.remark} |"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.{0 if value >= 0.01 else 2}f} ms"


def in_turn(theirs: Callable[[], Any], ours: Callable[[], Any], runs: int) -> tuple[float, float, Any, Any]:
    """Run two functions alternately after one warm-up; return the medians in seconds and the last results."""
    times: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for run in range(runs + 1):
        for side, function in enumerate((theirs, ours)):
            start = time.perf_counter()
            results[side] = function()
            if run:
                times[side].append(time.perf_counter() - start)
    return median(times[0]), median(times[1]), *results


def forward(upstream: Upstream, device: str, runs: int) -> Iterator[Pair]:
    """The network: both modes, with and without types, random weights; then the shipped weights."""
    from models.hovernet.checkpoint import build_model, load_checkpoint
    from models.hovernet.net_desc import PATCH_SHAPES, create_model

    create = upstream.load("models.hovernet.net_desc").create_model
    for mode in ("original", "fast"):
        for nr_types in (None, NR_TYPES):
            torch.manual_seed(0)
            net = create_model(mode, nr_types=nr_types)
            _random_statistics(net)
            with upstream.active():
                reference = create(mode=mode, nr_types=nr_types)
            name = f"forward, {mode}, {nr_types or 'no'} types, 1 patch"
            yield _forward_pair(upstream, name, reference, net, PATCH_SHAPES[mode][0], device, runs)
    net = build_model(load_checkpoint(SHIPPED))
    with upstream.active(), channels_scaled(upstream, net.width):
        reference = create(mode=net.mode, nr_types=net.nr_types)
    yield _forward_pair(upstream, "forward, shipped weights", reference, net, PATCH_SHAPES[net.mode][0], device, runs)


def _forward_pair(upstream: Upstream, name: str, reference, net, size: int, device: str, runs: int) -> Pair:
    from misc.machine import reused_memory_pages
    from models.hovernet.net_desc import to_inference
    from models.hovernet.run_desc import infer_step

    reference.load_state_dict(net.state_dict(), strict=True)
    reference, net = reference.to(device), to_inference(net, device)
    their_step = upstream.load("models.hovernet.run_desc").infer_step
    batch = torch.from_numpy(tissue_like_image(nuclei_labels(size), seed=1)[None])
    keep_pages = reused_memory_pages if device == "cpu" else contextlib.nullcontext

    def theirs():
        with upstream.active():
            return their_step(batch, reference)

    def ours():
        with keep_pages():
            return infer_step(batch, net)

    seconds = in_turn(theirs, ours, runs)[:2]
    difference = max(_logit_differences(reference, net, batch, device))
    remark = f"largest difference {difference:.0e} of the output's scale"
    return Pair(name, *seconds, difference < FORWARD_TOLERANCE, remark)


def _logit_differences(reference, net, batch, device: str) -> Iterator[float]:
    """Compare the output of the networks, since softmax and argmax hide or magnify differences."""
    images = batch.permute(0, 3, 1, 2).float().to(device)
    with torch.inference_mode():
        expected, got = reference.eval()(images), net(images)
    for branch, value in expected.items():
        yield ((got[branch] - value).abs().max() / value.abs().max()).item()


def _random_statistics(net) -> None:
    """Give the batch norms random statistics, as after training; fresh ones would hide a wrong order of operations."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)


@contextlib.contextmanager
def channels_scaled(upstream: Upstream, width: float) -> Iterator[None]:
    """Let the original build its network with every channel count times `width`; it has no option for this."""
    layers = torch.nn
    conv, norm = layers.Conv2d, layers.BatchNorm2d

    def scaled_conv(in_ch, out_ch, *args, bias=True, **kwargs):
        # not scaled: the image's 3 channels, and the outputs of the heads, the only convolutions with a bias
        in_ch = in_ch if in_ch == 3 else int(in_ch * width)
        return conv(in_ch, out_ch if bias else int(out_ch * width), *args, bias=bias, **kwargs)

    namespace = type("ScaledLayers", (), {name: getattr(layers, name) for name in dir(layers) if name[0] != "_"})
    namespace.Conv2d = staticmethod(scaled_conv)
    namespace.BatchNorm2d = staticmethod(lambda channels, **kwargs: norm(int(channels * width), **kwargs))
    modules = [upstream.load(f"models.hovernet.{name}") for name in ("net_desc", "net_utils")]
    weights_init = modules[1].Net.weights_init
    modules[1].Net.weights_init = lambda self: None  # asks for isinstance(module, nn.Conv2d); weights are loaded anyway
    for module in modules:
        module.nn = namespace
    try:
        yield
    finally:
        modules[1].Net.weights_init = weights_init
        for module in modules:
            module.nn = layers


def process(upstream: Upstream, runs: int) -> Iterator[Pair]:
    """Post-processing at three sizes, with about 700 nuclei per million px, with types."""
    from models.hovernet.post_proc import process as ours

    theirs = upstream.load("models.hovernet.post_proc").process
    for size in (512, 1000, 2048):
        maps = network_like_map(nuclei_labels(size), NR_TYPES)
        *seconds, expected, got = in_turn(
            lambda: theirs(maps, nr_types=NR_TYPES, return_centroids=True),  # noqa: B023
            lambda: ours(maps, nr_types=NR_TYPES, return_centroids=True),  # noqa: B023
            runs,
        )
        same = same_nuclei(expected, got)
        yield Pair(f"process, {size} px, {len(got[1])} nuclei", *seconds, same, "identical" if same else "DIFFERENT")


def same_nuclei(expected, got) -> bool:
    """Compare two results of `process` bit for bit."""
    (inst, nuclei), (inst2, nuclei2) = expected, got
    if not np.array_equal(inst, inst2) or [int(k) for k in nuclei] != [int(k) for k in nuclei2]:
        return False
    return all(
        np.array_equal(a[key], b[key]) if key in ("bbox", "centroid", "contour") else a[key] == b[key]
        for a, b in zip(nuclei.values(), nuclei2.values(), strict=True)
        for key in ("bbox", "centroid", "contour", "type", "type_prob")
    )


def metrics(upstream: Upstream, runs: int) -> Iterator[Pair]:
    """Every score at 1000 px with about 650 nuclei; the prediction is a noisy copy of the truth."""
    from metrics import stats_utils as ours
    from models.hovernet.post_proc import process as run_process

    theirs = upstream.load("metrics.stats_utils")
    labels = nuclei_labels(1000, per_mpx=650)
    predicted = run_process(network_like_map(labels))[0]
    true, pred = ours.remap_label(labels), ours.remap_label(predicted)
    calls = {
        name: (true, pred)
        for name in ("get_dice_1", "get_fast_dice_2", "get_fast_aji", "get_fast_aji_plus", "get_fast_pq")
    }
    calls["remap_label"] = (predicted,)
    for name, arguments in calls.items():
        *seconds, expected, got = in_turn(
            lambda: getattr(theirs, name)(*arguments),  # noqa: B023
            lambda: getattr(ours, name)(*arguments),  # noqa: B023
            runs,
        )
        difference = difference_of(expected, got)
        remark = f"largest difference {difference:.0e}" if difference else "identical"
        yield Pair(f"{name}, 1000 px, {true.max()} nuclei", *seconds, difference < METRIC_TOLERANCE, remark)


def difference_of(expected, got) -> float:
    if isinstance(expected, (list, tuple)):
        return max((difference_of(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
    expected, got = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    return float(np.abs(expected - got).max(initial=0)) if expected.shape == got.shape else np.inf


def tile(upstream: Upstream, device: str, runs: int) -> Iterator[Pair]:
    """A whole `tile` run with its files: `fast`, full width, typed, one real image of 512 px."""
    import cv2
    from skimage.data import immunohistochemistry

    from infer.tile import InferManager
    from models.hovernet.net_desc import create_model

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        image = immunohistochemistry()
        cv2.imwrite(str(root / "in" / "tile.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        torch.manual_seed(0)
        net = create_model("fast", nr_types=NR_TYPES)
        _settle(net, image)
        _embed_shipped(net)
        torch.save({"desc": net.state_dict()}, root / "net.tar")
        method = {"model_path": str(root / "net.tar"), "model_args": {"nr_types": NR_TYPES, "mode": "fast"}}
        run_args = {
            **RUN_ARGS,
            "input_dir": str(root / "in"),
            "mem_usage": 0.5,
            "draw_dot": False,
            "save_qupath": False,
            "save_raw_map": False,
        }
        with upstream.active():
            their_manager = upstream.load("infer.tile").InferManager(type_info_path=str(TYPE_INFO), method=method)
        our_manager = InferManager(method, TYPE_INFO, gpu="" if device == "cpu" else "0")

        def theirs():
            with upstream.active(), contextlib.redirect_stderr(io.StringIO()):
                their_manager.process_file_list({**run_args, "output_dir": str(root / "theirs")})

        def ours():
            with contextlib.redirect_stderr(io.StringIO()):
                our_manager.process_file_list({**run_args, "output_dir": str(root / "ours"), "overwrite": True})

        seconds = in_turn(theirs, ours, runs)[:2]
        shared, count = _shared_nuclei(root)
        yield Pair(
            "tile run, fast, 512 px, files included", *seconds, shared == count, f"{shared} of {count} nuclei the same"
        )


def _settle(net, image: np.ndarray) -> None:
    """Fit the batch norms of a random network to the image, so that its output has the scale of a trained network."""
    patch = torch.from_numpy(image[None, :256, :256]).permute(0, 3, 1, 2).float()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average of all its input
    with torch.no_grad():
        net.train()(patch)
    net.eval()


def _embed_shipped(net) -> None:
    """Let the untyped part of a full-width network compute what the shipped one does, at the cost of full width.

    Channel c of the shipped network becomes channel c / width, which keeps groups and concatenations in order. The
    channels between are zero. The TP branch stays random.
    """
    from models.hovernet.checkpoint import load_checkpoint

    weights = net.state_dict()
    for name, shipped in load_checkpoint(SHIPPED).state_dict.items():
        whole = weights[name].zero_() if shipped.shape != weights[name].shape else weights[name]
        every = tuple(slice(None, None, n // m) for n, m in zip(whole.shape, shipped.shape, strict=True))
        whole[every] = shipped


def _shared_nuclei(root: Path) -> tuple[int, int]:
    """Return the number of nuclei with the same outline and type in both results, and the number of all nuclei."""
    import json

    theirs, ours = (
        {
            json.dumps([nucleus["contour"], nucleus["type"]])
            for nucleus in json.loads((root / side / "json" / "tile.json").read_text())["nuc"].values()
        }
        for side in ("theirs", "ours")
    )
    return len(theirs & ours), len(theirs | ours)
