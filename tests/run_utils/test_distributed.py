"""One process alone does what is right without torchrun."""

from __future__ import annotations

import pytest
import torch

from run_utils import distributed
from run_utils.distributed import Process
from run_utils.trainer import choose_devices


def test_alone_everything_is_the_identity(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.read_environment() == Process(0, 0, 1)
    distributed.start(Process(), torch.device("cpu"))
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather("x") == ["x"]
    assert distributed.gather_lists({"a": [1, 2], "b": []}) == {"a": [1, 2], "b": []}
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean += 3
    distributed.average_buffers(norm)
    assert norm.running_mean.tolist() == [3, 3]
    distributed.stop()


def test_torchruns_environment_is_read(monkeypatch):
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert distributed.read_environment() == Process(5, 1, 8)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_one_variable_alone_is_no_torchrun(monkeypatch, name):
    for other in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    process = distributed.read_environment()
    distributed.start(process, torch.device("cpu"))
    assert process == Process()
    assert not distributed.is_running()


def test_every_process_of_torchrun_takes_one_gpu_also_where_it_is_the_only_one(monkeypatch):
    gpus = [torch.device("cuda", index) for index in range(4)]
    monkeypatch.setattr("run_utils.trainer.parse_devices", lambda gpu: gpus)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert choose_devices("0,1,2,3", Process()) == gpus
    assert choose_devices("0,1,2,3", Process(5, 1, 8)) == [gpus[1]]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert choose_devices("0,1,2,3", distributed.read_environment()) == [gpus[0]]
