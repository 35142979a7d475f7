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
from slide_runs import BLOCKS, interrupted_run, leftovers, nuclei_of, paint, run, summary
from stubs import disc_labels, painted_image
from tqdm import tqdm

import infer.run
import infer.segment
import infer.wsi
import misc.summary
from infer.wsi import BUSY, THERE, Row
from misc.locks import locked
from misc.slides.tissue import TissueMask
from misc.summary import Summary
from models.hovernet import post_proc

loaded, manager, weights = slide_runs.loaded, slide_runs.manager, slide_runs.weights  # fixtures

# ---------------------------------------------------------------------------------------------- summary


def summary_in(folder) -> Summary:
    return Summary(folder / "summary.csv")


def test_several_runs_at_once_lose_no_line_of_the_summary(tmp_path):
    def record(run_nr: int) -> None:
        mine = summary_in(tmp_path)
        for number in range(15):
            mine.put(Row(f"{run_nr} {number:02d}.svs", status="done", nuclei=number))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + 4 * 15
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


def test_a_slide_whose_name_is_a_formula_is_text_and_found_again(tmp_path):
    summary_in(tmp_path).put(Row("=1+1.svs", status="failed"))
    for _ in range(2):  # one line, however often it is written
        summary_in(tmp_path).put(Row("=1+1.svs", status="done", nuclei=3))
    assert [line.split(",")[:2] for line in (tmp_path / "summary.csv").read_text().splitlines()[1:]] == [
        ["'=1+1.svs", "done"]
    ]
    assert summary_in(tmp_path).earlier("=1+1.svs")["nuclei"] == "3"


def test_the_summary_is_there_after_each_slide(manager, tmp_path, monkeypatch):
    for name in "ab":
        paint(tmp_path, f"{name}.png", shape=(100, 100))
    seen, close = [], infer.wsi.SlideTask.close

    def look(self, *args):
        path = tmp_path / "out" / "summary.csv"
        seen.append(path.read_text() if path.exists() else "")
        close(self, *args)

    monkeypatch.setattr(infer.wsi.SlideTask, "close", look)
    run(manager, tmp_path)
    assert "a.png" not in seen[0]
    assert "a.png,done" in seen[1]


def test_lines_of_the_summary_that_cannot_be_written_come_later(tmp_path, monkeypatch, caplog):
    mine = summary_in(tmp_path)
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
    mine = summary_in(tmp_path)
    for slide in "ac":
        mine.put(Row(f"{slide}.svs", status="done", nuclei=9))
    lines = path.read_text().splitlines()
    assert lines[0] == "slide,status,reason,nuclei,seconds,mpp,magnification,tissue_share,note"
    assert lines[1:] == ["a.svs,done,,9,,,,,nice", "b.svs,done,,,,,,,", "c.svs,done,,9,,,,,"]


