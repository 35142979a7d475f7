"""Training and validation steps on one batch.

Golden scores: upstream's `proc_valid_step_output` run on the same maps (formulas below).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.hovernet.losses import LOSSES
from models.hovernet.net_desc import create_model
from models.hovernet.train_step import (
    autocast,
    proc_valid_step_output,
    train_step,
    valid_step,
    viz_step_output,
    weighted_loss,
)

LOSS = {"np": {"bce": 1, "dice": 1}, "hv": {"mse": 2, "msge": 1}, "tp": {"bce": 1, "dice": 1}}
GOLDEN = {
    "np_acc": 0.881944444,
    "np_dice": 0.893081761,
    "tp_dice_0": 0.857142857,
    "tp_dice_1": 0.32,
    "tp_dice_2": 0.857142857,
    "hv_mse": 0.0397791266,
}
SIDE_IN, SIDE_OUT = 112, 20  # the smallest windows that `fast` takes are good enough here


def wave(*shape: int, phase: float = 0.0) -> torch.Tensor:
    steps = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(steps * 0.37 + phase).float().reshape(shape)


def make_batch(count: int, nr_types: int | None, nuclei: bool = True) -> dict[str, torch.Tensor]:
    """A square nucleus on a bright ground in every sample."""
    img = torch.full((count, SIDE_IN, SIDE_IN, 3), 220, dtype=torch.uint8)
    np_map = torch.zeros(count, SIDE_OUT, SIDE_OUT, dtype=torch.int32)
    hv_map = torch.zeros(count, SIDE_OUT, SIDE_OUT, 2)
    if nuclei:
        img[:, 52:60, 52:60] = 60
        np_map[:, 6:14, 6:14] = 1
        hv_map[:, 6:14, 6:14, 0] = torch.linspace(-1, 1, 8)
        hv_map[:, 6:14, 6:14, 1] = torch.linspace(-1, 1, 8)[:, None]
    batch = {"img": img, "np_map": np_map, "hv_map": hv_map}
    return batch if nr_types is None else {**batch, "tp_map": np_map * (nr_types - 1)}


def make_run(nr_types: int | None, **extra):
    torch.manual_seed(0)
    net = create_model("fast", nr_types=nr_types, width=0.125)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    info = {"desc": net, "optimizer": optimizer, "extra_info": {"loss": LOSS, "msge_axis": "paper", **extra}}
    return [{"net": info}, {"epoch": 0, "step": 0}]


@pytest.mark.parametrize("nr_types", [None, 3])
def test_loss_falls_on_one_batch(nr_types):
    run = make_run(nr_types, clip_grad_norm=5.0)
    batch = make_batch(2, nr_types)
    losses = [train_step(batch, run)["EMA"]["overall_loss"] for _ in range(6)]
    assert losses[-1] < 0.6 * losses[0]


def test_overall_loss_is_the_weighted_sum_of_the_terms():
    terms = train_step(make_batch(1, 3), make_run(3))["EMA"]
    branches = ("tp_bce", "tp_dice", "np_bce", "np_dice", "hv_mse", "hv_msge")
    assert set(terms) == {"overall_loss", *(f"loss_{name}" for name in branches)}
    expected = sum(terms[f"loss_{name}"] for name in branches) + terms["loss_hv_mse"]  # hv mse counts twice
    assert terms["overall_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("nr_types", [None, 3])
def test_p11_a_batch_of_one_works(nr_types):
    run = make_run(nr_types)
    train_step(make_batch(1, nr_types), run)
    raw = valid_step(make_batch(1, nr_types), run)["raw"]
    assert [len(values) for values in raw.values()] == [1] * len(raw)
    assert raw["pixels"][0] == SIDE_OUT**2


def test_p12_a_batch_without_nuclei_trains():
    terms = train_step(make_batch(2, 3, nuclei=False), make_run(3))["EMA"]
    assert all(np.isfinite(list(terms.values())))
    assert terms["loss_hv_msge"] == 0


def test_a_loss_that_is_not_finite_stops_the_run():
    batch = make_batch(1, None)
    batch["hv_map"][0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        train_step(batch, make_run(None))


def test_class_weights_change_the_type_terms_alone():
    plain = train_step(make_batch(1, 3), make_run(3))["EMA"]
    weighted = train_step(make_batch(1, 3), make_run(3, tp_class_weights=[1, 1, 8]))["EMA"]
    assert weighted["loss_np_bce"] == plain["loss_np_bce"]
    assert abs(weighted["loss_tp_bce"] - plain["loss_tp_bce"]) > 1e-3


def test_nuclei_without_a_type_are_of_any_type_but_no_background():
    """Probabilities .5, .3, .2 on four pixels, two of them of unknown type: -log(.3 + .2) each."""
    probabilities = torch.tensor([0.5, 0.3, 0.2]).expand(1, 2, 2, 3)
    pred = {"tp": probabilities}
    true = {"np": torch.ones(1, 2, 2), "hv": torch.zeros(1, 2, 2, 2), "tp": torch.tensor([[[1, 2], [255, 255]]])}
    extra = {"loss": {"tp": {"bce": 0, "any_type": 3.0}}}
    total, terms = weighted_loss({**true, "known": true["tp"] != 255}, pred, extra)
    assert terms.keys() == {"loss_tp_any_type"}
    assert float(total) == pytest.approx(3 * np.log(2))
    assert weighted_loss({**true, "tp": torch.tensor([[[1, 2], [0, 0]]])}, pred, extra)[1] == {}


def test_msge_axis_is_taken_from_the_recipe():
    hv = torch.zeros(1, 12, 12, 2)
    hv[..., 0] = torch.linspace(-1, 1, 12)  # x rises to the right, as it should
    true = {"np": torch.ones(1, 12, 12, dtype=torch.long), "hv": hv}
    pred = {"np": torch.full((1, 12, 12, 2), 0.5), "hv": hv * 0.5}
    terms = [weighted_loss(true, pred, {"loss": LOSS, "msge_axis": axis})[1] for axis in ("upstream", "paper")]
    assert abs(terms[0]["loss_hv_msge"] - terms[1]["loss_hv_msge"]) > 1e-2
    assert weighted_loss(true, pred, {"loss": LOSS})[1]["loss_hv_msge"] == terms[0]["loss_hv_msge"]


@pytest.mark.parametrize("hv", [{"mse": 2, "msge": 0}, {"mse": 2}])
def test_terms_of_weight_zero_and_terms_left_out_are_not_computed(hv, monkeypatch):
    def fail(*args, **options):
        raise AssertionError("computed")

    monkeypatch.setitem(LOSSES, "msge", fail)
    terms = train_step(make_batch(1, 3), make_run(3, loss={**LOSS, "hv": hv}))["EMA"]
    assert "loss_hv_msge" not in terms
    assert np.isfinite(terms["overall_loss"])


def test_a_branch_without_terms_gets_a_gradient_of_zero():
    """Of zero, not none: DistributedDataParallel waits for one."""
    run = make_run(3, loss={**LOSS, "tp": {}})
    terms = train_step(make_batch(1, 3), run)["EMA"]
    assert not any(name.startswith("loss_tp") for name in terms)
    decoder = run[0]["net"]["desc"].decoder
    assert not any(parameter.grad.any() for parameter in decoder["tp"].parameters())
    assert any(parameter.grad.any() for parameter in decoder["np"].parameters())


class Fixed(nn.Module):
    """A network that predicts given maps: one sample's at a time, in order."""

    nr_types = 3

    def __init__(self, prob: torch.Tensor, hv: torch.Tensor, types: torch.Tensor):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        logits_np = torch.stack([torch.log1p(-prob), torch.log(prob)], 1)  # (N, 2, h, w)
        logits_tp = nn.functional.one_hot(types, 3).permute(0, 3, 1, 2) * 9.0
        self.maps = {"tp": logits_tp, "np": logits_np, "hv": hv.permute(0, 3, 1, 2)}
        self.first = 0

    def forward(self, imgs):
        start, self.first = self.first, self.first + len(imgs)
        return {name: value[start : self.first] for name, value in self.maps.items()}


