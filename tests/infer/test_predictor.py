"""Batches through the network: any size, falling memory, devices, precision."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from conftest import ROOT
from skimage.data import immunohistochemistry
from stubs import StubNet

from infer.predictor import (
    MAX_CPU_BATCH,
    OutOfMemoryError,
    Predictor,
    WrongResultError,
)
from models.hovernet.checkpoint import build_model, load_checkpoint
from models.hovernet.devices import choose_precision, device_names, parse_devices
from models.hovernet.net_desc import create_model
from models.hovernet.run_desc import infer_step

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


def test_p11_any_batch_size_gives_the_same():
    whole = Predictor(StubNet(), CPU, 7)(PATCHES)
    assert whole.shape == (7, 3, 164, 164)
    assert whole.dtype == np.float32
    for batch_size in (1, 2, 4, 128):
        net = StubNet()
        assert np.array_equal(Predictor(net, CPU, batch_size)(PATCHES), whole)
        assert max(net.batch_sizes) == min(batch_size, 7)


def test_steps_may_be_taken_apart():
    """A batch is brought up, computed and brought back, each by another thread; the next one may be on its way."""
    predictor = Predictor(StubNet(), CPU, 4)
    whole = predictor(PATCHES)
    batches = []
    for start in (0, 4):
        room = predictor.new_batch(256)
        assert (room.shape, room.dtype) == ((4, 256, 256, 3), torch.uint8)
        count = len(PATCHES[start : start + 4])
        room.numpy()[:count] = PATCHES[start : start + 4]
        batches.append(predictor.upload(room[:count]))
    maps = [predictor.forward(batch) for batch in batches]
    assert np.array_equal(np.concatenate([predictor.download(part) for part in maps]), whole)


def test_what_is_copied_from_is_free_once_it_is_brought_up():
    predictor = Predictor(StubNet(), CPU, 4)
    room = torch.from_numpy(PATCHES[:2].copy())
    batch = predictor.upload(room)
    room.zero_()
    assert np.array_equal(predictor.download(predictor.forward(batch)), predictor(PATCHES[:2]))


def test_of_larger_windows_there_are_fewer_in_a_batch():
    predictor = Predictor(StubNet(), CPU, 32)
    assert predictor.batch_size() == predictor.batch_size(256) == 32
    assert predictor.batch_size(512) == len(predictor.new_batch(512)) == 8
    assert predictor.batch_size(600) == 5
    assert predictor.batch_size(1 << 14) == 1
    assert Predictor(create_model("original", width=0.125), CPU, 4).batch_size(270) == 4


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
]


def test_p17_batch_size_falls_by_halves_when_memory_runs_out(caplog):
    whole = Predictor(StubNet(), CPU, 4)(PATCHES)
    for error in OUT_OF_MEMORY:
        caplog.clear()
        predictor = Predictor(SmallMemory(1, error), CPU, 4)
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(predictor(PATCHES), whole)
        assert predictor.batch_size() == predictor.batch_size(256) == 1
        assert "batch of 4 patches of 256 px: going on with 2" in caplog.text
        assert "batch of 2 patches of 256 px: going on with 1" in caplog.text


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
        assert Predictor(create_model("fast", width=0.125), CPU, 128).batch_size() == MAX_CPU_BATCH
    assert "128 -> 4" in caplog.text


def test_half_precision_is_near_and_what_a_device_cannot_do_is_refused():
    net = build_model(load_checkpoint(sorted((ROOT / "pretrained").glob("*.tar"))[0]))
    tissue = immunohistochemistry()[None, :256, :256]
    single, half = (Predictor(net, CPU, 1, precision)(tissue)[:, 0] for precision in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - single).mean() < 0.01
    for precision in ("fp16", "tf32"):
        with pytest.raises(ValueError, match="needs a GPU"):
            Predictor(net, CPU, 1, precision)
    with pytest.raises(ValueError, match="auto, tf32, fp32"):
        Predictor(net, CPU, 1, "int8")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_is_what_the_checkpoint_recommends_where_the_machine_has_it(monkeypatch, has_bf16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    cpu, cuda, mps = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    for device, usual in ((cpu, "fp32"), (cuda, "tf32"), (mps, "fp32")):
        assert choose_precision("auto", None, device) == usual
        assert choose_precision("auto", "unheard-of", device) == usual
        assert choose_precision("auto", "fp32", device) == "fp32"
        assert choose_precision("auto", "bf16", device) == ("bf16" if has_bf16 and device != mps else usual)
        assert choose_precision("bf16", None, device) == "bf16"  # what is asked for is done
        assert choose_precision("fp32", "bf16", device) == "fp32"
    assert choose_precision("auto", "fp16", cpu) == "fp32"
    assert choose_precision("auto", "fp16", cuda) == choose_precision("fp16", None, mps) == "fp16"
    assert choose_precision("tf32", None, cuda) == "tf32"


class OffBy(StubNet):
    """Computes a share of its pixels otherwise than `StubNet`."""

    def __init__(self, share: float, amount: float = 1.0):
        super().__init__()
        self.share, self.amount = share, amount

    def forward(self, imgs):
        out = super().forward(imgs)
        out["hv"][..., : round(164 * self.share)] += self.amount
        return out


def test_a_device_that_computes_something_else_than_the_cpu_is_an_error_and_no_picture():
    """Apple's GPU is compared with the CPU on the first patch; here networks that differ stand in for the two."""
    for share, amount, wrong in ((0, 0, False), (1, 0.01, False), (0.005, 1, False), (0.1, 1, True), (1, 0.2, True)):
        predictor = Predictor(OffBy(share, amount), CPU, 4)
        predictor._unchecked = StubNet()
        if not wrong:
            assert np.array_equal(predictor(PATCHES), Predictor(OffBy(share, amount), CPU, 4)(PATCHES))
            assert predictor._unchecked is None  # once is enough
            continue
        for _ in range(2):  # also where the batch is tried once more
            with pytest.raises(WrongResultError, match="from the CPU; use --gpu="):
                predictor(PATCHES)


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


