"""Running a localizer over a data set: metrics, predictions, and the best constant answer."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from tmapdiff._core.checks import check_int, check_shape, message
from tmapdiff.data import (
    SEGMENT_SECONDS,
    AnnotationSet,
    MomentBatch,
    Prediction,
    collate_moments,
)
from tmapdiff.data.sampling import share_of, torch_generator_for
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import (
    IoUMapBuilder,
    MapGrid,
    MultiScaleMapSampler,
    RankedMoments,
    rank_candidates,
)
from tmapdiff.metrics import DiDeMoMetrics, LocalizationMetrics, best_ious, consensus_moments
from tmapdiff.models import Localization, MapLocalizer, Ranking
from tmapdiff.plots import plot_comparison
from tmapdiff.plots.maps import comparison_inches
from tmapdiff.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evaluation:
    """Metrics in percent, the predictions behind them, and how long they took.

    Attributes:
        metrics: `Rank1@0.5` and the like, and `mIoU`, in percent.
        predictions: One a query, in the data set's order.
        seconds: Wall time, reading of features included.
        confidence: Score of each query's best moment, (Q,).
        iou: IoU of each query's best moment with the annotated one, of DiDeMo with the annotators'
            consensus, (Q,): with `confidence` what `CalibrationMetrics` and `plot_calibration` ask
            for.
    """

    metrics: dict[str, float]
    predictions: tuple[Prediction, ...]
    seconds: float
    confidence: Tensor = field(compare=False)
    iou: Tensor = field(compare=False)

    @property
    def queries_per_second(self) -> float:
        """Queries localized a second."""
        return len(self.predictions) / self.seconds


def evaluate(
    model: MapLocalizer,
    dataset: Dataset[Any],
    *,
    num_inference_steps: int | None = None,
    num_samples: int | None = None,
    eta: float = 0.0,
    ranking: Ranking | None = None,
    nms_threshold: float | None = None,
    seed: int = 0,
    top_n: int = 5,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> Evaluation:
    """Localize every query of a data set.

    The noise of a query depends on `seed` and its position only, not on the batch size, device or
    number of processes.

    Args:
        model: The localizer, in any mode.
        dataset: Usually a `MomentDataset`.
        num_inference_steps: Denoising steps; the model's number, if None.
        num_samples: Samples of each query that are averaged; the model's number, if None.
        eta: 0 is deterministic DDIM, 1 adds as much noise as DDPM.
        ranking: How moments are read off the map, see `MapLocalizer.localize`; the model's way, if
            None.
        nms_threshold: Of ranking by `nms`; the model's, if None.
        seed: Seed of the noise.
        top_n: Moments a query.
        batch_size: Queries localized at once.
        on_batch: Called after each batch with the number of its queries, for a progress bar.
        accelerator: The `accelerate.Accelerator` of several processes that all call this: each
            localizes a share of the queries, none twice, and all return the whole evaluation.

    Raises:
        ArgumentError: If the data set is empty, an argument is out of range, steps or samples are
            asked of a model that is not generative, there is an `nms_threshold` without `nms`, or
            scores are not finite, as damaged weights or features make them.
        ConfigError: If there is no such ranking.
    """
    metrics, judged = LocalizationMetrics(), _Judged()
    began = time.perf_counter()
    sampling = _Sampling(num_inference_steps, num_samples, eta, seed)
    options = {"top_n": top_n, "ranking": ranking, "nms_threshold": nms_threshold}
    for batch, found in _localized(model, dataset, batch_size, sampling, options, accelerator):
        metrics.update(found.ranked, batch.moments, batch.num_moments)
        judged.add(batch, found, batch.moments, batch.num_moments)
        if on_batch is not None:
            on_batch(len(batch))
    metrics, judged = _of_all_processes(accelerator, metrics, judged)
    return judged.evaluation(metrics.compute(), began)


def evaluate_didemo(
    model: MapLocalizer,
    dataset: Dataset[Any],
    *,
    num_inference_steps: int | None = None,
    num_samples: int | None = None,
    eta: float = 0.0,
    ranking: Ranking | None = None,
    nms_threshold: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    accelerator: Any = None,
) -> Evaluation:
    """Localize every query of DiDeMo, with its official metric and with Rank n@m.

    The official metric ranks all moments by their cells, and counts those of all annotators; Rank
    n@m is of the moments that `localize` answers, and of the annotators' consensus.

    Args:
        model: A localizer of 6 clips, 6 durations and 1 scale, whose cells are DiDeMo's moments.
        dataset: `MomentDataset` of `load_didemo` with the moments of all annotators, and with
            `clip_seconds` of 5, so that clips are segments.
        num_inference_steps: As for `evaluate`.
        num_samples: As for `evaluate`.
        eta: As for `evaluate`.
        ranking: As for `evaluate`; the official metric does not depend on it.
        nms_threshold: As for `evaluate`.
        seed: As for `evaluate`.
        batch_size: As for `evaluate`.
        accelerator: As for `evaluate`.

    Raises:
        ArgumentError: As for `evaluate`, or if clips do not last 5 seconds.

    Source: Hendricks et al., arXiv 1708.01641.
    """
    official, metrics, judged = DiDeMoMetrics(), LocalizationMetrics(), _Judged()
    began = time.perf_counter()
    sampling = _Sampling(num_inference_steps, num_samples, eta, seed)
    options = {"ranking": ranking, "nms_threshold": nms_threshold}
    for batch, found in _localized(model, dataset, batch_size, sampling, options, accelerator):
        _check_segments(batch)
        candidates, scores = MultiScaleMapSampler(found.grid).merge_packed(
            found.maps, found.num_clips
        )
        everything = rank_candidates(
            candidates, scores, batch.clip_seconds, top_n=_ALL_MOMENTS, nms_threshold=1.0
        )
        official.update(everything, batch.moments, batch.num_moments)
        consensus = consensus_moments(batch.moments, batch.num_moments)
        metrics.update(found.ranked, consensus)
        judged.add(batch, found, consensus)
    official, metrics, judged = _of_all_processes(accelerator, official, metrics, judged)
    results = metrics.compute() | official.compute()  # which has an mIoU of its own
    return judged.evaluation(results, began)


def evaluate_didemo_prior(train: AnnotationSet, test: AnnotationSet) -> dict[str, float]:
    """Compute DiDeMo's official metric of ranking moments by how often they were marked.

    Args:
        train: The annotators' moments that are counted.
        test: The queries that get the same answer, but for what lies past their video's end.

    Raises:
        ArgumentError: If `test` is empty.

    Source: the frequency prior of Hendricks et al., arXiv 1708.01641.
    """
    marked = Counter(moment for item in train for moment in item.moments)
    edges = [SEGMENT_SECONDS * segment for segment in range(_SEGMENTS + 1)]
    ranked = sorted(combinations(edges, 2), key=lambda moment: -marked[moment])
    metrics = DiDeMoMetrics()
    for item in test:
        inside = [moment for moment in ranked if moment[1] <= item.duration]
        metrics.update(torch.tensor([inside]), torch.tensor([item.moments]))
    return metrics.compute()


_SEGMENTS = 6
_ALL_MOMENTS = _SEGMENTS * (_SEGMENTS + 1) // 2


def _check_segments(batch: MomentBatch) -> None:
    if not bool((batch.clip_seconds == SEGMENT_SECONDS).all()):
        raise ArgumentError(
            f"evaluate_didemo: expected clips of {SEGMENT_SECONDS:g} s, DiDeMo's segments, "
            f"got {batch.clip_seconds[0]:g} s. Pass clip_seconds to MomentDataset."
        )


def evaluate_predictions(
    predictions: Iterable[Prediction],
    annotations: AnnotationSet,
    *,
    ranks: Sequence[int] = (1, 5),
    thresholds: Sequence[float] = (0.5, 0.7),
    strict: bool = True,
) -> dict[str, float]:
    """Compute the metrics of predictions, one's own or another program's, in percent.

    Args:
        predictions: One a query, such as `read_submission` gives; the order does not matter, that
            of the moments of each does.
        annotations: The queries.
        ranks: As for `LocalizationMetrics`.
        thresholds: As for `LocalizationMetrics`.
        strict: Count IoU above a threshold; at or above it, if False, as moment_detr, lighthouse
            and VSLNet do.

    Raises:
        ArgumentError: If a query has no prediction or two, a prediction is of none of the queries,
            there are no queries, or a rank or threshold is out of range.
    """
    who = "evaluate_predictions"
    metrics = LocalizationMetrics(ranks, thresholds, strict=strict)
    check_int(who, "queries", len(annotations), at_least=1)
    given = list(predictions)
    windows = {one.qid: one.windows for one in given}
    wanted = [item.qid for item in annotations]
    for name, qids in (
        ("a prediction of each query", [qid for qid in wanted if qid not in windows]),
        ("predictions of the annotated queries alone", windows.keys() - set(wanted)),
    ):
        if qids:
            got = f"{len(qids)} queries otherwise, such as {min(map(repr, qids))}"
            raise ArgumentError(message(who, f"{name}, by qid", got))
    if len(windows) != len(given):
        got = f"{len(given)} of {len(windows)} queries"
        raise ArgumentError(message(who, "one prediction a query", got))
    ranked = [
        torch.tensor(windows[qid][: max(ranks)], dtype=torch.float64).reshape(-1, 3)
        for qid in wanted
    ]
    counts = torch.tensor([len(one) for one in ranked])
    padded = pad_sequence(ranked, batch_first=True)
    truths = [torch.tensor(item.moments, dtype=torch.float64) for item in annotations]
    metrics.update(
        RankedMoments(
            moments=padded[..., :2],
            scores=padded[..., 2],
            valid=torch.arange(padded.shape[1]) < counts[:, None],
        ),
        pad_sequence(truths, batch_first=True),
        torch.tensor([len(one) for one in truths]),
    )
    return metrics.compute()


def fit_moment_prior(grid: MapGrid, dataset: Dataset[Any], *, threshold: float = 0.5) -> Tensor:
    """Share of a data set's moments that each cell would hit: what is known without looking.

    Ranked like a model's maps, it gives the best constant answer.

    Args:
        grid: The candidate moments.
        dataset: Usually the `MomentDataset` of training.
        threshold: IoU above which a moment counts as hit.

    Shape:
        - returns: (cells,), in [0, 1]

    Raises:
        ArgumentError: If the data set is empty.
    """
    check_int("fit_moment_prior", "queries", len(dataset), at_least=1)  # type: ignore[arg-type]
    build = IoUMapBuilder(grid)
    hits = torch.zeros(grid.num_cells, dtype=torch.float64)
    for batch in _batches(dataset, 256):
        iou = build.packed(batch.moments, batch.clip_seconds, batch.num_moments)
        if batch.num_clips is not None:
            iou = iou.masked_fill(~grid.packed_mask(num_clips=batch.num_clips), 0)
        hits += (iou > threshold).sum(0)
    return (hits / len(dataset)).float()  # type: ignore[arg-type]


def evaluate_prior(
    grid: MapGrid, prior: Tensor, dataset: Dataset[Any], *, nms_threshold: float = 0.49
) -> dict[str, float]:
    """Metrics of answering every query with the best moments of a prior, in percent.

    Args:
        grid: The candidate moments.
        prior: How good each is, whatever video and query, such as `fit_moment_prior` gives.
        dataset: Queries with their moments.
        nms_threshold: Moments with a higher IoU than this with a better one are dropped.

    Shape:
        - prior: (cells,)

    Raises:
        ShapeError: If the prior is not of the grid.
        ArgumentError: If the data set is empty.
    """
    metrics = LocalizationMetrics()
    grid.unpack(prior[None])  # which checks its shape
    for batch in _whole_batches(dataset, 256):
        if batch.num_clips is not None:
            clips = grid.num_clips
            hint = "A prior knows no longer videos."
            check_shape("evaluate_prior", "features", batch.features, f"B {clips} D", hint=hint)
        ranked = _ranked(grid, prior.expand(len(batch), -1), batch, nms_threshold)
        metrics.update(ranked, batch.moments, batch.num_moments)
    return metrics.compute()


def evaluate_oracle(
    grid: MapGrid, dataset: Dataset[Any], *, nms_threshold: float = 0.49
) -> dict[str, float]:
    """Metrics of ranking the true IoU maps, in percent: the upper bound of the grid.

    Args:
        grid: The candidate moments.
        dataset: Queries with their moments.
        nms_threshold: Moments with a higher IoU than this with a better one are dropped.

    Raises:
        ArgumentError: If the data set is empty.
    """
    metrics = LocalizationMetrics()
    for batch in _whole_batches(dataset, 256):
        size = grid if batch.num_clips is None else grid.resized(batch.features.shape[1])
        maps = IoUMapBuilder(size).packed(batch.moments, batch.clip_seconds, batch.num_moments)
        ranked = _ranked(size, maps, batch, nms_threshold)
        metrics.update(ranked, batch.moments, batch.num_moments)
    return metrics.compute()


def _ranked(grid: MapGrid, maps: Tensor, batch: MomentBatch, nms_threshold: float) -> RankedMoments:
    """Best moments of packed maps that no model made."""
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(maps, batch.num_clips)
    return rank_candidates(
        candidates,
        scores,
        batch.clip_seconds,
        durations=batch.durations,
        nms_threshold=nms_threshold,
    )


def draw_queries(
    model: MapLocalizer,
    dataset: Dataset[Any],
    positions: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    seed: int = 0,
) -> "Figure":
    """Draw the predicted maps of a few queries, each beside the true one, and the best moments.

    Args:
        model: The localizer, in any mode.
        dataset: Data set with the queries.
        positions: Positions of the queries in it.
        num_inference_steps: Denoising steps; the model's number, if None.
        seed: Seed of the noise, as for `evaluate`.

    Raises:
        ArgumentError: If there are no positions.
        MissingDependencyError: If matplotlib is not installed.
    """
    check_int("draw_queries", "the number of positions", len(positions), at_least=1)
    batch = collate_moments([dataset[position] for position in positions]).to(model.device)
    _check_whole(batch)
    sampling = _Sampling(num_inference_steps, None, 0.0, seed)
    found = _localize(model, batch, sampling.arguments(model, positions))
    grid = found.grid
    iou_maps = IoUMapBuilder(grid)(batch.moments, batch.clip_seconds, batch.num_moments)
    truth, _ = MultiScaleMapSampler(grid).merge([model.objective.target(one) for one in iou_maps])
    ranked = found.ranked
    heights = [comparison_inches(1 + int(shown)) for shown in ranked.valid.sum(1)]
    figure = new_figure(7.2, sum(heights), "draw_queries")
    parts = figure.subfigures(len(positions), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, part in enumerate(parts):
        plot_comparison(
            found.dense[row],
            truth[row],
            found.mask if found.mask.dim() == 2 else found.mask[row],
            clip_seconds=float(batch.clip_seconds[row]),
            moments=batch.moments[row, : int(batch.num_moments[row])].tolist(),
            predicted_moments=ranked.moments[row][ranked.valid[row]].tolist(),
            scores=ranked.scores[row][ranked.valid[row]].tolist(),
            title=f"{batch.queries[row]}  ({batch.video_ids[row]})",
            label="rescaled IoU" if model.objective.name.endswith("-rescaled") else "IoU",
            figure=part,
        )
    return figure


def _localized(
    model: MapLocalizer,
    dataset: Dataset[Any],
    batch_size: int,
    sampling: "_Sampling",
    options: Mapping[str, Any],
    accelerator: Any,
) -> Iterator[tuple[MomentBatch, Localization]]:
    """Give batch by batch what a model finds, of this process's share; see `evaluate`."""
    check_int("evaluate", "batch_size", batch_size, at_least=1)
    check_int("evaluate", "seed", sampling.seed, at_least=0)
    check_int("evaluate", "queries", len(dataset), at_least=1)  # type: ignore[arg-type]
    model = model.evaluation_view()  # once for all batches
    first = 0
    if accelerator is not None:
        count, processes = len(dataset), accelerator.num_processes  # type: ignore[arg-type]
        share = share_of(count, processes, accelerator.process_index)
        dataset, first = Subset(dataset, share), share.start
    for batch in _whole_batches(dataset, batch_size):
        positions = range(first, first + len(batch))
        first += len(batch)
        batch = batch.to(model.device)
        yield batch, _localize(model, batch, {**options, **sampling.arguments(model, positions)})


