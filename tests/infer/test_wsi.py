"""Slide runs: a slide gives what a tile gives, whatever the blocks, the workers or the planes."""

from __future__ import annotations

import json
import signal
import threading

import cv2
import numpy as np
import pytest
import slide_runs
import tifffile
from slide_runs import BLOCKS, ENOUGH_S, filled, leftovers, nuclei_of, nuclei_set, paint, run, same_nuclei, summary
from stubs import StubNet, disc_labels, painted_image, write_rgb

import infer.source
import infer.tile
import infer.wsi
import misc.workers
from infer.sinks import BlockJob
from misc.slides.tissue import TissueMask, whole_mask
from misc.workers import WorkerPool
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model

loaded, manager, weights = slide_runs.loaded, slide_runs.manager, slide_runs.weights  # fixtures


def as_tile(weights, folder, out: str = "tile", **options):
    """Run the same folder as images."""
    tiles = infer.tile.InferManager({"model_path": weights}, gpu="")
    tiles.net = StubNet()
    places = {"input_dir": folder / "in", "output_dir": folder / out}
    return tiles.process_file_list({**places, "nr_inference_workers": 0, "nr_post_proc_workers": 0, **options})


# ---------------------------------------------------------------------------------------------- slide equals tile


def test_a_slide_of_one_block_gives_the_nuclei_of_tile_mode(manager, weights, tmp_path):
    for shape in [(1, 1), (163, 164), (165, 328), (300, 421)]:
        folder = tmp_path / str(shape)
        paint(folder, shape=shape)
        run(manager, folder, tile_shape=4096)
        as_tile(weights, folder)
        assert nuclei_of(folder) == nuclei_of(folder, out="tile")
    assert len(nuclei_of(folder)) > 50


@pytest.mark.parametrize("model_mpp", [0.125, 0.3, 0.5])
def test_where_the_network_reads_another_plane_a_slide_still_gives_the_nuclei_of_tile_mode(
    tmp_path, monkeypatch, model_mpp
):
    """The network reads at its own um/px, finer or coarser; nuclei are outlined in px of level 0, in one block or many.

    Slides and images are shrunk by uneven factors a little differently.
    """
    labels = paint(tmp_path, shape=(420, 500), spacing=60, radius=16)
    path = tmp_path / "net.tar"
    save_weights(path, create_model("fast", width=0.125).state_dict(), {"mpp": model_mpp})
    manager = infer.wsi.InferManager({"model_path": path}, gpu="")
    manager.net = StubNet()
    monkeypatch.setattr(infer.wsi, "otsu_mask", lambda thumb: whole_mask())
    as_tile(path, tmp_path, mpp=0.25)
    run(manager, tmp_path, "one", tile_shape=4096)
    run(manager, tmp_path, "many", tile_shape=150, ambiguous_size=64)
    assert (nuclei_of(tmp_path, out="one") == nuclei_of(tmp_path, out="tile")) == (model_mpp != 0.3)
    same_nuclei(labels, filled(nuclei_of(tmp_path, out="tile"), labels.shape), iou=0.8)
    for out in ("one", "many"):
        content = json.loads((tmp_path / out / "json" / "a.json").read_text())
        assert (content["mag"], content["mpp"], content["slide"]["scale"]) == (40, 0.25, 1)
        same_nuclei(labels, filled(content["nuc"], labels.shape), iou=0.8)


def test_p09_nuclei_do_not_depend_on_the_blocks(manager, tmp_path):
    labels = paint(tmp_path, shape=(325, 412), spacing=34, radius=11)
    for side in (100, 128, 163, 256):
        report = run(manager, tmp_path, str(side), tile_shape=side, ambiguous_size=40)
        assert report.exit_code == 0
        same_nuclei(labels, filled(nuclei_of(tmp_path, out=str(side)), labels.shape))


def test_sizes_around_the_border_of_a_block(manager, tmp_path):
    for extra in (-1, 0, 1):
        folder = tmp_path / str(extra)
        labels = paint(folder, shape=(128 + extra, 256 + extra), spacing=32, radius=10)
        run(manager, folder, tile_shape=128, ambiguous_size=32)
        same_nuclei(labels, filled(nuclei_of(folder), labels.shape))


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


