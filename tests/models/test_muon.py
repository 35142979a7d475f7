"""Muon for filters, AdamW for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim

from models.hovernet.muon import MuonAdamW, orthogonal

RATES = {"lr": 1.0e-3, "filter_lr": 2.0e-3, "weight_decay": 0.1}


def small_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 3 channels in: AdamW
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),  # Muon
        nn.ReLU(),
        nn.Conv2d(16, 2, 1),  # 2 channels out: AdamW
    )


def train(net: nn.Module, optimizer: optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad(set_to_none=True)
        net(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(12, 60), (60, 12), (16, 16)])
def test_singular_values_become_about_one(shape):
    generator = torch.Generator().manual_seed(1)
    rows = torch.logspace(0, -1.5, shape[0])[:, None]
    matrix = rows * torch.randn(*shape, generator=generator)
    result = orthogonal(1.0e4 * matrix)
    values = torch.linalg.svdvals(result)
    strong = torch.linalg.svdvals(matrix) > 0.02 * torch.linalg.svdvals(matrix)[0]
    assert values[strong].min() > 0.6
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    nearest = (u @ v).flatten()
    assert torch.nn.functional.cosine_similarity(result.flatten(), nearest, dim=0) > 0.95


def test_a_first_step_moves_filters_by_a_fixed_size_in_all_directions():
    net = small_net(3)
    before = net[2].weight.detach().clone()
    train(net, MuonAdamW(net.parameters(), **{**RATES, "weight_decay": 0}), range(1))
    moved = (net[2].weight.detach() - before).flatten(1)  # (16, 72): an orthogonal one has an RMS of 72 ** -0.5
    assert torch.sqrt(moved.square().mean()) == pytest.approx(0.2 * RATES["filter_lr"], rel=0.2)
    assert (moved * net[2].weight.grad.flatten(1)).sum() < 0


def test_all_else_is_trained_by_adamw():
    net, other = small_net(4), small_net(4)
    train(net, MuonAdamW(net.parameters(), **RATES), range(1))
    train(other, optim.AdamW(other.parameters(), lr=RATES["lr"], weight_decay=RATES["weight_decay"]), range(1))
    pairs = list(zip(net.named_parameters(), other.parameters(), strict=True))
    different = [name for (name, ours), theirs in pairs if not torch.equal(ours, theirs)]
    assert different == ["2.weight"]


def test_weights_without_a_gradient_stay():
    net = small_net(5)
    net[2].weight.requires_grad_(False)
    net[4].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    train(net, MuonAdamW(net.parameters(), **RATES), range(2))
    same = [name for name, value in net.state_dict().items() if torch.equal(value, before[name])]
    assert {"2.weight", "4.weight"} <= set(same)
    assert "0.weight" not in same


def test_a_stored_state_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, first = small_net(6), small_net(6)
    train(whole, MuonAdamW(whole.parameters(), **RATES), range(4))
    optimizer = MuonAdamW(first.parameters(), **RATES)
    train(first, optimizer, range(2))
    torch.save({"net": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "half.tar")
    stored = torch.load(tmp_path / "half.tar", weights_only=True)
    second = small_net(7)
    second.load_state_dict(stored["net"])
    optimizer = MuonAdamW(second.parameters(), **RATES)
    optimizer.load_state_dict(stored["optimizer"])
    train(second, optimizer, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), whole.parameters(), strict=True))


def test_a_closure_is_called_with_gradients():
    net = small_net(8)
    optimizer = MuonAdamW(net.parameters(), **RATES)
    images = torch.rand(2, 3, 8, 8)

    def closure():
        optimizer.zero_grad()
        loss = net(images).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
