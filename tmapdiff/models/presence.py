"""Features that predict presence: whether a video contains an answer to a query at all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tmapdiff._core.checks import message, shown
from tmapdiff._core.numbers import finite_number
from tmapdiff.errors import ConfigError
from tmapdiff.maps.saliency import map_presence
from tmapdiff.models.aligned_similarities import Similarities

if TYPE_CHECKING:
    from tmapdiff.models.map_localizer import MapLocalizer

_TOP_SHARE = 0.05  # of a video's rows, as the single best row would be noisy


def presence_features(
    model: "MapLocalizer",
    features: Tensor,
    words: Tensor,
    num_words: Tensor,
    maps: Tensor,
    num_clips: Tensor | None = None,
) -> Tensor:
    """Compute the numbers from which `model` predicts presence, for each query.

    They are the sum of the map's likelihoods (`map_presence`) and its highest cell. If clips and
    words share a space, the mean cosine to the sentence of the best twentieth of the rows is added.
    The map does not contain it, as encoders standardize cosines in each video. (The mean over the
    video, or over the rows of the highest cell, brought no further gain.)

    Arguments are as for `MapLocalizer.presence`. Returns (B, 3), or (B, 2) without a shared space,
    in float64.
    """
    grid = model.grid_of(features, num_clips)
    cells = maps.float().masked_fill(~grid.packed_mask(maps.device, num_clips), -torch.inf)
    found = [map_presence(maps, grid, num_clips, target=model.objective.target), cells.amax(dim=1)]
    similarities = _similarities_of(model.encoder)
    if similarities is not None:
        query = similarities.embed_query(words, num_words)
        # Mean over the spaces.
        cosines = similarities.to_sentence(similarities.embed(features), query).mean(1)
        rows = torch.arange(cosines.shape[1], device=cosines.device)
        count = torch.full_like(cosines[:, :1], len(rows))
        if num_clips is not None:
            count = num_clips.to(count)[:, None] * (len(rows) // grid.num_clips)
        ranked = cosines.masked_fill(rows >= count, -torch.inf).sort(dim=1, descending=True).values
        top = (count * _TOP_SHARE).ceil()
        found.append(ranked.where(rows < top, 0).sum(1) / top[:, 0])
    return torch.stack([one.double() for one in found], dim=1)


def check_presence_weights(who: str, encoder: nn.Module, numbers: Sequence[float] | None) -> None:
    """Raise ConfigError unless `numbers` is None or has as many numbers as `encoder` needs."""
    count = 3 if _similarities_of(encoder) is None else 4
    given: Any = numbers
    listed = isinstance(given, list | tuple) and len(given) == count
    if numbers is not None and (not listed or None in map(finite_number, given)):
        expected = f"presence_weights to be {count} numbers, as returned by fit_presence"
        raise ConfigError(message(who, expected, shown(given)))


def _similarities_of(encoder: nn.Module) -> Similarities | None:
    return next((part for part in encoder.modules() if isinstance(part, Similarities)), None)
