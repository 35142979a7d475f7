"""Which epoch is best, by nuclei and types."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from run_utils.callbacks.base import ConditionalSaver
from run_utils.scores import combined, describe_best, labelled

NAMES = {None: ("nucleus", (0, 0, 0)), 0: ("nolabel", (0, 0, 0)), 1: ("Positive", (1, 1, 1)), 2: ("2", (2, 2, 2))}
SAVER = ConditionalSaver(("valid-img_pq", "valid-np_dice"), types=("valid-img_f1", "valid-tp_dice"))


def test_types_weigh_as_much_as_nuclei_and_background_is_no_type():
    stats = {"valid-np_dice": 0.8, "valid-tp_dice_0": 1.0, "valid-tp_dice_1": 0.2, "valid-tp_dice_10": 0.6}
    assert combined(stats, "valid-np_dice", "valid-tp_dice") == pytest.approx((0.8 + 0.4) / 2)
    assert combined(stats, "valid-np_dice", None) == 0.8
    assert math.isnan(combined(stats, "valid-np_dice", "valid-img_f1"))
    assert math.isnan(combined(stats, "valid-img_pq", "valid-tp_dice"))


def best_epochs(tmp_path: Path, epochs: list[dict]) -> list[dict | None]:
    """Return what the saver says after each epoch."""
    path, said = tmp_path / "stats.json", []
    for number in range(1, len(epochs) + 1):
        path.write_text(json.dumps({str(i): values for i, values in enumerate(epochs[:number], 1)}))
        said.append(SAVER._best(SimpleNamespace(log_info={"json_file": path}, curr_epoch=number)))
    return said


def test_an_epoch_of_bad_types_is_not_best(tmp_path):
    """The one that a run was once chosen by: nuclei alone were best where types were worst."""
    epochs = [
        {"valid-np_dice": 0.70, "valid-tp_dice_0": 0.9, "valid-tp_dice_1": 0.60, "valid-tp_dice_2": 0.50},
        {"valid-np_dice": 0.75, "valid-tp_dice_0": 0.9, "valid-tp_dice_1": 0.29, "valid-tp_dice_2": 0.50},
        {"valid-np_dice": 0.72, "valid-tp_dice_0": 0.9, "valid-tp_dice_1": 0.70, "valid-tp_dice_2": 0.50},
    ]
    first, second, third = best_epochs(tmp_path, epochs)
    assert first["epoch"] == 1
    assert second is None
    assert third == {
        "metric": "mean of valid-np_dice and valid-tp_dice",
        "value": pytest.approx((0.72 + 0.6) / 2),
        "epoch": 3,
    }
    # whole images decide as soon as any were scored, epochs without them do not count
    epochs += [{**epochs[0], "valid-img_pq": 0.3, "valid-img_f1_1": 0.4}, epochs[2]]
    assert [said and said["epoch"] for said in best_epochs(tmp_path, epochs)[3:]] == [4, None]
    untyped = [{"valid-np_dice": 0.5}, {"valid-np_dice": 0.6}]
    assert best_epochs(tmp_path, untyped)[1] == {"metric": "valid-np_dice", "value": 0.6, "epoch": 2}


def test_the_end_of_a_training_says_which_epoch_and_how_to_use_it():
    assert labelled("valid-tp_dice_1", NAMES) == "valid-tp_dice_1 Positive"
    assert labelled("valid-tp_dice_0", NAMES) == "valid-tp_dice_0 background"
    assert labelled("valid-tp_dice_2", NAMES) == "valid-tp_dice_2"  # nobody named it
    assert labelled("valid-np_dice", NAMES) == labelled("valid-np_dice", None) == "valid-np_dice"
    stats = {"1": {"valid-np_dice": 0.1}, "2": {"train-loss": 3.0, "valid-np_dice": 0.5, "valid-img_f1_1": 0.25}}
    best = {"metric": "valid-np_dice", "value": 0.5, "epoch": 2}
    first, *scores, last = describe_best(Path("my logs/net_best.tar"), best, stats, NAMES, on_cpu=True)
    assert first == "best of 2 epochs: 2, by valid-np_dice (0.5000):"
    assert [line.split(" : ") for line in scores] == [
        ["  valid-np_dice          ", "0.50000"],
        ["  valid-img_f1_1 Positive", "0.25000"],
    ]
    assert "python run_infer.py --gpu= --model_path='my logs/net_best.tar' tile --input_dir=" in last
