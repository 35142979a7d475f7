"""Batches through the network: any size, falling memory, devices, precision."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from conftest import ROOT
from skimage.data import immunohistochemistry
from stubs import StubNet

from infer.predictor import MAX_CPU_BATCH, OutOfMemoryError, Predictor, parse_devices
from models.hovernet.checkpoint import build_model, load_checkpoint
from models.hovernet.net_desc import create_model

CPU = [torch.device("cpu")]
PATCHES = np.random.default_rng(0).integers(0, 255, (7, 256, 256, 3), dtype=np.uint8)


class SmallMemory(StubNet):
    """Runs out of memory with more than `limit` patches."""

    def __init__(self, limit: int, error: RuntimeError):
        super().__init__()
        self.limit = limit
        self.error = error

    def forward(self, imgs):
        if len(imgs) > self.limit:
            raise self.error
        return super().forward(imgs)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_p11_any_batch_size_gives_the_same(batch_size):
    whole = Predictor(StubNet(), CPU, 4)(PATCHES)
    assert whole.shape == (7, 164, 164, 3)
    assert np.array_equal(Predictor(StubNet(), CPU, batch_size)(PATCHES), whole)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no room"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
    ids=str,
)
def test_p17_batch_size_falls_by_halves_when_memory_runs_out(error, caplog):
    predictor = Predictor(SmallMemory(1, error), CPU, 4)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(predictor(PATCHES), Predictor(StubNet(), CPU, 4)(PATCHES))
    assert predictor.batch_size == 1
    assert "batch of 4: going on with 2" in caplog.text
    assert "batch of 2: going on with 1" in caplog.text


def test_p17_one_patch_too_many_is_said():
    with pytest.raises(OutOfMemoryError, match="single patch"):
        Predictor(SmallMemory(0, torch.cuda.OutOfMemoryError("no room")), CPU, 4)(PATCHES)


def test_other_errors_are_not_taken_for_memory():
    class Broken(StubNet):
        def forward(self, imgs):
            raise RuntimeError("wrong shape")

    with pytest.raises(RuntimeError, match="wrong shape"):
        Predictor(Broken(), CPU, 4)(PATCHES)


def test_cpu_batch_is_small_and_it_is_said(caplog):
    with caplog.at_level(logging.INFO):
        assert Predictor(StubNet(), CPU, 128).batch_size == MAX_CPU_BATCH
    assert "128 -> 4" in caplog.text


def test_precision():
    net = build_model(load_checkpoint(sorted((ROOT / "pretrained").glob("*.tar"))[0]))
    tissue = immunohistochemistry()[None, :256, :256]
    single, half = (Predictor(net, CPU, 1, precision)(tissue)[..., 1] for precision in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - single).mean() < 0.01
    with pytest.raises(ValueError, match="needs a GPU"):
        Predictor(net, CPU, 1, "fp16")
    with pytest.raises(ValueError, match="auto, fp32"):
        Predictor(net, CPU, 1, "int8")


@pytest.fixture
def tf32_allowed():
    """Where PyTorch says whether CUDA may compute in TF32; it may."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield places
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


@pytest.mark.parametrize(("precision", "expected"), [("auto", (False, False)), ("bf16", (True, True))])
def test_fp32_is_not_tf32(tf32_allowed, precision, expected):
    """A GPU computes float32 in whole, but only while this network runs."""
    places, seen = tf32_allowed, []

    class Spy(StubNet):
        def forward(self, imgs):
            seen.append(tuple(place.allow_tf32 for place in places))
            return super().forward(imgs)

    Predictor(Spy(), CPU, 1, precision)(PATCHES[:1])
    assert seen == [expected]
    assert all(place.allow_tf32 for place in places)


@pytest.mark.skipif(torch.cuda.is_available(), reason="DataParallel runs on the CPU only where there is no GPU")
def test_several_devices_take_a_batch_each():
    net = StubNet()
    predictor = Predictor(net, CPU * 2, 2)
    assert isinstance(predictor.model, torch.nn.DataParallel)
    assert np.array_equal(predictor(PATCHES), Predictor(StubNet(), CPU, 4)(PATCHES))
    assert net.batch_sizes == [4, 3]


def test_channels_are_type_nucleus_h_v_and_probabilities():
    predictor = Predictor(create_model("fast", nr_types=3, width=0.125), CPU, 1, type_probs=True)
    out = predictor(PATCHES[:1])
    assert predictor.channels == out.shape[-1] == 7
    assert set(np.unique(out[..., 0])) <= {0, 1, 2}
    np.testing.assert_allclose(out[..., 4:].sum(-1), 1, atol=1e-5)
    assert np.array_equal(out[..., 4:].argmax(-1), out[..., 0])
    assert ((out[..., 1] >= 0) & (out[..., 1] <= 1)).all()


def test_devices(monkeypatch, caplog):
    assert parse_devices("") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert parse_devices("0,1") == CPU
    assert "CPU" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_devices("0,1") == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(ValueError, match="no GPU .2."):
        parse_devices("2")
    with pytest.raises(ValueError, match="comma-separated"):
        parse_devices("first")
