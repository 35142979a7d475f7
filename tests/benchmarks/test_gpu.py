"""The steps that a GPU is measured by, rehearsed on the CPU; and what becomes of steps that fail or do not end."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_common, gpu_parity, gpu_slide, gpu_speed, gpu_steps
from config import Config

PYTHON = sys.executable


@pytest.fixture
def step(tmp_path) -> gpu_common.Step:
    threads = torch.get_num_threads()
    yield gpu_common.Step([str(tmp_path / "rows.jsonl"), "--rehearse"])
    torch.set_num_threads(threads)


def rows_of(step: gpu_common.Step) -> list[dict]:
    return [json.loads(line) for line in step.rows.read_text().splitlines()]


def test_a_step_that_does_not_end_is_stopped_with_all_that_it_started():
    child = f"import subprocess; subprocess.run([{PYTHON!r}, '-c', 'import signal; signal.pause()'])"
    held_by_all, log_fd = os.pipe()
    with open(log_fd, "w") as log:
        assert gpu.watched([PYTHON, "-c", child], 1.0, log, {}) == "stopped after 1 s"
        assert gpu.watched([PYTHON, "-c", "raise SystemExit(3)"], 60, log, {}) == "failed with 3, see gpu.log"
    with open(held_by_all) as ended:
        ended.read()  # until the last process that holds the other end is gone


def test_training_gets_its_time_and_a_table_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    text = "import os; open(os.environ['OUT'] + '/said', 'w').write(os.environ['SECONDS_LEFT'])"
    monkeypatch.setenv("TRAIN_COMMAND", f'{PYTHON} -c "{text}"')
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--steps=training", "--minutes=3"])
    assert gpu.main() == 0
    assert 100 < int((tmp_path / "said").read_text()) <= 170
    (step,) = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert (step["step"], step["status"]) == ("training", "done")
    assert "| training | done |" in (tmp_path / "gpu.md").read_text()


def test_a_table_has_every_column_and_a_row_that_failed_says_so(step):
    step.row({"a": 1}, lambda: {"b": 0.123456})
    step.row({"a": 2}, lambda: 1 / 0)
    assert gpu.table(rows_of(step)) == [
        "",
        "| a | b | failed |",
        "|---|---|---|",
        "| 1 | 0.1235 |  |",
        "| 2 |  | ZeroDivisionError: division by zero |",
    ]


def test_parity_of_a_network_with_itself(step):
    gpu_parity.network(step, "fast", 5)
    rows = {row["precision"]: row for row in rows_of(step)}
    assert rows["fp32"]["largest NP difference"] == rows["fp32"]["px with another type"] == 0
    assert 0 < rows["bf16"]["HV error / norm of HV"] < 0.3


def test_differences_are_counted():
    true = np.zeros((1, 2, 2, 4), np.float32)
    true[..., 1:] = [0.6, 0.5, -0.5]
    found = true.copy()
    found[0, 0, 0] = [1, 0.4, 0.5, -0.25]
    values = gpu_parity.differences(found, true)
    assert values["largest NP difference"] == pytest.approx(0.2)
    assert values["largest HV difference"] == pytest.approx(0.25)
    assert values["HV error / norm of HV"] == pytest.approx(0.25 / np.sqrt(8 * 0.25))
    assert values["px with another NP decision"] == values["px with another type"] == 0.25


def test_speed_of_a_network(step):
    net = gpu_common.seeded_net("fast", 5, 0.125, step.device)
    gpu_speed.plain(step, net, "fast", 256, "bf16", True)
    (row,) = rows_of(step)
    assert row["Mpx/s"] == pytest.approx(row["patches/s"] * 164**2 / 1e6)


def test_maps_of_the_slide_are_painted_and_timed(step):
    net = gpu_common.seeded_net("fast", 5, 0.125, step.device)
    painted = gpu_slide.Painted(net, 256, step.device)
    for _ in range(2):
        out = painted(torch.zeros(1, 3, 256, 256))
    assert {name: tuple(one.shape) for name, one in out.items()} == {
        "tp": (1, 5, 164, 164),
        "np": (1, 2, 164, 164),
        "hv": (1, 2, 164, 164),
    }
    assert 0 < painted.busy() <= 1


def test_training_steps(step, tmp_path):
    row = gpu_steps.measure(step, gpu_steps.write_patches(tmp_path), Config().model_config, "fast", 0)
    assert row["batch"] == 1
    assert row["steps/s"] > 0
    assert row["steps/s with the loader"] > 0