def test_p09_touching_nuclei_are_the_same_for_every_block_and_worker(manager, tmp_path, monkeypatch):
    """A slide of 1,080 x 1,440 px with 864 nuclei in touching pairs."""
    block = touching_pairs()
    write_rgb(tmp_path / "in" / "a.png", np.tile(painted_image(block), (3, 4, 1)))
    copies = np.kron(np.arange(12).reshape(3, 4), np.ones_like(block)) * block.max()
    labels = np.where(np.tile(block, (3, 4)) > 0, np.tile(block, (3, 4)) + copies, 0)
    monkeypatch.setattr(misc.workers, "cpu_count", lambda: 2)
    for side, workers in ((256, 0), (256, 2), (500, 0), (1024, 0), (2048, 0)):
        out = f"{side} {workers}"
        run(manager, tmp_path, out, nr_post_proc_workers=workers, tile_shape=side, ambiguous_size=64)
        same_nuclei(labels, filled(nuclei_of(tmp_path, out=out), labels.shape))


def test_p07_boxes_are_the_extent_of_contours(manager, tmp_path):
    paint(tmp_path)
    run(manager, tmp_path, **BLOCKS)
    for info in nuclei_of(tmp_path).values():
        xy = np.array(info["contour"])
        assert info["bbox"] == [[xy[:, 1].min(), xy[:, 0].min()], [xy[:, 1].max() + 1, xy[:, 0].max() + 1]]


def test_coordinates_say_how_to_get_to_level_0(manager, tmp_path):
    labels = paint(tmp_path, shape=(400, 600), spacing=80, radius=24)
    run(manager, tmp_path, proc_mag=20, save_qupath=True)
    content = json.loads((tmp_path / "out" / "json" / "a.json").read_text())
    assert content["mag"] == 20
    assert content["mpp"] == pytest.approx(0.5)
    assert content["slide"] == {
        "name": "a.png",
        "width": 600,
        "height": 400,
        "scale": 2.0,
        "mpp": 0.25,
        "bounds": None,
        "tissue_share": 1,
    }
    features = json.loads((tmp_path / "out" / "qupath" / "a.geojson").read_text())["features"]
    centres = np.array([np.mean(f["geometry"]["coordinates"][0][:-1], axis=0) for f in features])
    inside = labels[np.clip(centres[:, 1].astype(int), 0, 399), np.clip(centres[:, 0].astype(int), 0, 599)]
    assert (inside > 0).all()


# ---------------------------------------------------------------------------------------------- what the network gets


def test_p08_every_pixel_is_predicted(manager, tmp_path, monkeypatch):
    job = BlockJob.run
    for shape in [(1, 1), (5, 300), (129, 128)]:
        write_rgb(tmp_path / str(shape) / "in" / "a.png", np.full((*shape, 3), 90, np.uint8))
        seen = np.zeros(shape, int)

        def look(self, seen=seen):
            y0, x0, y1, x1 = self.blocks.block(self.index).outer
            seen[y0:y1, x0:x1] += (self.maps.array[0] > 0.9).astype(int)
            return job(self)

        monkeypatch.setattr(BlockJob, "run", look)
        run(manager, tmp_path / str(shape), tile_shape=128, ambiguous_size=16)
        assert seen.min() >= 1


def test_patches_without_tissue_are_not_sent_to_the_network(manager, tmp_path, monkeypatch):
    labels = paint(tmp_path, shape=(328, 492))
    mask = np.zeros((2, 3), bool)
    mask[1, 2] = True  # one patch of 164 px
    monkeypatch.setattr(infer.wsi, "otsu_mask", lambda thumb: TissueMask(mask, "otsu"))
    read, windows = infer.source.read_reflect, []
    monkeypatch.setattr(infer.source, "read_reflect", lambda *args: (windows.append(args[1:]), read(*args))[1])
    run(manager, tmp_path, batch_size=1, chunk_shape=492)
    assert windows == [(164 - 46, 328 - 46, 256, 256)]  # of chunks no more than the patches with tissue need
    assert manager.net.batch_sizes == [1]
    found = filled(nuclei_of(tmp_path), labels.shape)
    assert found[170:, 340:].any()
    assert not found[:150].any()


