"""Figures of a localizer's answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from tmapdiff._core.checks import check_int
from tmapdiff.data import collate_moments
from tmapdiff.evaluation._answers import check_fixed, check_whole, localize_batch
from tmapdiff.maps import IoUMapBuilder, MultiScaleMapSampler
from tmapdiff.models import MapLocalizer
from tmapdiff.plots import plot_comparison
from tmapdiff.plots.bars import SALIENCY_ROWS
from tmapdiff.plots.maps import comparison_inches
from tmapdiff.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_queries(
    model: MapLocalizer,
    dataset: Dataset[Any],
    positions: Sequence[int],
    *,
    seed: int = 0,
    **options: Any,
) -> "Figure":
    """Plot the predicted and true maps of a few queries, and the best moments.

    Args:
        model: The localizer, in any mode.
        dataset: Data set with the queries.
        positions: Indices of the queries in it.
        seed: Seed of the noise, as for `evaluate`.
        **options: As for `MapLocalizer.localize`: `num_inference_steps`, `ranking`, `answer`, ...

    Raises:
        ArgumentError: If `positions` are empty.
        MissingDependencyError: If matplotlib is not installed.
    """
    check_int("draw_queries", "the number of positions", len(positions), at_least=1)
    check_fixed("draw_queries", dataset)
    batch = collate_moments([dataset[position] for position in positions]).to(model.device)
    check_whole(batch)
    found = localize_batch(model, batch, positions, seed, options)
    grid, ranked = found.grid, found.ranked
    iou_maps = IoUMapBuilder(grid)(batch.moments, batch.clip_seconds, batch.num_moments)
    truth, _ = MultiScaleMapSampler(grid).merge([model.objective.target(maps) for maps in iou_maps])
    heights = [comparison_inches(1 + SALIENCY_ROWS + int(count)) for count in ranked.valid.sum(1)]
    figure = new_figure(7.2, sum(heights), "draw_queries")
    parts = figure.subfigures(len(positions), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, part in enumerate(parts):
        valid = ranked.valid[row]
        plot_comparison(
            found.dense[row],
            truth[row],
            found.mask if found.mask.dim() == 2 else found.mask[row],
            clip_seconds=float(batch.clip_seconds[row]),
            moments=batch.moments[row, : int(batch.num_moments[row])].tolist(),
            predicted_moments=ranked.moments[row][valid].tolist(),
            scores=ranked.scores[row][valid].tolist(),
            title=f"{batch.queries[row]}  ({batch.video_ids[row]})",
            label="rescaled IoU" if model.objective.name.endswith("-rescaled") else "IoU",
            saliency=found.saliency[row],
            figure=part,
        )
    return figure
