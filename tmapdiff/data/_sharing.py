"""Who does what, where several processes share the samples of a data set."""

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any, Protocol

from torch.utils.data import Sampler


class _Order(Sized, Iterable[Any], Protocol):
    pass


def share_of(count: int, num_processes: int, process: int) -> range:
    """Positions that a process does of `count`: shares lie one after another, and differ by one."""
    return range(count * process // num_processes, count * (process + 1) // num_processes)


class BatchShares(Sampler[list[Any]]):
    """The share of a process in each batch that all processes do together.

    The batches are those that one process would do, with the batch sizes of all added up. A last
    batch that would leave a process without a sample is left out; so is one of a single sample, on
    which batch normalisation cannot train.

    Args:
        order: The samples of an epoch, in an order that all processes know.
        batch_size: Samples of a whole batch, on each process.
        num_processes: Processes.
        process: Which one, from 0.
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
