"""Small pipelines of each kind that can be exported."""

from typing import Any

import pytest
import torch
from helpers.fields import GRID
from helpers.pipelines import WORDS, make_localizer, make_pipe
from helpers.text_encoders import tiny_text_encoder

from tmapdiff import MS2DTAN, SimilarityLocalizer

OF_FEATURES = {"vocabulary_size": None, "text_channels": 6}
LENGTH = 4  # words of the longest sentence


def make(kind: str) -> Any:
    if kind == "conv":
        return make_pipe(make_localizer(num_samples=2))
    if kind == "transformer":
        fields = {"architecture": "transformer", "num_layers": 1, "num_heads": 2}
        return make_pipe(make_localizer(decoder=fields))
    if kind == "ms2dtan":
        return make_pipe(make_localizer(MS2DTAN), clip_seconds=1.0)
    if kind == "similarity":
        model = SimilarityLocalizer(6, **GRID, words=True, ranking="expected-hits").eval()
        return _of_features(model)
    fields = {"deterministic": True}
    if kind == "features":
        fields |= {"objective": "bce-rescaled", "ranking": "expected-hits"}
        return _of_features(make_localizer(encoder=OF_FEATURES, **fields))
    fields = {} if kind == "aligned-diffusion" else fields
    encoder = {**OF_FEATURES, "clip_channels": 6, "aligned": True, "features_per_clip": 2}
    return _of_features(make_localizer(encoder=encoder, **fields))


def _of_features(localizer: Any) -> Any:
    """Make a pipeline whose model reads features of words."""
    encoder = tiny_text_encoder(WORDS, localizer.encoder.config.text_channels)
    parts = {"vocabulary": None, "text_encoder": encoder, "text_features": "tokens"}
    return make_pipe(localizer, **parts)


def inputs_of(pipe: Any, batch: int) -> tuple[torch.Tensor, ...]:
    """Draw inputs for a batch size."""
    model, source = pipe.localizer, torch.Generator().manual_seed(100 + batch)
    clips, channels = model.grid.num_clips, model.encoder.config.text_channels
    rows = clips * model.encoder.config.features_per_clip
    words = torch.randint(1, len(WORDS) + 2, (batch, LENGTH), generator=source)
    if channels is not None:
        words = torch.randn(batch, LENGTH, channels, generator=source)
    features = torch.randn(batch, rows, model.encoder.config.clip_channels, generator=source)
    features[1:2] = 0
    return (
        features,
        words,
        torch.randint(1, LENGTH + 1, (batch,), generator=source),
        torch.randint(2, clips + 1, (batch,), generator=source),
    )


KINDS = (
    *("conv", "transformer", "ms2dtan", "features", "similarity"),
    *("aligned", "aligned-diffusion"),
)


@pytest.fixture(scope="session")
def pipes() -> dict[str, Any]:
    return {kind: make(kind) for kind in KINDS}
