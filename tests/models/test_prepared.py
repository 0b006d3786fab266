"""Prepared runs equal calls, whatever the decoder's parts."""

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_zero, refuses
from helpers.contracts import draw, randomize_
from helpers.fields import SMALLEST_DECODER
from helpers.tiers import mostly_exhaustive

from tmapdiff import MapScheduler
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.models import MapDiffusionDecoder

STYLIZATIONS = ("none", "fusion", "conv", "both")
PRODUCTS = ("multiply", "multiply-residual", "multiply-gated")


def all_fields() -> Iterator[dict[str, Any]]:
    for stylization, norm in product(STYLIZATIONS, ("group", "layer")):
        style = {"stylization": stylization, "norm": norm}
        for conditioning, gate in product(("concat", *PRODUCTS), ("shared", "channel")):
            yield {**style, "conditioning": conditioning, "gate": gate}
        for conditioning, joint in product(("concat", *PRODUCTS, "cross-attention"), (False, True)):
            given = {"conditioning": conditioning, "joint_scales": joint}
            yield {**style, **given, "architecture": "transformer"}


def make(**fields: Any) -> MapDiffusionDecoder:
    decoder = randomize_(MapDiffusionDecoder(**{**SMALLEST_DECODER, **fields})).double().eval()
    assert isinstance(decoder, MapDiffusionDecoder)
    return decoder


@mostly_exhaustive("every", (7, 1), "7")
@pytest.mark.parametrize("architecture", ["conv", "transformer"])
def test_a_prepared_run_equals_calls(architecture: str, every: int) -> None:
    num_clips, timesteps = torch.tensor([8, 5, 6]), torch.tensor([999, 20])
    chosen = [one for one in all_fields() if one.get("architecture", "conv") == architecture]
    for fields, case in zip(
        chosen[::every], cycle(("", "gradients", "checkpointing")), strict=False
    ):
        whole = make(**fields)
        if case == "checkpointing":
            whole.enable_gradient_checkpointing()
        poison = draw(3, 36, dtype=torch.float64)
        features = [draw(3, 2, rows, 3, seed=rows, dtype=torch.float64) for rows in (8, 4)]
        for counts in (None, num_clips):
            mask = whole.grid.packed_mask(num_clips=counts).expand(3, -1)
            noisy = poison.masked_fill(~mask, torch.nan)
            given = [
                one.masked_fill(~whole.grid.mask(scale, num_clips=counts).unsqueeze(-3), torch.nan)
                for scale, one in enumerate(features)
            ]
            with torch.set_grad_enabled(case != ""):
                prepared = whole.prepare(given, timesteps, counts)
                for step in (1, 0):
                    called = whole(noisy, timesteps[step], given, counts)
                    what = f"step {step} of {fields}, {case}"
                    assert_close(prepared.denoise(noisy, step), called, what=what)
                    assert_zero(called, ~mask, what)


def test_refuses_to_denoise_what_was_not_prepared() -> None:
    whole = MapDiffusionDecoder(**SMALLEST_DECODER)
    features = [draw(2, 2, rows, 3, seed=rows) for rows in (8, 4)]
    prepared = whole.prepare(features, torch.tensor([10, 5]))
    with refuses(ShapeError, "expected noisy of shape (B, 36) with B = 2, got (3, 36)."):
        prepared.denoise(draw(3, 36), 0)
    with refuses(ShapeError, "MapDiffusionDecoder: expected timesteps of shape (S), got int."):
        whole.prepare(features, 10)  # type: ignore[arg-type]
    for step in (2, -1):
        text = f"MapDiffusionDecoder: expected step in 0 to 1, got {step}."
        with refuses(ArgumentError, text):
            prepared.denoise(draw(2, 36), step)


@torch.no_grad()
def test_the_loop_of_diffusers() -> None:
    decoder, scheduler = make(num_scales=1).float(), MapScheduler()
    scheduler.set_timesteps(4)
    features, x = draw(2, 2, 8, 3), draw(2, 24)
    run, own = decoder.prepare([features], scheduler.timesteps), x
    for index, t in enumerate(scheduler.timesteps):  # 0-d tensors, and one scale's features
        out = decoder(scheduler.scale_model_input(x, t), t, features)
        assert_close(decoder(scheduler.scale_model_input(x, t), int(t), [features]), out)
        x = scheduler.step(out, t, x).prev_sample
        out = run.denoise(scheduler.scale_model_input(own, t), index)
        own = scheduler.step(out, t, own).prev_sample
    assert_close(x, own)
    whole = make().float()
    with refuses(ShapeError, "expected features to be a list of 2, got Tensor."):
        whole(draw(2, 36), 3, draw(2, 2, 8, 3))
