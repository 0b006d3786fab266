"""What tells whether a video holds the answer at all: of a map, and of plain similarities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tmapdiff._core.checks import message, shown
from tmapdiff._core.numbers import finite_number
from tmapdiff.calibration import PlattCalibrator
from tmapdiff.errors import ConfigError
from tmapdiff.maps.presence import map_presence
from tmapdiff.models.aligned_similarities import Similarities

if TYPE_CHECKING:
    from tmapdiff.models.map_localizer import MapLocalizer

_TOP_SHARE = 0.05  # of a video's rows: the best similarity, but not of a single row


def presence_features(
    model: "MapLocalizer",
    features: Tensor,
    words: Tensor,
    num_words: Tensor,
    maps: Tensor,
    num_clips: Tensor | None = None,
) -> Tensor:
    """Give the numbers of each query that tell whether its video holds the answer at all.

    Of the map, what its likelihoods sum to (`map_presence`) and its highest cell. Where clips and
    words share a space, also the plain cosine of rows and sentence, which the map does not know, as
    encoders standardise it in each video: the mean over the best twentieth of the rows. (That of
    the video, or of the rows of the highest cell, added nothing to it.)

    Args:
        model: The localizer.
        features: As for `localize`.
        words: As for `localize`.
        num_words: As for `localize`.
        maps: What `predict_maps` gave, or a mean of such.
        num_clips: As for `localize`.

    Shape:
        - features: (B, N * features_per_clip, clip_channels)
        - words: (B, L) or (B, L, text_channels)
        - num_words, num_clips: (B,)
        - maps: (B, cells)
        - returns: (B, 3), or (B, 2) where there is no such space; float64

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If a query is empty, or a video has no clip or more than there are.
    """
    grid = model.grid_of(features, num_clips)
    cells = maps.float().masked_fill(~grid.packed_mask(maps.device, num_clips), -torch.inf)
    found = [map_presence(maps, grid, num_clips, target=model.objective.target), cells.amax(dim=1)]
    similarities = _similarities_of(model.encoder)
    if similarities is not None:
        query = similarities.embed_query(words, num_words)
        # Spaces are as one: their mean.
        cosines = similarities.to_sentence(similarities.embed(features), query).mean(1)
        rows = torch.arange(cosines.shape[1], device=cosines.device)
        count = torch.full_like(cosines[:, :1], len(rows))
        if num_clips is not None:
            count = num_clips.to(count)[:, None] * (len(rows) // grid.num_clips)
        ranked = cosines.masked_fill(rows >= count, -torch.inf).sort(dim=1, descending=True).values
        top = (count * _TOP_SHARE).ceil()
        found.append(ranked.where(rows < top, 0).sum(1) / top[:, 0])
    return torch.stack([one.double() for one in found], dim=1)


def presence_reader(model: "MapLocalizer") -> PlattCalibrator | None:
    """Return what makes a probability of `presence_features`; None of a model that has no such."""
    numbers = model.config.get("presence_weights")
    if numbers is None:
        return None
    reader = PlattCalibrator(len(numbers) - 1)
    reader.weight.copy_(torch.tensor(numbers[:-1]).double())
    reader.bias.fill_(numbers[-1])
    return reader.to(model.device)


def check_presence_weights(who: str, encoder: nn.Module, numbers: Sequence[float] | None) -> None:
    """Raise ConfigError unless there are none, or as many as a reader of `encoder` has."""
    count = 3 if _similarities_of(encoder) is None else 4
    given: Any = numbers
    listed = isinstance(given, list | tuple) and len(given) == count
    if numbers is not None and (not listed or None in map(finite_number, given)):
        expected = f"presence_weights to be {count} numbers, as fit_presence finds them"
        raise ConfigError(message(who, expected, shown(given)))


def _similarities_of(encoder: nn.Module) -> Similarities | None:
    return next((part for part in encoder.modules() if isinstance(part, Similarities)), None)
