import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import MaskArgumentContract, draw, randomize_, triangle
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.layers import ConcatConditioning, MultiplyConditioning


class ConditioningContract(MaskArgumentContract):
    kind: type[ConcatConditioning | MultiplyConditioning]
    out_channels: int

    def make(self) -> nn.Module:
        return self.kind(feature_channels=3, channels=2)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {
            "noisy": draw(batch, 5, 3, dtype=dtype),
            "features": draw(batch, 3, 5, 3, seed=1, dtype=dtype),
            "mask": triangle(5, 3),
        }

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, self.out_channels, 5, 3)]

    def refused(self) -> list[tuple[Any, ...]]:
        noisy = "noisy of shape (B, 5, 3) with B = 2, got"
        features = "map features of shape (B, 3, N_k, A), got (2, 2, 5, 3)."
        return [
            ({"noisy": draw(2, 4, 3)}, f"{noisy} (2, 4, 3)."),
            ({"noisy": draw(3, 5, 3)}, f"{noisy} (3, 5, 3)."),
            ({"features": draw(2, 2, 5, 3)}, features),
            ({"mask": triangle(5, 4)}, "mask of shape (N_k, A) with N_k = 5"),
            ({"mask": triangle(5, 3).int()}, "a mask of dtype bool"),
        ]

    def valid_inputs(self) -> dict[str, Tensor]:
        return {"noisy": triangle(5, 3), "features": triangle(5, 3)}

    def test_out_channels_are_those_of_the_result(self) -> None:
        layer = self.make()
        assert layer.out_channels == layer(**self.inputs(1)).shape[1] == self.out_channels


class TestConcatConditioning(ConditioningContract):
    kind, out_channels = ConcatConditioning, 5

    def test_concatenates_a_linear_map_of_the_noisy_map_and_the_features(self) -> None:
        layer, inputs = self.ready(), self.inputs(2)
        result = layer(**inputs)
        mask = inputs["mask"]
        weight, bias = layer.embed.weight[:, 0], layer.embed.bias[:, None, None]
        embedded = weight * inputs["noisy"][:, None] + bias
        assert_close(result[:, :2], embedded * mask)
        assert_same(result[:, 2:], inputs["features"] * mask)


def test_features_follow_the_embedding_under_autocast() -> None:
    layer = randomize_(ConcatConditioning(3, 2))
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(draw(1, 4, 4), draw(1, 3, 4, 4))
    assert result.dtype == torch.bfloat16


class TestMultiplyConditioning(ConditioningContract):
    kind, out_channels = MultiplyConditioning, 2

    def make(self) -> nn.Module:
        return MultiplyConditioning(feature_channels=3, channels=2, product="gated")


@pytest.mark.parametrize(
    ("product", "factor"),
    [
        ("plain", lambda features: features),
        ("residual", lambda features: 1 + features),
        ("gated", lambda features: 1 / (1 + math.exp(-features))),
    ],
)
@torch.no_grad()
def test_is_the_product_in_every_valid_cell(product: str, factor: Callable[[float], float]) -> None:
    layer = randomize_(MultiplyConditioning(3, 2, product)).double()
    inputs = TestMultiplyConditioning().inputs(2, torch.float64)
    result = layer(**inputs)
    for row, channel, i, j in ((0, 0, 0, 0), (1, 1, 2, 2), (0, 1, 4, 0)):
        noisy = layer.embed.weight[channel, 0] * inputs["noisy"][row, i, j]
        cell = inputs["features"][row, :, i, j] * 3**0.5
        projected = layer.project.weight[channel, :, 0, 0] @ cell + layer.project.bias[channel]
        expected = (noisy + layer.embed.bias[channel]) * factor(float(projected))
        assert float(result[row, channel, i, j]) == pytest.approx(float(expected), rel=1e-9)


def test_multiply_refuses_another_product() -> None:
    with refuses(ConfigError, "product to be one of plain, residual, gated, got 'outer'."):
        MultiplyConditioning(3, 2, "outer")


@pytest.mark.parametrize("kind", [ConcatConditioning, MultiplyConditioning])
def test_refuses_sizes_below_one(kind: type[nn.Module]) -> None:
    for name in ("feature_channels", "channels"):
        text = f"{kind.__name__}: expected {name} to be an integer >= 1, got 0."
        with refuses(ArgumentError, text):
            kind(**{"feature_channels": 3, "channels": 2, name: 0})
