"""Small pipelines of each kind that can be exported."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.fields import GRID
from helpers.pipelines import FPS, WORDS, make_localizer, make_pipe

from tmapdiff import MS2DTAN, MapDiffusionDecoder, MomentLocalizer, SimilarityLocalizer

DECODER = {**GRID, "feature_channels": 8, "channels": 8, "time_channels": 8}
LENGTH = 4  # words of the longest sentence


def _of_features(localizer: Any) -> Any:
    """Make what export_pipeline reads of a pipeline, without a text encoder."""
    config = SimpleNamespace(fps=FPS, clip_seconds=None, durations=None)
    return SimpleNamespace(localizer=localizer, vocabulary=None, config=config)


def make(kind: str) -> Any:
    if kind == "conv":
        return make_pipe(make_localizer(num_samples=2))
    if kind == "transformer":
        decoder = {**DECODER, "architecture": "transformer", "num_layers": 1, "num_heads": 2}
        base = make_localizer()
        return make_pipe(MomentLocalizer.from_parts(base.encoder, _decoder(decoder)).eval())
    if kind == "ms2dtan":
        return make_pipe(make_localizer(MS2DTAN), clip_seconds=1.0)
    if kind == "features":
        encoder = {"vocabulary_size": None, "text_channels": 6}
        return _of_features(
            make_localizer(
                encoder=encoder,
                deterministic=True,
                objective="bce-rescaled",
                ranking="expected-hits",
            )
        )
    return _of_features(SimilarityLocalizer(6, **GRID, words=True, ranking="expected-hits").eval())


def _decoder(fields: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    decoder = MapDiffusionDecoder(**fields)
    for one in decoder.parameters():
        torch.nn.init.normal_(one, std=0.3)
    return decoder


def inputs_of(pipe: Any, batch: int) -> tuple[torch.Tensor, ...]:
    """Draw inputs of some size."""
    model, source = pipe.localizer, torch.Generator().manual_seed(100 + batch)
    clips, channels = model.grid.num_clips, model.encoder.config.text_channels
    words = torch.randint(1, len(WORDS) + 2, (batch, LENGTH), generator=source)
    if channels is not None:
        words = torch.randn(batch, LENGTH, channels, generator=source)
    width = model.encoder.config.clip_channels
    return (
        torch.randn(batch, clips, width, generator=source),
        words,
        torch.randint(1, LENGTH + 1, (batch,), generator=source),
        torch.randint(2, clips + 1, (batch,), generator=source),
    )


KINDS = ("conv", "transformer", "ms2dtan", "features", "similarity")


@pytest.fixture(scope="session")
def pipes() -> dict[str, Any]:
    return {kind: make(kind) for kind in KINDS}
