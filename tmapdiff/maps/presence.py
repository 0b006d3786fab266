"""From a map to how likely the answer is in the video at all."""

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
    """Read off maps how likely the video holds the answer: the sum of its moments' likelihoods.

    A map that was learned on queries with and without an answer is an expectation over both: where
    there is none, it is 0. So the likelihoods of moments (`candidate_likelihoods`) sum to how
    likely there is one. Of a model that never saw a query without an answer, and of a
    `SimilarityLocalizer`, whose likelihoods sum to 1 by construction, it says nothing. It is not
    calibrated; `tmapdiff.evaluation.fit_presence` makes a probability of it.

    Arguments are as for `map_saliency`.

    Shape:
        - packed: (B, cells)
        - num_clips: (B,), integer
        - returns: (B,), in [0, 1]

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: As `MapGrid.check_num_clips`, or if `target` is no function.
    """
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    return candidate_likelihoods(candidates, scores, target=target).sum(dim=1).clamp(max=1)
