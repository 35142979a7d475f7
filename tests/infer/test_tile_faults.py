"""Runs over images that fail, are stopped, or must not take more memory than there is."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import image_runs
import numpy as np
import pytest
import scipy.io
from conftest import ROOT
from image_runs import paint, read_nuclei, run
from stubs import disc_labels, painted_image, write_rgb
from tqdm import tqdm

import infer.run
import infer.tile
from infer.sinks import ImageJob

loaded, manager, weights = image_runs.loaded, image_runs.manager, image_runs.weights  # fixtures

ENOUGH_S = 120  # no test comes near it; one that hangs ends there


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


def test_the_progress_bar_ends_at_its_end(manager, tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(infer.run, "tqdm", lambda **kwargs: bars.append(tqdm(**kwargs)) or bars[0])
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png")
    whole = (tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[:-200])  # its header still tells the size
    assert set(run(manager, tmp_path).failed) == {"b"}
    assert bars[0].n == bars[0].total == 4 * 164**2


def test_a_stopped_run_counts_what_is_written(manager, tmp_path, monkeypatch, caplog):
    """The network is interrupted at the fourth image, once three are written."""
    forward, job, written = manager.net.forward, ImageJob.run, threading.Semaphore(0)

    def counted(self):
        result = job(self)
        written.release()
        return result

    def stopped_at_the_fourth(imgs):
        if len(manager.net.batch_sizes) == 3:
            assert all(written.acquire(timeout=ENOUGH_S) for _ in range(3))
            raise KeyboardInterrupt
        return forward(imgs)

    monkeypatch.setattr(ImageJob, "run", counted)
    monkeypatch.setattr(manager.net, "forward", stopped_at_the_fourth)
    for number in range(6):
        paint(tmp_path, f"{number}.png", (100, 100))
    with pytest.raises(KeyboardInterrupt):
        run(manager, tmp_path, batch_size=1)
    assert len(list((tmp_path / "out" / "json").iterdir())) == 3
    assert "stopped: 3 of 6 images done" in caplog.text


def test_p17_workers_that_do_not_fit_into_memory_are_not_started(manager, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("misc.workers.cpu_count", lambda: 8)
    for number in range(3):
        paint(tmp_path, f"{number}.png", (100, 100))
    with caplog.at_level(logging.INFO):
        report = run(manager, tmp_path, nr_post_proc_workers=3, mem_usage=1e-9)
    assert "--nr_post_proc_workers=3 -> 1" in caplog.text
    assert len(report.done) == 3


def test_p17_images_under_way_count_as_memory(manager, tmp_path, monkeypatch):
    """Where memory is for one, the next one is read when the one before is written; else several are read ahead."""
    events, lock, opened, job = [], threading.Lock(), infer.tile.ImageSource.open, ImageJob.run

    def noted(event, function, *args):
        result = function(*args) if event == "written" else None
        with lock:
            events.append(event)
        return function(*args) if event == "read" else result

    monkeypatch.setattr(infer.tile.ImageSource, "open", lambda *args: noted("read", opened, *args))
    monkeypatch.setattr(ImageJob, "run", lambda self: noted("written", job, self))
    for number in range(8):
        paint(tmp_path, f"{number}.png", (100, 100))
    assert len(run(manager, tmp_path, mem_usage=1e-9).done) == 8
    assert events == ["read", "written"] * 8


PEAK_SCRIPT = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
if __name__ == "__main__":
    from stubs import StubNet
    from infer.tile import InferManager
    manager = InferManager({{"model_path": {weights!r}}}, gpu="")
    manager.net = StubNet()
    folders = {{"input_dir": sys.argv[1], "output_dir": sys.argv[2]}}
    report = manager.process_file_list({{**folders, "nr_post_proc_workers": 2, "batch_size": 4}})
    assert len(report.done) == int(sys.argv[3]), report.failed
    peak = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(*peak)
"""


def script_of(text: str, weights: Path) -> str:
    tests = str(Path(__file__).resolve().parents[1])
    return text.format(root=str(ROOT), tests=tests, weights=str(weights))


def test_memory_does_not_grow_with_the_number_of_images(weights, tmp_path):
    """64 images of 512 px take no more memory than 16, in this process or in the workers."""
    image = painted_image(disc_labels((512, 512)))
    for number in range(64):
        write_rgb(tmp_path / ("few" if number < 16 else "rest") / f"{number}.bmp", image)
    (tmp_path / "many").mkdir()
    for path in [*(tmp_path / "few").iterdir(), *(tmp_path / "rest").iterdir()]:
        (tmp_path / "many" / path.name).symlink_to(path)
    script = tmp_path / "peak.py"
    script.write_text(script_of(PEAK_SCRIPT, weights))
    peaks = []
    for folder, count in (("few", 16), ("many", 64)):
        command = [sys.executable, script, tmp_path / folder, tmp_path / f"out_{folder}", str(count)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append([int(v) for v in ended.stdout.split()])
    assert peaks[1][0] < 1.1 * peaks[0][0]
    assert peaks[1][1] < 1.1 * peaks[0][1]


# The network stops after forty of its 68 batches, says so, and waits until nobody writes to it any more.
STOPPING_STUB = (
    # SIGINT is ignored where the tests run in the background
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "manager.net = StubNet(); forward = manager.net.forward; "
    "manager.net.forward = lambda imgs: (print('here', flush=True), sys.stdin.read()) "
    "if len(manager.net.batch_sizes) == 40 else forward(imgs)"
)
KILL_SCRIPT = PEAK_SCRIPT.replace("manager.net = StubNet()", STOPPING_STUB)


def wait_until(reached) -> None:
    deadline = time.monotonic() + ENOUGH_S
    while not reached():
        assert time.monotonic() < deadline, "it never comes to that"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_p04_a_stopped_run_leaves_whole_files_and_is_gone_on_with(weights, manager, tmp_path, how):
    for number in range(30):
        paint(tmp_path, f"{number}.png", (400, 400))
    (tmp_path / "run.py").write_text(script_of(KILL_SCRIPT, weights))
    command = [sys.executable, tmp_path / "run.py", tmp_path / "in", tmp_path / "out", "30"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "here\n"
        wait_until(lambda: len(list((tmp_path / "out" / "json").glob("[0-9]*.json"))) >= 3)
        process.send_signal(how)
        process.stdin.close()
        process.stdout.read()  # ends when the workers have ended, too
    done = {path.stem for path in (tmp_path / "out" / "json").glob("[0-9]*.json")}
    assert 3 <= len(done) < 30
    if how == signal.SIGINT:  # a killed process cleans up nothing; its half files have names that nobody reads
        assert not list((tmp_path / "out").rglob(".*"))
    for name in done:
        nuclei = read_nuclei(tmp_path, name)
        mat = scipy.io.loadmat(tmp_path / "out" / "mat" / f"{name}.mat")
        assert len(nuclei) == len(mat["inst_uid"]) == len(np.unique(mat["inst_map"])) - 1 > 0
        assert cv2.imread(str(tmp_path / "out" / "overlay" / f"{name}.png")).shape == (400, 400, 3)
    report = run(manager, tmp_path)
    assert set(report.skipped) >= done
    assert len(report.skipped) + len(report.done) == 30
    assert process.returncode != 0
    assert not list((tmp_path / "out").rglob(".*"))
