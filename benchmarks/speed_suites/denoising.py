"""One denoising step with prepared features, and ten steps compared with one pass of MS-2D-TAN."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from einops import rearrange
from speed_cases import Candidate, Case, Contest, TimedCase
from torch import Tensor

from speed_suites.floors import decoder_floor
from speed_suites.setting import (
    AUTO,
    REFERENCE,
    STEPS,
    Setting,
    compiled,
    each_size,
    feature_bytes,
    first_sample,
    inference,
    make_localizer,
    make_peer,
    map_conv_backends,
    map_features,
)
from tmapdiff import MomentLocalizer
from tmapdiff.kernels.map_conv import MapConvPlan
from tmapdiff.models import MS2DTAN, MapDiffusionDecoder
from tmapdiff.models.prepared import PreparedDecoder

Plans = Sequence[Sequence[MapConvPlan]]


def decoder_cases(setting: Setting) -> Iterator[Case]:
    name = setting.preset_name(cpu="stack128")
    batches = setting.batch_sizes(gpu=(1, 8, 32, 64), cpu=(1, 8, 32))
    for shape, dtype, build in each_size(setting, name, batches, _step_contest):
        floor = partial(decoder_floor, setting, name, shape["batch"], dtype)
        yield TimedCase("decoder", "step", shape, dtype, build, floor=floor)


def sampling_cases(setting: Setting) -> Iterator[Case]:
    name = setting.preset_name(cpu="stack128")
    batches = setting.batch_sizes(gpu=(1, 8, 32, 64), cpu=(1, 8))
    for shape, dtype, build in each_size(setting, name, batches, _sampling_contest):
        yield TimedCase("sampling", f"{STEPS} steps", shape, dtype, build, reference="ms2dtan")


def _draw_features(
    setting: Setting, model: MomentLocalizer, batch: int, dtype: torch.dtype
) -> list[list[Tensor]]:
    channels = model.decoder.config.feature_channels
    count = setting.num_inputs(feature_bytes(model.grid, channels, batch, dtype))
    return [map_features(setting, model.grid, channels, batch, dtype) for _ in range(count)]


def _step_contest(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> Contest:
    model = make_localizer(name, setting.device, dtype)
    decoder, cells = model.decoder, model.grid.num_cells
    features = _draw_features(setting, model, batch, dtype)
    noisy = [setting.random(batch, cells, dtype=dtype) for _ in features]
    model.scheduler.set_timesteps(STEPS)
    timesteps = model.scheduler.timesteps.to(setting.device)

    candidates = []
    for backend, named in map_conv_backends(setting).items():
        with inference(named):
            prepared = [decoder.prepare(one, timesteps) for one in features]
        inputs, scope = list(zip(noisy, prepared, strict=True)), partial(inference, named)
        steps = {backend: _step}
        if backend == "reference" and setting.compiled:
            steps["compiled"] = compiled(_step)
        candidates += [
            Candidate(one, step, inputs, scope, batch, outputs=first_sample)
            for one, step in steps.items()
        ]
    candidates += peer_candidates(setting, name, features, dtype)

    def expected() -> list[Tensor]:
        exact = deepcopy(decoder).double()
        with inference(REFERENCE):
            maps = [one[:1].double() for one in features[0]]
            return [exact.prepare(maps, timesteps).denoise(noisy[0][:1].double(), 0)]

    return Contest(candidates, expected)


def _step(given: tuple[Tensor, PreparedDecoder]) -> Tensor:
    noisy, prepared = given
    return prepared.denoise(noisy, 0)


def _compile_steps(decoder: MapDiffusionDecoder) -> None:
    prepare, step = decoder.prepare, compiled(PreparedDecoder.denoise)

    def prepare_compiled(*given: Any) -> PreparedDecoder:
        run = prepare(*given)
        object.__setattr__(run, "denoise", partial(step, run))  # it is frozen
        return run

    decoder.prepare = prepare_compiled


def _sampling_contest(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> Contest:
    model = make_localizer(name, setting.device, dtype)
    features = _draw_features(setting, model, batch, dtype)
    noise = [setting.random(batch, model.grid.num_cells) for _ in features]
    inputs = list(zip(features, noise, strict=True))

    # Each has its own model, as models cache spectra of their weights or not.
    models = [
        (backend, named, deepcopy(model)) for backend, named in map_conv_backends(setting).items()
    ]
    if setting.compiled:
        models.insert(1, ("compiled", REFERENCE, deepcopy(model)))
        _compile_steps(models[1][2].decoder)
    candidates = peer_candidates(setting, name, features, dtype) + [
        Candidate(
            backend,
            partial(_sample, own),
            inputs,
            partial(inference, named),
            batch,
            outputs=first_sample,
        )
        for backend, named, own in models
    ]

    def expected() -> list[Tensor]:
        exact = deepcopy(model).double()
        with inference(REFERENCE):
            maps = [one[:1].double() for one in features[0]]
            return [_sample(exact, (maps, noise[0][:1].double()))]

    return Contest(candidates, expected)


def _sample(model: MomentLocalizer, given: tuple[Sequence[Tensor], Tensor]) -> Tensor:
    features, noise = given
    return model.sample_maps(features, num_inference_steps=STEPS, noise=noise)


# One pass of MS-2D-TAN over the same map features.


def peer_candidates(
    setting: Setting, preset: str, inputs: Sequence[Sequence[Tensor]], dtype: torch.dtype
) -> list[Candidate]:
    """Make the candidates `ms2dtan`, as published, and `ms2dtan, auto`, with our kernels."""
    model, batch = make_peer(preset, setting.device, dtype), len(inputs[0][0])
    with inference(AUTO):
        auto = [
            [
                layer.conv.plan((batch, layer.in_channels, *one.shape[2:]), dtype)
                for layer in convs.layers
            ]
            for convs, one in zip(model.convs, inputs[0], strict=True)
        ]
    return [
        Candidate(
            backend, partial(peer_pass, model, plans), inputs, partial(inference, named), batch
        )
        for backend, plans, named in (
            ("ms2dtan", _direct(model), REFERENCE),
            ("ms2dtan, auto", auto, AUTO),
        )
    ]


def _direct(model: MS2DTAN) -> Plans:
    return [[MapConvPlan("direct") for _ in convs.layers] for convs in model.convs]


def peer_pass(model: MS2DTAN, plans: Plans, features: Sequence[Tensor]) -> list[Tensor]:
    """Score all cells from the map features, as in `MS2DTAN.score`."""
    scores = []
    for scale, (x, convs, head) in enumerate(zip(features, model.convs, model.heads, strict=True)):
        for layer, plan in zip(convs.layers, plans[scale], strict=True):
            x = layer(x, plan=plan)
        scored = rearrange(head(x), "b 1 n a -> b n a")
        scores.append(scored.masked_fill(~model.grid.mask(scale, scored.device), 0))
    return scores
