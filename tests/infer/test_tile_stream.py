"""The flow of tiles: batches, memory, faults of the network, and runs that are stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from conftest import ROOT
from stubs import StubNet, disc_labels, painted_image, write_rgb
from test_tile import paint, read_nuclei, run

import infer.tile
import infer.tile_stream
from infer.tile import InferManager
from infer.workers import WorkerPool
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """An eighth-width `fast` network without types."""
    path = tmp_path_factory.mktemp("weights") / "net.tar"
    save_weights(path, create_model("fast", width=0.125).state_dict())
    return path


@pytest.fixture
def manager(weights) -> InferManager:
    """A manager whose network is the stub."""
    manager = InferManager({"model_path": weights}, gpu="")
    manager.net = StubNet()
    return manager


def test_batches_cross_the_borders_of_images(manager, tmp_path):
    for number in range(6):
        paint(tmp_path, f"{number}.png", (100, 100))
    run(manager, tmp_path, batch_size=4)
    assert manager.net.batch_sizes == [4, 2]


def test_a_batch_size_that_is_halved_meanwhile_takes_no_patch_twice(tmp_path):
    """The main thread halves it when memory runs out; the next batch is being cut out in another one."""

    class Halved:
        channels, sizes = 3, [8, 8, 8, 2]
        batch_size = property(lambda self: self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0])

    for number in range(4):
        paint(tmp_path, f"{number}.png", (200, 300))  # 4 patches each
    sizes = {path: (200, 300) for path in sorted((tmp_path / "in").iterdir())}
    stream = infer.tile_stream.TileStream(sizes, Halved(), WorkerPool(print, 0), None, (256, 164), 1.0, 1 << 30, 0)
    batches = iter(stream._next_batch, None)
    taken = [(tile.name, index) for batch in batches for tile, index in batch.slots]
    assert taken == [(path.stem, index) for path in sizes for index in range(4)]


def test_p02_a_failing_network_names_its_images(manager, tmp_path, monkeypatch):
    for name in ("a", "b"):
        paint(tmp_path, f"{name}.png", (100, 100))

    def broken(imgs):
        raise RuntimeError("cuDNN is upset")

    monkeypatch.setattr(manager.net, "forward", broken)
    report = run(manager, tmp_path)
    assert report.done == []
    assert set(report.failed) == {"a", "b"}
    assert "cuDNN is upset" in report.failed["a"]


def test_a_passing_fault_of_the_network_is_survived(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png", (100, 100))
    forward, calls = manager.net.forward, []

    def flaky(imgs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")
        return forward(imgs)

    monkeypatch.setattr(manager.net, "forward", flaky)
    assert run(manager, tmp_path).done == ["a"]


def test_images_read_ahead_count_as_memory(manager, tmp_path, monkeypatch):
    monkeypatch.setattr("infer.workers.cpu_count", lambda: 8)
    read, forward, reads, seen = infer.tile_stream.read_image, manager.net.forward, [], []

    def counting_forward(imgs):
        time.sleep(0.1)
        seen.append(len(reads))
        return forward(imgs)

    monkeypatch.setattr(infer.tile_stream, "read_image", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(manager.net, "forward", counting_forward)
    for number in range(8):
        paint(tmp_path, f"{number}.png", (100, 100))
    assert len(run(manager, tmp_path, nr_inference_workers=6, mem_usage=1e-9).done) == 8
    assert seen[0] == 2  # the one under way, and the next
    reads.clear()
    run(manager, tmp_path, nr_inference_workers=6, overwrite=True)
    assert seen[8] > 2


def test_the_progress_bar_ends_at_its_end(manager, tmp_path, monkeypatch):
    bars = []
    tqdm = infer.tile.tqdm
    monkeypatch.setattr(infer.tile, "tqdm", lambda **kwargs: bars.append(tqdm(**kwargs)) or bars[0])
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png")
    whole = (tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[:-200])  # its header still tells the size
    assert set(run(manager, tmp_path).failed) == {"b"}
    assert bars[0].n == bars[0].total == 4


def test_a_stopped_run_counts_what_is_written(manager, tmp_path, monkeypatch, caplog):
    forward, calls = manager.net.forward, []

    def stopped_at_the_fourth(imgs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(imgs)

    monkeypatch.setattr(manager.net, "forward", stopped_at_the_fourth)
    for number in range(6):
        paint(tmp_path, f"{number}.png", (100, 100))
    with pytest.raises(KeyboardInterrupt):
        run(manager, tmp_path, batch_size=1)
    assert len(list((tmp_path / "out" / "json").iterdir())) == 3
    assert "stopped: 3 of 6 images done" in caplog.text


def test_p17_workers_that_do_not_fit_into_memory_are_not_started(manager, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("infer.workers.cpu_count", lambda: 8)
    for number in range(3):
        paint(tmp_path, f"{number}.png", (100, 100))
    with caplog.at_level(logging.INFO):
        report = run(manager, tmp_path, nr_post_proc_workers=3, mem_usage=1e-9)
    assert "--nr_post_proc_workers=3 -> 1" in caplog.text
    assert len(report.done) == 3


PEAK_SCRIPT = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
if __name__ == "__main__":
    from stubs import StubNet
    from infer.tile import InferManager
    manager = InferManager({{"model_path": {weights!r}}}, gpu="")
    manager.net = StubNet()
    run_args = {{"input_dir": sys.argv[1], "output_dir": sys.argv[2], "nr_post_proc_workers": 2}}
    report = manager.process_file_list(run_args)
    assert len(report.done) == int(sys.argv[3]), report.failed
    peak = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(*peak)
"""


