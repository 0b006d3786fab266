"""One denoising step of prepared features."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from speed_cases import Candidate, Case, Ceilings, Contest, TimedCase
from torch import Tensor

from speed_suites.floors import decoder_floor
from speed_suites.peer import peer_candidates
from speed_suites.setting import (
    REFERENCE,
    STEPS,
    Setting,
    compiled,
    feature_bytes,
    inference,
    make_localizer,
    map_conv_backends,
    map_features,
)
from tmapdiff import MapDiffusionDecoder
from tmapdiff.models.prepared import PreparedDecoder


def cases(setting: Setting) -> Iterator[Case]:
    """Measure a step in each dtype and batch size."""
    name = setting.preset_name(cpu="stack128")
    for dtype in setting.dtypes:
        for batch in setting.batch_sizes(gpu=(1, 8, 32, 64), cpu=(1, 8, 32)):
            yield TimedCase(
                "decoder",
                "step",
                {"preset": name, "batch": batch},
                dtype,
                partial(_contest, setting, name, batch, dtype),
                floor=partial(_floor, setting, name, batch, dtype),
            )


def _floor(
    setting: Setting, name: str, batch: int, dtype: torch.dtype, ceilings: Ceilings
) -> float:
    decoder = make_localizer(name, setting.device, dtype).decoder
    return decoder_floor(decoder, batch, dtype, ceilings)


def _contest(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> Contest:
    model = make_localizer(name, setting.device, dtype)
    decoder, grid = model.decoder, model.grid
    channels = decoder.config.feature_channels
    count = setting.num_inputs(feature_bytes(grid, channels, batch, dtype))
    features = [map_features(setting, grid, channels, batch, dtype) for _ in range(count)]
    noisy = [setting.random(batch, grid.num_cells, dtype=dtype) for _ in range(count)]
    model.scheduler.set_timesteps(STEPS)
    timesteps = model.scheduler.timesteps.to(setting.device)

    candidates = []
    for backend, named in map_conv_backends(setting).items():
        with inference(named):
            prepared = [decoder.prepare(one, timesteps) for one in features]
        inputs, scope = list(zip(noisy, prepared, strict=True)), partial(inference, named)
        candidates.append(Candidate(backend, _step, inputs, scope, batch, outputs=_first_sample))
        if backend == "reference" and setting.compiled:
            candidates.append(
                Candidate("compiled", compiled(_step), inputs, scope, batch, outputs=_first_sample)
            )
    candidates += peer_candidates(setting, name, features, dtype)

    def expected() -> list[Tensor]:
        exact: MapDiffusionDecoder = deepcopy(decoder).double()
        with inference(REFERENCE):
            maps = [one[:1].double() for one in features[0]]
            return [exact.prepare(maps, timesteps).denoise(noisy[0][:1].double(), 0)]

    return Contest(candidates, expected)


def _step(given: tuple[Tensor, PreparedDecoder]) -> Tensor:
    noisy, prepared = given
    return prepared.denoise(noisy, 0)


def _first_sample(result: Tensor) -> list[Tensor]:
    return [result[:1]]
