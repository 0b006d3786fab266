"""Decoders of one scale, part by part; `test_decoder.py` tests them as users have them."""

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.contracts import (
    Inputs,
    assert_same_evaluation,
    draw,
    evaluate,
    randomize_,
    triangle,
)
from torch import nn

from tmapdiff.errors import ShapeError
from tmapdiff.layers import MultiplyConditioning, StylizationBlock
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


@pytest.mark.parametrize("kind", ["conv", "concat", "cross-attention"])
def test_invalid_cells_do_not_matter(kind: str) -> None:
    one = conv() if kind == "conv" else transformer(conditioning=kind)
    inputs = maps() if kind == "conv" else cells()
    one.requires_grad_(True)  # NaN would reach the gradients of weights
    spoilt, mask = dict(inputs), inputs["mask"]
    spoilt["noisy"] = inputs["noisy"].masked_fill(~mask, torch.nan)
    of_channels = ~mask if kind == "conv" else ~mask[:, None]
    spoilt["features"] = inputs["features"].masked_fill(of_channels, torch.nan)
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


@pytest.mark.parametrize("stylization", ["none", "fusion", "conv", "both"])
def test_transformer_has_style_where_it_is_wanted(stylization: str) -> None:
    one, inputs = transformer(stylization=stylization), cells()
    blocks = [name for name, part in one.named_modules() if isinstance(part, StylizationBlock)]
    assert ("fusion_style" in blocks) == (stylization in ("fusion", "both"))
    assert len([name for name in blocks if name.startswith("layers.")]) == (
        4 if stylization in ("conv", "both") else 0
    )
    other = {**inputs, "time_embedding": inputs["time_embedding"] + 1}
    difference = float((one(**inputs) - one(**other)).abs().max())
    assert (difference > 1e-3) == (stylization != "none")


def test_refuses_wrong_inputs() -> None:
    for changes, text in (
        ({"noisy": draw(2, 5, 4)}, "expected noisy of shape (B, 5, 3)"),
        ({"features": draw(2, 3, 5, 3)}, "map features of shape (B, 2, N_k, A)"),
        ({"time_embedding": draw(2, 4)}, "time_embedding of shape (B, 3)"),
        ({"mask": triangle(4, 3)}, "mask of shape (N_k, A) with N_k = 5, A = 3"),
    ):
        with refuses(ShapeError, text):
            conv()(**{**maps(), **changes})
    for changes, text in (
        ({"moments": torch.ones(4, 3)}, "expected moments of shape (T, 2)"),
        ({"time_embedding": draw(2, 4)}, "time_embedding of shape (B, 3)"),
    ):
        with refuses(ShapeError, text):
            transformer()(**{**cells(), **changes})
