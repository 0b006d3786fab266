import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import MaskArgumentContract, draw, randomize_, triangle
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.layers import StylizationBlock, TimestepEmbedder


class StylizationContract(MaskArgumentContract):
    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {
            "x": 1 + 2 * draw(batch, 6, 5, 3, dtype=dtype),
            "time_embedding": draw(batch, 4, seed=1, dtype=dtype),
            "mask": triangle(5, 3),
        }

    def refused(self) -> list[tuple[Any, ...]]:
        time = "time_embedding of shape (B, 4)"
        return [
            ({"x": draw(2, 4, 5, 3)}, "map features of shape (B, 6, N_k, A), got (2, 4, 5, 3)."),
            ({"time_embedding": draw(3, 4)}, f"{time} with B = 2, got (3, 4)."),
            ({"time_embedding": draw(2, 5)}, time),
            ({"time_embedding": draw(4)}, time),
            ({"mask": triangle(5, 2)}, "mask of shape (N_k, A) with N_k = 5"),
            ({"mask": triangle(5, 3).float()}, "a mask of dtype bool"),
        ]

    def test_equals_equation_6(self) -> None:
        block, inputs = self.ready(), self.inputs(3)
        assert_close(block(**inputs), equation_6(block, **inputs))

    def test_starts_as_zero_and_knows_no_time(self) -> None:
        block, inputs = self.make(), self.inputs(3)
        assert_zero(block(**inputs), torch.tensor(True))
        # With an identity as its last layer, the result shows that lambda_w = 1 and lambda_b = 0.
        nn.init.dirac_(block.mlp.weight)
        inside = block(**inputs)
        normalized = normalize(block, inputs["x"].double(), inputs["mask"])
        assert_close(inside, silu(normalized) * inputs["mask"], torch.float32)
        inputs["time_embedding"] = 100 * draw(3, 4, seed=2)
        assert_same(block(**inputs), inside)


class TestGroup(StylizationContract):
    def make(self) -> nn.Module:
        return StylizationBlock(6, 4, num_groups=3)


class TestLayer(StylizationContract):
    def make(self) -> nn.Module:
        return StylizationBlock(6, 4, norm="layer")


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def normalize(block: StylizationBlock, x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance, of groups over the valid cells or of each cell."""
    cells, result = x[..., mask], torch.zeros_like(x)
    if block.norm == "layer":
        result[..., mask] = F.layer_norm(cells.mT, x.shape[1:2]).mT
    else:
        result[..., mask] = F.group_norm(cells, block.num_groups)
    return result


def equation_6(block: StylizationBlock, x: Tensor, time_embedding: Tensor, mask: Tensor) -> Tensor:
    """MLP(act(Norm(x) * lambda_w + lambda_b)), in float64."""
    weight, bias = block.project.weight.double(), block.project.bias.double()
    styles = silu(time_embedding.double()) @ weight.T + bias
    lambda_w = 1 + styles[:, : block.channels, None, None]
    lambda_b = styles[:, block.channels :, None, None]
    hidden = silu(normalize(block, x.double(), mask) * lambda_w + lambda_b)
    weight, bias = block.mlp.weight.double()[:, :, 0, 0], block.mlp.bias.double()
    result = torch.einsum("oc,bcna->bona", weight, hidden) + bias[:, None, None]
    return (result * mask).to(x.dtype)


def test_dropout_works_in_training_only() -> None:
    block = randomize_(StylizationBlock(8, 4, dropout=0.5))
    x, time_embedding = draw(2, 8, 5, 3), draw(2, 4)
    without = randomize_(StylizationBlock(8, 4))
    assert_same(block.eval()(x, time_embedding), without(x, time_embedding))
    assert bool((block.train()(x, time_embedding) != without(x, time_embedding)).any())
    everything = randomize_(StylizationBlock(8, 4, dropout=1.0)).train()
    left = everything.mlp.bias[:, None, None].expand_as(x).clone()
    assert_same(everything(x, time_embedding), left)
    assert_same(everything.residual(x, everything.project_time(time_embedding)), x + left)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"channels": 0}, ArgumentError, "channels to be an integer >= 1, got 0."),
        ({"time_channels": -1}, ArgumentError, "time_channels to be an integer >= 1, got -1."),
        ({"num_groups": 0}, ArgumentError, "num_groups to be an integer >= 1, got 0."),
        ({"num_groups": 4}, ConfigError, "channels divisible by num_groups = 4, got 6."),
        ({"norm": "batch"}, ConfigError, "norm to be one of group, layer, got 'batch'."),
        ({"dropout": 1.1}, ArgumentError, "dropout in [0, 1], got 1.1."),
        ({"dropout": float("nan")}, ArgumentError, "dropout in [0, 1], got nan."),
    ],
)
def test_refuses(arguments: dict[str, object], kind: type[Exception], text: str) -> None:
    with refuses(kind, f"StylizationBlock: expected {text}"):
        StylizationBlock(**{"channels": 6, "time_channels": 4, "num_groups": 3, **arguments})


@torch.no_grad()
def test_times_are_embedded_by_sinusoids_and_two_linear_layers() -> None:
    embedder = randomize_(TimestepEmbedder(6))
    timesteps = torch.tensor([0, 1, 17, 999])
    rates = torch.tensor([math.exp(-math.log(10_000) * index / 64) for index in range(64)])
    angles = timesteps[:, None].double() * rates.double()
    sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    first, second = embedder.mlp.linear_1, embedder.mlp.linear_2
    hidden = silu(sinusoids @ first.weight.T + first.bias)
    error = (embedder(timesteps) - (hidden @ second.weight.T + second.bias)).abs().max()
    assert float(error) < 1e-3  # float32 angles of up to 999 radians
    assert float(embedder(timesteps).std(0).min()) > 0.05
    for wrong, got in ((torch.tensor(3), "()"), (torch.tensor([[3]]), "(1, 1)"), (3, "int")):
        with refuses(ShapeError, f"TimestepEmbedder: expected timesteps of shape (B), got {got}."):
            embedder(wrong)
    text = "TimestepEmbedder: expected time_channels to be an integer >= 1, got 0."
    with refuses(ArgumentError, text):
        TimestepEmbedder(0)