def test_validation_scores_are_upstreams_for_any_batches():
    prob = ((wave(3, 6, 8) + 1) / 2).clamp(1e-6, 1 - 1e-6)
    true_np = (wave(3, 6, 8, phase=0.4) > 0).long()
    types = (wave(3, 6, 8, phase=0.1) * 1.499 + 1.5).long()
    batch = {
        "img": torch.zeros(3, 6, 8, 3, dtype=torch.uint8),
        "np_map": true_np,
        "hv_map": wave(3, 6, 8, 2, phase=0.2),
        "tp_map": (wave(3, 6, 8, phase=0.4) * 1.499 + 1.5).long() * true_np,
    }
    for sizes in ([3], [2, 1]):
        run = [{"net": {"desc": Fixed(prob, wave(3, 6, 8, 2), types), "extra_info": {}}}, {"epoch": 0, "step": 0}]
        gathered, start = {}, 0
        for size in sizes:
            part = {name: value[start : start + size] for name, value in batch.items()}
            for name, values in valid_step(part, run)["raw"].items():
                gathered.setdefault(name, []).extend(values)
            start += size
        scores = proc_valid_step_output(gathered, nr_types=3)
        assert scores["scalar"] == {name: pytest.approx(value, rel=1e-5) for name, value in GOLDEN.items()}
        assert scores["image"]["output"].shape == (len(sizes) * 2 * 6, 5 * 8, 3)


def test_only_the_first_validation_batches_keep_pictures():
    run = make_run(None)
    run[1] = {"epoch": 0, "step": 20, "epoch_step": 20}
    assert valid_step(make_batch(2, None), run)["raw"]["sample"] == []


def test_picture_shows_truth_above_prediction():
    on, off = np.ones((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.float32)
    raw = {"img": np.full((1, 8, 8, 3), 7, np.uint8), "np": (on, off), "hv": (np.zeros((1, 4, 4, 2)),) * 2}
    picture = viz_step_output(raw)
    assert picture.shape == (8, 16, 3)
    assert (picture[:, :4] == 7).all()  # the image, cropped to the output
    true_np, pred_np = picture[0, 5], picture[5, 5]
    assert true_np[0] > 100 > true_np[2]  # red: one
    assert pred_np[2] > 100 > pred_np[0]  # blue: zero


def test_training_pictures_have_types_too():
    raw = train_step(make_batch(3, 3), make_run(3))["raw"]
    assert viz_step_output(raw, nr_types=3).shape == (2 * 2 * SIDE_OUT, 5 * SIDE_OUT, 3)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`half`"):
        autocast(torch.device("cpu"), {"amp_cpu": "half"})


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_processor_without_bfloat16_trains_in_float32(monkeypatch, has_bf16):
    # PyTorch's own "is supported" is also true where bfloat16 is emulated, which is slower than float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    with autocast(torch.device("cpu"), {"amp_cpu": "bf16"}):
        assert torch.is_autocast_enabled("cpu") == has_bf16
