"""Slide runs: a slide gives what a tile gives, whatever the tiles, the workers, the order or the interruptions."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import slide_runs
import tifffile
from conftest import ROOT
from slide_runs import filled, nuclei_of, paint, run, same_nuclei, summary
from stubs import StubNet, disc_labels, painted_image, write_rgb

import infer.tile
import infer.wsi
import infer.wsi_join
import infer.wsi_reader
import infer.wsi_slide
import infer.wsi_stream
import infer.wsi_tile
from infer.spool import Spool
from misc.locks import locked
from misc.slides.sources import SlideError
from misc.slides.tissue import TissueMask

manager, weights = slide_runs.manager, slide_runs.weights  # fixtures


@pytest.mark.parametrize("shape", [(1, 1), (163, 164), (165, 328), (300, 421)])
def test_a_slide_of_one_tile_gives_the_nuclei_of_tile_mode(manager, weights, tmp_path, shape):
    paint(tmp_path, shape=shape)
    run(manager, tmp_path, tile_shape=4096)
    tiles = infer.tile.InferManager({"model_path": weights}, gpu="")
    tiles.net = StubNet()
    places = {"input_dir": tmp_path / "in", "output_dir": tmp_path / "tile"}
    tiles.process_file_list({**places, "nr_inference_workers": 0, "nr_post_proc_workers": 0})
    assert nuclei_of(tmp_path) == nuclei_of(tmp_path, out="tile")


@pytest.mark.parametrize("side", [100, 128, 163, 256])
def test_p09_nuclei_do_not_depend_on_the_tiles(manager, tmp_path, side):
    labels = paint(tmp_path, shape=(325, 412), spacing=34, radius=11)
    report = run(manager, tmp_path, tile_shape=side, ambiguous_size=40)
    assert report.exit_code == 0
    same_nuclei(labels, filled(nuclei_of(tmp_path), labels.shape))


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_around_a_tiles_border(manager, tmp_path, extra):
    labels = paint(tmp_path, shape=(128 + extra, 256 + extra), spacing=32, radius=10)
    run(manager, tmp_path, tile_shape=128, ambiguous_size=32)
    same_nuclei(labels, filled(nuclei_of(tmp_path), labels.shape))


def test_workers_change_nothing(manager, tmp_path):
    paint(tmp_path, shape=(300, 420))
    for out, workers in (("one", 0), ("two", 2)):
        run(manager, tmp_path, out, nr_post_proc_workers=workers, tile_shape=128, ambiguous_size=40)
    one, two = ((tmp_path / out / "json" / "a.json").read_bytes() for out in ("one", "two"))
    assert one == two
    assert one.count(b'"contour"') > 10


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (129, 128)])
def test_p08_every_pixel_is_predicted(manager, tmp_path, monkeypatch, shape):
    write_rgb(tmp_path / "in" / "a.png", np.full((*shape, 3), 90, np.uint8))
    seen = np.zeros(shape, int)

    def look(job):
        y0, x0, y1, x1 = job.tiles.tile(job.index).outer
        seen[y0:y1, x0:x1] += (job.maps[..., 0] > 0.9).astype(int)
        return finish(job)

    finish = infer.wsi_tile.finish_wsi_tile
    monkeypatch.setattr(infer.wsi, "finish_wsi_tile", look)
    run(manager, tmp_path, tile_shape=128, ambiguous_size=16)
    assert seen.min() >= 1


def test_p07_boxes_are_the_extent_of_contours(manager, tmp_path):
    paint(tmp_path)
    run(manager, tmp_path, tile_shape=128, ambiguous_size=40)
    for info in nuclei_of(tmp_path).values():
        xy = np.array(info["contour"])
        assert info["bbox"] == [[xy[:, 1].min(), xy[:, 0].min()], [xy[:, 1].max() + 1, xy[:, 0].max() + 1]]


def test_patches_without_tissue_are_not_sent_to_the_network(manager, tmp_path, monkeypatch):
    labels = paint(tmp_path, shape=(328, 492))
    mask = np.zeros((2, 3), bool)
    mask[1, 2] = True  # one patch of 164 px
    monkeypatch.setattr(infer.wsi_slide, "otsu_mask", lambda thumb: TissueMask(mask, "otsu"))
    read, windows = infer.wsi_reader.read_reflect, []
    monkeypatch.setattr(infer.wsi_reader, "read_reflect", lambda *args: (windows.append(args[1:]), read(*args))[1])
    run(manager, tmp_path, batch_size=1, chunk_shape=492)
    assert windows == [(164 - 46, 328 - 46, 256, 256)]  # of blocks no more than the patches with tissue need
    assert len(manager.net.batch_sizes) == 1
    found = filled(nuclei_of(tmp_path), labels.shape)
    assert found[170:, 340:].any()
    assert not found[:150].any()


def test_coordinates_say_how_to_get_to_level_0(manager, tmp_path):
    labels = paint(tmp_path, shape=(400, 600), spacing=80, radius=24)
    run(manager, tmp_path, proc_mag=20, save_qupath=True)
    content = json.loads((tmp_path / "out" / "json" / "a.json").read_text())
    assert content["mag"] == 20
    assert content["mpp"] == pytest.approx(0.5)
    assert content["slide"] == {"name": "a.png", "width": 600, "height": 400, "scale": 2.0, "mpp": 0.25}
    features = json.loads((tmp_path / "out" / "qupath" / "a.geojson").read_text())["features"]
    centres = np.array([np.mean(f["geometry"]["coordinates"][0][:-1], axis=0) for f in features])
    inside = labels[np.clip(centres[:, 1].astype(int), 0, 399), np.clip(centres[:, 0].astype(int), 0, 599)]
    assert (inside > 0).all()


def test_p29_both_names_of_the_mask_option(weights, tmp_path, capsys):
    import run_infer

    paint(tmp_path, shape=(200, 200))
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.zeros((20, 20), np.uint8))
    for option in ("--input_mask_dir", "--mask_dir"):
        out = tmp_path / option.strip("-")
        argv = [
            "--gpu=",
            f"--model_path={weights}",
            "--nr_post_proc_workers=0",
            "wsi",
            f"--input_dir={tmp_path / 'in'}",
        ]
        assert run_infer.main([*argv, f"--output_dir={out}", f"{option}={tmp_path / 'masks'}", "--mag=40"]) == 0
        assert json.loads((out / "json" / "a.json").read_text())["nuc"] == {}
        assert capsys.readouterr().out.startswith("0 nuclei (none) in 1 slides")


def test_p26_a_mask_of_another_aspect_is_refused(manager, tmp_path):
    paint(tmp_path, shape=(200, 400))
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.full((30, 30), 255, np.uint8))
    report = run(manager, tmp_path, input_mask_dir=tmp_path / "masks")
    assert "30 x 30 px" in report.failed["a"]
    assert "400 x 200 px" in report.failed["a"]


def test_p21_p25_a_folder_of_good_and_bad_files(manager, tmp_path):
    """Names with spaces, dots, brackets and letters of any alphabet; a broken slide; side files."""
    for name in ("TCGA-1.2 [x] ä.png", "good.png"):
        paint(tmp_path, name, shape=(120, 140))
    image = painted_image(disc_labels((100, 120)))
    options = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "in" / "tagged.tif", image, **options)
    (tmp_path / "in" / "broken.svs").write_bytes(b"II*\0" + b"x" * 100)
    (tmp_path / "in" / "notes.txt").write_text("no slide")
    (tmp_path / "in" / "slide.mrxs.d").mkdir()
    report = run(manager, tmp_path)
    assert sorted(report.done) == ["TCGA-1.2 [x] ä", "good", "tagged"]
    assert list(report.failed) == ["broken"]
    assert report.exit_code == 1
    rows = summary(tmp_path)
    assert {name: row["status"] for name, row in rows.items()} == {
        "TCGA-1.2 [x] ä.png": "done",
        "broken.svs": "failed",
        "good.png": "done",
        "tagged.tif": "done",
    }
    assert rows["broken.svs"]["reason"]
    assert int(rows["good.png"]["nuclei"]) == len(nuclei_of(tmp_path, "good"))
    assert not (tmp_path / "out" / "json" / "broken.json").exists()
    assert not list((tmp_path / "out").rglob(".*"))


def test_p21_a_slide_that_does_not_say_its_resolution_names_the_options(manager, tmp_path):
    paint(tmp_path)
    report = run(manager, tmp_path, mag=None)
    assert "--mpp" in report.failed["a"]
    assert "--mag" in report.failed["a"]


def test_p24_enlarging_a_slide_is_said_with_both_numbers(manager, tmp_path, caplog):
    paint(tmp_path, shape=(100, 120))
    run(manager, tmp_path, mag=20, proc_mag=40)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("20x" in text and "40x" in text for text in warnings)


def test_p05_results_are_skipped_unless_asked_for(manager, tmp_path):
    paint(tmp_path)
    run(manager, tmp_path)
    stamp = (tmp_path / "out" / "json" / "a.json").stat().st_mtime_ns
    assert run(manager, tmp_path).skipped == ["a"]
    assert (tmp_path / "out" / "json" / "a.json").stat().st_mtime_ns == stamp
    assert run(manager, tmp_path, overwrite=True).done == ["a"]


def test_p06_two_slides_of_one_name_are_refused(manager, tmp_path):
    paint(tmp_path, "a.png")
    paint(tmp_path, "a.PNG")
    with pytest.raises(ValueError, match=r"a\.(png|PNG) and .*a\.(png|PNG)"):
        run(manager, tmp_path)


def test_p05_the_users_cache_folder_is_left(manager, tmp_path):
    paint(tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "mine.txt").write_text("keep")
    run(manager, tmp_path, cache_path=cache)
    assert [path.name for path in cache.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("join_bytes", [0, 1 << 30])  # joined row by row, and all at the end
def test_a_fault_at_any_row_is_resumed_to_the_same_file(manager, tmp_path, monkeypatch, join_bytes):
    paint(tmp_path, shape=(500, 300))
    options = {"tile_shape": 128, "ambiguous_size": 40}
    run(manager, tmp_path, "whole", **options)
    whole = sum(manager.net.batch_sizes)
    monkeypatch.setattr(infer.wsi_join, "JOIN_BYTES", join_bytes)
    write = Spool.write
    for stop in range(3):
        rows = []

        def interrupted(self, row, parts, stop=stop, rows=rows):
            if len(rows) == stop:
                raise KeyboardInterrupt
            rows.append(row)
            write(self, row, parts)

        monkeypatch.setattr(Spool, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(manager, tmp_path, f"cut{stop}", **options)
        monkeypatch.setattr(Spool, "write", write)
        before = sum(manager.net.batch_sizes)
        run(manager, tmp_path, f"cut{stop}", **options)
        again = sum(manager.net.batch_sizes) - before
        assert 0 < again <= whole - 4 * (stop > 0)  # joined rows are not done again
        assert [path.name for path in (tmp_path / f"cut{stop}" / "json").iterdir()] == ["a.json"]
        files = [tmp_path / out / "json" / "a.json" for out in ("whole", f"cut{stop}")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert not list((tmp_path / f"cut{stop}").rglob("*.npz"))


JOINS_ROW_BY_ROW = """
import runpy, sys, infer.wsi_join
infer.wsi_join.JOIN_BYTES = 0
sys.argv = ["run_infer.py", *sys.argv[1:]]
if __name__ == "__main__":
    runpy.run_path("run_infer.py", run_name="__main__")