def test_batches_cross_blocks_and_slides_and_are_not_filled_up(manager, tmp_path):
    for name in "abc":
        paint(tmp_path, f"{name}.png", shape=(328, 492))  # 6 patches in a single block
    run(manager, tmp_path, batch_size=4)
    assert sum(manager.net.batch_sizes) == 18
    assert set(manager.net.batch_sizes[:-1]) <= {1, 2, 3, 4}
    manager.net.batch_sizes.clear()
    run(manager, tmp_path, "blocks", batch_size=1000, **BLOCKS)
    rows, cols = 3, 4  # the patches of a slide of several blocks begin above and to the left of it
    assert sum(manager.net.batch_sizes) == 3 * rows * cols


def test_p17_out_of_memory_halves_the_batch(manager, tmp_path, monkeypatch):
    labels = paint(tmp_path, shape=(600, 1200), spacing=60)
    forward, sizes = manager.net.forward, []

    def small(imgs):
        sizes.append(len(imgs))
        if len(imgs) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(imgs)

    monkeypatch.setattr(manager.net, "forward", small)
    run(manager, tmp_path, batch_size=8, **BLOCKS)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[3:]) == 2
    same_nuclei(labels, filled(nuclei_of(tmp_path), labels.shape))


# ---------------------------------------------------------------------------------------------- workers


