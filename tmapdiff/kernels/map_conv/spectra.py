"""Cache of kernel spectra."""

from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels.map_conv.transforms import MapTransform


class KernelSpectra:
    """Caches the spectrum of a kernel until the kernel's values change.

    Values are compared with a copy, as version counters miss `weight.data.copy_(...)`, which moving
    averages use. This reads the kernel twice and synchronizes with a GPU, so get spectra before a
    loop, not inside. Holds one spectrum. Copies and pickles start empty. Thread-safe.
    """

    def __init__(self) -> None:
        # A single value, so that threads always see a key with its own spectrum.
        self._kept: tuple[tuple[Any, ...], Tensor, Tensor] | None = None

    def get(self, weight: Tensor, transform: MapTransform, dtype: torch.dtype) -> Tensor:
        """Return the spectrum of `weight` by `transform`, in `dtype`; see `MapTransform.kernel`."""
        weight = weight.detach()
        key = (transform, dtype, weight.device, weight.dtype, weight.shape)
        kept = self._kept
        if kept is not None and key == kept[0] and torch.equal(weight, kept[1]):
            return kept[2]
        kept = None
        self.clear()  # first, as there may be no memory for two
        spectrum = transform.kernel(weight.to(dtype)).contiguous()
        self._kept = key, weight.clone(), spectrum
        return spectrum

    def clear(self) -> None:
        """Discard the spectrum."""
        self._kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "KernelSpectra":
        return KernelSpectra()

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelSpectra, ()
