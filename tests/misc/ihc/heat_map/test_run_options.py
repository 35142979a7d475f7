"""Options beside results: what was made with which."""

from __future__ import annotations

import json

import pytest

from misc.ihc.heat_map.run_options import RunOptions


def run(path, options, slides=("a", "b"), have=("a", "b"), overwrite=False) -> RunOptions:
    made_by = RunOptions(path, options, slides, have, overwrite)
    made_by.write()
    for slide in slides:
        made_by.done(slide)
    return made_by


def test_the_same_options_again_and_others(tmp_path):
    path = tmp_path / "options.json"
    run(path, {"size": 50, "types": (2, 3), "mpp": None, "score": True}, have=())
    assert json.loads(path.read_text()) == {"options": {"size": 50, "types": [2, 3], "mpp": None, "score": True}}
    run(path, {"size": 50, "types": (2, 3), "mpp": None, "score": True})
    for options, message in (
        ({"size": 50, "types": (2,), "mpp": None, "score": True}, "made with --types=2,3, this run is with --types=2;"),
        ({"size": 50, "types": (2, 3), "mpp": 0.5, "score": True}, "made without --mpp, this run is with --mpp=0.5;"),
        ({"size": 50, "types": (2, 3), "score": False}, "made with --score, this run is without --score;"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            RunOptions(path, options, ["a"], ["a"], overwrite=False)
        assert "--overwrite" in str(error.value)
        RunOptions(path, options, ["a"], ["a"], overwrite=True)


def test_results_that_a_changed_run_did_not_redo_are_remembered(tmp_path):
    path = tmp_path / "options.json"
    run(path, {"size": 50})
    assert run(path, {"size": 60}, slides=["a"], overwrite=True).stale == {"b": ["size"]}
    assert run(path, {"size": 60}, slides=["a"]).stale == {"b": ["size"]}
    with pytest.raises(ValueError, match="the results of b were made with another --size; --overwrite"):
        RunOptions(path, {"size": 60}, ["a", "b"], ["a", "b"], overwrite=False)
    assert run(path, {"size": 60}, slides=["b"], overwrite=True).stale == {}
    run(path, {"size": 60})


def test_a_run_that_is_stopped_leaves_what_it_did_not_come_to_as_stale(tmp_path):
    path = tmp_path / "options.json"
    run(path, {"size": 50})
    stopped = RunOptions(path, {"size": 60}, ["a", "b"], ["a", "b"], overwrite=True)
    stopped.write()
    stopped.done("a")
    with pytest.raises(ValueError, match="the results of b"):
        RunOptions(path, {"size": 60}, ["a", "b"], ["a", "b"], overwrite=False)


def test_a_broken_file_is_named_and_overwritten(tmp_path, subtests):
    for text in ["", "[]", "{}", '{"options": 3}', '{"options": {}, "made_with_other_options": [1]}']:
        with subtests.test(text=text):
            path = tmp_path / "options.json"
            path.write_text(text)
            with pytest.raises(ValueError, match=r"options\.json: does not hold the options"):
                RunOptions(path, {"size": 1}, [], [], overwrite=False)
            run(path, {"size": 1}, overwrite=True)
            run(path, {"size": 1})
