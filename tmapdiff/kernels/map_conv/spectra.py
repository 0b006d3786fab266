"""Spectra of kernels, kept while the kernel does not change."""

from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels.map_conv.transforms import MapTransform

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KernelSpectra:
    """Keeps the spectrum of a kernel, and makes a new one when the kernel's values change.

    Values are compared, not version counters: those miss `weight.data.copy_(...)`, which is how
    moving averages are put in place. It costs reading the kernel once, and on a GPU waiting for it;
    so spectra are asked for once before a loop, not within. One spectrum is kept at a time. Copies
    and pickles start without.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._sums: Tensor | None = None
        self._spectrum: Tensor | None = None

    def get(self, weight: Tensor, transform: MapTransform, dtype: torch.dtype) -> Tensor:
        """Return the spectrum of `weight`, in a dtype.

        Shape:
            - weight: (D, C, S, S)
            - returns: (frequencies, 2, C, D)
        """
        weight = weight.detach()
        key = (transform, dtype, weight.device, weight.dtype, weight.shape)
        sums = _sums(weight)
        if (
            self._spectrum is None
            or key != self._key
            or self._sums is None
            or not torch.equal(sums, self._sums)
        ):
            self.clear()  # first: there may be no room for two
            spectrum = transform.kernel(weight.to(dtype))
            self._key, self._sums, self._spectrum = key, sums, spectrum
            return spectrum
        return self._spectrum

    def clear(self) -> None:
        """Forget the spectrum."""
        self._key = self._sums = self._spectrum = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "KernelSpectra":
        return KernelSpectra()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelSpectra, ()


def _sums(weight: Tensor) -> Tensor:
    """Sum the bits of each slice: when any one value changes, one of the sums does."""
    bits = weight.contiguous().view(_INTEGERS[weight.dtype.itemsize])
    return bits.sum(dim=(2, 3), dtype=torch.int64)
