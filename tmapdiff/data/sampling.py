"""Order of the samples, their shares per process, and their random numbers.

All depend only on seed, epoch and position, and are the same in every process and on every machine.
"""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

SampleKey = tuple[int, int]
_SEEDS = 2**63 - 1


def generator_for(*parts: object) -> np.random.Generator:
    """Return a generator that depends only on `parts`, such as a seed and a video id."""
    # Not by `hash`, which differs between processes.
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def torch_generator_for(
    seed: int, position: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator on a device for the query at `position` of a run with `seed`."""
    # Generators with adjacent seeds are independent enough; a large prime keeps the seeds of two
    # runs apart.
    # int, as NumPy's integers overflow.
    return torch.Generator(device).manual_seed((int(seed) * 1_000_000_007 + position) % 2**63)


def share_of(count: int, num_processes: int, process: int) -> range:
    """Return the positions of a process's share of `count`; shares are contiguous and even."""
    return range(count * process // num_processes, count * (process + 1) // num_processes)


class BatchShares(Sampler[list[Any]]):
    """The share of a process in each batch of all processes.

    The batches are those of a single process with the total batch size. The last batch is dropped
    if a process would get no sample, or if it has only one sample, on which batch normalization
    cannot train.
    """

    def __init__(
        self, order: Any, batch_size: int, num_processes: int = 1, process: int = 0
    ) -> None:
        self.order = order
        self.size = batch_size * num_processes  # of a full batch over all processes
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
        """Return the rows of a batch that belong to the process."""
        return share_of(self._count(batch), self.num_processes, self.process)

    def _count(self, batch: int) -> int:
        return min(self.size, len(self.order) - batch * self.size)


class EpochOrder(Sampler[SampleKey]):
    """Each sample once, in random order, with a seed for its random numbers.

    Both depend only on `seed` and epoch, so that a run resumes mid-epoch by skipping samples.
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
        """Set the epoch, from 0."""
        self.epoch = epoch


class SeededSamples(Dataset[Any]):
    """A dataset whose samples use random numbers of their own seed.

    So results do not depend on the workers, and runs resume without their state. This holds for
    torch's random numbers and, in workers, for NumPy's and Python's.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: SampleKey) -> Any:
        index, seed = key
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
            if get_worker_info() is not None:
                # Nothing else in a worker uses these, and restoring them would be slow.
                np.random.seed(seed % 2**32)  # noqa: NPY002
                random.seed(seed)
            return self.dataset[index]
