"""Base of metrics over a data set, which collects what its batches add."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from tmapdiff.errors import ArgumentError


class Gathered:
    """Rows that batches add, mostly of tensors; subclasses define `update` and `compute`."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []

    def reset(self) -> None:
        """Forget all queries so far."""
        self._rows = []

    def on_cpu(self) -> Self:
        """Return a copy of the metrics, with the queries so far, on the CPU."""
        copied = copy(self)
        copied._rows = [
            tuple(one.cpu() if isinstance(one, Tensor) else one for one in batch)
            for batch in self._rows
        ]
        return copied

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join `parts`: one or more metrics of the same kind, over parts of a data set."""
        whole = copy(parts[0])
        whole._rows = [batch for part in parts for batch in part._rows]
        return whole

    def _columns(self) -> list[Tensor]:
        if not sum(len(batch[0]) for batch in self._rows):
            raise ArgumentError(f"{type(self).__name__}: expected at least one query, got none.")
        columns = zip(*self.on_cpu()._rows, strict=True)
        return [torch.cat(column) for column in columns]