def test_workers_and_readers_change_nothing(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(misc.workers, "cpu_count", lambda: 4)
    paint(tmp_path)
    for out, workers, readers in (("one", 0, 0), ("two", 2, 4)):
        counts = {"nr_post_proc_workers": workers, "nr_inference_workers": readers, "chunk_shape": 300}
        run(manager, tmp_path, out, **counts, **BLOCKS)
    assert nuclei_of(tmp_path, out="one") == nuclei_of(tmp_path, out="two")
    assert len(nuclei_of(tmp_path, out="one")) > 10


def test_p02_blocks_whose_workers_are_killed_are_not_lost(manager, tmp_path, monkeypatch):
    """The worker is killed when its second and its fourth block come."""
    paint(tmp_path, shape=(500, 300))
    run(manager, tmp_path, "whole", **BLOCKS)
    in_a_worker, jobs, kills = WorkerPool._in_a_worker, [], []

    def killed(self, job):
        jobs.append(job)
        if len(jobs) in (2, 4):
            kills.append(self._idle[-1].process)
            kills[-1].kill()
        return in_a_worker(self, job)

    monkeypatch.setattr(WorkerPool, "_in_a_worker", killed)
    assert run(manager, tmp_path, nr_post_proc_workers=1, **BLOCKS).done == ["a"]
    assert [process.exitcode for process in kills] == [-signal.SIGKILL] * 2
    assert nuclei_of(tmp_path) == nuclei_of(tmp_path, out="whole")


def test_p19_one_pool_for_the_run_and_the_next_slide_begins_while_blocks_of_the_last_are_in_work(
    manager, tmp_path, monkeypatch
):
    """The last block of the first slide is handed to a worker only once the network has seen the second slide."""
    for name, grey in (("a", 100), ("b", 50)):
        write_rgb(tmp_path / "in" / f"{name}.png", np.full((200, 700, 3), grey, np.uint8))
    pools, second, forward, in_a_worker = [], threading.Event(), manager.net.forward, WorkerPool._in_a_worker
    init = WorkerPool.__init__

    def predicting(imgs):
        if (imgs == 50).all(dim=(1, 2, 3)).any():
            second.set()
        return forward(imgs)

    def held(self, job):
        if isinstance(job, BlockJob) and job.spool.name == "a" and job.index == 2:
            assert second.wait(ENOUGH_S)
        return in_a_worker(self, job)

    monkeypatch.setattr(WorkerPool, "__init__", lambda self, *args, **kw: pools.append(self) or init(self, *args, **kw))
    monkeypatch.setattr(WorkerPool, "_in_a_worker", held)
    monkeypatch.setattr(manager.net, "forward", predicting)
    report = run(manager, tmp_path, nr_post_proc_workers=1, batch_size=1, tile_shape=256)
    assert report.done == ["a", "b"]
    assert len(pools) == 1


# ---------------------------------------------------------------------------------------------- masks, folders, options


def test_a_slide_without_tissue_has_an_empty_file(manager, tmp_path, monkeypatch):
    paint(tmp_path)
    monkeypatch.setattr(infer.wsi, "otsu_mask", lambda thumb: TissueMask(np.zeros((3, 3), bool), "otsu"))
    report = run(manager, tmp_path, save_thumb=True, save_mask=True, save_qupath=True)
    assert report.done == ["a"]
    assert nuclei_of(tmp_path) == {}
    for name in ("thumb/a.png", "mask/a.png", "qupath/a.geojson"):
        assert (tmp_path / "out" / name).is_file()
    assert leftovers(tmp_path) == []


def test_thumbnail_and_mask_are_written_before_the_network_begins(manager, tmp_path, monkeypatch):
    paint(tmp_path)
    forward, seen = manager.net.forward, []

    def look(imgs):
        seen.append(sorted(path.parent.name for path in (tmp_path / "out").rglob("a.png")))
        return forward(imgs)

    monkeypatch.setattr(manager.net, "forward", look)
    run(manager, tmp_path, save_thumb=True, save_mask=True)
    assert seen[0] == ["mask", "thumb"]


def test_p29_both_names_of_the_mask_option(weights, tmp_path, capsys):
    import run_infer

    paint(tmp_path, shape=(200, 200))
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.zeros((20, 20), np.uint8))
    for option in ("--input_mask_dir", "--mask_dir"):
        out = tmp_path / option.strip("-")
        argv = ["--gpu=", f"--model_path={weights}", "--nr_post_proc_workers=0", "wsi"]
        argv += [f"--input_dir={tmp_path / 'in'}", f"--output_dir={out}", f"{option}={tmp_path / 'masks'}", "--mag=40"]
        assert run_infer.main(argv) == 0
        assert json.loads((out / "json" / "a.json").read_text())["nuc"] == {}
        assert capsys.readouterr().out.startswith("0 nuclei (none) in 1 slide,")


def test_p26_a_mask_of_another_aspect_is_refused(manager, tmp_path):
    paint(tmp_path, shape=(200, 400))
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.full((30, 30), 255, np.uint8))
    report = run(manager, tmp_path, input_mask_dir=tmp_path / "masks")
    assert "30 x 30 px" in report.failed["a"]
    assert "400 x 200 px" in report.failed["a"]
    assert leftovers(tmp_path) == []


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
    assert leftovers(tmp_path) == []


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
    nuclei = nuclei_set(tmp_path)
    assert run(manager, tmp_path, overwrite=True).done == ["a"]
    assert (tmp_path / "out" / "json" / "a.json").stat().st_mtime_ns > stamp
    assert nuclei_set(tmp_path) == nuclei


def test_p06_two_slides_of_one_name_are_refused(manager, tmp_path):
    paint(tmp_path, "a.png")
    paint(tmp_path, "a.PNG")
    with pytest.raises(ValueError, match=r"a\.(png|PNG) and .*a\.(png|PNG)"):
        run(manager, tmp_path)


def test_p05_p15_the_users_cache_folder_is_left(manager, tmp_path):
    """And one that the run made is not."""
    paint(tmp_path)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "mine.txt").write_text("keep")
    run(manager, tmp_path, cache_path=cache)
    assert [path.name for path in cache.iterdir()] == ["mine.txt"]
    run(manager, tmp_path, overwrite=True, cache_path=tmp_path / "new")
    assert not (tmp_path / "new").exists()
