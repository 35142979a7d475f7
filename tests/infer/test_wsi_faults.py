"""Slide runs on a bad day: memory, disk, network drives, killed runs, names that are too long, files that are none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import slide_runs
from slide_runs import TILES, filled, interrupted_run, nuclei_of, paint, run, same_nuclei, summary

import infer.wsi
import infer.wsi_reader
import infer.wsi_slide
from infer.predictor import Predictor
from infer.spool import Spool
from infer.wsi_files import MAX_STEM_BYTES, lock_path, short_stem
from misc.slides.sources import ImageSource, SlideError
from models.hovernet import post_proc

manager, weights = slide_runs.manager, slide_runs.weights  # fixtures


def json_of(folder: Path, out: str = "out") -> bytes:
    return (folder / out / "json" / "a.json").read_bytes()


# ---------------------------------------------------------------------------------------------- memory, reading


def test_p17_after_a_halving_batches_are_cut_as_before(manager, tmp_path, monkeypatch):
    """Patches that had gathered beyond the new size were never sent until the end of their band."""
    labels = paint(tmp_path, shape=(600, 2300), spacing=100)
    forward, call, cut = manager.net.forward, Predictor.__call__, []

    def small(imgs):
        if len(cut) > 2 and len(imgs) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(imgs)

    def counting(self, patches):
        cut.append(patches[:, ::64, ::64].tobytes())
        return call(self, patches)

    options = {"tile_shape": 256, "ambiguous_size": 80}
    monkeypatch.setattr(Predictor, "__call__", counting)
    run(manager, tmp_path, "plenty", **options)
    plenty, cut[:] = list(cut), []
    monkeypatch.setattr(manager.net, "forward", small)
    run(manager, tmp_path, "scarce", **options)
    assert cut == plenty  # so a run that is resumed, with memory or without, makes the same ones
    same_nuclei(labels, filled(nuclei_of(tmp_path, out="scarce"), labels.shape))


def test_a_picture_is_decoded_once_for_all_reading_threads(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(infer.workers, "cpu_count", lambda: 4)
    labels = paint(tmp_path, shape=(600, 900))
    made = []
    init = ImageSource.__init__
    monkeypatch.setattr(ImageSource, "__init__", lambda self, path: (made.append(path), init(self, path))[1])
    run(manager, tmp_path, nr_inference_workers=4, chunk_shape=300, **TILES)
    assert len(made) == 1
    same_nuclei(labels, filled(nuclei_of(tmp_path), labels.shape))


def fail_below(monkeypatch, y: int, times: int) -> list[Path]:
    """Let reading fail below a row of the slide, so many times."""
    read, failed = infer.wsi_reader.read_reflect, []

    def failing(handler, top, left, height, width):
        if top > y and len(failed) < times:
            failed.append(handler)
            raise SlideError(handler.path, "Input/output error")
        return read(handler, top, left, height, width)

    monkeypatch.setattr(infer.wsi_reader, "read_reflect", failing)
    return failed


def test_a_region_that_fails_once_is_read_again_with_a_fresh_handler(manager, tmp_path, monkeypatch, caplog):
    paint(tmp_path, shape=(700, 300))
    run(manager, tmp_path, "whole", **TILES)
    fail_below(monkeypatch, 300, times=1)
    assert run(manager, tmp_path, **TILES).done == ["a"]
    assert "Input/output error; opening it anew" in caplog.text
    assert json_of(tmp_path) == json_of(tmp_path, "whole")


def test_a_slide_that_fails_keeps_what_is_done_for_the_next_run(manager, tmp_path, monkeypatch):
    paint(tmp_path, shape=(1200, 300))
    run(manager, tmp_path, "whole", **TILES)
    whole = sum(manager.net.batch_sizes)
    with pytest.MonkeyPatch.context() as patch:
        fail_below(patch, 700, times=100)
        report = run(manager, tmp_path, **TILES)
    assert "Input/output error" in report.failed["a"]
    assert list((tmp_path / "out").rglob("000000.npz"))
    before = sum(manager.net.batch_sizes)
    assert run(manager, tmp_path, **TILES).done == ["a"]
    assert sum(manager.net.batch_sizes) - before < 0.7 * whole
    assert json_of(tmp_path) == json_of(tmp_path, "whole")
    assert not (tmp_path / "out" / ".cache").exists()


@pytest.mark.parametrize("row", [0, 1])
def test_a_damaged_row_of_the_spool_is_done_again(manager, tmp_path, row):
    """It made the slide fail in every later run."""
    paint(tmp_path, shape=(700, 300))
    run(manager, tmp_path, "whole", **TILES)
    interrupted_run(manager, tmp_path, 3)
    path = next((tmp_path / "out").rglob(f"00000{row}.npz"))
    path.write_bytes(path.read_bytes()[:300])
    before = len(manager.net.batch_sizes)
    assert run(manager, tmp_path, **TILES).done == ["a"]
    again = len(manager.net.batch_sizes) - before
    assert json_of(tmp_path) == json_of(tmp_path, "whole")
    assert again < before  # rows 0 to 2 that are whole were not


# ---------------------------------------------------------------------------------------------- locks, names, leftovers


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
    assert "too long" in report.failed[too_long]
    out = tmp_path / "out"
    for folder, suffix in (("json", "json"), ("qupath", "geojson"), ("thumb", "png"), ("mask", "png")):
        assert sorted(p.name for p in (out / folder).iterdir()) == sorted([f"good.{suffix}", f"{long}.{suffix}"])
    assert nuclei_of(tmp_path, long) == nuclei_of(tmp_path, "good")


def test_short_names_stay_and_long_ones_differ():
    assert short_stem("TCGA-1.2 x") == "TCGA-1.2 x"
    stems = [short_stem("é" * 200 + end) for end in "ab"]
    assert stems[0] != stems[1]
    assert all(len(stem.encode()) <= MAX_STEM_BYTES for stem in stems)
    assert lock_path(Path("json") / "a.b.json") == Path("json") / ".a.b.lock"


def test_what_killed_runs_left_is_removed_and_nothing_else(manager, tmp_path):
    paint(tmp_path, shape=(300, 200))
    ours = [tmp_path / "out" / name for name in ("json/.a.123.part.json", "thumb/.a.77.part.png")]
    others = ["json/.b.123.part.json", "json/.a.b.1.part.json", "json/.a.mine.part.json", "json/a.part.json", "x.txt"]
    others = [tmp_path / "out" / name for name in others]
    for path in (*ours, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    interrupted_run(manager, tmp_path, 1)
    assert (tmp_path / "out" / ".cache").exists()
    assert run(manager, tmp_path, tile_shape=150, ambiguous_size=40, save_thumb=True).done == ["a"]
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)
    assert not (tmp_path / "out" / ".cache").exists()  # the spool of the other options was its last one


def test_a_run_that_was_killed_right_after_its_last_file_leaves_no_spool(manager, tmp_path, monkeypatch):
    paint(tmp_path, shape=(300, 200))

    def killed(self):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            run(manager, tmp_path, **TILES)
    assert list((tmp_path / "out").rglob("*.npz"))
    joined = tmp_path / "out" / "json" / ".a.joined"
    joined.touch()  # killed between writing another head and removing this
    os.utime(joined, ns=(0, 0))
    assert run(manager, tmp_path, **TILES).skipped == ["a"]
    assert not (tmp_path / "out" / ".cache").exists()
    assert not joined.exists()


def test_rows_of_other_post_processing_are_not_gone_on_with(manager, tmp_path, monkeypatch):
    paint(tmp_path, shape=(500, 200))
    interrupted_run(manager, tmp_path, 2)
    monkeypatch.setattr(post_proc, "MIN_SIZE_PX", 10_000)
    assert run(manager, tmp_path, **TILES).done == ["a"]
    assert nuclei_of(tmp_path) == {}


def outlines(folder: Path) -> int | None:
    """How many nuclei the GeoJSON file holds, if it is there."""
    path = folder / "out" / "qupath" / "a.geojson"
    return len(json.loads(path.read_text())["features"]) if path.exists() else None


@pytest.mark.parametrize("killed_in", ["infer.wsi_join.nuclei_text", "infer.wsi_slide.write_geojson"])
def test_outlines_of_the_run_before_never_lie_beside_new_nuclei(manager, tmp_path, killed_in):
    def slide(spacing: int) -> None:
        paint(tmp_path, spacing=spacing)
        os.truncate(tmp_path / "in" / "a.png", 1 << 16)  # another size would be another slide

    slide(40)
    run(manager, tmp_path, save_qupath=True)
    slide(100)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
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
    run(manager, tmp_path, **TILES)
    interrupted_run(manager, tmp_path, 2, overwrite=True)
    assert run(manager, tmp_path, **TILES).skipped == ["a"]
    assert len(list((tmp_path / "out").rglob("*.npz"))) == 2


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


def test_a_full_disk_names_the_spool_and_counts_no_nuclei(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png", shape=(100, 100))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert str(tmp_path / "out" / ".cache") in run(manager, tmp_path).failed["a"]
    monkeypatch.setattr(infer.wsi_slide, "write_geojson", full)
    report = run(manager, tmp_path, save_qupath=True)
    assert str(tmp_path / "out" / "qupath" / "a.geojson") in report.failed["a"]
    assert not report.found


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
    init = infer.wsi.SlideTask.__init__

    def broken(self, setting, path):
        if path.stem == "a":
            raise ValueError("a is cursed")
        init(self, setting, path)

    monkeypatch.setattr(infer.wsi.SlideTask, "__init__", broken)
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
