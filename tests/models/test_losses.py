"""Loss terms: upstream's numbers, and arithmetic one can check by eye.

Golden values: upstream's `models/hovernet/utils.py` with "cuda" replaced by "cpu", run on the tensors of `wave`.
"""

from __future__ import annotations

import math

import pytest
import torch

from models.hovernet import utils
from models.hovernet.losses import dice_loss, mse_loss, msge_loss, sobel_kernels, xentropy_loss


def wave(*shape: int, phase: float = 0.0) -> torch.Tensor:
    """A tensor that every version of every library makes alike."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(steps * 0.37 + phase).float().reshape(shape)


TRUE = torch.nn.functional.one_hot((wave(2, 12, 16) * 2.499 + 2.5).long(), 5).float()
PRED = torch.softmax(3 * wave(2, 12, 16, 5, phase=1), -1)
HV, PRED_HV = wave(2, 12, 16, 2), wave(2, 12, 16, 2, phase=0.5) * 0.8
FOCUS = (wave(2, 12, 16, phase=2) > 0).float()


def test_upstreams_numbers(subtests):
    cases = [
        ("xentropy_loss", (TRUE, PRED), 2.05127835),
        ("xentropy_loss", (TRUE, PRED, "sum"), 787.690918),
        ("dice_loss", (TRUE, PRED), 4.00185728),
        ("mse_loss", (HV, PRED_HV), 0.117633887),
        ("msge_loss", (HV, PRED_HV, FOCUS), 2.05324531),
    ]
    for name, args, golden in cases:
        with subtests.test(name=name, golden=golden):
            assert getattr(utils, name)(*args).item() == pytest.approx(golden, rel=1e-5)


def test_perfect_prediction_costs_nothing():
    assert xentropy_loss(TRUE, TRUE).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(TRUE, TRUE).item() == pytest.approx(0, abs=1e-6)
    assert mse_loss(HV, HV).item() == 0
    assert msge_loss(HV, HV, FOCUS).item() == 0


def test_even_chances_cost_the_logarithm_of_two():
    pred = torch.full((1, 2, 2, 2), 0.5)
    true = torch.tensor([1.0, 0.0]).expand(1, 2, 2, 2)
    assert xentropy_loss(true, pred).item() == pytest.approx(math.log(2), rel=1e-6)


def ramp(axis: int) -> torch.Tensor:
    """HV maps (1, 9, 9, 2) whose x map (channel 0) rises by 1 a pixel along an axis: 0 down, 1 right."""
    plane = torch.arange(9.0).expand(9, 9)
    hv = torch.zeros(1, 9, 9, 2)
    hv[0, ..., 0] = plane if axis == 1 else plane.T
    return hv


def centre() -> torch.Tensor:
    """Focus on one pixel, far enough from the border that no padding is seen."""
    focus = torch.zeros(1, 9, 9)
    focus[0, 4, 4] = 1
    return focus


@pytest.mark.parametrize(("axis", "right", "down"), [("paper", 1, 0), ("upstream", 0, 1)])
def test_msge_differentiates_along_the_named_axis(axis, right, down):
    """A map that rises to the right has a gradient along x (the paper's), and none along y (upstream's)."""
    flat = torch.zeros(1, 9, 9, 2)
    # sum over the 5x5 window of x * x / (x^2 + y^2); half of it, since the y map adds nothing to the mean
    kernel_sum = sum(x * x / (x * x + y * y) for x in range(-2, 3) for y in range(-2, 3) if x or y)
    expected = kernel_sum**2 / 2
    assert msge_loss(flat, ramp(1), centre(), axis).item() == pytest.approx(expected * right, abs=1e-3)
    assert msge_loss(flat, ramp(0), centre(), axis).item() == pytest.approx(expected * down, abs=1e-3)


def test_msge_looks_inside_nuclei_only():
    far = HV.clone()
    far[:, 6:] += 5
    focus = torch.zeros_like(FOCUS)
    focus[:, :3] = 1  # the 5x5 window of row 2 ends at row 4
    assert msge_loss(HV, far, focus).item() == pytest.approx(0, abs=1e-9)
    assert msge_loss(HV, far, torch.zeros_like(FOCUS)).item() == 0  # no nucleus at all (P12)


def test_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="`papers`"):
        msge_loss(HV, PRED_HV, FOCUS, "papers")


def test_kernels_are_made_once_per_device():
    first = sobel_kernels(5, "paper", torch.device("cpu"))
    assert sobel_kernels(5, "paper", torch.device("cpu")) is first
    assert torch.equal(first[0, 0], first[1, 0].T)


def test_equal_class_weights_change_nothing_and_unequal_ones_do():
    equal, unequal = torch.full((5,), 3.0), torch.tensor([1.0, 1, 1, 1, 9])
    for loss in (xentropy_loss, dice_loss):
        plain = loss(TRUE, PRED)
        assert loss(TRUE, PRED, class_weights=equal).item() == pytest.approx(plain.item(), rel=1e-6)
        assert abs(loss(TRUE, PRED, class_weights=unequal).item() - plain.item()) > 1e-3


def test_pixels_of_weight_zero_alone_cost_nothing():
    true = torch.nn.functional.one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 3).float()
    pred = torch.full((1, 4, 4, 3), 1 / 3, requires_grad=True)
    loss = xentropy_loss(true, pred, class_weights=torch.tensor([0.0, 1, 1]))
    loss.backward()
    assert loss.item() == 0
    assert not pred.grad.any()


def test_gradient_reaches_the_prediction():
    pred = PRED_HV.clone().requires_grad_(True)
    msge_loss(HV, pred, FOCUS, "paper").backward()
    assert pred.grad.abs().sum() > 0
