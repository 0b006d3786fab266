"""Ten denoising steps beside one pass of the peer, of the same map features."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial

import torch
from speed_cases import Candidate, Case, Contest, TimedCase
from torch import Tensor

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
from tmapdiff import MomentLocalizer


def cases(setting: Setting) -> Iterator[Case]:
    """Measure sampling in each dtype and batch size."""
    name = setting.preset_name(cpu="stack128")
    for dtype in setting.dtypes:
        for batch in setting.batch_sizes(gpu=(1, 8, 32, 64), cpu=(1, 8)):
            yield TimedCase(
                "sampling",
                f"{STEPS} steps",
                {"preset": name, "batch": batch},
                dtype,
                partial(_contest, setting, name, batch, dtype),
                reference="ms2dtan",
            )


def _contest(setting: Setting, name: str, batch: int, dtype: torch.dtype) -> Contest:
    model = make_localizer(name, setting.device, dtype)
    grid, channels = model.grid, model.decoder.config.feature_channels
    count = setting.num_inputs(feature_bytes(grid, channels, batch, dtype))
    features = [map_features(setting, grid, channels, batch, dtype) for _ in range(count)]
    noise = [setting.random(batch, grid.num_cells) for _ in range(count)]
    inputs = list(zip(features, noise, strict=True))

    candidates = peer_candidates(setting, name, features, dtype)
    for backend, named in map_conv_backends(setting).items():
        # Each keeps what it needs of the weights: spectra or none.
        run, scope = partial(_sample, deepcopy(model)), partial(inference, named)
        candidates.append(Candidate(backend, run, inputs, scope, batch, outputs=_first_sample))
        if backend == "reference" and setting.compiled:
            own = deepcopy(model)
            own.decoder.forward = compiled(own.decoder.forward)  # which sampling then calls
            run = partial(_sample, own)
            candidates.append(
                Candidate("compiled", run, inputs, scope, batch, outputs=_first_sample)
            )

    def expected() -> list[Tensor]:
        exact = deepcopy(model).double()
        with inference(REFERENCE):
            maps = [one[:1].double() for one in features[0]]
            return [_sample(exact, (maps, noise[0][:1].double()))]

    return Contest(candidates, expected)


def _sample(model: MomentLocalizer, given: tuple[Sequence[Tensor], Tensor]) -> Tensor:
    features, noise = given
    return model.sample_maps(features, num_inference_steps=STEPS, noise=noise)


def _first_sample(result: Tensor) -> list[Tensor]:
    return [result[:1]]
