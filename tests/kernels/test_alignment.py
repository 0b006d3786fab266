"""Half-precision products on a GPU: rows of all their matrices are aligned to 16 bytes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.host_sync import on_a_device
from helpers.tiers import mostly_exhaustive
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tmapdiff import MapDiffusionDecoder
from tmapdiff.kernels._alignment import aligned_channels
from tmapdiff.kernels.map_conv import spectral as spectral_module
from tmapdiff.kernels.map_conv.spectral import spectral_map_conv
from tmapdiff.kernels.map_conv.transforms import MapTransform
from tmapdiff.kernels.memory_order import empty_like_maps

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "baddbmm_", "addmm_")


@pytest.mark.parametrize(
    ("channels", "expected"), [(513, 528), (512, 512), (65, 80), (33, 33), (1, 1), (1024, 1024)]
)
def test_channels_are_aligned_where_it_adds_few(channels: int, expected: int) -> None:
    assert aligned_channels(channels, CUDA) == expected
    assert aligned_channels(channels, CPU) == channels


class _Products(TorchDispatchMode):
    """Collects the matrices of all products, and those with misaligned rows."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.slow = 0, []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] in PRODUCTS:
            self.count += 1
            matrices = [*[one for one in args if isinstance(one, Tensor)][-2:], result]
            self.slow += [
                f"{func}: {tuple(one.shape)} by {one.stride()}"
                for one in matrices
                if not _in_whole_loads(one)
            ]
        return result


def _in_whole_loads(matrix: Tensor) -> bool:
    if min(matrix.shape[-2:]) <= 2:
        return True  # such as scores, or noisy map and mask: rows too short to align
    strides = [step for step, n in zip(matrix.stride(), matrix.shape, strict=True) if n > 1]
    starts = [matrix.storage_offset(), *(step for step in strides if step != 1)]
    return (1 in strides or not strides) and all(step % 8 == 0 for step in starts)


@pytest.fixture
def products() -> Iterator[_Products]:
    found = _Products()
    with on_a_device(), torch.device("cuda"):
        yield found


@mostly_exhaustive("batch", (1, 32), "32")
def test_denoising_in_half_precision(
    batch: int, products: _Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = "map_conv=spectral,stylization=reference,gate=reference"
    monkeypatch.setenv("TMAPDIFF_BACKEND", backends)
    torch.set_default_dtype(torch.bfloat16)
    try:
        decoder = MapDiffusionDecoder(
            channels=64, feature_channels=64, time_channels=32, kernel_sizes=[17]
        )
    finally:
        torch.set_default_dtype(torch.float32)
    half = {"dtype": torch.bfloat16}
    features = [torch.empty(batch, 64, *shape, **half) for shape in decoder.grid.shapes]
    noisy = torch.empty(batch, decoder.grid.num_cells, **half)
    with torch.no_grad(), products:
        prepared = decoder.eval().prepare(features, torch.tensor([9, 5]))
        prepared.denoise(noisy, 0)
    # Per scale, kernels are transformed and a convolution computed: 5 and 8 products.
    assert products.count > 3 * 12
    assert products.slow == []


@pytest.mark.parametrize("batch", [1, 32])
def test_gradients_in_half_precision(batch: int, products: _Products) -> None:
    transform = MapTransform(64, 16, 17, 32)
    half = {"dtype": torch.bfloat16}
    x, weight = torch.empty(batch, 64, 64, 16, **half), torch.empty(65, 64, 17, 17, **half)
    gradient = empty_like_maps(spectral_map_conv(x, weight, None, 32))
    with products:
        spectral_module._gradients(gradient, x, weight, transform, True, True)
    assert products.count >= 16
    assert products.slow == []
