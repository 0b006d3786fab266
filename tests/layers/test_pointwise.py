import pytest
import torch
from helpers.assertions import assert_close, assert_same
from helpers.contracts import ModuleContract, draw
from helpers.kernels import LAYOUTS
from torch import Tensor, nn

from tmapdiff.errors import ShapeError
from tmapdiff.kernels.memory_order import memory_order
from tmapdiff.layers.pointwise import PointwiseConv2d, concat_channels

ORDERS = {
    "contiguous": [0, 1, 2, 3],
    "channels_last": [0, 2, 3, 1],
    "durations_outermost": [3, 2, 0, 1],
}


class TestPointwiseConv2d(ModuleContract):
    def make(self) -> nn.Module:
        return PointwiseConv2d(3, 4)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {"input": draw(batch, 3, 5, 2, dtype=dtype)}

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 4, 5, 2)]

    def refused(self) -> list[tuple[dict[str, Tensor], type[Exception], str]]:
        text = "PointwiseConv2d: expected input of shape (B, 3, N_k, A), got (2, 4, 5, 2)."
        return [({"input": draw(2, 4, 5, 2)}, ShapeError, text)]

    def expected_repr(self) -> str:
        return "PointwiseConv2d(3, 4, kernel_size=(1, 1)"


@pytest.mark.parametrize("layout", ORDERS)
def test_keeps_the_memory_order(layout: str) -> None:
    x = LAYOUTS[layout](draw(2, 3, 5, 4))
    assert memory_order(x) == ORDERS[layout]
    conv = PointwiseConv2d(3, 6)
    result = conv(x)
    assert_close(result, nn.functional.conv2d(x, conv.weight, conv.bias))
    assert memory_order(result) == ORDERS[layout]
    assert result.permute(ORDERS[layout]).is_contiguous()


def test_one_channel_has_no_order() -> None:
    x = draw(2, 1, 5, 4)
    for layout in ORDERS:
        assert memory_order(LAYOUTS[layout](x)) == [0, 1, 2, 3]


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("second", ORDERS)
def test_concatenates_in_the_second_order(first: str, second: str) -> None:
    one, other = draw(2, 3, 5, 4), draw(2, 2, 5, 4, seed=1)
    found = concat_channels(LAYOUTS[first](one), LAYOUTS[second](other))
    assert_same(found, torch.cat([one, other], dim=1))
    assert memory_order(found) == ORDERS[second]