def _localize(
    model: MapLocalizer, batch: MomentBatch, arguments: Mapping[str, Any]
) -> Localization:
    return model.localize(
        batch.features,
        batch.words,
        batch.num_words,
        batch.clip_seconds,
        num_clips=batch.num_clips,
        durations=batch.durations,
        **arguments,
    )


def _of_all_processes(accelerator: Any, *parts: Any) -> tuple[Any, ...]:
    """Join what processes gathered of their shares, which lie one after another."""
    if accelerator is None or accelerator.num_processes == 1:
        return parts
    from accelerate.utils import gather_object

    gathered = gather_object([tuple(part.on_cpu() for part in parts)])
    return tuple(
        type(parts[place]).joined([one[place] for one in gathered]) for place in range(len(parts))
    )


def _whole_batches(dataset: Dataset[Any], batch_size: int) -> Iterator[MomentBatch]:
    for batch in _batches(dataset, batch_size):
        _check_whole(batch)
        yield batch


def _check_whole(batch: MomentBatch) -> None:
    # A window is drawn around the annotated moment: it would give the answer away.
    if batch.has_windows:
        raise ArgumentError(
            "evaluate: expected whole videos, got windows of them. "
            "Pass whole_videos=True to MomentDataset."
        )


def _batches(dataset: Dataset[Any], batch_size: int) -> DataLoader[Any]:
    # With a generator of its own: the loader would draw from torch's, and an evaluation between two
    # epochs would change the noise of the second.
    return DataLoader(
        dataset, batch_size=batch_size, collate_fn=collate_moments, generator=torch.Generator()
    )


