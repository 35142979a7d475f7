"""What a slide run says: the summary, the report, the log and the progress bar; and what it adds to finished slides."""

from __future__ import annotations

import errno
import logging
import re
import threading

import cv2
import numpy as np
import pytest
import slide_runs
from slide_runs import TILES, interrupted_run, nuclei_of, paint, run, summary
from stubs import disc_labels, painted_image

import infer.wsi_slide
import infer.wsi_summary
import infer.wsi_tile
from infer.spool import Spool
from infer.wsi_summary import BUSY, THERE, Row, Summary
from misc.slides.tissue import TissueMask
from models.hovernet import post_proc

manager, weights = slide_runs.manager, slide_runs.weights  # fixtures

# ---------------------------------------------------------------------------------------------- summary


def test_several_runs_at_once_lose_no_line_of_the_summary(tmp_path):
    def record(run_nr: int) -> None:
        mine = Summary(tmp_path / "summary.csv")
        for number in range(15):
            mine.put(Row(f"{run_nr} {number:02d}.svs", status="done", nuclei=number))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + 4 * 15
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


def test_the_summary_is_there_after_each_slide(manager, tmp_path, monkeypatch):
    for name in "ab":
        paint(tmp_path, f"{name}.png", shape=(100, 100))
    seen, segment = [], infer.wsi_slide.SlideTask.segment

    def look(self, *args):
        path = tmp_path / "out" / "summary.csv"
        seen.append(path.read_text() if path.exists() else "")
        return segment(self, *args)

    monkeypatch.setattr(infer.wsi_slide.SlideTask, "segment", look)
    run(manager, tmp_path)
    assert "a.png" not in seen[0]
    assert "a.png,done" in seen[1]


def test_lines_of_the_summary_that_cannot_be_written_come_later(tmp_path, monkeypatch, caplog):
    mine = Summary(tmp_path / "summary.csv")
    (tmp_path / "summary.csv").mkdir()
    mine.put(Row("a.svs", status="done"))
    assert "cannot be written now" in caplog.text
    with pytest.raises(OSError, match="summary.csv"):
        mine.flush()
    (tmp_path / "summary.csv").rmdir()
    mine.put(Row("b.svs", status="done"))
    assert mine.earlier("a.svs")["status"] == "done"
    assert mine.earlier("b.svs")["status"] == "done"


def test_a_summary_that_a_spreadsheet_saved_keeps_its_lines(tmp_path):
    """A byte-order mark, columns added and taken away, a line cut short: all earlier slides were lost."""
    path = tmp_path / "summary.csv"
    path.write_text("\ufeffslide,status,nuclei,note\r\na.svs,done,7,nice\r\nb.svs,done\r\n", encoding="utf-8")
    mine = Summary(path)
    for slide in "ac":
        mine.put(Row(f"{slide}.svs", status="done", nuclei=9))
    lines = path.read_text().splitlines()
    assert lines[0] == "slide,status,reason,nuclei,seconds,mpp,magnification,tissue_share,note"
    assert lines[1:] == ["a.svs,done,,9,,,,,nice", "b.svs,done,,,,,,,", "c.svs,done,,9,,,,,"]


@pytest.mark.parametrize("content", ["slide;status\na.svs;done\n", "x" * 200_000, "name,status\na.svs,done\n"])
def test_a_summary_that_cannot_be_understood_is_put_aside(tmp_path, caplog, content):
    mine = Summary(tmp_path / "summary.csv")
    (tmp_path / "summary.old1.csv").write_text("of the time before")
    mine.path.write_text(content)
    assert mine.earlier("a.svs") is None
    mine.put(Row("b.svs", status="done"))
    assert mine.earlier("b.svs")["status"] == "done"
    assert (tmp_path / "summary.old2.csv").read_text() == content
    assert (tmp_path / "summary.old1.csv").read_text() == "of the time before"
    assert "it is now summary.old2.csv" in caplog.text


