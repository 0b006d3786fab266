"""Which samples come when, on which process, and with which random numbers.

All of it is a function of seed, epoch and position alone: the same in every process and on every
machine.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

SampleKey = tuple[int, int]
_SEEDS = 2**63 - 1


class _Order(Sized, Iterable[Any], Protocol):
    pass


def generator_for(*parts: object) -> np.random.Generator:
    """Return a generator that depends on `parts`, such as a seed and a video id, alone.

    Python's own `hash` differs from process to process.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def torch_generator_for(
    seed: int, position: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator on a device for the query at `position` of a run with `seed`."""
    # Generators seeded with neighbouring numbers are independent enough; a large prime keeps the
    # seeds of two runs apart.
    return torch.Generator(device).manual_seed((seed * 1_000_000_007 + position) % 2**63)


def share_of(count: int, num_processes: int, process: int) -> range:
    """Positions that a process does of `count`: shares lie one after another, and differ by one."""
    return range(count * process // num_processes, count * (process + 1) // num_processes)


class BatchShares(Sampler[list[Any]]):
    """The share of a process in each batch that all processes do together.

    All processes know the `order` of the samples. The batches are those that one process would do,
    with the batch sizes of all added up. A last batch that would leave a process without a sample
    is left out; so is one of a single sample, on which batch normalisation cannot train.
    """

    def __init__(
        self, order: _Order, batch_size: int, num_processes: int = 1, process: int = 0
    ) -> None:
        self.order = order
        self.size = batch_size * num_processes  # of a whole batch, on all processes
        self.num_processes = num_processes
        self.process = process

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.size)
        return whole + (rest >= max(2, self.num_processes))

    def __iter__(self) -> Iterator[list[Any]]:
        keys = iter(self.order)
        for batch in range(len(self)):
            together = list(islice(keys, self._count(batch)))
            yield [together[row] for row in self.rows(batch)]

    def rows(self, batch: int) -> range:
        """Rows of a batch, from 0, that are the process's."""
        return share_of(self._count(batch), self.num_processes, self.process)

    def _count(self, batch: int) -> int:
        return min(self.size, len(self.order) - batch * self.size)


class EpochOrder(Sampler[SampleKey]):
    """Each sample once, in an order of the epoch, with the seed of its random numbers.

    `seed` and epoch decide both. There is no other state: a run that goes on in the middle of an
    epoch skips what is done.
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
