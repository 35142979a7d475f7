"""Slide runs that end early: the same command goes on, finds the same nuclei, and leaves nothing over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import slide_runs
from killed_runs import Kill, killed_run
from slide_runs import (
    BLOCKS,
    interrupted_run,
    leftovers,
    nuclei_of,
    nuclei_set,
    paint,
    run,
    spooled,
    summary,
)
from stubs import disc_labels, painted_image, write_rgb

import infer.sinks
import infer.wsi
from infer.sinks import SlideJob
from infer.spool import Spool
from infer.wsi import SlideTask
from misc.locks import locked
from models.hovernet import post_proc

loaded, manager, weights = slide_runs.loaded, slide_runs.manager, slide_runs.weights  # fixtures


class Killed(BaseException):
    """The run ends here."""


def killed(*_, **__):
    raise Killed


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---------------------------------------------------------------------------------------------- at any moment


def test_stopped_after_any_block_a_run_goes_on_with_the_next(manager, tmp_path):
    paint(tmp_path, shape=(500, 300))
    run(manager, tmp_path, "whole", **BLOCKS)
    whole = sum(manager.net.batch_sizes)
    for blocks in range(12):
        out = f"cut{blocks}"
        interrupted_run(manager, tmp_path, blocks, out)
        assert len(spooled(tmp_path, out)) == blocks
        before = sum(manager.net.batch_sizes)
        assert run(manager, tmp_path, out, **BLOCKS).done == ["a"]
        again = sum(manager.net.batch_sizes) - before
        assert 0 < again <= whole - (blocks > 5) - 3 * (blocks > 8)  # what only finished blocks see is not done again
        assert nuclei_set(tmp_path, out=out) == nuclei_set(tmp_path, out="whole")
        assert leftovers(tmp_path, out) == []


# The moments of a run on one slide, and how often each comes.
MAIN_MOMENTS = {"batch": 6, ".png": 2, ".csv": 1, "remove": 1}
WORKER_MOMENTS = {".npz": 6, ".json": 1, ".geojson": 1}


def test_p04_p05_killed_at_20_moments_a_run_goes_on_finds_the_same_nuclei_and_leaves_nothing_over(
    manager, weights, tmp_path
):
    """The process, its worker, or all of them at once; while it reads, post-processes, stitches, or writes."""
    paint(tmp_path, shape=(300, 200))
    wishes = {"save_thumb": True, "save_mask": True, "save_qupath": True, **BLOCKS}
    run(manager, tmp_path, "whole", **wishes)
    rng = random.Random(0)
    for number in range(20):
        who, out = ("main", "worker", "group")[number % 3], f"out{number}"
        moments = WORKER_MOMENTS if who == "worker" else {**MAIN_MOMENTS, **WORKER_MOMENTS}
        event = rng.choice(list(moments))
        kill = Kill(who, event, rng.randint(1, moments[event]), tmp_path / f"log{number}")
        options = {"input_dir": tmp_path / "in", "output_dir": tmp_path / out, "mag": 40, "batch_size": 1, **wishes}
        code = killed_run(weights, {**options, "nr_inference_workers": 1, "nr_post_proc_workers": 1}, kill)
        assert code == (0 if who == "worker" else -signal.SIGKILL), kill
        report = run(manager, tmp_path, out, **wishes)
        assert len(report.done + report.skipped) == 1, (kill, report)
        assert nuclei_set(tmp_path, out=out) == nuclei_set(tmp_path, out="whole"), kill
        assert leftovers(tmp_path, out) == [], kill
        assert int(summary(tmp_path, out)["a.png"]["nuclei"]) == len(nuclei_of(tmp_path, out="whole"))


def test_p04_ctrl_c_ends_all_processes_and_leaves_only_what_is_gone_on_with(manager, weights, tmp_path):
    """Sent to all of them, as a terminal does, while a block is in work and when there is none."""
    paint(tmp_path, shape=(300, 200))
    run(manager, tmp_path, "whole", **BLOCKS)
    for number, (event, count) in enumerate([("batch", 1), ("batch", 5), (".npz", 3)]):
        out = f"out{number}"
        kill = Kill("group", event, count, tmp_path / f"log{number}", signal.SIGINT)
        options = {"input_dir": tmp_path / "in", "output_dir": tmp_path / out, "mag": 40, "batch_size": 1, **BLOCKS}
        assert killed_run(weights, {**options, "nr_inference_workers": 1, "nr_post_proc_workers": 1}, kill) == 1
        assert all(".cache" in path.parts for path in leftovers(tmp_path, out))
        assert not list((tmp_path / out).rglob("*.part*"))
        assert run(manager, tmp_path, out, **BLOCKS).done == ["a"]
        assert nuclei_set(tmp_path, out=out) == nuclei_set(tmp_path, out="whole")
        assert leftovers(tmp_path, out) == []


def test_nuclei_that_lie_in_many_blocks_are_stitched_the_same_whoever_found_them(manager, tmp_path):
    """Two interruptions, one long nucleus across all blocks."""
    labels = np.zeros((500, 300), np.int32)
    labels[20:480, 140:160] = 1
    labels[400:420, 20:40] = 2
    write_rgb(tmp_path / "in" / "a.png", painted_image(labels))
    run(manager, tmp_path, "whole", **BLOCKS)
    for blocks in (3, 4):
        interrupted_run(manager, tmp_path, blocks)
    assert len(spooled(tmp_path)) == 7
    run(manager, tmp_path, **BLOCKS)
    assert nuclei_set(tmp_path) == nuclei_set(tmp_path, out="whole")


# ---------------------------------------------------------------------------------------------- the spool


def test_p15_p20_the_spool_holds_little_a_nucleus(manager, tmp_path):
    """0.3 kB, as the help says, where nuclei are 18 px wide (4.5 um) and lie close together."""
    block = disc_labels((260, 260), spacing=26, radius=9)
    write_rgb(tmp_path / "in" / "a.png", np.tile(painted_image(block), (5, 5, 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlideJob, "run", killed)
        with pytest.raises(Killed):
            run(manager, tmp_path, tile_shape=1024)
    sizes = [path.stat().st_size for path in spooled(tmp_path)]
    assert len(sizes) == 4
    run(manager, tmp_path, tile_shape=1024)
    assert sum(sizes) < 300 * len(nuclei_of(tmp_path))


def test_a_damaged_block_of_the_spool_is_done_again_and_no_other(manager, tmp_path, caplog):
    """It made the slide fail in every later run."""
    paint(tmp_path, shape=(500, 300))
    run(manager, tmp_path, "whole", **BLOCKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlideJob, "run", killed)
        with pytest.raises(Killed):
            run(manager, tmp_path, **BLOCKS)
    for path, keep in ((spooled(tmp_path)[0], 0), (spooled(tmp_path)[5], 300)):
        path.write_bytes(path.read_bytes()[:keep])
    written, write = [], Spool.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "write", lambda self, part: (written.append(part.block), write(self, part)))
        assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert sorted(written) == [0, 5]
    assert caplog.text.count("that block is done again") == 2
    assert nuclei_set(tmp_path) == nuclei_set(tmp_path, out="whole")


def test_a_block_that_is_gone_or_damaged_when_it_is_stitched_is_no_result_and_the_next_run_mends_it(manager, tmp_path):
    paint(tmp_path)
    run(manager, tmp_path, "whole", **BLOCKS)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"nothing")):
        job, files = SlideJob.run, []

        def damaged(self, damage=damage, job=job, files=files):
            files.append(sorted(self.spool.folder.iterdir())[3])
            damage(files[0])
            return job(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SlideJob, "run", damaged)
            report = run(manager, tmp_path, overwrite=True, **BLOCKS)
        assert str(files[0]) in report.failed["a"]
        assert len(spooled(tmp_path)) >= 11
        assert run(manager, tmp_path, overwrite=True, **BLOCKS).done == ["a"]
        assert nuclei_set(tmp_path) == nuclei_set(tmp_path, out="whole")


def test_a_drive_that_is_away_for_a_moment_takes_no_block(manager, tmp_path, monkeypatch):
    paint(tmp_path)
    interrupted_run(manager, tmp_path, 5)
    load = np.load

    def away(file, *args, **kwargs):
        if Path(file).name == "000003.npz":
            raise OSError(errno.EIO, "Input/output error")
        return load(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", away)
        report = run(manager, tmp_path, **BLOCKS)
    assert "Input/output error" in report.failed["a"]
    assert "000003.npz" in report.failed["a"]
    assert len(spooled(tmp_path)) == 5
    assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert summary(tmp_path)["a.png"]["reason"] == "5 of 12 blocks there already"


def test_blocks_of_other_post_processing_or_of_another_slide_are_not_gone_on_with(manager, tmp_path, monkeypatch):
    paint(tmp_path)
    interrupted_run(manager, tmp_path, 5)
    os.utime(tmp_path / "in" / "a.png", ns=(0, 0))
    before = sum(manager.net.batch_sizes)
    interrupted_run(manager, tmp_path, 2)
    assert sum(manager.net.batch_sizes) > before
    assert len(spooled(tmp_path)) == 2
    monkeypatch.setattr(post_proc, "MIN_SIZE_PX", 10_000)
    assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert nuclei_of(tmp_path) == {}
    assert leftovers(tmp_path) == []


def test_another_cache_folder_takes_nothing_from_the_first(manager, tmp_path):
    paint(tmp_path)
    interrupted_run(manager, tmp_path, 5)
    interrupted_run(manager, tmp_path, 2, cache_path=tmp_path / "cache")
    assert (len(spooled(tmp_path)), len(list((tmp_path / "cache").rglob("*.npz")))) == (5, 2)
    assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert summary(tmp_path)["a.png"]["reason"].startswith("5 of 12 ")


def test_types_renamed_meanwhile_have_their_new_names(manager, tmp_path):
    """Names and colours are no part of what the nuclei depend on."""
    paint(tmp_path)
    interrupted_run(manager, tmp_path, 11)
    manager.type_info_dict = {0: ("background", (0, 0, 0)), 1: ("renamed", (1, 2, 3))}
    assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert summary(tmp_path)["a.png"]["reason"].startswith("11 of 12 ")
    assert "renamed" in (tmp_path / "out" / "json" / "a.json").read_text()


def test_what_killed_runs_left_is_removed_and_nothing_else(manager, tmp_path):
    paint(tmp_path, shape=(300, 200))
    ours = [tmp_path / "out" / name for name in ("json/.a.123.part.json", "thumb/.a.77.part.png")]
    others = ["json/.b.123.part.json", "json/.a.b.1.part.json", "json/.a.mine.part.json", "json/a.part.json", "x.txt"]
    others = [tmp_path / "out" / name for name in others]
    for path in (*ours, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    interrupted_run(manager, tmp_path, 1)
    half = spooled(tmp_path)[0].parent / ".000001.99.part.npz"
    half.write_text("half")
    interrupted_run(manager, tmp_path, 1)
    assert not half.exists()
    assert run(manager, tmp_path, tile_shape=150, ambiguous_size=40, save_thumb=True).done == ["a"]
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)
    assert not (tmp_path / "out" / ".cache").exists()  # the spool of the other options was its last one


# ---------------------------------------------------------------------------------------------- at the end


def test_a_run_that_was_killed_after_its_last_file_leaves_no_spool(manager, tmp_path):
    """Before it begins to remove it, and half way."""

    def half_removed(self):
        next(self.folder.iterdir()).unlink()
        raise Killed

    paint(tmp_path, shape=(300, 200))
    for removed in (killed, half_removed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Spool, "remove", removed)
            with pytest.raises(Killed):
                run(manager, tmp_path, overwrite=True, **BLOCKS)
        assert spooled(tmp_path)
        assert run(manager, tmp_path, **BLOCKS).skipped == ["a"]
        assert leftovers(tmp_path) == []


def test_stopped_while_it_is_written_a_slide_is_stitched_again_without_the_network(manager, tmp_path):
    paint(tmp_path)
    run(manager, tmp_path, "whole", **BLOCKS)
    for place, name in ((infer.sinks, "write_json"), (infer.sinks.Stitcher, "add"), (infer.sinks, "write_json")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(Killed):
                run(manager, tmp_path, **BLOCKS)
        assert not (tmp_path / "out" / "json" / "a.json").exists()
        assert len(spooled(tmp_path)) == 12
    batches = len(manager.net.batch_sizes)
    assert run(manager, tmp_path, **BLOCKS).done == ["a"]
    assert len(manager.net.batch_sizes) == batches
    assert nuclei_of(tmp_path) == nuclei_of(tmp_path, out="whole")


def outlines(folder: Path) -> int | None:
    """How many nuclei the GeoJSON file holds, if it is there."""
    path = folder / "out" / "qupath" / "a.geojson"
    return len(json.loads(path.read_text())["features"]) if path.exists() else None


@pytest.mark.parametrize("stopped_in", ["write_json", "write_geojson"])
def test_outlines_of_the_run_before_never_lie_beside_new_nuclei(manager, tmp_path, stopped_in):
    def slide(spacing: int) -> None:
        paint(tmp_path, spacing=spacing)
        os.truncate(tmp_path / "in" / "a.png", 1 << 16)  # another size would be another slide

    slide(40)
    run(manager, tmp_path, save_qupath=True)
    slide(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.sinks, stopped_in, killed)
        with pytest.raises(Killed):
            run(manager, tmp_path, overwrite=True)
    assert outlines(tmp_path) in (None, len(nuclei_of(tmp_path)))
    assert run(manager, tmp_path, save_qupath=True).skipped == ["a"]
    assert outlines(tmp_path) == len(nuclei_of(tmp_path))


def test_overwriting_leaves_no_file_of_the_run_before(manager, tmp_path):
    options = {"save_qupath": True, "save_thumb": True, "save_mask": True}
    paint(tmp_path)
    run(manager, tmp_path, **options)
    paint(tmp_path, shape=(420, 300), spacing=100)
    run(manager, tmp_path, overwrite=True)
    run(manager, tmp_path, "fresh", **options)
    made = {path.relative_to(tmp_path / "fresh"): path for path in (tmp_path / "fresh").glob("*/a.*")}
    assert len(made) == 4
    for name, path in made.items():
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes(), name


def test_the_spool_of_an_interrupted_overwrite_is_kept(manager, tmp_path):
    """The old results are there, and the new ones are half done: a run without --overwrite leaves both."""
    paint(tmp_path, shape=(500, 200))
    run(manager, tmp_path, **BLOCKS)
    interrupted_run(manager, tmp_path, 3, overwrite=True)
    assert run(manager, tmp_path, **BLOCKS).skipped == ["a"]
    assert len(spooled(tmp_path)) == 3


# ---------------------------------------------------------------------------------------------- runs at once


def test_a_slide_that_another_run_held_is_tried_again_at_the_end(manager, tmp_path, monkeypatch):
    """The other run ends, or dies, while this one does the rest."""
    for name in "abc":
        paint(tmp_path, f"{name}.png")
    (tmp_path / "out" / "json").mkdir(parents=True)
    prepare = SlideTask.prepare
    with contextlib.ExitStack() as other:
        assert other.enter_context(locked(tmp_path / "out" / "json" / ".a.lock"))

        def prepared(self):
            if self.name == "c":
                other.close()
            return prepare(self)

        monkeypatch.setattr(SlideTask, "prepare", prepared)
        report = run(manager, tmp_path)
    assert report.done == ["b", "c", "a"]
    assert not report.skipped


def test_a_spool_that_another_run_has_begun_is_not_removed_by_the_run_that_failed_before(
    manager, tmp_path, monkeypatch
):
    """The slide fails, is free for others, and one of them has made its folder when this run ends."""
    paint(tmp_path)
    close, begun = SlideTask.close, []

    def closed(self, *args):
        close(self, *args)
        self._spool.folder.mkdir(parents=True)
        begun.append(self._spool.folder)

    monkeypatch.setattr(SlideTask, "close", closed)
    monkeypatch.setattr(Spool, "write", full)
    assert "No space left" in run(manager, tmp_path).failed["a"]
    assert begun[0].is_dir()


def test_p15_two_runs_at_once_share_the_slides(manager, tmp_path):
    """In one cache folder, too; each slide is done by one of them."""
    names = "abcdef"
    for name in names:
        paint(tmp_path, f"{name}.png")
    reports, places = [], {"cache_path": tmp_path / "cache", **BLOCKS}
    threads = [threading.Thread(target=lambda: reports.append(run(manager, tmp_path, **places))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = reports
    assert sorted(one.done + other.done) == list(names)
    assert sorted(one.skipped + other.skipped) == list(names)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "cache").exists()
    assert {name: row["status"] for name, row in summary(tmp_path).items()} == {f"{n}.png": "done" for n in names}
