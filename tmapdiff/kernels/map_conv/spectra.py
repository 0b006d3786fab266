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
    Copies and pickles start without. Threads may share it.
    """

    def __init__(self) -> None:
        # One value: a thread never sees the key of one spectrum with another.
        self._kept: tuple[tuple[Any, ...], Tensor, Tensor] | None = None

    def get(self, weight: Tensor, transform: MapTransform, dtype: torch.dtype) -> Tensor:
        """Return the spectrum of `weight` by `transform`, in `dtype`; see `MapTransform.kernel`."""
        weight = weight.detach()
        key = (transform, dtype, weight.device, weight.dtype, weight.shape)
        kept = self._kept
        if kept is not None and key == kept[0] and torch.equal(weight, kept[1]):
            return kept[2]
        kept = None
        self.clear()  # first: there may be no room for two
        spectrum = transform.kernel(weight.to(dtype)).contiguous()
        self._kept = key, weight.clone(), spectrum
        return spectrum

    def clear(self) -> None:
        """Forget the spectrum."""
        self._kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "KernelSpectra":
        return KernelSpectra()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelSpectra, ()
