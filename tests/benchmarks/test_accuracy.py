"""What the accuracy benchmark refuses, and its interval."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import accuracy


def test_p48_images_that_were_trained_on_are_not_scored(tmp_path):
    """A published checkpoint was trained on all of its data set; a score of it there says nothing."""
    (tmp_path / "Images").mkdir()
    for name in ("TCGA-A7-A13E-01Z-00-DX1.png", "new.png"):
        (tmp_path / "Images" / name).touch()
    meta = {"images": {"train": ["TCGA-A7-A13E-01Z-00-DX1"]}}
    manager = SimpleNamespace(checkpoint=SimpleNamespace(meta=meta))
    with pytest.raises(ValueError, match="1 images of .* were trained on, by the checkpoint's word: TCGA-A7-A13E"):
        accuracy.score_folder(manager, tmp_path, {})


def test_the_interval_is_of_the_mean_over_images():
    values = np.array([[0.5] * 10, [0.0, 1.0] * 5, [np.nan, 0.4] * 5])
    mean, low, high = accuracy.interval(values, 2000)
    assert mean.tolist() == [0.5, 0.5, pytest.approx(0.4)]
    assert (low[0], high[0]) == (0.5, 0.5)
    # the mean of ten coin flips has a standard deviation of 0.158
    assert low[1] == pytest.approx(0.2, abs=0.06)
    assert high[1] == pytest.approx(0.8, abs=0.06)
