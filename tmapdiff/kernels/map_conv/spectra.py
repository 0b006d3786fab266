"""Spectra of kernels, kept while the kernel does not change."""

from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels.map_conv.transforms import MapTransform


class KernelSpectra:
    """Keeps the spectrum of a kernel, and makes a new one when the kernel's values change.

    Values are compared with a copy, as version counters miss `weight.data.copy_(...)`, which is how
    moving averages are put in place. That costs reading the kernel twice, and on a GPU waiting for
    it; so spectra are asked for once before a loop, not within. One spectrum is kept at a time.
    Copies and pickles start without.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._weight: Tensor | None = None
        self._spectrum: Tensor | None = None

    def get(self, weight: Tensor, transform: MapTransform, dtype: torch.dtype) -> Tensor:
        """Return the spectrum of `weight` by `transform`, in `dtype`.

        Shape:
            - weight: (D, C, S, S)
            - returns: (frequencies, 2, C, D)
        """
        weight = weight.detach()
        key = (transform, dtype, weight.device, weight.dtype, weight.shape)
        if (
            self._spectrum is not None
            and self._weight is not None
            and key == self._key
            and torch.equal(weight, self._weight)
        ):
            return self._spectrum
        self.clear()  # first: there may be no room for two
        self._spectrum = transform.kernel(weight.to(dtype)).contiguous()
        self._key, self._weight = key, weight.clone()
        return self._spectrum

    def clear(self) -> None:
        """Forget the spectrum."""
        self._key = self._weight = self._spectrum = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "KernelSpectra":
        return KernelSpectra()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelSpectra, ()
