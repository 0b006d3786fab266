"""Data order and random numbers of samples, as a function of seed, epoch and position alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

SampleKey = tuple[int, int]
_SEEDS = 2**63 - 1


class EpochOrder(Sampler[SampleKey]):
    """Each sample once, in an order of the epoch, with the seed of its random numbers.

    It has no state but the epoch: a run that goes on in the middle of an epoch skips what is done.

    Args:
        length: How many samples there are.
        seed: Decides the orders and seeds, together with the epoch.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[SampleKey]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(_SEEDS, (self.length,), generator=generator).tolist()
        return zip(order, seeds, strict=True)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0."""
        self.epoch = epoch


class SeededSamples(Dataset[Any]):
    """A data set whose samples draw the random numbers of their seed, in whatever process.

    So nothing needs to be known of the workers to go on with a run, and their number decides
    nothing. Torch's random numbers are meant; in workers, NumPy's and Python's too.

    Args:
        dataset: The samples, by index.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: SampleKey) -> Any:
        index, seed = key
        with _drawing_from(seed):
            return self.dataset[index]


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    generator = torch.default_generator  # torch.manual_seed would seed the GPU's as well
    before = generator.get_state()
    generator.manual_seed(seed)
    if get_worker_info() is not None:
        # Nobody else draws from these there; to save and restore them would take a while.
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)
