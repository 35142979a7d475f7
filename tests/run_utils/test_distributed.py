"""One process alone does what is right without torchrun."""

from __future__ import annotations

import torch

from run_utils import distributed
from run_utils.distributed import Process


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
