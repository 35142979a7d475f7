"""Slide runs on a bad day: memory, disk, network drives, killed runs, names that are too long, files that are none."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import slide_runs
from slide_runs import (
    BLOCKS,
    ENOUGH_S,
    filled,
    leftovers,
    nuclei_of,
    nuclei_set,
    paint,
    run,
    same_nuclei,
    spooled,
    summary,
)

import infer.sinks
import infer.source
import infer.wsi
import misc.workers
from infer.sinks import SlideJob
from infer.spool import Spool
from misc.files import MAX_STEM_BYTES, short_stem
from misc.locks import locked
from misc.slides.sources import ImageSource, SlideError
from misc.workers import WorkerPool

loaded, manager, weights = slide_runs.loaded, slide_runs.manager, slide_runs.weights  # fixtures


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---------------------------------------------------------------------------------------------- memory, reading


def test_a_picture_is_decoded_once_for_all_reading_threads(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(misc.workers, "cpu_count", lambda: 4)
    labels = paint(tmp_path, shape=(600, 900))
    made, init = [], ImageSource.__init__
    monkeypatch.setattr(ImageSource, "__init__", lambda self, path: (made.append(path), init(self, path))[1])
    run(manager, tmp_path, nr_inference_workers=4, chunk_shape=300, **BLOCKS)
    assert len(made) == 1
    same_nuclei(labels, filled(nuclei_of(tmp_path), labels.shape))


def fail_below(monkeypatch, y: int, times: int, first=lambda: None) -> None:
    """Let reading fail below a row of the slide, so many times; `first` is called before the first."""
    read, failed = infer.source.read_reflect, []

    def failing(handler, top, left, height, width):
        if top > y and len(failed) < times:
            if not failed:
                first()
            failed.append(handler)
            raise SlideError(handler.path, "Input/output error")
        return read(handler, top, left, height, width)

    monkeypatch.setattr(infer.source, "read_reflect", failing)


def test_p03_a_region_that_fails_once_is_read_again_with_the_slide_opened_again(manager, tmp_path, monkeypatch, caplog):
    paint(tmp_path, shape=(700, 300))
    run(manager, tmp_path, "whole", **BLOCKS)
    fail_below(monkeypatch, 300, times=1)
    assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert "Input/output error; opening it again" in caplog.text
    assert nuclei_set(tmp_path) == nuclei_set(tmp_path, out="whole")


def test_p03_a_slide_that_cannot_be_read_half_way_is_named_and_keeps_what_is_done(manager, tmp_path):
    """The next run goes on from there; the slides behind it are done."""
    paint(tmp_path, "a.png", shape=(1200, 300))
    paint(tmp_path, "b.png", shape=(100, 100))
    run(manager, tmp_path, "whole", **BLOCKS)
    whole, write, written = sum(manager.net.batch_sizes), Spool.write, threading.Semaphore(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "write", lambda self, part: (write(self, part), written.release()))
        fail_below(patch, 700, times=100, first=lambda: [written.acquire(timeout=ENOUGH_S) for _ in range(9)])
        report = run(manager, tmp_path, batch_size=1, **BLOCKS)
    assert report.done == ["b"]
    assert "Input/output error" in report.failed["a"]
    assert not (tmp_path / "out" / "json" / "a.json").exists()
    assert len(spooled(tmp_path)) >= 9  # three rows
    before = sum(manager.net.batch_sizes)
    assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert sum(manager.net.batch_sizes) - before < whole - 4
    assert nuclei_set(tmp_path) == nuclei_set(tmp_path, out="whole")
    assert leftovers(tmp_path) == []


def test_p02_a_network_that_fails_names_its_slides_and_a_passing_fault_is_survived(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png", shape=(100, 100))
    forward, calls = manager.net.forward, []

    def broken(imgs):
        calls.append(len(imgs))
        if len(calls) <= 3:  # both tries on the first slide, and one on the second
            raise RuntimeError("cuDNN is upset")
        return forward(imgs)

    monkeypatch.setattr(manager.net, "forward", broken)
    report = run(manager, tmp_path, batch_size=6)
    assert (report.done, list(report.failed)) == (["b"], ["a"])
    assert "cuDNN is upset" in report.failed["a"]
    assert leftovers(tmp_path) == []
    assert run(manager, tmp_path).done == ["a"]


def test_p17_p20_as_many_blocks_are_under_way_as_there_is_memory_for(manager, tmp_path, monkeypatch, caplog):
    """Maps of blocks are large: the network waits when one a worker, and one more, are under way."""
    monkeypatch.setattr(misc.workers, "cpu_count", lambda: 8)
    monkeypatch.setattr(infer.wsi, "available_memory", lambda: 2 * 300 * 328**2)
    paint(tmp_path, shape=(300, 200))
    made, init = [], WorkerPool.__init__

    def noted(self, nr_workers, limit, idle=None):
        made.append((nr_workers, limit))
        init(self, nr_workers, limit, idle)

    monkeypatch.setattr(WorkerPool, "__init__", noted)
    with caplog.at_level("INFO"):
        assert run(manager, tmp_path, nr_post_proc_workers=8, tile_shape=200, ambiguous_size=64).done == ["a"]
    assert "--nr_post_proc_workers=8 -> 2: each may take" in caplog.text
    assert made == [(2, 3)]


# ---------------------------------------------------------------------------------------------- locks, names, leftovers


def test_a_locked_slide_is_left_to_the_run_that_holds_it(manager, tmp_path):
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png")
    (tmp_path / "out" / "json").mkdir(parents=True)
    with locked(tmp_path / "out" / "json" / ".a.lock") as free:
        assert free
        report = run(manager, tmp_path)
    assert (report.done, report.skipped) == (["b"], ["a"])
    assert summary(tmp_path)["a.png"]["reason"] == "another run is at work on it"
    (tmp_path / "out" / "json" / ".a.lock").touch()  # what a killed run leaves
    assert run(manager, tmp_path).done == ["a"]


def test_a_slide_is_held_until_it_is_written_and_no_longer(manager, tmp_path, monkeypatch):
    for name in "ab":
        paint(tmp_path, f"{name}.png", shape=(100, 100))
    held, job = {}, SlideJob.run

    def free(name: str) -> bool:
        with locked(tmp_path / "out" / "json" / f".{name}.lock") as is_free:
            return is_free

    def look(self):
        held[self.spool.name] = [free(name) for name in "ab" if name <= self.spool.name]
        return job(self)

    monkeypatch.setattr(SlideJob, "run", look)
    assert run(manager, tmp_path).done == ["a", "b"]
    assert held["a"] == [False]
    assert held["b"][1:] == [False]
    assert leftovers(tmp_path) == []


def test_a_slide_that_cannot_be_locked_fails_alone(manager, tmp_path):
    paint(tmp_path, "a.png", shape=(100, 100))
    paint(tmp_path, "b.png", shape=(100, 100))
    (tmp_path / "out" / "json" / ".a.lock").mkdir(parents=True)
    report = run(manager, tmp_path)
    assert report.done == ["b"]
    assert "directory" in report.failed["a"]
    assert summary(tmp_path)["a.png"]["status"] == "failed"


def test_long_names_go_through_and_too_long_ones_fail_alone(manager, tmp_path):
    """A file system allows 255 bytes; locks, temporary files and spools put more around the name."""
    long, too_long = "ä" * 120, "x" * 251
    for name in ("good", long, too_long):
        paint(tmp_path, f"{name}.png", shape=(100, 100))
    report = run(manager, tmp_path, save_qupath=True, save_thumb=True, save_mask=True)
    assert sorted(report.done) == ["good", long]
    assert "rename it" in report.failed[too_long]
    out = tmp_path / "out"
    for folder, suffix in (("json", "json"), ("qupath", "geojson"), ("thumb", "png"), ("mask", "png")):
        assert sorted(p.name for p in (out / folder).iterdir()) == sorted([f"good.{suffix}", f"{long}.{suffix}"])
    assert nuclei_of(tmp_path, long) == nuclei_of(tmp_path, "good")


def test_short_names_stay_and_long_ones_differ():
    assert short_stem("TCGA-1.2 x") == "TCGA-1.2 x"
    stems = [short_stem("é" * 200 + end) for end in "ab"]
    assert stems[0] != stems[1]
    assert all(len(stem.encode()) <= MAX_STEM_BYTES for stem in stems)


# ---------------------------------------------------------------------------------------------- disk full


@pytest.mark.parametrize("kind", ["thumb", "mask"])
def test_a_full_disk_is_the_reason_for_a_picture_that_is_not_written(manager, tmp_path, monkeypatch, kind):
    paint(tmp_path, "a.png", shape=(100, 100))
    write = Path.write_bytes

    def full(self, data):
        if self.parent.name == kind:
            self.touch()
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    report = run(manager, tmp_path, save_thumb=True, save_mask=True)
    assert "No space left on device" in report.failed["a"]
    assert str(tmp_path / "out" / kind / "a.png") in report.failed["a"]
    assert not list((tmp_path / "out" / kind).iterdir())


def test_p03_p20_a_full_disk_names_the_file_and_leaves_nothing_half(manager, tmp_path, monkeypatch):
    """While a block is written, the JSON file, and the outlines; slides behind it are done, nothing is counted."""
    paint(tmp_path, "a.png", shape=(300, 200))
    paint(tmp_path, "b.png", shape=(100, 100))
    write, json = Spool.write, infer.sinks.write_json

    def no_blocks(self, part):
        if self.name == "a" and part.block > 1:
            full()
        write(self, part)

    def no_json(path, *args):
        if path.name == "a.json":
            full()
        json(path, *args)

    for place, name, broken in (
        (Spool, "write", no_blocks),
        (infer.sinks, "write_json", no_json),
        (infer.sinks, "write_geojson", full),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken)
            options = {"save_qupath": True} if name == "write_geojson" else {}
            report = run(manager, tmp_path, **options, **BLOCKS)
        assert "No space left on device" in report.failed["a"]
        assert not (tmp_path / "out" / "json" / "a.json").exists() or name == "write_geojson"
        assert not list((tmp_path / "out").rglob("*.part*"))
    assert run(manager, tmp_path, save_qupath=True, **BLOCKS).skipped == ["a", "b"]
    assert leftovers(tmp_path) == []


def test_p03_files_that_cannot_be_written_are_named(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png", shape=(100, 100))
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert str(tmp_path / "out" / ".cache") in run(manager, tmp_path).failed["a"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: full() if "json" in os.readlink(f"/proc/self/fd/{fd}") else None)
        report = run(manager, tmp_path)
    assert str(tmp_path / "out" / "json" / "a.json") in report.failed["a"]
    assert not report.found
    assert [path.name for path in (tmp_path / "out" / "json").iterdir()] == []


# ---------------------------------------------------------------------------------------------- files that are none


def test_p01_what_is_named_like_a_slide_and_is_none_is_reported(manager, tmp_path):
    paint(tmp_path, "good.png", shape=(100, 100))
    (tmp_path / "in" / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    (tmp_path / "in" / "folder.svs").mkdir()
    paint(tmp_path, "folder.svs/inside.png", shape=(100, 100))
    report = run(manager, tmp_path)
    assert report.done == ["good"]
    assert "nowhere.svs" in report.failed["gone.svs"]
    assert "--recursive" in report.failed["folder.svs"]
    assert summary(tmp_path).keys() == {"good.png", "gone.svs", "folder.svs"}
    report = run(manager, tmp_path, recursive=True)
    assert report.done == ["inside"]
    assert list(report.failed) == ["gone.svs"]


def test_a_name_that_is_no_utf8_fails_alone(manager, tmp_path):
    paint(tmp_path, "good.png", shape=(100, 100))
    folder = os.fsencode(tmp_path / "in")
    try:
        os.symlink(tmp_path / "in" / "good.png", folder + b"/Pr\xe4p.png")
    except OSError:
        pytest.skip("this file system has no such names")
    os.symlink(b"nowh\xe4re", folder + b"/gone.svs")
    Path(os.fsdecode(folder + b"/n\xf6tes.txt")).write_text("no slide: passed over")
    report = run(manager, tmp_path)
    assert (report.done, report.exit_code) == (["good"], 1)
    assert set(report.failed) == {"'Pr\\udce4p.png'", "gone.svs"}
    rows = summary(tmp_path)
    assert "is not valid UTF-8; rename it" in rows["'Pr\\udce4p.png'"]["reason"]
    assert "'nowh\\udce4re'" in rows["gone.svs"]["reason"]


def test_a_slide_that_cannot_even_be_begun_fails_alone(manager, tmp_path, monkeypatch):
    for name in "ab":
        paint(tmp_path, f"{name}.png", shape=(100, 100))
    source = infer.wsi.SlideTask._source

    def broken(self):
        if self.name == "a":
            raise ValueError("a is cursed")
        return source(self)

    monkeypatch.setattr(infer.wsi.SlideTask, "_source", broken)
    report = run(manager, tmp_path)
    assert (report.done, report.failed) == (["b"], {"a": "a is cursed"})


def test_a_file_without_read_permission_is_reported_whatever_its_name(manager, tmp_path, monkeypatch):
    names = ("good.png", "secret.png", "secret2")
    for name in names:
        paint(tmp_path, f"{name}.png", shape=(100, 100))
        (tmp_path / "in" / f"{name}.png").rename(tmp_path / "in" / name)
    for name in names[1:]:
        (tmp_path / "in" / name).chmod(0)
    if os.access(tmp_path / "in" / "secret2", os.R_OK):  # root may read everything
        refuse(monkeypatch, names[1:])
    report = run(manager, tmp_path)
    assert report.done == ["good"]
    assert set(report.failed) == {"secret", "secret2"}
    assert all("Permission denied" in reason for reason in report.failed.values())


def refuse(monkeypatch, names) -> None:
    import builtins
    import io

    opened = io.open

    def without_permission(file, *args, **kwargs):
        if Path(str(file)).name in names:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", without_permission)


def test_p06_of_one_stem_only_files_that_open_count(manager, tmp_path):
    paint(tmp_path, "a.png", shape=(100, 100))
    (tmp_path / "in" / "a.svs").write_bytes(b"no slide")
    (tmp_path / "in" / "b.svs").write_bytes(b"no slide")
    (tmp_path / "in" / "b.tif").write_bytes(b"no slide either")
    report = run(manager, tmp_path)
    assert report.done == ["a"]
    assert set(report.failed) == {"a.svs", "b", "b.tif"}
    assert {name: row["status"] for name, row in summary(tmp_path).items()} == {
        "a.png": "done",
        "a.svs": "failed",
        "b.svs": "failed",
        "b.tif": "failed",
    }


def test_pictures_of_ours_are_no_slides(manager, tmp_path):
    paint(tmp_path, shape=(100, 100))
    options = {"recursive": True, "save_thumb": True, "save_mask": True}
    for _ in range(2):
        run(manager, tmp_path, "in/results", **options)
    assert summary(tmp_path, "in/results").keys() == {"a.png"}


def test_a_real_slide_that_is_cut_short_fails_alone(manager, tmp_path, shared):
    paint(tmp_path, "good.png", shape=(100, 100))
    data = (shared / "data" / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "in" / "half.svs").write_bytes(data[: len(data) // 2])
    # the directory of its pictures is there, what it points at is not
    whole = np.frombuffer(data, np.uint8).copy()
    whole[len(data) // 3 : len(data) // 2] = 0
    (tmp_path / "in" / "holes.svs").write_bytes(whole.tobytes())
    report = run(manager, tmp_path, mag=None, mpp=0.5, proc_mag=5)
    assert report.done == ["good"]
    assert set(report.failed) == {"half", "holes"}
    assert all(str(tmp_path / "in") in reason for reason in report.failed.values())
    assert [p.name for p in (tmp_path / "out" / "json").iterdir()] == ["good.json"]