"""


@pytest.mark.parametrize(("script", "kept"), [(["run_infer.py"], "000002.npz"), (["-c", JOINS_ROW_BY_ROW], "*.joined")])
def test_kill_9_and_the_same_command_gives_the_same_file(weights, tmp_path, script, kept):
    image = np.random.default_rng(0).integers(0, 255, (1100, 340, 3)).astype(np.uint8)
    write_rgb(tmp_path / "in" / "a.png", cv2.GaussianBlur(image, (9, 9), 0))
    command = [sys.executable, *script, "--gpu=", f"--model_path={weights}", "--nr_post_proc_workers=1"]
    command += ["--batch_size=2", "wsi", f"--input_dir={tmp_path / 'in'}", "--mag=40", "--tile_shape=128"]

    def start(out: str) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        arguments = [*command, "--ambiguous_size=32", f"--output_dir={tmp_path / out}"]
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True)

    killed = start("killed")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((tmp_path / "killed").rglob(kept)):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "json" / "a.json").exists()
    for process in (start("killed"), start("whole")):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    one, two = ((tmp_path / out / "json" / "a.json").read_bytes() for out in ("killed", "whole"))
    assert one == two


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


def test_p03_p20_a_full_disk_is_named_and_nothing_half_is_left(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png", shape=(100, 100))
    write = Spool.write

    def full(self, row, parts):
        if self.folder.name.startswith("a."):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, row, parts)

    monkeypatch.setattr(Spool, "write", full)
    report = run(manager, tmp_path)
    assert report.done == ["b"]
    assert "No space left" in report.failed["a"]
    assert not (tmp_path / "out" / "json" / "a.json").exists()


def test_a_slide_that_cannot_be_read_half_way_is_named(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png", shape=(100, 100))
    read = infer.wsi_reader.read_reflect

    def truncated(handler, *window):
        if handler.path.name == "a.png":
            raise SlideError(handler.path, "cannot be read at level 0")
        return read(handler, *window)

    monkeypatch.setattr(infer.wsi_reader, "read_reflect", truncated)
    report = run(manager, tmp_path, tile_shape=128, ambiguous_size=16)
    assert report.done == ["b"]
    assert "cannot be read at level 0" in report.failed["a"]
    assert not list((tmp_path / "out").rglob("*.npz"))


def test_p02_a_tile_that_fails_twice_is_named(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png")

    def broken(job):
        raise ArithmeticError(f"no such tile {job.index}")

    monkeypatch.setattr(infer.wsi, "finish_wsi_tile", broken)
    report = run(manager, tmp_path)
    assert "tile 0 (x 0 to 420, y 0 to 300 px): ArithmeticError: no such tile 0" in report.failed["a"]


def test_p17_out_of_memory_halves_the_batch(manager, tmp_path, monkeypatch):
    labels = paint(tmp_path)
    forward = manager.net.forward

    def small(imgs):
        if len(imgs) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(imgs)

    monkeypatch.setattr(manager.net, "forward", small)
    run(manager, tmp_path)
    same_nuclei(labels, filled(nuclei_of(tmp_path), labels.shape))


def test_memory_of_predicted_patches_does_not_go_with_the_slide(manager, tmp_path, monkeypatch):
    """What is held is a strip and a tile, not the slide: twice the height, the same peak."""
    peaks = []
    for height in (800, 1600):
        folder = tmp_path / str(height)
        paint(folder, shape=(height, 500), spacing=50)
        peak = [0]
        predict = infer.wsi_stream.SlideStream._predict

        def look(self, *args, peak=peak, predict=predict):
            result = predict(self, *args)
            peak[0] = max(peak[0], len(self.canvas))
            return result

        monkeypatch.setattr(infer.wsi_stream.SlideStream, "_predict", look)
        run(manager, folder, tile_shape=164, ambiguous_size=20)
        monkeypatch.setattr(infer.wsi_stream.SlideStream, "_predict", predict)
        peaks.append(peak[0])
    assert peaks[0] == peaks[1] <= 12


def test_memory_of_the_last_row_of_tiles_does_not_go_with_its_width(manager, tmp_path, monkeypatch):
    """Nothing lies below it, so nothing of it is kept: half as wide again, the same peak."""
    peaks = []
    predict = infer.wsi_stream.SlideStream._predict
    for width in (3200, 4800):
        folder = tmp_path / str(width)
        paint(folder, shape=(300, width), spacing=50)
        peak = [0]

        def look(self, *args, peak=peak):
            result = predict(self, *args)
            peak[0] = max(peak[0], len(self.canvas))
            return result

        monkeypatch.setattr(infer.wsi_stream.SlideStream, "_predict", look)
        run(manager, folder, tile_shape=400, ambiguous_size=20, chunk_shape=600)
        peaks.append(peak[0])
    assert peaks[0] == peaks[1]


def test_a_slide_without_tissue_has_an_empty_file(manager, tmp_path, monkeypatch):
    paint(tmp_path)
    monkeypatch.setattr(infer.wsi_slide, "otsu_mask", lambda thumb: TissueMask(np.zeros((3, 3), bool), "otsu"))
    report = run(manager, tmp_path, save_thumb=True, save_mask=True)
    assert report.done == ["a"]
    assert nuclei_of(tmp_path) == {}
    assert (tmp_path / "out" / "thumb" / "a.png").is_file()
    assert (tmp_path / "out" / "mask" / "a.png").is_file()
