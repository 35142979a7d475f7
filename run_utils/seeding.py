"""Random numbers that depend only on the seed and on where a run is.

Every generator is seeded again at each step from (seed, epoch, step, rank). So the same step draws the same numbers in
a resumed run, wherever it was killed, and checkpoints need not hold the generators' states.
"""

from __future__ import annotations

import operator
import random

import numpy as np
import torch

from . import distributed


def seed_everything(seed: int, epoch: int = 0, step: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices), differently in each process of a run."""
    mixed = int(np.random.SeedSequence((seed, epoch, step, distributed.rank())).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def check_manual_seed(seed: int | None) -> int:
    """Seed all generators and return the seed; `None` draws one. (The name is upstream's.)

    Raises:
        ValueError: the seed is not a whole number, or negative.
    """
    if seed is None:
        seed = random.SystemRandom().randrange(1, 10_000)
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"a seed is a whole number from 0 up, got {seed!r}")
    seed_everything(number)
    return number
