"""Decoders of one scale, part by part; `test_decoder.py` tests them as users have them."""

import pytest
import torch
from helpers.assertions import assert_close
from helpers.contracts import (
    Inputs,
    assert_same_evaluation,
    draw,
    evaluate,
    randomize_,
    triangle,
)
from torch import nn

from tmapdiff.layers import MultiplyConditioning
from tmapdiff.models import ConvMapDecoder, TransformerMapDecoder

MASK = triangle(5, 3)
SEEN = torch.tensor([[True, True, False, True], [True] * 4, [False, False, True, True]])


def ready(decoder: nn.Module) -> nn.Module:
    return randomize_(decoder).eval().requires_grad_(False)


def conv(conditioning: str = "concat") -> nn.Module:
    sizes = {"feature_channels": 2, "channels": 8, "time_channels": 3}
    return ready(
        ConvMapDecoder(**sizes, kernel_sizes=[3, 5], num_groups=2, conditioning=conditioning)
    )


def transformer(**fields: object) -> nn.Module:
    return ready(TransformerMapDecoder(2, 8, 3, num_layers=2, num_heads=2, **fields))


def maps() -> Inputs:
    return {
        "noisy": draw(2, 5, 3),
        "features": draw(2, 2, 5, 3, seed=1),
        "time_embedding": draw(2, 3, seed=2),
        "mask": MASK,
    }


def cells() -> Inputs:
    return {
        "noisy": draw(3, 4),
        "features": draw(3, 2, 4, seed=1),
        "moments": torch.tensor([[0, 1], [0, 2], [1, 2], [4, 8]]),
        "time_embedding": draw(3, 3, seed=2),
        "mask": SEEN,
    }


def test_convolutions_follow_the_fusion_each_with_its_style() -> None:
    one, inputs = conv(), maps()
    time = inputs["time_embedding"]
    x = one.condition(inputs["noisy"], inputs["features"], MASK)
    x = x + one.fusion_style(x, time, MASK)
    for layer, style in zip(one.convs, one.conv_styles, strict=True):
        x = layer(x, MASK)
        x = x + style(x, time, MASK)
    assert_close(one(**inputs), one.head(x)[:, 0] * MASK)


@pytest.mark.parametrize("conditioning", ["concat", "cross-attention"])
def test_layers_follow_the_fusion_of_cells_at_their_positions(conditioning: str) -> None:
    one, inputs = transformer(conditioning=conditioning), cells()
    mask, time = SEEN[..., None], inputs["time_embedding"]
    noisy, features = inputs["noisy"][..., None], inputs["features"][..., None]
    position = one.embed_position(inputs["moments"]).T[..., None]
    if conditioning == "concat":
        context = None
        x = one.project(one.condition(noisy, features, mask)) + position
    else:
        context = one.project(features * mask[:, None] * 2**0.5) + position
        x = one.condition((noisy * mask)[:, None]) + position
    x = x + one.fusion_style(x, time, mask)
    for layer in one.layers:
        x = layer(x, time, context, mask)
    assert_close(one(**inputs), one.head(x[..., 0].mT)[..., 0] * SEEN)


@pytest.mark.parametrize("conditioning", ["concat", "cross-attention"])
def test_invalid_cells_do_not_matter_to_a_transformer(conditioning: str) -> None:
    one, inputs = transformer(conditioning=conditioning), cells()
    one.requires_grad_(True)  # NaN would reach the gradients of weights
    spoilt = dict(inputs)
    spoilt["noisy"] = inputs["noisy"].masked_fill(~SEEN, torch.nan)
    spoilt["features"] = inputs["features"].masked_fill(~SEEN[:, None], torch.nan)
    assert_same_evaluation(evaluate(one, spoilt), evaluate(one, inputs))


@pytest.mark.parametrize(
    ("conditioning", "product"),
    [("multiply", "plain"), ("multiply-residual", "residual"), ("multiply-gated", "gated")],
)
def test_conditioning_is_a_product(conditioning: str, product: str) -> None:
    one = conv(conditioning)
    assert isinstance(one.condition, MultiplyConditioning)
    assert one.condition.product == product
    assert one.convs[0].in_channels == 8