@dataclass(frozen=True)
class _Sampling:
    """How predictions are drawn."""

    num_inference_steps: int | None
    num_samples: int | None
    eta: float
    seed: int

    def arguments(self, model: MapLocalizer, positions: Iterable[int]) -> dict[str, Any]:
        """Arguments of `localize` for the queries at these positions; of a regressor, none."""
        if model.is_generative:
            return {
                "num_inference_steps": self.num_inference_steps,
                "num_samples": self.num_samples,
                "eta": self.eta,
                "generator": [torch_generator_for(self.seed, position) for position in positions],
            }
        for name in ("num_inference_steps", "num_samples"):
            if getattr(self, name) not in (None, 1):
                raise ArgumentError(
                    f"evaluate: expected one pass for a {type(model).__name__} that does not "
                    f"sample, got {name} = {getattr(self, name)}."
                )
        return {}


class _Judged:
    """Gathers answers, and how sure and how right the first of each query is.

    They stay on the device till the end: nothing waits for it.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int | str, str, str]] = []  # id, query and video
        self.ranked: list[RankedMoments] = []
        self.confidence: list[Tensor] = []
        self.iou: list[Tensor] = []

    def add(
        self,
        batch: MomentBatch,
        found: Localization,
        truth: Tensor,
        num_moments: Tensor | None = None,
    ) -> None:
        self.asked += zip(batch.qids, batch.queries, batch.video_ids, strict=True)
        self.ranked.append(found.ranked)
        self.confidence.append(found.confidence)
        self.iou.append(best_ious(found.ranked.moments[:, :1], truth, num_moments)[:, 0])

    def on_cpu(self) -> "_Judged":
        """Copy it to the CPU."""
        copy = _Judged()
        copy.asked = self.asked
        copy.ranked = [
            RankedMoments(one.moments.cpu(), one.scores.cpu(), one.valid.cpu())
            for one in self.ranked
        ]
        copy.confidence = [one.cpu() for one in self.confidence]
        copy.iou = [one.cpu() for one in self.iou]
        return copy

    @staticmethod
    def joined(parts: Iterable["_Judged"]) -> "_Judged":
        """Join those of several processes, in their order."""
        whole = _Judged()
        for part in parts:
            for name, gathered in vars(whole).items():
                gathered += getattr(part, name)
        return whole

    def evaluation(self, metrics: dict[str, float], began: float) -> Evaluation:
        """Sum up; `began` is what `time.perf_counter` said at the start."""
        predictions = tuple(
            Prediction(qid, query, video_id, windows)
            for (qid, query, video_id), windows in zip(self.asked, self._windows(), strict=True)
        )
        confidence, iou = torch.cat(self.confidence).cpu(), torch.cat(self.iou).cpu()
        return Evaluation(metrics, predictions, time.perf_counter() - began, confidence, iou)

    def _windows(self) -> Iterator[tuple[tuple[float, float, float], ...]]:
        for ranked in self.ranked:
            rows = torch.cat([ranked.moments, ranked.scores[..., None]], dim=-1)
            for row, valid in zip(rows.tolist(), ranked.valid.tolist(), strict=True):
                yield tuple(
                    (start, end, score)
                    for (start, end, score), counts in zip(row, valid, strict=True)
                    if counts
                )
