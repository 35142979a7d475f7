"""Loaders of a training run: the same batches for the same (seed, epoch, step), with any number of processes."""

from __future__ import annotations

from torch.utils.data import DataLoader, Dataset

from misc.machine import cpu_count

from .sampling import EpochBatchSampler


class EpochDataset(Dataset):
    """A data set indexed by (epoch, number, occurrence): so persistent workers learn the epoch with each sample.

    Args:
        dataset: has `set_epoch(epoch, occurrence)` and `__getitem__(number)`.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        epoch, index, occurrence = key
        self.dataset.set_epoch(epoch, occurrence)
        return self.dataset[index]


class PositionedLoader(DataLoader):
    """A `DataLoader` that starts at any step of any epoch."""

    def set_position(self, epoch: int, first_step: int) -> None:
        """Let the next iteration start at a step of an epoch."""
        self.batch_sampler.set_position(epoch, first_step)


def build_loader(
    dataset, sampler: EpochBatchSampler, nr_procs: int, pin_memory: bool = False, start_method: str | None = None
) -> PositionedLoader:
    """Make a loader.

    Args:
        dataset: as `EpochDataset` takes it.
        sampler: which samples, in which order.
        nr_procs: loading processes, at most as many as the machine has processors and the epoch has batches; 0 loads in
            this process.
        pin_memory: for a CUDA device.
        start_method: `fork`, `spawn`, `forkserver`; `None` is the platform's own.
    """
    nr_procs = min(nr_procs, cpu_count(), len(sampler))
    return PositionedLoader(
        EpochDataset(dataset),
        batch_sampler=sampler,
        num_workers=nr_procs,
        worker_init_fn=init_worker,
        pin_memory=pin_memory,
        persistent_workers=nr_procs > 0,
        multiprocessing_context=start_method if nr_procs else None,
    )


def init_worker(worker_id: int) -> None:
    """Keep OpenCV to one thread in a loading process; the processes are the parallelism."""
    import cv2

    cv2.setNumThreads(0)