@pytest.mark.parametrize(("precision", "expected"), [("fp32", (False, False)), ("bf16", (True, True))])
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


def test_tf32_is_allowed_again_also_after_an_error(tf32_allowed):
    class Broken(StubNet):
        def forward(self, imgs):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Predictor(Broken(), CPU, 1, "fp32")(PATCHES[:1])
    assert all(place.allow_tf32 for place in tf32_allowed)


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
    assert predictor.channels == out.shape[1] == 7
    assert set(np.unique(out[:, 0])) <= {0, 1, 2}
    np.testing.assert_allclose(out[:, 4:].sum(1), 1, atol=1e-5)
    assert np.array_equal(out[:, 4:].argmax(1), out[:, 0])
    assert ((out[:, 1] >= 0) & (out[:, 1] <= 1)).all()
    # the same channels as those of one step for everybody, which has them last
    last = infer_step(PATCHES[:1], predictor.model, type_probs=True)
    np.testing.assert_allclose(np.moveaxis(last, -1, 1), out, atol=1e-6)
    untyped = Predictor(create_model("fast", width=0.125), CPU, 1, type_probs=True)
    assert untyped.channels == untyped(PATCHES[:1]).shape[1] == 3


def test_devices(monkeypatch):
    assert parse_devices("") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_devices("0,1") == CPU
    assert device_names(CPU, "0,1") == "cpu (no CUDA device here, --gpu=0,1 has no effect)"
    assert device_names(CPU, "") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_devices("0,1") == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(ValueError, match="no GPU .2."):
        parse_devices("2")
    with pytest.raises(ValueError, match="comma-separated"):
        parse_devices("first")
    for there in (True, False):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=there: there)
        if there:
            assert parse_devices("mps") == parse_devices(" MPS ") == [torch.device("mps")]
        else:
            with pytest.raises(ValueError, match="no Apple GPU.*--gpu="):
                parse_devices("mps")
