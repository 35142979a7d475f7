"""Random numbers that depend on where a run is, and on nothing else.

Every generator is seeded again at each step from (seed, epoch, step, rank). So nothing has to be saved to take a run
up again, wherever it was killed: the same step draws the same numbers.
"""

from __future__ import annotations

import operator
import random

import numpy as np
import torch

from . import distributed


def seed_everything(seed: int, epoch: int = 0, step: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices); other processes of a run draw other numbers."""
    mixed = int(np.random.SeedSequence((seed, epoch, step, distributed.rank())).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def check_manual_seed(seed: int | None) -> int:
    """Seed everything; draw a seed where none is given, and say which (upstream's name).

    Raises:
        ValueError: the seed is no whole number, or negative.
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
