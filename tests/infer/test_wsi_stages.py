"""The two stages of a run: maps on disk, and nuclei of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slide_runs
from slide_runs import BLOCKS, leftovers, paint, run, summary
from stubs import write_rgb

from infer.maps import KeepJob, MapStore

loaded, manager, weights = slide_runs.loaded, slide_runs.manager, slide_runs.weights  # fixtures


def json_bytes(folder, out):
    return (folder / out / "json" / "a.json").read_bytes()


def test_both_stages_find_what_one_run_finds_also_after_a_kill(manager, tmp_path, monkeypatch):
    """Bit for bit; the second stage runs where the network would compute otherwise, and needs none."""
    paint(tmp_path)
    tissue = np.zeros((30, 42, 3), np.uint8)
    tissue[:, :20] = 255  # the right third is glass
    write_rgb(tmp_path / "masks" / "a.png", tissue)
    options = {**BLOCKS, "input_mask_dir": tmp_path / "masks"}
    run(manager, tmp_path, "one", **options)
    with pytest.MonkeyPatch.context() as patch:
        written = []

        def stopped(job):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(job.path)
            job_run(job)

        job_run = KeepJob.run
        patch.setattr(KeepJob, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(manager, tmp_path, **options, stage="predict")
    assert len(written) == 2
    times = [path.stat().st_mtime_ns for path in written]
    report = run(manager, tmp_path, **options, stage="predict")
    assert (report.done, report.failed, report.found.total()) == (["a"], {}, 0)
    assert [path.stat().st_mtime_ns for path in written] == times, "blocks that were there are predicted again"
    assert summary(tmp_path)["a.png"]["status"] == "predicted"
    assert len(list(tmp_path.glob("out/maps/a/*.npz"))) == 6, "blocks of glass alone take no room"
    assert not (tmp_path / "out" / "json" / "a.json").exists()
    monkeypatch.setattr(manager, "precision", "bf16")
    monkeypatch.setattr(manager.net, "forward", lambda imgs: pytest.fail("the network ran"))
    report = run(manager, tmp_path, **options, stage="segment")
    assert report.done == ["a"]
    assert report.found.total() > 40
    assert json_bytes(tmp_path, "out") == json_bytes(tmp_path, "one")
    assert summary(tmp_path)["a.png"]["status"] == "done"
    assert not leftovers(tmp_path)
    for path in (tmp_path / "out" / "maps" / "a").iterdir():
        path.unlink()
    assert run(manager, tmp_path, **options, stage="segment").skipped == ["a"], "what is done needs no maps"


def test_maps_of_other_settings_are_refused(manager, tmp_path):
    paint(tmp_path)
    options = {**BLOCKS, "stage": "segment"}
    assert "run --stage=predict first" in run(manager, tmp_path, **options).failed["a"]
    run(manager, tmp_path, **BLOCKS, stage="predict")
    said = run(manager, tmp_path, **options | {"ambiguous_size": 48}).failed["a"]
    assert "ambiguous_size 40, now 48" in said
    assert "give the options of --stage=predict" in said
    said = run(manager, tmp_path, **BLOCKS | {"ambiguous_size": 48}, stage="predict").failed["a"]
    assert "ambiguous_size 40, now 48" in said
    assert "--overwrite" in said
    maps = tmp_path / "out" / "maps" / "a"
    whole = (maps / "000000.npz").read_bytes()
    (maps / "000000.npz").unlink()
    assert "maps of 1 of 12 blocks are not in" in run(manager, tmp_path, **options).failed["a"]
    (maps / "000000.npz").write_bytes(whole[: len(whole) // 2])
    said = run(manager, tmp_path, **options).failed["a"]
    assert "000000.npz cannot be read" in said
    assert "remove it" in said
    (maps / "000000.npz").write_bytes(whole)
    assert run(manager, tmp_path, **options, np_threshold=0.9).done == ["a"], "thresholds are the second stage's"
    run(manager, tmp_path, **BLOCKS | {"ambiguous_size": 48}, stage="predict", overwrite=True)
    assert json.loads((maps / "manifest.json").read_text())["ambiguous_size"] == 48


def test_maps_with_a_channel_for_ink_serve_only_runs_that_drop_ink(manager, tmp_path):
    """The stub's nuclei lack red: by their colour all are ink."""
    paint(tmp_path)
    run(manager, tmp_path, **BLOCKS, stage="predict", ink="drop")
    said = run(manager, tmp_path, **BLOCKS, stage="segment").failed["a"]
    assert "other settings (ink drop, now keep): give the options of --stage=predict" in said
    report = run(manager, tmp_path, **BLOCKS, stage="segment", ink="drop")
    assert (report.done, report.found.total()) == (["a"], 0)
    assert run(manager, tmp_path, "keep", **BLOCKS).found.total() > 40
    said = run(manager, tmp_path, "keep", **BLOCKS, ink="drop").failed["a"]
    assert "its results were made with other settings (ink" in said


def test_a_manifest_that_is_no_object_counts_as_none(tmp_path):
    (tmp_path / "manifest.json").write_text("[1]")
    assert MapStore(tmp_path).made() is None
