"""The samples of each batch of this process: a pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np


def plan_batches(order: np.ndarray, batch_size: int, world_size: int) -> list[list[np.ndarray]]:
    """Cut an epoch into steps, and every step into one batch per process.

    Every sample comes once. All processes have the same number of steps, and batches differ by one sample at most (17
    samples in batches of at most 16 become 9 and 8, not 16 and 1). Only with `batch_size` 1 may a batch be larger: by
    one, if the samples cannot be shared out evenly.

    Args:
        order: (N, ...) sample numbers in the order of the epoch; more columns stay with their sample.
        batch_size: largest batch of one process.
        world_size: number of processes.

    Returns:
        `plan[step][rank]`, arrays of rows of `order`.

    Raises:
        ValueError: fewer samples than processes, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(order) < world_size:
        raise ValueError(f"{len(order)} patches cannot be shared out among {world_size} processes")
    nr_steps = min(math.ceil(len(order) / (batch_size * world_size)), len(order) // world_size)
    batches = np.array_split(order, nr_steps * world_size)
    return [batches[step * world_size : (step + 1) * world_size] for step in range(nr_steps)]


def share_batches(order: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Cut one process's share of a validation into batches; processes may have different numbers of them, or none."""
    mine = order[rank::world_size]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def occurrences(order: np.ndarray) -> np.ndarray:
    """Return how often each entry of `order`, (N,), came before: 0 the first time."""
    by_number = np.argsort(order, kind="stable")
    alike = order[by_number]
    counts = np.empty(len(order), np.int64)
    counts[by_number] = np.arange(len(order)) - np.searchsorted(alike, alike)
    return counts


class EpochBatchSampler:
    """Batches of (epoch, sample number, occurrence) for the `DataLoader` of one process.

    The occurrence counts how often the epoch had that sample before, so that each repetition is augmented differently.

    Args:
        length: number of samples.
        batch_size: largest batch of one process.
        seed: with the epoch, decides the order.
        training: a new order every epoch, the same number of steps for all processes; otherwise one shuffled order for
            all epochs, so that the first few batches are typical of the set and not of one image.
        rank: this process.
        world_size: number of processes.
        weights: (length,) chance of each sample relative to the others; training then draws with replacement.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        training: bool = True,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
    ):
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.training = training
        self.rank = rank
        self.world_size = world_size
        self.weights = None if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
        self.epoch = 0
        self.first_step = 0
        self._nr_steps = len(self._plan(0))

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Let the next iteration start at a step of an epoch."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        """Number of batches of a whole epoch."""
        return self._nr_steps

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for batch in self._plan(self.epoch)[self.first_step :]:
            yield [(self.epoch, index, occurrence) for index, occurrence in batch.tolist()]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch if self.training else 0))
        if self.weights is None or not self.training:
            order = rng.permutation(self.length)
        else:
            order = rng.choice(self.length, self.length, p=self.weights)
        order = np.stack([order, occurrences(order)], axis=1)
        if not self.training:
            return share_batches(order, self.batch_size, self.rank, self.world_size)
        return [step[self.rank] for step in plan_batches(order, self.batch_size, self.world_size)]
