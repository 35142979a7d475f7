"""P05: what a second run keeps, completes, refuses, and does again."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from image_runs import paint, read_nuclei, run
from stubs import StubNet, disc_labels, painted_image, write_rgb

import infer.sinks
from infer.provenance import OtherRunError, post_proc_values, was_made_so
from infer.tile import InferManager
from models.hovernet import post_proc
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model
from models.hovernet.post_proc import PostProc


def manager_of(path: Path, nr_types: int | None = None) -> InferManager:
    """A manager of new random weights in `path`, whose network is the stub."""
    save_weights(path, create_model("fast", nr_types=nr_types, width=0.125).state_dict())
    manager = InferManager({"model_path": path}, gpu="")
    manager.net = StubNet(nr_types)
    return manager


@pytest.fixture
def manager(tmp_path) -> InferManager:
    return manager_of(tmp_path / "net.tar")


def written(folder: Path) -> dict[str, int]:
    """When each result was written, by its path in the output folder."""
    files = (folder / "out").rglob("*.*")
    return {str(path.relative_to(folder / "out")): path.stat().st_mtime_ns for path in files}


def edit_json(folder: Path, name: str, edit) -> None:
    path = folder / "out" / "json" / f"{name}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_p05_the_same_run_again_writes_nothing(manager, tmp_path):
    paint(tmp_path, "a.png")
    run(manager, tmp_path)
    before = written(tmp_path)
    assert run(manager, tmp_path, patch_input_shape=256).skipped == ["a"]  # what it is without being said
    assert written(tmp_path) == before


def test_p05_results_made_otherwise_stay_and_are_reported(manager, tmp_path):
    for number, (options, said) in enumerate(
        [
            ({"patch_input_shape": 320}, "window 256, now 320"),
            ({"mpp": 0.3}, "mpp None, now 0.3"),
            ({"np_threshold": 0.4}, "NP_THRESHOLD 0.5, now 0.4"),
            ({"min_prob": 0.7}, "min_prob None, now 0.7"),
            ({"edges": "directions"}, "edges None, now directions"),
            ({"tta": True}, "tta None, now True"),
        ]
    ):
        folder = tmp_path / f"{number}"
        paint(folder, "a.png")
        run(manager, folder, save_raw_map=True)
        paint(folder, "b.png")
        before = written(folder)
        report = run(manager, folder, **options)
        assert (report.done, report.skipped, report.exit_code) == (["b"], [], 1)
        assert said in report.failed["a"]
        assert "--overwrite" in report.failed["a"]
        assert "\n" not in report.failed["a"]
        assert before.items() <= written(folder).items()
        assert sorted(run(manager, folder, overwrite=True, **options).done) == ["a", "b"]
        assert run(manager, folder, **options).skipped == ["a", "b"]


def test_p05_other_weights_precision_and_type_probs_are_told_apart(tmp_path):
    manager = manager_of(tmp_path / "net.tar", nr_types=3)
    paint(tmp_path, "a.png")
    run(manager, tmp_path)
    assert "save_type_probs False, now True" in run(manager, tmp_path, save_type_probs=True).failed["a"]
    manager.precision = "bf16"
    assert "precision fp32, now bf16" in run(manager, tmp_path).failed["a"]
    retrained = manager_of(tmp_path / "net.tar", nr_types=3)  # under the same name
    assert "checkpoint net.tar " in run(retrained, tmp_path).failed["a"]


def test_p05_files_for_qupath_and_overlays_are_made_from_the_json(manager, tmp_path):
    for name in ("a", "b", "c"):
        paint(tmp_path, f"{name}.png")
    run(manager, tmp_path)
    overlay = cv2.imread(str(tmp_path / "out" / "overlay" / "b.png"))
    (tmp_path / "out" / "overlay" / "b.png").unlink()
    before, manager.net.batch_sizes = written(tmp_path), []
    report = run(manager, tmp_path, save_qupath=True, nr_post_proc_workers=1)
    assert sorted(report.done) == ["a", "b", "c"]
    assert report.found.total() == 3 * len(read_nuclei(tmp_path, "a"))
    assert manager.net.batch_sizes == []
    assert before.items() <= written(tmp_path).items()
    assert np.array_equal(cv2.imread(str(tmp_path / "out" / "overlay" / "b.png")), overlay)
    made = [(tmp_path / "out" / "qupath" / f"a.{kind}").read_text() for kind in ("geojson", "tsv")]
    assert len(json.loads(made[0])["features"]) == len(made[1].splitlines()) - 1 == len(read_nuclei(tmp_path, "a"))
    assert run(manager, tmp_path, save_qupath=True).skipped == ["a", "b", "c"]


def test_p05_raw_maps_are_added_and_stay(manager, tmp_path):
    paint(tmp_path, "a.png")
    paint(tmp_path, "b.png")
    run(manager, tmp_path, save_raw_map=True, pattern="b.png")
    run(manager, tmp_path)
    report = run(manager, tmp_path, save_raw_map=True)
    assert (report.done, report.skipped) == (["a"], ["b"])
    (tmp_path / "out" / "json" / "a.json").unlink()
    assert run(manager, tmp_path).done == ["a"]
    for name in ("a", "b"):
        assert scipy.io.loadmat(tmp_path / "out" / "mat" / f"{name}.mat")["raw"].shape == (200, 300, 3)


def test_p05_overwriting_leaves_no_file_of_the_run_before(manager, tmp_path):
    paint(tmp_path, "a.png")
    run(manager, tmp_path, save_qupath=True)
    write_rgb(tmp_path / "in" / "a.png", painted_image(disc_labels((90, 90))))
    run(manager, tmp_path, overwrite=True)
    features = json.loads((tmp_path / "out" / "qupath" / "a.geojson").read_text())["features"]
    assert len(features) == len(read_nuclei(tmp_path, "a")) == 9


def test_p05_an_overwrite_that_stops_half_way_does_not_pass_as_done(tmp_path):
    first = manager_of(tmp_path / "A.tar")
    paint(tmp_path, "a.png")
    run(first, tmp_path)
    second, before = manager_of(tmp_path / "B.tar"), len(read_nuclei(tmp_path, "a"))
    write_rgb(tmp_path / "in" / "a.png", painted_image(disc_labels((200, 300), spacing=100)))

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.sinks, "_draw_overlay", full)  # nothing was replaced yet
        assert "No space" in run(second, tmp_path, overwrite=True).failed["a"]
    assert run(first, tmp_path).skipped == ["a"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.sinks, "_write_pictures", full)  # the .mat file was
        assert "No space" in run(second, tmp_path, overwrite=True).failed["a"]
    assert run(first, tmp_path).done == ["a"]
    assert len(read_nuclei(tmp_path, "a")) < before
    assert len(scipy.io.loadmat(tmp_path / "out" / "mat" / "a.mat")["inst_uid"]) == len(read_nuclei(tmp_path, "a"))


def test_p05_edited_constants_of_post_processing_are_told_apart(manager, tmp_path, monkeypatch):
    paint(tmp_path, "a.png")
    run(manager, tmp_path)
    monkeypatch.setattr(post_proc, "MIN_SIZE_PX", 20)
    assert "other settings (MIN_SIZE_PX 10, now 20):" in run(manager, tmp_path).failed["a"]


def test_the_constants_are_those_that_may_be_edited():
    constants = post_proc_values(PostProc())
    assert {"MIN_SIZE_PX", "MIN_MARKER_PX", "MARKER_THRESHOLD", "SOBEL_KSIZE", "OPENING_KSIZE"} < constants.keys()
    assert json.loads(json.dumps(constants)) == constants


def test_p05_results_that_do_not_say_how_they_were_made_are_done(manager, tmp_path):
    paint(tmp_path, "a.png")
    run(manager, tmp_path)
    edit_json(tmp_path, "a", lambda content: content.pop("run"))
    before = written(tmp_path)
    assert run(manager, tmp_path, mpp=0.3, save_raw_map=True).skipped == ["a"]
    assert written(tmp_path) == before


def test_p04_a_json_that_was_cut_off_is_made_again(manager, tmp_path):
    paint(tmp_path, "a.png")
    run(manager, tmp_path)
    path = tmp_path / "out" / "json" / "a.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert run(manager, tmp_path).done == ["a"]
    assert path.read_bytes() == whole


def test_was_made_so(tmp_path):
    """Not there or not whole, without a word, otherwise, and so; of what differs, only that is said."""
    path = tmp_path / "a.json"
    asked = {"window": 256, "post_proc": {"MIN_SIZE_PX": 10, "MIN_MARKER_PX": 5}}
    assert was_made_so(path, asked) is None
    for text, expected in (("", None), ('{"mag": 40, "ru', None), ('{"mag": 40, "nuc": {}}', False)):
        path.write_text(text)
        assert was_made_so(path, asked) is expected
    path.write_text(json.dumps({"run": asked, "nuc": {}}))
    assert was_made_so(path, asked) is True
    for other, said in (
        ({**asked, "window": 320}, "(window 256, now 320)"),
        ({**asked, "post_proc": {"MIN_SIZE_PX": 20, "MIN_MARKER_PX": 5}}, "(MIN_SIZE_PX 10, now 20)"),
        ({**asked, "mask": "abc"}, "(mask None, now abc)"),
        ({"post_proc": asked["post_proc"]}, "(window 256, now None)"),
    ):
        with pytest.raises(OtherRunError) as error:
            was_made_so(path, other)
        assert said in str(error.value)