@pytest.mark.parametrize(
    ("earlier", "now", "stays"),
    [
        (Row("a", "done", nuclei=7), Row("a", "skipped", THERE, 9), True),
        (Row("a", "done", nuclei=7), Row("a", "failed", "broken"), False),
        (Row("a", "failed", "broken"), Row("a", "skipped", THERE, 9), False),
        (Row("a", "failed", "broken"), Row("a", "skipped", BUSY), True),
        (Row("a", "skipped", BUSY), Row("a", "done", nuclei=9), False),
    ],
)
def test_which_line_of_a_slide_stays(tmp_path, earlier, now, stays):
    mine = Summary(tmp_path / "summary.csv")
    mine.put(earlier)
    mine.put(now)
    assert mine.earlier("a")["nuclei"] == str(earlier.nuclei if stays else now.nuclei)
    assert mine.earlier("a")["status"] == (earlier.status if stays else now.status)


def test_nuclei_of_slides_that_are_done_are_counted_where_no_line_says_them(manager, tmp_path):
    paint(tmp_path)
    run(manager, tmp_path)
    first = summary(tmp_path)
    run(manager, tmp_path)
    assert summary(tmp_path) == first
    (tmp_path / "out" / "summary.csv").unlink()
    run(manager, tmp_path)
    row = summary(tmp_path)["a.png"]
    assert (row["status"], row["reason"], row["nuclei"]) == ("skipped", THERE, first["a.png"]["nuclei"])


# ---------------------------------------------------------------------------------------------- log and bar


def test_progress_goes_on_where_it_was_and_ends_at_100_per_cent(manager, tmp_path, monkeypatch):
    paint(tmp_path, shape=(1200, 300))
    bars = []

    class Bar(infer.wsi_slide.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    write, written = Spool.write, []

    def interrupted(self, row, parts):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(row)
        write(self, row, parts)

    monkeypatch.setattr(infer.wsi_slide, "tqdm", Bar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(manager, tmp_path, **TILES)
    run(manager, tmp_path, **TILES)
    first, second = bars
    assert first.initial == 0
    assert first.n < first.total
    assert 0.3 * second.total < second.initial <= first.n
    assert second.n == second.total == first.total
    assert int(second.postfix.split()[0]) >= len(nuclei_of(tmp_path))


def test_time_is_estimated_at_once_from_the_second_slide_on(manager, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in "ab":
        paint(tmp_path, f"{name}.png", shape=(900, 900), spacing=100)
    run(manager, tmp_path, batch_size=1)
    messages = [record.message for record in caplog.records]
    assert sum("for the rest" in text for text in messages) == 1
    assert any(re.fullmatch(r"a.png: about \d+ seconds for the rest", text) for text in messages)
    assert any(re.fullmatch(r"b.png: about \d+ seconds at the pace of earlier slides", text) for text in messages)


def test_notes_name_the_slide(manager, tmp_path, caplog):
    import tifffile

    (tmp_path / "in").mkdir()
    image = painted_image(disc_labels((100, 120)))
    tags = {"resolution": (72, 72), "resolutionunit": "INCH", "photometric": "rgb"}  # 353 um/px
    tifffile.imwrite(tmp_path / "in" / "odd.tif", image, **tags)
    run(manager, tmp_path)
    assert next(r.message for r in caplog.records if "is ignored" in r.message).startswith("odd.tif: ")


def test_a_margin_that_is_too_small_is_warned_of(manager, tmp_path, caplog):
    paint(tmp_path, shape=(100, 100))
    run(manager, tmp_path, ambiguous_size=32)
    assert "--ambiguous_size" not in caplog.text
    run(manager, tmp_path, ambiguous_size=31)
    assert "--ambiguous_size=31" in caplog.text


# ---------------------------------------------------------------------------------------------- finished slides


def test_files_that_are_missing_are_added_without_the_network(manager, tmp_path):
    paint(tmp_path)
    run(manager, tmp_path)
    before, first = (tmp_path / "out" / "json" / "a.json").read_bytes(), summary(tmp_path)
    calls = len(manager.net.batch_sizes)
    for option, kind in (("save_thumb", "thumb"), ("save_mask", "mask"), ("save_qupath", "qupath")):
        report = run(manager, tmp_path, **{option: True})
        assert report.skipped == ["a"]
        assert list((tmp_path / "out" / kind).iterdir())
    assert len(manager.net.batch_sizes) == calls
    assert (tmp_path / "out" / "json" / "a.json").read_bytes() == before
    assert summary(tmp_path) == first
    run(manager, tmp_path, "whole", save_thumb=True, save_mask=True, save_qupath=True)
    for name in ("thumb/a.png", "mask/a.png", "qupath/a.geojson"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"proc_mag": 20}, "proc_mag 40"),
        ({"tile_shape": 256}, "tile_shape"),
        ({"mag": 20}, "(mag 40, now 20)"),
    ],
)
def test_p05_slides_that_were_made_otherwise_stay_and_are_reported(manager, tmp_path, options, said):
    paint(tmp_path)
    assert run(manager, tmp_path).exit_code == 0
    before = (tmp_path / "out" / "json" / "a.json").read_bytes()
    report = run(manager, tmp_path, **options)
    assert report.exit_code == 1
    assert said in report.failed["a"]
    assert "--overwrite" in report.failed["a"]
    assert (tmp_path / "out" / "json" / "a.json").read_bytes() == before
    assert run(manager, tmp_path, overwrite=True, **options).done == ["a"]


