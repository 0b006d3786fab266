import math
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.contracts import Inputs, MaskArgumentContract, draw, randomize_
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.layers import MapTransformerLayer, MomentPositionEmbedder

MASK = torch.tensor([True, False, True, True, False])[:, None]


def test_positions_are_a_network_on_sinusoids_of_start_and_duration() -> None:
    embedder = randomize_(MomentPositionEmbedder(channels=3)).double()
    moments = [[0, 1], [3, 8], [3, 4]]
    rates = [10_000 ** (-index / 32) for index in range(32)]
    sinusoids = [
        [f(x * w) for x in (start, end - start) for f in (math.cos, math.sin) for w in rates]
        for start, end in moments
    ]
    expected = embedder.mlp(torch.tensor(sinusoids, dtype=torch.float64))
    torch.testing.assert_close(embedder(torch.tensor(moments)), expected, rtol=1e-5, atol=1e-5)
    with refuses(
        ShapeError, "MomentPositionEmbedder: expected moments of shape (T, 2), got (2, 3)."
    ):
        embedder(torch.ones(2, 3))
    with refuses(ArgumentError, "channels to be an integer >= 1, got 0."):
        MomentPositionEmbedder(channels=0)


class TestMapTransformerLayer(MaskArgumentContract):
    compile_backend = "eager"
    with_context = False

    def make(self) -> nn.Module:
        return MapTransformerLayer(4, time_channels=3, num_heads=2, expansion=2, norm="layer")

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        context = {"context": draw(batch, 4, 5, 1, seed=2, dtype=dtype)}
        return {
            "x": draw(batch, 4, 5, 1, dtype=dtype),
            "time_embedding": draw(batch, 3, seed=1, dtype=dtype),
            **(context if self.with_context else {}),
            "mask": MASK,
        }

    def refused(self) -> list[tuple[Any, ...]]:
        context = "context of shape (B, 4, T, 1) with B = 2, T = 5, got (2, 4, 6, 1)."
        time = "StylizationBlock: expected time_embedding of shape (B, 3)"
        return [
            ({"x": draw(2, 3, 5, 1)}, "x of shape (B, 4, T, 1)"),
            ({"x": draw(2, 4, 5, 2)}, "x of shape (B, 4, T, 1)"),
            ({"context": draw(2, 4, 6, 1)}, context),
            ({"mask": MASK[:4]}, "mask of shape (N_k, A) with N_k = 5, A = 1"),
            ({"mask": MASK.int()}, "a mask of dtype bool, got torch.int32."),
            ({"time_embedding": draw(2, 4)}, time),
        ]

    def valid_inputs(self) -> dict[str, Tensor]:
        return {"x": MASK, **({"context": MASK} if self.with_context else {})}

    def test_equals_attention_written_out(self) -> None:
        layer, inputs = self.ready(torch.float64), self.inputs(2, torch.float64)
        valid = [0, 2, 3]
        weight = torch.cat([layer.query.weight, layer.key_value.weight])
        bias = torch.cat([layer.query.bias, layer.key_value.bias])
        for row in range(2):
            x = inputs["x"][row, :, :, 0].T
            normed = nn.functional.layer_norm(
                x, (4,), layer.attention_norm.weight, layer.attention_norm.bias
            )
            keys = normed[valid]
            if self.with_context:
                keys = torch.cat([keys, inputs["context"][row, :, :, 0].T[valid]])
            query, key, value = (
                tokens @ part.T + offset
                for tokens, part, offset in zip(
                    (normed, keys, keys), weight.split(4), bias.split(4), strict=True
                )
            )
            heads = []
            for head in (slice(0, 2), slice(2, 4)):
                scores = query[:, head] @ key[:, head].T / 2**0.5
                heads.append(scores.softmax(-1) @ value[:, head])
            attended = layer.attention_out(torch.cat(heads, dim=1)).T[None, :, :, None]
            time = inputs["time_embedding"][row : row + 1]
            y = inputs["x"][row : row + 1] + layer.styles[0](attended, time, MASK)
            forwarded = layer.feed_forward(y[0, :, :, 0].T).T[None, :, :, None]
            expected = (y + layer.styles[1](forwarded, time, MASK)) * MASK
            assert_close(layer(**self.samples(inputs, slice(row, row + 1))), expected)

    def test_without_style_the_branches_are_added_as_they_are(self) -> None:
        layer = randomize_(MapTransformerLayer(4, 3, 2, stylized=False)).double().eval()
        x = draw(2, 4, 5, 1, dtype=torch.float64)
        tokens = x[..., 0].mT
        normed = layer.attention_norm(tokens)
        query, (key, value) = layer.query(normed), layer.key_value(normed).split(4, dim=-1)
        heads = [
            (query[..., c] @ key[..., c].mT / 2**0.5).softmax(-1) @ value[..., c]
            for c in (slice(0, 2), slice(2, 4))
        ]
        attended = tokens + layer.attention_out(torch.cat(heads, dim=-1))
        expected = attended + layer.feed_forward(attended)
        assert_close(layer(x), expected.mT[..., None])

    def test_attention_has_dropout_in_training(self) -> None:
        layer = randomize_(MapTransformerLayer(4, 3, 2, stylized=False, dropout=1.0))
        x = draw(2, 4, 5, 1)
        nothing = layer.attention_out.bias[:, None, None].expand_as(x)
        assert_close(layer.train().attend(x, None, None), nothing)
        assert float((layer.eval().attend(x, None, None) - nothing).detach().abs().max()) > 0.1

    def test_starts_as_the_identity(self) -> None:
        inputs = self.inputs(2)
        assert_close(self.make().eval()(**inputs), inputs["x"] * MASK)


class TestMapTransformerLayerWithContext(TestMapTransformerLayer):
    with_context = True


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"channels": 0}, ArgumentError, "channels to be an integer >= 1, got 0."),
        ({"num_heads": 0}, ArgumentError, "num_heads to be an integer >= 1, got 0."),
        ({"num_heads": 3}, ConfigError, "channels divisible by num_heads = 3, got 8."),
        ({"expansion": 0}, ArgumentError, "expansion to be an integer >= 1, got 0."),
        ({"dropout": 1.5}, ArgumentError, "dropout in [0, 1], got 1.5."),
        ({"norm": "batch"}, ConfigError, "norm to be one of group, layer, got 'batch'."),
    ],
)
def test_refuses(fields: dict[str, object], kind: type[Exception], text: str) -> None:
    with refuses(kind, text):
        MapTransformerLayer(**{"channels": 8, "time_channels": 3, **fields})
