"""Which sample is in which batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from run_utils.loaders import build_loader
from run_utils.sampling import EpochBatchSampler, occurrences, plan_batches


def test_every_sample_once_an_epoch_and_the_same_steps_for_every_process(subtests):
    for world_size, batch_size, length in itertools.product([1, 2, 3, 8], [1, 2, 4, 16], [1, 2, 3, 5, 16, 17, 49]):
        with subtests.test(world_size=world_size, batch_size=batch_size, length=length):
            if length < world_size:
                with pytest.raises(ValueError, match=f"{length} patches .* {world_size} processes"):
                    plan_batches(np.arange(length), batch_size, world_size)
                continue
            plan = plan_batches(np.arange(length), batch_size, world_size)
            assert all(len(step) == world_size for step in plan)
            sizes = [len(batch) for step in plan for batch in step]
            assert sorted(np.concatenate([batch for step in plan for batch in step])) == list(range(length))
            assert min(sizes) >= 1
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= max(batch_size, 2 if batch_size == 1 and length % world_size else 1)


def test_no_tiny_last_batch():
    assert [len(step[0]) for step in plan_batches(np.arange(17), 16, 1)] == [9, 8]


def indices(sampler: EpochBatchSampler) -> list[list[int]]:
    return [[index for _, index, _ in batch] for batch in sampler]


def test_order_follows_seed_and_epoch():
    sampler = EpochBatchSampler(20, 4, seed=1)
    first = indices(sampler)
    assert indices(EpochBatchSampler(20, 4, seed=1)) == first
    assert indices(EpochBatchSampler(20, 4, seed=2)) != first
    sampler.set_position(1)
    assert indices(sampler) != first
    sampler.set_position(0, first_step=3)
    assert indices(sampler) == first[3:]
    assert len(sampler) == 5


def test_evaluation_is_shared_out_whole_even_when_a_process_gets_nothing(subtests):
    for length, world_size in [(1, 2), (7, 2), (8, 3)]:
        with subtests.test(length=length, world_size=world_size):
            parts = [indices(EpochBatchSampler(length, 2, 0, False, rank, world_size)) for rank in range(world_size)]
            seen = [index for part in parts for batch in part for index in batch]
            assert sorted(seen) == list(range(length))


def test_evaluation_order_is_the_same_every_epoch():
    sampler = EpochBatchSampler(9, 2, seed=0, training=False)
    first = indices(sampler)
    sampler.set_position(5)
    assert indices(sampler) == first


def test_weights_draw_the_rare_more_often():
    weights = np.ones(100)
    weights[:10] = 9.0
    drawn = np.concatenate(indices(EpochBatchSampler(100, 10, seed=0, weights=weights)))
    assert len(drawn) == 100
    assert 30 <= (drawn < 10).sum() <= 70  # half of all are expected


def test_repetitions_of_a_sample_are_numbered():
    assert occurrences(np.array([4, 2, 4, 4, 2, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    weights = np.ones(20)
    weights[3] = 1e6
    keys = [key for batch in EpochBatchSampler(20, 4, seed=0, weights=weights) for key in batch]
    assert len(set(keys)) == 20  # (epoch, number, occurrence): no two alike
    assert {key[1] for key in keys} == {3}
    assert all(occurrence == 0 for batch in EpochBatchSampler(20, 4, seed=0) for _, _, occurrence in batch)


class Numbers:
    """A data set that returns where it was asked."""

    def __init__(self, length: int):
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int, occurrence: int) -> None:
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"key": np.array([self.epoch, index])}


def test_p10_any_number_of_patches_and_workers(subtests):
    """Workers stay from epoch to epoch, and yet know the epoch."""
    for length, nr_procs in [(1, 8), (2, 2), (49, 8)]:
        with subtests.test(length=length, nr_procs=nr_procs):
            loader = build_loader(Numbers(length), EpochBatchSampler(length, 4, seed=0), nr_procs)
            for epoch in (0, 1):
                loader.set_position(epoch, 0)
                keys = np.concatenate([batch["key"].numpy() for batch in loader])
                assert set(keys[:, 0]) == {epoch}
                assert sorted(keys[:, 1]) == list(range(length))


def test_p41_workers_that_are_spawned_load_the_same():
    loader = build_loader(Numbers(3), EpochBatchSampler(3, 2, seed=0), 1, start_method="spawn")
    assert sorted(index for batch in loader for index in batch["key"][:, 1].tolist()) == [0, 1, 2]
