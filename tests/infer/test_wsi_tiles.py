"""Slide equals tile on nuclei that touch, and the stages of a run: one pool, all at work at once."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import slide_runs
from killer import Killer
from slide_runs import filled, nuclei_of, paint, run, same_nuclei
from stubs import painted_image, write_rgb

import infer.wsi
import infer.wsi_reader
from infer.workers import WorkerPool
from infer.wsi_tile import finish_wsi_tile

manager, weights = slide_runs.manager, slide_runs.weights  # fixtures

SIGNAL = "HOVERNET_TEST_SIGNAL"  # environment variable: a file that says that the network has gone on


def touching_pairs(side: int = 360, spacing: int = 60, radius: int = 12, apart: int = 16) -> np.ndarray:
    """Paint pairs of discs that meet in a straight line, turned by another angle each; no pair reaches another."""
    labels = np.zeros((side, side), np.int32)
    y, x = np.mgrid[:side, :side]
    centres = np.arange(spacing // 2, side, spacing)
    for index, (cy, cx) in enumerate((cy, cx) for cy in centres for cx in centres):
        dy, dx = apart / 2 * np.sin(0.7 * index), apart / 2 * np.cos(0.7 * index)
        first, second = np.hypot(y - cy + dy, x - cx + dx), np.hypot(y - cy - dy, x - cx - dx)
        labels[(first <= radius) & (first <= second)] = 2 * index + 1
        labels[(second <= radius) & (second < first)] = 2 * index + 2
    return labels


@pytest.fixture(scope="module")
def touching(tmp_path_factory):
    """A slide of 1,440 x 1,800 px with 1,440 nuclei in touching pairs, and their labels."""
    folder, block = tmp_path_factory.mktemp("touching"), touching_pairs()
    write_rgb(folder / "in" / "a.png", np.tile(painted_image(block), (4, 5, 1)))
    copies = np.kron(np.arange(20).reshape(4, 5), np.ones_like(block)) * block.max()
    return folder, np.where(np.tile(block, (4, 5)) > 0, np.tile(block, (4, 5)) + copies, 0)


@pytest.fixture(scope="module")
def four_workers():
    """A pool that several runs use one after the other: starting processes takes longer than their work."""
    pool = WorkerPool(finish_wsi_tile, 4, queue=6)
    yield pool
    pool.close()


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("side", [256, 500, 1024, 2048, 4096])
def test_p09_touching_nuclei_are_the_same_for_every_tile_and_worker(
    manager, touching, four_workers, monkeypatch, side, workers
):
    folder, labels = touching
    if workers == 4:
        monkeypatch.setattr(four_workers, "close", lambda cancel: None)
        monkeypatch.setattr(infer.wsi, "WorkerPool", lambda *_, **__: four_workers)
    out = f"{side} {workers}"
    run(manager, folder, out, tile_shape=side, ambiguous_size=64)
    same_nuclei(labels, filled(nuclei_of(folder, out=out), labels.shape))


def test_p02_workers_killed_again_and_again_change_nothing(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(infer.workers, "cpu_count", lambda: 3)
    paint(tmp_path, shape=(700, 900))
    options = {"tile_shape": 128, "ambiguous_size": 40}
    run(manager, tmp_path, "whole", **options)
    whole = (tmp_path / "whole" / "json" / "a.json").read_bytes()
    deadline, round_ = time.monotonic() + 40, 0
    with Killer(seed=2, longest_s=0.5) as killer:
        while killer.kills < 4 and time.monotonic() < deadline:
            report = run(manager, tmp_path, f"killed{round_}", nr_post_proc_workers=3, **options)
            assert report.done == ["a"]
            assert (tmp_path / f"killed{round_}" / "json" / "a.json").read_bytes() == whole
            round_ += 1
    assert killer.kills >= 4


def finish_when_the_network_went_on(job):
    """Post-process the first tile once a later patch was predicted; runs in a worker."""
    deadline = time.monotonic() + 30
    while job.index == 0 and not Path(os.environ[SIGNAL]).exists():
        assert time.monotonic() < deadline, "the network waits for post-processing"
        time.sleep(0.01)
    return finish_wsi_tile(job)


def test_p19_one_pool_for_the_run_and_all_stages_at_once(manager, tmp_path, monkeypatch):
    """The network goes on while a tile is post-processed, and the next regions are read while it computes."""
    for name in "ab":
        paint(tmp_path, f"{name}.png", shape=(200, 1400))
    monkeypatch.setenv(SIGNAL, str(tmp_path / "went_on"))
    monkeypatch.setattr(infer.wsi, "finish_wsi_tile", finish_when_the_network_went_on)
    pools, submitted, reading, read_meanwhile = [], threading.Event(), [], []
    forward, read = manager.net.forward, infer.wsi_reader.read_reflect

    class Watched(WorkerPool):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            pools.append(self)

        def submit(self, name, job):
            super().submit(name, job)
            submitted.set()

    def slow_read(*args):
        reading.append(args)
        time.sleep(0.05)
        reading.remove(args)
        return read(*args)

    def predicting(imgs):
        if submitted.is_set():
            (tmp_path / "went_on").touch()
        read_meanwhile.append(bool(reading))
        return forward(imgs)

    monkeypatch.setattr(infer.wsi, "WorkerPool", Watched)
    monkeypatch.setattr(infer.wsi_reader, "read_reflect", slow_read)
    monkeypatch.setattr(manager.net, "forward", predicting)
    report = run(manager, tmp_path, nr_post_proc_workers=1, batch_size=1, tile_shape=256, chunk_shape=300)
    assert report.done == ["a", "b"]
    assert len(pools) == 1
    assert True in read_meanwhile
