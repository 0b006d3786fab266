"""From a map to the likelihood that the video holds the answer."""

from collections.abc import Callable

from torch import Tensor

from tmapdiff.maps.expected_hits import candidate_likelihoods
from tmapdiff.maps.grid import MapGrid
from tmapdiff.maps.multiscale import MultiScaleMapSampler


def map_presence(
    packed: Tensor,
    grid: MapGrid,
    num_clips: Tensor | None = None,
    *,
    target: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute the likelihood that the video holds the answer: the sum over its moments.

    The map is an expectation over queries with and without an answer, and 0 for the latter. So the
    likelihoods of moments (`candidate_likelihoods`) sum to that of an answer. The sum means nothing
    for a model that never saw a query without an answer, nor for a `SimilarityLocalizer`, whose
    likelihoods sum to 1 by construction. It is not calibrated: `tmapdiff.evaluation.fit_presence`
    turns it into a probability.

    Arguments and errors are as for `map_saliency`.

    Shape:
        - returns: (B,), in [0, 1]
    """
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    return candidate_likelihoods(candidates, scores, target=target).sum(dim=1).clamp(max=1)