def test_p05_edited_constants_of_post_processing_are_told_apart(manager, tmp_path, monkeypatch):
    paint(tmp_path)
    run(manager, tmp_path)
    monkeypatch.setattr(post_proc, "MIN_SIZE_PX", 20)
    assert "otherwise (MIN_SIZE_PX 10, now 20):" in run(manager, tmp_path).failed["a"]


def test_slides_that_do_not_say_how_they_were_made_are_done(manager, tmp_path):
    paint(tmp_path)
    (tmp_path / "out" / "json").mkdir(parents=True)
    (tmp_path / "out" / "json" / "a.json").write_text('{"mag": 40, "nuc": {}}')
    assert run(manager, tmp_path).skipped == ["a"]


def test_a_json_that_does_not_say_its_scale_gives_no_geojson(manager, tmp_path):
    paint(tmp_path)
    (tmp_path / "out" / "json").mkdir(parents=True)
    (tmp_path / "out" / "json" / "a.json").write_text('{"mag": 40, "nuc": {}}')
    assert "--overwrite" in run(manager, tmp_path, save_qupath=True).failed["a"]


# ---------------------------------------------------------------------------------------------- real slides


def test_a_folder_of_real_slides_of_all_kinds(manager, tmp_path, shared, monkeypatch):
    """At a low magnification, as the slides come: one good, one large without a resolution, odd and broken ones."""
    (tmp_path / "in").mkdir()
    slides = sorted((shared / "data" / "slides").iterdir())
    for path in slides:
        (tmp_path / "in" / path.name).symlink_to(path)
    report = run(manager, tmp_path, mag=None, proc_mag=2.5, save_thumb=True)
    rows = summary(tmp_path)
    assert rows.keys() == {path.name for path in slides}
    assert len(report.done) + len(report.failed) == len(slides)
    assert "CMU-1-Small-Region" in report.done
    assert {"broken", "TCGA-CR-7395-01A-01-TS1"} <= report.failed.keys()
    assert "--mpp" in rows["TCGA-CR-7395-01A-01-TS1.svs"]["reason"]
    assert all(row["reason"] for row in rows.values() if row["status"] == "failed")
    done = run(manager, tmp_path, "mpp", mpp=0.5, proc_mag=2.5)  # the user says what the files do not
    assert list(done.failed) == ["broken"]
    thumb = cv2.imread(str(tmp_path / "out" / "thumb" / "CMU-1-Small-Region.png"))
    assert np.ptp(thumb) > 100


