"""The forward pass against the original repository's, number for number.

`golden/forward_fast.npz` was made by the original (vqdang/hover_net, commit 67e2ce5, torch 2.13.0 on a CPU): its
full-width `fast` network with five types, weights and input by the rule below, every `STEP`th pixel of what comes out:

    from benchmarks.upstream import Upstream
    from tests.models.test_forward_parity import GOLDEN, STEP, patch, weights_by_name
    net = Upstream("/tmp/upstream").load("models.hovernet.net_desc").create_model(mode="fast", nr_types=5, input_ch=3)
    net.load_state_dict(weights_by_name(net.state_dict()))
    with torch.no_grad():
        out = net.eval()(patch())
    np.savez(GOLDEN, **{name: value[0, :, ::STEP, ::STEP].numpy() for name, value in out.items()})
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from models.hovernet.net_desc import create_model, to_inference

GOLDEN = Path(__file__).parent / "golden" / "forward_fast.npz"
STEP = 8  # px
TOLERANCE = 1e-4  # of the largest value of each branch


def weights_by_name(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random weights that depend on the name and the shape of a tensor; `RandomState` never changes its numbers."""
    return {name: _tensor(name, tuple(value.shape)) for name, value in state_dict.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("unpool_mat"):
        return torch.ones(shape)
    random = np.random.RandomState(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    if len(shape) == 4:
        values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("running_var", "weight")):
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.uniform(-0.3, 0.3, shape)
    return torch.from_numpy(values.astype(np.float32))


def patch() -> torch.Tensor:
    """(1, 3, 256, 256) float32, 0-255: noise."""
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (1, 3, 256, 256)).astype(np.float32))


def test_the_network_gives_the_originals_numbers():
    net = create_model("fast", nr_types=5)
    net.load_state_dict(weights_by_name(net.state_dict()))
    with torch.inference_mode():
        out = to_inference(net, "cpu")(patch())
    with np.load(GOLDEN) as golden:
        assert set(golden.files) == set(out) == {"tp", "np", "hv"}
        for name, expected in golden.items():
            found = out[name][0, :, ::STEP, ::STEP].numpy()
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max(), name
            assert expected.std() > 0.05 * np.abs(expected).max()  # numbers that tell networks apart
