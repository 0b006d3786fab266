"""Products of half precision on a GPU: rows of all their matrices begin at 16 bytes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close
from helpers.contracts import draw
from helpers.host_sync import on_a_device
from helpers.kernels import DEVICE
from helpers.tiers import mostly_exhaustive
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tmapdiff import MapDiffusionDecoder
from tmapdiff.kernels import _alignment
from tmapdiff.kernels._alignment import aligned_channels, in_aligned_rows, with_channels
from tmapdiff.kernels.map_conv import map_conv, plan_map_conv
from tmapdiff.kernels.map_conv import spectral as spectral_module
from tmapdiff.kernels.map_conv.spectral import spectral_map_conv, spectral_map_conv_keeping
from tmapdiff.kernels.map_conv.transforms import MapTransform
from tmapdiff.kernels.memory_order import empty_like_maps

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "baddbmm_", "addmm_")


@pytest.fixture
def aligned_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_alignment, "_ALIGNED", {"cpu": 16, "cuda": 16})


@pytest.mark.parametrize(
    ("channels", "expected"), [(513, 528), (512, 512), (65, 80), (33, 33), (1, 1), (1024, 1024)]
)
def test_channels_are_aligned_where_it_adds_few(channels: int, expected: int) -> None:
    assert aligned_channels(channels, CUDA) == expected
    assert aligned_channels(channels, CPU) == channels


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_channels_are_added_as_zeros(dim: int) -> None:
    x = draw(3, 3, 3)
    wide = with_channels(x, 5, dim)
    assert torch.equal(wide.narrow(dim, 0, 3), x)
    assert not wide.narrow(dim, 3, 2).any()
    assert with_channels(x, 3, dim) is x


@pytest.mark.parametrize("columns", [1, 7, 8, 26])
def test_rows_of_tables_are_aligned(columns: int) -> None:
    table = draw(5, 2, columns)
    found = in_aligned_rows(table)
    assert torch.equal(found, table)
    assert found.stride(0) % 8 == found.stride(1) % 8 == 0


# Results do not change


def values() -> list[Tensor]:
    f64 = torch.float64
    return [draw(2, 3, 9, 4), draw(13, 3, 5, 5, seed=1) / 5, draw(13, seed=2, dtype=f64)]


@pytest.mark.usefixtures("aligned_on_the_cpu")
@pytest.mark.parametrize("convolve", [spectral_map_conv, spectral_map_conv_keeping])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolutions_are_those_of_torch(convolve: Callable[..., Tensor], with_bias: bool) -> None:
    def run(function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [one.double().requires_grad_() for one in values()[: 2 + with_bias]]
        result = function(*leaves)
        upper = draw(*result.shape, seed=3).double()
        return [result, *torch.autograd.grad(result, leaves, upper)]

    expected = run(lambda x, weight, bias=None: F.conv2d(x, weight, bias, padding=2))
    found = run(lambda x, weight, bias=None: convolve(x, weight, bias, 4))
    assert found[0].permute(3, 2, 0, 1).stride() == (9 * 2 * 16, 2 * 16, 16, 1)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert_close(one, other)


@pytest.mark.usefixtures("aligned_on_the_cpu")
@pytest.mark.parametrize(
    "backend", ["spectral", pytest.param("fused", marks=pytest.mark.interpreter)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_plans_are_those_of_torch(backend: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    x, weight, bias = (one.to(dtype) for one in values())
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=2)
    x, weight, bias = (one.to(DEVICE) for one in (x, weight, bias))
    plan = plan_map_conv(weight, x.shape, dtype, backend=backend)
    assert plan.spectrum is not None
    assert plan.spectrum.shape[-1] == 16
    assert_close(map_conv(x, weight, bias, plan=plan).cpu(), expected, dtype)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("aligned", [False, True])
def test_torch_knows_the_operation(aligned: bool, request: pytest.FixtureRequest) -> None:
    if aligned:
        request.getfixturevalue("aligned_on_the_cpu")
    leaves = [one.float().detach().requires_grad_() for one in values()]
    torch.library.opcheck(spectral_map_conv, (*leaves, 4))


# Room for more channels


@pytest.mark.usefixtures("aligned_on_the_cpu")
@pytest.mark.parametrize("rows", [5, 1])
def test_gradients_have_the_room_that_features_have(rows: int) -> None:
    wide = draw(rows, 4, 2, 16).permute(2, 3, 0, 1)
    room = empty_like_maps(wide[:, :13])
    assert room.shape == (2, 13, rows, 4)
    assert (room.stride(0), room.stride(1), room.stride(3)) == (16, 1, 32)
    assert empty_like_maps(wide[:, :13], 12).stride(0) == 12
    assert empty_like_maps(wide[:, :12]).stride(0) == 12  # 16 would be too many for 12
    assert empty_like_maps(draw(2, 13, rows, 4)).stride(1) == rows * 4
    narrow = draw(rows, 4, 2, 13).permute(2, 3, 0, 1)
    assert empty_like_maps(narrow).stride() == narrow.stride()


# All products of a GPU


class _Products(TorchDispatchMode):
    """Gathers the matrices of all products, and those that are read or written one by one."""

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
        return True  # such as scores, or noisy map and mask: too few numbers a row to align
    strides = [step for step, n in zip(matrix.stride(), matrix.shape, strict=True) if n > 1]
    starts = [matrix.storage_offset(), *(step for step in strides if step != 1)]
    return (1 in strides or not strides) and all(step % 8 == 0 for step in starts)


@pytest.fixture
def products() -> Iterator[_Products]:
    found = _Products()
    with on_a_device(), torch.device("cuda"):
        yield found


def test_unaligned_products_are_found(products: _Products) -> None:
    def half(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16)

    with products:
        half(16, 24) @ half(24, 8)
    assert (products.count, products.slow) == (1, [])
    with products:
        half(16, 24) @ half(24, 9)
    assert len(products.slow) == 2
    assert "(24, 9) by (9, 1)" in products.slow[0]


@mostly_exhaustive("batch", (1, 32), "32")
def test_denoising_in_half_precision(
    batch: int, products: _Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = "map_conv=spectral,stylization=reference,gate=reference,ddim_step=reference"
    monkeypatch.setenv("TMAPDIFF_BACKEND", backends)
    torch.set_default_dtype(torch.bfloat16)
    try:
        decoder = MapDiffusionDecoder(channels=64, feature_channels=64, time_channels=32)
    finally:
        torch.set_default_dtype(torch.float32)
    half = {"dtype": torch.bfloat16}
    features = [torch.empty(batch, 64, *shape, **half) for shape in decoder.grid.shapes]
    noisy = torch.empty(batch, decoder.grid.num_cells, **half)
    with torch.no_grad(), products:
        prepared = decoder.eval().prepare(features, torch.tensor([9, 5]))
        prepared.denoise(noisy, 0)
    # Of each scale, the kernels are transformed and two convolutions done: 5 and 2 * 8 products.
    assert products.count > 3 * 20
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
