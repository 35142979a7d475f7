"""How a run finds nuclei: by the options, the checkpoint's advice, or as the original does."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from image_runs import paint, run
from stubs import StubNet

from infer.options import TileOptions
from infer.provenance import RUN_KEY
from infer.tile import InferManager
from misc.formats.nuclei_json import read_header
from models.hovernet.checkpoint import save_weights
from models.hovernet.net_desc import create_model
from models.hovernet.post_proc import PostProc, process, process_nuclei

TYPES = {"0": ["nolabel", [0, 0, 0]], "1": ["Positive", [255, 0, 0]], "2": ["Negative", [0, 0, 255]]}


def manager_of(path, meta: dict, nr_types=None, **options) -> InferManager:
    save_weights(path, create_model("fast", nr_types=nr_types, width=0.125).state_dict(), meta)
    manager = InferManager({"model_path": path}, gpu="", **options)
    manager.net = StubNet(nr_types)
    return manager


def test_a_lower_threshold_gives_larger_outlines():
    """A nucleus whose probability falls from its centre on."""
    y, x = np.mgrid[-30:31, -30:31]
    far = np.hypot(y, x)
    maps = np.stack([np.clip(1 - far / 30, 0, 1), x / 30, y / 30], axis=-1).astype(np.float32)
    for threshold in (0.3, 0.5, 0.7):
        inst_map, nuclei = process_nuclei(maps, how=PostProc(threshold))
        assert len(nuclei) == 1
        assert np.array_equal(inst_map > 0, maps[..., 0] >= np.float32(threshold))
        assert np.array_equal(process(maps, how=PostProc(threshold))[0], inst_map)
    assert np.array_equal(process(maps)[0], process(maps, how=PostProc(0.5))[0])


def test_option_goes_before_checkpoint_and_results_say_it(tmp_path, caplog):
    paint(tmp_path, "a.png")
    said, given = manager_of(tmp_path / "said.tar", {"np_threshold": 0.4}), {"np_threshold": 0.6}
    silent = manager_of(tmp_path / "silent.tar", {})
    cases = [(silent, {}, 0.5), (said, {}, 0.4), (said, given, 0.6), (silent, given, 0.6)]
    with caplog.at_level(logging.INFO):
        for manager, options, expected in cases:
            run(manager, tmp_path, overwrite=True, **options)
            header = read_header(tmp_path / "out" / "json" / "a.json")
            assert header[RUN_KEY]["post_proc"]["NP_THRESHOLD"] == expected
            assert f"np_threshold {expected:g} (" in caplog.text
            caplog.clear()
    for wrong in (0, 1, -0.2, float("nan")):
        with pytest.raises(ValueError, match="--np_threshold is a probability above 0 and below 1"):
            TileOptions.from_dict({"input_dir": "a", "output_dir": "b", "np_threshold": wrong})
    with pytest.raises(ValueError, match=r"np_threshold in the meta of .*bad.tar is a probability"):
        run(manager_of(tmp_path / "bad.tar", {"np_threshold": "much"}), tmp_path, overwrite=True)


def test_a_checkpoint_recommends_edges_and_least_probability(tmp_path, caplog):
    """The options come before it; results and log say how nuclei were found."""
    paint(tmp_path, "a.png")
    manager = manager_of(tmp_path / "said.tar", {"edges": "directions", "min_prob": 0.7})
    cases = [({}, ("directions", 0.7)), ({"edges": "axes"}, (None, 0.7)), ({"min_prob": 0.0}, ("directions", None))]
    with caplog.at_level(logging.INFO):
        for options, expected in cases:
            run(manager, tmp_path, overwrite=True, **options)
            values = read_header(tmp_path / "out" / "json" / "a.json")[RUN_KEY]["post_proc"]
            assert (values.get("edges"), values.get("min_prob")) == expected
            assert ("FALL_THRESHOLD" in values) == (expected[0] == "directions")
    assert "np_threshold 0.5 (the default), edges directions (the checkpoint's), min_prob 0 (--min_prob)" in caplog.text
    for name, wrong, said in (("edges", "all", "--edges must be `axes`"), ("min_prob", 1.0, "--min_prob is a prob")):
        with pytest.raises(ValueError, match=said):
            TileOptions.from_dict({"input_dir": "a", "output_dir": "b", name: wrong})


def test_names_that_differ_from_the_checkpoints_are_warned_of_once(tmp_path, caplog):
    path = tmp_path / "info.json"
    path.write_text('{"0": ["none", [0, 0, 0]], "1": ["neopla", [1, 1, 1]], "2": ["negative", [2, 2, 2]]}')
    with caplog.at_level(logging.WARNING):
        manager = manager_of(tmp_path / "net.tar", {"types": TYPES}, nr_types=3, type_info_path=path)
    (record,) = caplog.records
    assert "says 1 neopla, but this checkpoint was trained on 1 Positive" in record.getMessage()
    assert manager.type_info_dict[1][0] == "neopla"
    caplog.clear()
    assert manager_of(tmp_path / "net.tar", {"types": TYPES}, nr_types=3).type_info_dict[1][0] == "Positive"
    assert not caplog.records
