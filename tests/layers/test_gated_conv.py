from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import MaskArgumentContract, draw, randomize_, triangle
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.layers import GatedConv2d, GatedConv2dStack


class GatedContract(MaskArgumentContract):
    """Tests of both a layer and a stack."""

    who = "GatedConv2d"

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {"x": draw(batch, 3, 5, 3, dtype=dtype), "mask": triangle(5, 3)}

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 4, 5, 3)]

    def refused(self) -> list[tuple[Any, ...]]:
        features = "map features of shape (B, 3, N_k, A), got"
        own_mask = "mask of shape (B, N_k, A) with B = 2, N_k = 5, A = 3, got (1, 5, 3)."
        return [
            ({"x": draw(2, 4, 5, 3)}, f"{features} (2, 4, 5, 3)."),
            ({"x": draw(3, 5, 3)}, f"{features} (3, 5, 3)."),
            ({"mask": triangle(3, 5)}, "mask of shape (N_k, A) with N_k = 5"),
            ({"mask": triangle(5, 3).long()}, "a mask of dtype bool"),
            ({"mask": triangle(5, 3)[None]}, own_mask),
        ]


class TestSharedGate(GatedContract):
    def make(self) -> nn.Module:
        return GatedConv2d(3, 4, kernel_size=3)


class TestGatedConv2dStack(GatedContract):
    def make(self) -> nn.Module:
        return GatedConv2dStack(3, 4, kernel_sizes=[3, 1, 5], gate="channel")

    def test_equals_its_layers_one_by_one(self) -> None:
        stack, inputs = self.ready(), self.inputs(2)
        x = inputs["x"]
        for layer in stack.layers:
            assert isinstance(layer, GatedConv2d)
            x = layer(x, inputs["mask"])
        assert_same(stack(**inputs), x)


def by_hand(layer: GatedConv2d, x: Tensor, mask: Tensor) -> Tensor:
    """The equation, with two convolutions, on a map whose invalid cells are 0."""
    weight, bias = layer.conv.weight, layer.conv.bias
    same, width = weight.shape[-1] // 2, layer.out_channels
    features = F.conv2d(x * mask, weight[:width], bias[:width], padding=same)
    gate = F.conv2d(x * mask, weight[width:], bias[width:], padding=same)
    return features.clamp(min=0) / (1 + (-gate).exp()) * mask


@pytest.mark.parametrize("gate", ["shared", "channel"])
@pytest.mark.parametrize("kernel_size", [1, 3, 9, 17])
def test_equals_two_convolutions(gate: str, kernel_size: int) -> None:
    # 9 and 17 are larger than the map.
    layer = randomize_(GatedConv2d(3, 4, kernel_size, gate))
    x, mask = draw(2, 3, 6, 4), triangle(6, 4)
    assert layer.gate_channels == {"shared": 1, "channel": 4}[gate]
    assert_close(layer(x, mask), by_hand(layer, x, mask))


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"in_channels": 0}, ArgumentError, "in_channels to be an integer >= 1, got 0."),
        ({"out_channels": -3}, ArgumentError, "out_channels to be an integer >= 1, got -3."),
        ({"kernel_size": 0}, ArgumentError, "kernel_size to be an integer >= 1, got 0."),
        ({"kernel_size": 2}, ConfigError, "an odd kernel_size, got 2. An even kernel cannot keep"),
        ({"kernel_size": 16}, ConfigError, "an odd kernel_size, got 16."),
        ({"gate": "both"}, ConfigError, "gate to be one of shared, channel, got 'both'."),
    ],
)
def test_refuses(fields: dict[str, object], kind: type[Exception], text: str) -> None:
    with refuses(kind, f"GatedConv2d: expected {text}"):
        GatedConv2d(**{"in_channels": 3, "out_channels": 4, **fields})  # type: ignore[arg-type]


def test_stack_refuses_even_kernels_and_to_be_empty() -> None:
    with refuses(ConfigError, "GatedConv2d: expected an odd kernel_size, got 2."):
        GatedConv2dStack(3, 4, [3, 2])
    for sizes in ([], (), 3, "3"):
        text = "GatedConv2dStack: expected kernel_sizes to be a list of at least one size, got "
        with refuses(ConfigError, text):
            GatedConv2dStack(3, 4, sizes)  # type: ignore[arg-type]