def test_a_summary_that_cannot_be_understood_is_put_aside(tmp_path, caplog):
    for number, content in enumerate(["slide;status\na.svs;done\n", "x" * 200_000, "name,status\na.svs,done\n"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        mine = summary_in(folder)
        (folder / "summary.old1.csv").write_text("of the time before")
        mine.path.write_text(content)
        assert mine.earlier("a.svs") is None
        mine.put(Row("b.svs", status="done"))
        assert mine.earlier("b.svs")["status"] == "done"
        assert (folder / "summary.old2.csv").read_text() == content
        assert (folder / "summary.old1.csv").read_text() == "of the time before"
    assert caplog.text.count("it is now summary.old2.csv") == 3


def test_what_a_run_that_was_killed_wrote_of_the_summary_is_removed(tmp_path):
    """And nothing else."""
    for name in (".summary.123.part.csv", ".summary.lock", ".summary.mine.csv"):
        (tmp_path / name).write_text("half")
    summary_in(tmp_path).put(Row("a.svs", status="done"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".summary.mine.csv", "summary.csv"]


def test_a_line_is_kept_where_it_is_asked_for(tmp_path):
    mine = summary_in(tmp_path)
    for keep, nuclei in ((True, 1), (True, 2), (False, 3), (True, 4)):
        mine.put(Row("a", "done", nuclei=nuclei), keep_earlier=keep)
        assert mine.earlier("a")["nuclei"] == str(3 if nuclei > 2 else 1)


def test_which_line_of_a_slide_stays(manager, tmp_path):
    """What was done stays when it is skipped later, and not when it failed; being busy says nothing."""

    def line() -> tuple[str, str]:
        row = summary(tmp_path)["a.png"]
        return row["status"], row["reason"]

    paint(tmp_path)
    (tmp_path / "out" / "json").mkdir(parents=True)
    lock = tmp_path / "out" / "json" / ".a.lock"
    with locked(lock):
        run(manager, tmp_path)
    assert line() == ("skipped", BUSY)
    run(manager, tmp_path)
    assert line() == ("done", "")
    run(manager, tmp_path)
    assert line() == ("done", "")
    run(manager, tmp_path, proc_mag=20)
    assert line()[0] == "failed"
    with locked(lock):
        run(manager, tmp_path)
    assert line()[0] == "failed"
    run(manager, tmp_path)
    assert line() == ("skipped", THERE)


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


def test_the_bar_counts_what_is_left_and_ends_at_100_per_cent(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png", shape=(500, 300))
    paint(tmp_path, "b.png", shape=(100, 100))
    bars = []
    monkeypatch.setattr(infer.run, "tqdm", lambda **kwargs: bars.append(tqdm(**kwargs)) or bars[-1])
    run(manager, tmp_path, "whole", **BLOCKS)
    interrupted_run(manager, tmp_path, 9)
    run(manager, tmp_path, **BLOCKS)
    whole, stopped, rest = bars
    assert whole.n == whole.total == (4 * 3 + 1) * 164**2
    assert stopped.n < stopped.total
    assert rest.n == rest.total < whole.total


def test_the_bar_ends_at_its_end_where_a_slide_fails(manager, tmp_path, monkeypatch):
    for name in "ab":
        paint(tmp_path, f"{name}.png", shape=(500, 300))
    bars, read = [], infer.source.read_reflect

    def failing(handler, y0, *args):
        if handler.path.name == "a.png" and y0 > 100:
            raise ValueError("cannot be read")
        return read(handler, y0, *args)

    monkeypatch.setattr(infer.run, "tqdm", lambda **kwargs: bars.append(tqdm(**kwargs)) or bars[-1])
    monkeypatch.setattr(infer.source, "read_reflect", failing)
    assert run(manager, tmp_path, **BLOCKS).done == ["b"]
    assert bars[0].n == bars[0].total


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


def test_p05_slides_that_were_made_otherwise_stay_and_are_reported(manager, tmp_path):
    paint(tmp_path)
    assert run(manager, tmp_path).exit_code == 0
    before = (tmp_path / "out" / "json" / "a.json").read_bytes()
    for options, said in (
        ({"proc_mag": 20}, "(proc_mag None, now 20)"),
        ({"tile_shape": 256}, "(tile_shape 2048, now 256)"),
        ({"ambiguous_size": 64}, "ambiguous_size"),
        ({"mag": 20}, "(mag 40, now 20)"),
        ({"mpp": 0.5}, "(mpp None, now 0.5)"),
        ({"patch_input_shape": 352}, "(window 256, now 352)"),
    ):
        report = run(manager, tmp_path, **options)
        assert report.exit_code == 1
        assert said in report.failed["a"]
        assert "--overwrite" in report.failed["a"]
        assert (tmp_path / "out" / "json" / "a.json").read_bytes() == before
    assert run(manager, tmp_path, overwrite=True, **options).done == ["a"]
    assert run(manager, tmp_path, **options).skipped == ["a"]


def test_p05_edited_constants_of_post_processing_are_told_apart(manager, tmp_path, monkeypatch):
    paint(tmp_path)
    run(manager, tmp_path)
    monkeypatch.setattr(post_proc, "MIN_SIZE_PX", 20)
    assert "other settings (MIN_SIZE_PX 10, now 20):" in run(manager, tmp_path).failed["a"]


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
    assert done.failed.keys() - {"small_dicom"} == {"broken"}  # that one's kind of image is not said
    thumb = cv2.imread(str(tmp_path / "out" / "thumb" / "CMU-1-Small-Region.png"))
    assert np.ptp(thumb) > 100


def test_the_log_says_what_a_slide_is_and_where_the_time_went(manager, tmp_path, caplog):
    paint(tmp_path, shape=(400, 300))
    with caplog.at_level(logging.INFO):
        run(manager, tmp_path, mag=20, proc_mag=40)
    text = caplog.text
    assert "a.png: 300 x 400 px at 0.5 um/px (--mag; 20x), read as 600 x 800 px, outlined at 40x, 100 % tissue" in text
    assert re.search(r"a.png: \d+ nuclei; written in [0-9.]+ s", text)


def test_the_summary_says_what_is_odd_about_a_slide_that_is_done(manager, tmp_path, monkeypatch):
    paint(tmp_path, shape=(400, 300))
    monkeypatch.setattr(infer.wsi, "otsu_mask", lambda thumb: TissueMask(np.zeros((3, 3), bool), "otsu"))
    run(manager, tmp_path, mag=20, proc_mag=40)
    row = summary(tmp_path)["a.png"]
    assert (row["status"], row["nuclei"]) == ("done", "0")
    assert "no tissue found" in row["reason"]
    assert "enlarged 2 times" in row["reason"]


def test_the_summary_says_that_the_seconds_are_not_all(manager, tmp_path):
    paint(tmp_path, shape=(500, 200))
    interrupted_run(manager, tmp_path, 2)
    run(manager, tmp_path, **BLOCKS)
    assert summary(tmp_path)["a.png"]["reason"] == "2 of 8 blocks there already"


def test_a_summary_that_cannot_be_written_takes_no_result(manager, tmp_path, monkeypatch):
    """It is a folder, or the disk is full."""
    paint(tmp_path, shape=(100, 100))
    (tmp_path / "in" / "broken.svs").write_bytes(b"no slide")
    (tmp_path / "one" / "summary.csv").mkdir(parents=True)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for out in ("one", "two"):
        if out == "two":
            monkeypatch.setattr(misc.summary, "write_atomic", full)
        report = run(manager, tmp_path, out)
        assert report.done == ["a"]
        assert set(report.failed) == {"broken", "summary.csv"}
        assert "summary.csv cannot be written" in report.failed["summary.csv"]
        assert leftovers(tmp_path, out) == []


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


def test_p02_a_block_that_fails_names_its_place(manager, tmp_path, monkeypatch, caplog):
    """In the report; and where it happened, in the log."""
    paint(tmp_path, shape=(200, 300))

    def broken(*_, **__):
        raise ValueError("something odd")

    monkeypatch.setattr(infer.segment, "process_nuclei", broken)
    reason = run(manager, tmp_path, **BLOCKS).failed["a"]
    assert "in broken" in caplog.text
    assert "ValueError: something odd" in reason
    assert re.search(r"block \d+ \(x \d+ to \d+, y \d+ to \d+ px\)", reason)
