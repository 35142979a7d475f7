"""The simulated card: what it counts, its maps, and a small slide from end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import feed
from benchmarks.synthetic import periodic_map
from models.hovernet.post_proc import process_nuclei
from models.hovernet.run_desc import to_prediction_map


def test_maps_that_repeat_have_no_seam():
    maps = periodic_map(164)
    for axis in (0, 1):
        steps = np.abs(np.diff(maps, axis=axis)).mean()
        seam = np.abs(maps.take(0, axis) - maps.take(-1, axis)).mean()
        assert seam < 2 * steps
    whole, moved = (process_nuclei(np.tile(m, (3, 3, 1)))[1] for m in (maps, np.roll(maps, (70, 40), (0, 1))))
    assert 400 < len(whole) / (9 * 164**2 / 1e6) < 900
    assert len(moved) == pytest.approx(len(whole), rel=0.1)


def test_the_card_is_busy_for_what_it_computes():
    card = feed.SimulatedCard(mpx_s=1e6, window=256)
    out = card(torch.zeros(3, 3, 256, 256))
    prediction = to_prediction_map(out)
    assert prediction.shape == (3, 164, 164, 3)
    assert torch.allclose(prediction[0], torch.from_numpy(periodic_map(164)), atol=2 * feed.MIN_PROB)
    # two batches of 10 patches, one after 1 s, of a second each, the second one 2 s late
    card.seconds_a_patch, card.batches, card.began, card.ended = 0.1, [10, 10], [1.0, 4.0], [2.0, 5.0]
    assert card.busy() == pytest.approx(0.5)


def test_a_small_slide(tmp_path):
    names = {"--size": "2000", "--tissue": "0.6", "--batch_size": "8", "--window": "256", "--tile_shape": "1024"}
    options = feed.prepare({**names, "--workers": "0", "--readers": "1"}, tmp_path)
    numbers = feed.measured(1e4, options, tmp_path)
    assert 0 < numbers["busy"] <= 1
    assert numbers["extra"] >= 0  # every patch with tissue is predicted
    assert 1 <= numbers["batch"] <= 8
    assert 400 < numbers["nuclei"] / (0.6 * 2000**2 / 1e6) < 1000
    assert numbers["rss"] > 0.1
    assert {key for key, *_ in feed.COLUMNS} == numbers.keys()