def test_the_log_says_what_a_slide_is_and_where_the_time_went(manager, tmp_path, caplog):
    paint(tmp_path, shape=(400, 300))
    with caplog.at_level(logging.INFO):
        run(manager, tmp_path)
    text = caplog.text
    assert "a.png: 300 x 400 px at 0.25 um/px (--mag; 40x), read at 40x: 300 x 400 px, 100 % tissue" in text
    for stage in ("waiting for the slide", "network", "waiting for post-processing", "joining and writing"):
        assert re.search(rf"a.png: \d+ nuclei; .*{stage} [0-9.]+ s", text), stage


def test_the_summary_says_what_is_odd_about_a_slide_that_is_done(manager, tmp_path, monkeypatch):
    paint(tmp_path, shape=(400, 300))
    monkeypatch.setattr(infer.wsi_slide, "otsu_mask", lambda thumb: TissueMask(np.zeros((3, 3), bool), "otsu"))
    run(manager, tmp_path, mag=20, proc_mag=40)
    row = summary(tmp_path)["a.png"]
    assert (row["status"], row["nuclei"]) == ("done", "0")
    assert "no tissue found" in row["reason"]
    assert "enlarged 2 times" in row["reason"]


def test_the_summary_says_that_the_seconds_are_not_all(manager, tmp_path):
    paint(tmp_path, shape=(500, 200))
    interrupted_run(manager, tmp_path, 2)
    run(manager, tmp_path, **TILES)
    assert summary(tmp_path)["a.png"]["reason"] == "2 of 4 rows of tiles were there already"


@pytest.mark.parametrize("how", ["folder", "full"])
def test_a_summary_that_cannot_be_written_takes_no_result(manager, tmp_path, monkeypatch, how):
    paint(tmp_path, shape=(100, 100))
    (tmp_path / "in" / "broken.svs").write_bytes(b"no slide")
    if how == "folder":
        (tmp_path / "out" / "summary.csv").mkdir(parents=True)
    else:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(infer.wsi_summary, "write_atomic", full)
    report = run(manager, tmp_path)
    assert report.done == ["a"]
    assert set(report.failed) == {"broken", "summary.csv"}
    assert "summary.csv cannot be written" in report.failed["summary.csv"]


def test_results_of_another_mask_or_slide_are_no_results_of_this_run(manager, tmp_path):
    """A mask that was corrected, a slide that was scanned again: skipped, they kept their old nuclei for ever."""
    paint(tmp_path, shape=(100, 100))
    mask = tmp_path / "masks" / "a.png"
    mask.parent.mkdir()
    cv2.imwrite(str(mask), np.zeros((10, 10), np.uint8))
    masks = {"input_mask_dir": mask.parent}
    assert run(manager, tmp_path, **masks).done == ["a"]
    assert run(manager, tmp_path, **masks).skipped == ["a"]
    cv2.imwrite(str(mask), np.full((10, 10), 255, np.uint8))
    assert "mask" in run(manager, tmp_path, **masks).failed["a"]
    assert "mask" in run(manager, tmp_path).failed["a"]
    run(manager, tmp_path, "plain")
    (tmp_path / "none").mkdir()
    assert "now missing" in run(manager, tmp_path, "plain", input_mask_dir=tmp_path / "none").failed["a"]
    run(manager, tmp_path, overwrite=True, **masks)
    assert nuclei_of(tmp_path)
    paint(tmp_path, shape=(100, 120))
    assert "slide_bytes" in run(manager, tmp_path, **masks).failed["a"]


def test_a_folder_of_masks_that_is_not_there_ends_the_run_at_once(manager, tmp_path):
    paint(tmp_path, shape=(100, 100))
    with pytest.raises(FileNotFoundError, match="--input_mask_dir"):
        run(manager, tmp_path, input_mask_dir=tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_p02_a_tile_that_fails_names_its_slide_and_place(manager, tmp_path, monkeypatch):
    paint(tmp_path, shape=(200, 300))

    def broken(*_, **__):
        raise ValueError("something odd")

    monkeypatch.setattr(infer.wsi_tile, "process_nuclei", broken)
    reason = run(manager, tmp_path, **TILES).failed["a"]
    assert re.search(r"^a.png, tile \d \(x \d+ to \d+, y \d+ to \d+ px\): ValueError: something odd", reason)
