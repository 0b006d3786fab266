import pytest
import torch
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import draw
from helpers.kernels import LAYOUTS
from torch import nn

from tmapdiff.errors import ShapeError
from tmapdiff.kernels.memory_order import memory_order
from tmapdiff.layers.pointwise import PointwiseConv2d, concat_channels

ORDERS = {
    "contiguous": [0, 1, 2, 3],
    "channels_last": [0, 2, 3, 1],
    "durations_outermost": [3, 2, 0, 1],
}


def test_refuses_other_channels() -> None:
    text = "PointwiseConv2d: expected input of shape (B, 3, N_k, A), got (2, 4, 5, 2)."
    with refuses(ShapeError, text):
        PointwiseConv2d(3, 4)(draw(2, 4, 5, 2))


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
