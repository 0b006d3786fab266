"""The peer: one pass of MS-2D-TAN over the same map features, its convolutions direct."""

from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from speed_cases import Candidate
from torch import Tensor

from speed_suites.setting import AUTO, REFERENCE, Setting, inference, make_peer
from tmapdiff.kernels.map_conv import MapConvPlan
from tmapdiff.models import MS2DTAN

Plans = Sequence[Sequence[MapConvPlan]]


def peer_candidates(
    setting: Setting, preset: str, inputs: Sequence[Sequence[Tensor]], dtype: torch.dtype
) -> list[Candidate]:
    """Make the candidates `ms2dtan`, as it is published, and `ms2dtan, auto`, with our kernels.

    On a GPU, in half precision, there is `ms2dtan, float32` too, with TF32 allowed.

    Args:
        setting: The setting.
        preset: Whose sizes it has.
        inputs: Sets of map features.
        dtype: Their dtype.
    """
    model, batch = make_peer(preset, setting.device, dtype), len(inputs[0][0])
    with inference(AUTO):
        auto = [
            [
                layer.plan((batch, layer.in_channels, *one.shape[2:]), dtype)
                for layer in convs.layers
            ]
            for convs, one in zip(model.convs, inputs[0], strict=True)
        ]
    candidates = [
        _candidate("ms2dtan", model, _direct(model), inputs, REFERENCE),
        _candidate("ms2dtan, auto", model, auto, inputs, AUTO),
    ]
    if setting.on_gpu and dtype != torch.float32:
        full = make_peer(preset, setting.device, torch.float32)
        float32 = [[setting.layout(one.float()) for one in maps] for maps in inputs]
        candidates.append(
            _candidate("ms2dtan, float32", full, _direct(full), float32, REFERENCE, torch.float32)
        )
    return candidates


def _candidate(
    backend: str,
    model: MS2DTAN,
    plans: Plans,
    inputs: Sequence[Sequence[Tensor]],
    named: str,
    dtype: torch.dtype | None = None,
) -> Candidate:
    run, items = partial(peer_pass, model, plans), len(inputs[0][0])
    return Candidate(backend, run, inputs, partial(inference, named), items, dtype=dtype)


def _direct(model: MS2DTAN) -> Plans:
    return [[MapConvPlan("direct") for _ in convs.layers] for convs in model.convs]


def peer_pass(model: MS2DTAN, plans: Plans, features: Sequence[Tensor]) -> list[Tensor]:
    """Score all cells, as `MS2DTAN.score` does once it has the map features."""
    scores = []
    for scale, (x, convs, head) in enumerate(zip(features, model.convs, model.heads, strict=True)):
        for layer, plan in zip(convs.layers, plans[scale], strict=True):
            x = layer(x, plan=plan)
        scored = rearrange(head(x), "b 1 n a -> b n a")
        scores.append(scored.masked_fill(~model.grid.mask(scale, scored.device), 0))
    return scores