def test_memory_does_not_grow_with_the_number_of_images(weights, tmp_path):
    """200 images of 512 px take no more memory than 20, in this process or in the workers."""
    image = painted_image(disc_labels((512, 512)))
    for number in range(200):
        write_rgb(tmp_path / ("few" if number < 20 else "rest") / f"{number}.bmp", image)
    (tmp_path / "many").mkdir()
    for path in [*(tmp_path / "few").iterdir(), *(tmp_path / "rest").iterdir()]:
        (tmp_path / "many" / path.name).symlink_to(path)
    tests = str(Path(__file__).resolve().parents[1])
    script = tmp_path / "peak.py"
    script.write_text(PEAK_SCRIPT.format(root=str(ROOT), tests=tests, weights=str(weights)))
    peaks = []
    for folder, count in (("few", 20), ("many", 200)):
        command = [sys.executable, script, tmp_path / folder, tmp_path / f"out_{folder}", str(count)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append([int(v) for v in ended.stdout.split()])
    assert peaks[1][0] < 1.1 * peaks[0][0]
    assert peaks[1][1] < 1.1 * peaks[0][1]


# The network stops after forty of its 135 batches, says so, and waits for the signal.
STOPPING_STUB = (
    "manager.net = StubNet(); forward = manager.net.forward; "
    "manager.net.forward = lambda imgs: (print('here', flush=True), sys.stdin.read()) "
    "if len(manager.net.batch_sizes) == 40 else forward(imgs)"
)
KILL_SCRIPT = PEAK_SCRIPT.replace("manager.net = StubNet()", STOPPING_STUB)
ENOUGH_S = 120  # no test comes near it; a run that hangs ends there


def wait_until(reached) -> None:
    deadline = time.monotonic() + ENOUGH_S
    while not reached():
        assert time.monotonic() < deadline, "it never comes to that"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_p04_a_stopped_run_leaves_whole_files_and_is_gone_on_with(weights, manager, tmp_path, how):
    for number in range(60):
        paint(tmp_path, f"{number}.png", (400, 400))
    tests = str(Path(__file__).resolve().parents[1])
    (tmp_path / "run.py").write_text(KILL_SCRIPT.format(root=str(ROOT), tests=tests, weights=str(weights)))
    command = [sys.executable, tmp_path / "run.py", tmp_path / "in", tmp_path / "out", "60"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "here\n"
        wait_until(lambda: len(list((tmp_path / "out" / "json").glob("[0-9]*.json"))) >= 3)
        process.send_signal(how)
        process.stdout.read()  # ends when the workers have ended, too
    done = {path.stem for path in (tmp_path / "out" / "json").glob("[0-9]*.json")}
    assert 3 <= len(done) < 60
    if how == signal.SIGINT:  # a killed process cleans up nothing; its half files have names that nobody reads
        assert not list((tmp_path / "out").rglob(".*"))
    for name in done:
        nuclei = read_nuclei(tmp_path, name)
        mat = scipy.io.loadmat(tmp_path / "out" / "mat" / f"{name}.mat")
        assert len(nuclei) == len(mat["inst_uid"]) == len(np.unique(mat["inst_map"])) - 1 > 0
        assert cv2.imread(str(tmp_path / "out" / "overlay" / f"{name}.png")).shape == (400, 400, 3)
    report = run(manager, tmp_path)
    assert set(report.skipped) >= done
    assert len(report.skipped) + len(report.done) == 60
    assert process.returncode != 0
    assert os.path.exists(tmp_path / "out" / "json" / "59.json")


def test_the_network_and_post_processing_overlap(manager, tmp_path, monkeypatch):
    """While the network works on one image, the last one is being post-processed."""
    spans = {"net": [], "post": []}
    forward, place = manager.net.forward, infer.tile_stream.WorkerPool.submit

    def slow_forward(imgs):
        start = time.perf_counter()
        time.sleep(0.05)
        result = forward(imgs)
        spans["net"].append((start, time.perf_counter()))
        return result

    def slow_submit(self, name, job):
        start = time.perf_counter()
        time.sleep(0.04)
        place(self, name, job)
        spans["post"].append((start, time.perf_counter()))

    monkeypatch.setattr(manager.net, "forward", slow_forward)
    monkeypatch.setattr(infer.tile_stream.WorkerPool, "submit", slow_submit)
    for number in range(6):
        paint(tmp_path, f"{number}.png", (100, 100))
    run(manager, tmp_path, batch_size=1)
    overlaps = sum(a[0] < b[1] and b[0] < a[1] for a in spans["net"] for b in spans["post"])
    assert overlaps >= 4
