"""Blocks of steps, and when two curves agree."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from benchmarks import learning_curve

COLUMNS = ["epoch", "step", *learning_curve.LOSSES]


def write_steps(path, count, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    with open(path, "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(COLUMNS)
        for step in range(count):
            table.writerow([1, step + 1, *(3 - step / 500 + shift + 0.2 * rng.standard_normal(len(COLUMNS) - 2))])
    return path


def test_losses_are_averaged_over_whole_blocks(tmp_path):
    block = learning_curve.BLOCK_STEPS
    path = write_steps(tmp_path / "steps.csv", 2 * block + 5)
    curve = learning_curve.read_losses(path)
    assert curve["step"].tolist() == [block, 2 * block]
    first = np.loadtxt(path, delimiter=",", skiprows=1)[:block]
    assert curve["loss_hv_mse"][0] == pytest.approx(first[:, COLUMNS.index("loss_hv_mse")].mean())
    assert curve["sd"][0] == pytest.approx(first[:, COLUMNS.index("overall_loss")].std())


def test_less_than_a_block_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds 7 steps, a block has"):
        learning_curve.read_losses(write_steps(tmp_path / "steps.csv", 7))


@pytest.mark.parametrize(("shift", "code"), [(0.0, 0), (1.0, 1)])
def test_another_seed_agrees_and_another_loss_does_not(tmp_path, capsys, shift, code):
    published = learning_curve.read_losses(write_steps(tmp_path / "a.csv", 500))
    here = learning_curve.read_losses(write_steps(tmp_path / "b.csv", 150, shift, seed=1))
    assert learning_curve.compare(here, published) == code
    out = capsys.readouterr().out
    assert "| 147 | " in out
    assert out.rstrip().endswith("3 blocks")
