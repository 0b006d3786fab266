"""Second gradients and `torch.func` of whole models, as a CPU computes them on large maps."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close
from helpers.contracts import draw, randomize_
from helpers.fields import ENCODER, SMALLEST_DECODER
from helpers.tiers import mostly_exhaustive
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from tmapdiff.kernels import map_conv as map_conv_package
from tmapdiff.models import MapDiffusionDecoder, MomentLocalizer

FIELDS = {**SMALLEST_DECODER, "feature_channels": 4}
DECODERS = {
    "conv": {},
    "conv, stylized layers": {"stylization": "conv"},
    "conv, multiply": {"conditioning": "multiply-gated"},
    "transformer": {"architecture": "transformer"},
    "transformer, group norm": {"architecture": "transformer", "norm": "group"},
    "cross-attention": {
        "architecture": "transformer",
        "conditioning": "cross-attention",
        "joint_scales": True,
        "norm": "layer",
    },
}
Weights = dict[str, Tensor]
decoders = mostly_exhaustive("fields", DECODERS, "conv, multiply", "cross-attention")


@pytest.fixture(autouse=True)
def fast_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the fast implementations wherever they can run."""
    monkeypatch.setattr("tmapdiff.kernels.gate._FEW", 0)
    monkeypatch.setattr("tmapdiff.kernels.gate._FEW_WITH_GRADIENT", 0)
    monkeypatch.setattr(map_conv_package, "_candidates", lambda *_: ["spectral"])


@pytest.fixture
def decoder(fields: dict[str, Any]) -> MapDiffusionDecoder:
    decoder = MapDiffusionDecoder(**{**FIELDS, **fields})
    return randomize_(decoder, seed=2).double().eval()


def inputs(batch: int = 3) -> dict[str, Any]:
    return {
        "noisy": draw(batch, 36, dtype=torch.float64),
        "timestep": torch.tensor([999, 10, 500])[:batch],
        "features": [draw(batch, 4, rows, 3, seed=rows, dtype=torch.float64) for rows in (8, 4)],
    }


def parameters(module: nn.Module) -> Weights:
    return {name: one.detach() for name, one in module.named_parameters()}


@decoders
def test_forward_derivatives_of_a_prepared_run(decoder: MapDiffusionDecoder) -> None:
    given, along = inputs(), draw(3, 36, seed=5, dtype=torch.float64)
    noisy = given["noisy"]
    with torch.no_grad():
        prepared = decoder.prepare(given["features"], torch.tensor([10]))
        result, found = jvp(lambda one: prepared.denoise(one, 0), (noisy,), (along,))
        assert_close(result, prepared.denoise(noisy, 0))
        step = 1e-6
        ends = [prepared.denoise(noisy + s * step * along, 0) for s in (1, -1)]
    torch.testing.assert_close(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


@decoders
def test_gradients_of_a_run_that_was_prepared_without_them(decoder: MapDiffusionDecoder) -> None:
    given = inputs(1)
    with torch.no_grad():
        prepared = decoder.prepare(given["features"], given["timestep"])
    whole = decoder.prepare(given["features"], given["timestep"])
    leaf = decoder.decoders[0].head
    (head,) = [one for name, one in leaf.named_parameters() if name in ("weight", "1.weight")]
    found, expected = (
        torch.autograd.grad(one.denoise(given["noisy"], 0).square().sum(), head)[0]
        for one in (prepared, whole)
    )
    assert_close(found, expected)


# The training loss


def localizer(**fields: Any) -> MomentLocalizer:
    encoder = {**ENCODER, "num_anchors": FIELDS["num_anchors"], "channels": 4}
    model = MomentLocalizer(encoder_config=encoder, decoder_config={**FIELDS, **fields})
    return randomize_(model).double().train()


def losses(model: MomentLocalizer) -> Tensor:
    return model.loss(
        draw(3, 8, 6, dtype=torch.float64),
        torch.tensor([[3, 1, 4, 2], [5, 2, 0, 0], [7, 0, 0, 0]]),
        torch.tensor([4, 2, 1]),
        torch.tensor([[0.0, 2.0], [1.0, 6.0], [3.0, 4.0]]),
        torch.ones(3),
        generator=torch.Generator().manual_seed(0),
    )


class _Loss(nn.Module):
    def __init__(self, model: MomentLocalizer) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return losses(self.model)


@decoders
def test_grad_of_the_training_loss(fields: dict[str, Any]) -> None:
    module = _Loss(localizer(**fields))
    # Training changes running statistics, which must therefore be arguments.
    statistics = {name: one.clone() for name, one in module.named_buffers()}

    def total(weights: Weights, statistics: Weights) -> Tensor:
        return functional_call(module, (weights, statistics), ())

    found = grad(total)(parameters(module), statistics)
    names, leaves = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(module(), leaves)
    for name, one in zip(names, expected, strict=True):
        # Not by the largest value: for biases that batch normalization removes, it is 0.
        torch.testing.assert_close(found[name], one, rtol=1e-8, atol=1e-10)


def penalty_gradients(model: MomentLocalizer, of: Sequence[str] | None) -> list[Tensor | None]:
    """Return gradients of a penalty on the gradients of some weights."""
    named = dict(model.named_parameters())
    chosen = [named[name] for name in of or named]
    first = torch.autograd.grad(losses(model), chosen, create_graph=True)
    total = torch.stack([one.square().sum() for one in first]).sum()
    return list(torch.autograd.grad(total, list(named.values()), allow_unused=True))


@decoders
@pytest.mark.parametrize("of", [None, ["encoder.clip_encoder.weight"]], ids=["all", "one"])
def test_a_penalty_on_gradients_reaches_all_weights(
    fields: dict[str, Any], of: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = localizer(**fields)
    found = penalty_gradients(model, of)
    monkeypatch.setenv("TMAPDIFF_BACKEND", "reference")
    monkeypatch.setattr(map_conv_package, "_candidates", lambda *_: ["direct"])
    expected = penalty_gradients(model, of)
    assert sum(one is not None for one in expected) > 20
    for (name, _), one, other in zip(model.named_parameters(), found, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            # Not by the largest value: for biases that batch normalization removes, it is 0.
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
