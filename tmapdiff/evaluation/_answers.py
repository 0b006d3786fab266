"""A localizer's answers to the queries of a data set, batch by batch."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from tmapdiff._core.checks import check_int, message
from tmapdiff._core.gathered import Gathered
from tmapdiff.data import MomentBatch, Prediction, collate_moments
from tmapdiff.data.moment_jsonl import CLIP_SECONDS
from tmapdiff.data.sampling import share_of, torch_generator_for
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import RankedMoments, resample_saliency
from tmapdiff.metrics import best_ious
from tmapdiff.models import Localization, MapLocalizer

if TYPE_CHECKING:
    from accelerate import Accelerator


def localize_all(
    model: MapLocalizer,
    dataset: Dataset[Any],
    *,
    batch_size: int,
    seed: int,
    accelerator: "Accelerator | None" = None,
    **options: Any,
) -> Iterator[tuple[MomentBatch, Localization]]:
    """Localize this process's share of a data set; see `evaluate`."""
    batch_size = check_int("evaluate", "batch_size", batch_size, at_least=1)
    check_int("evaluate", "seed", seed, at_least=0)
    count = check_int("evaluate", "queries", len(dataset), at_least=1)  # type: ignore[arg-type]
    model = model.evaluation_view()  # once for all batches
    first = 0
    if accelerator is not None:
        share = share_of(count, accelerator.num_processes, accelerator.process_index)
        dataset, first = Subset(dataset, share), share.start
    for batch in batches("evaluate", dataset, batch_size):
        positions = range(first, first + len(batch))
        first += len(batch)
        batch = batch.to(model.device)
        yield batch, localize_batch(model, batch, positions, seed, options)


def localize_batch(
    model: MapLocalizer,
    batch: MomentBatch,
    positions: Iterable[int],
    seed: int,
    options: Mapping[str, Any],
) -> Localization:
    """Localize the queries at the given positions of a data set, each with its own noise."""
    options = dict(options)
    if model.is_generative:
        options["generator"] = [torch_generator_for(seed, position) for position in positions]
    else:
        for name, plain in (("num_inference_steps", 1), ("num_samples", 1), ("eta", 0)):
            if (value := options.pop(name, None)) not in (None, plain):
                expected = f"one pass for a {type(model).__name__}, which is not generative"
                raise ArgumentError(message("evaluate", expected, f"{name} = {value}"))
    return model.localize(
        batch.features,
        batch.words,
        batch.num_words,
        batch.clip_seconds,
        num_clips=batch.num_clips,
        durations=batch.durations,
        **options,
    )


def check_fixed(who: str, dataset: Dataset[Any]) -> None:
    """Raise ArgumentError if a data set draws its negative queries anew at each access."""
    if share := getattr(dataset, "negatives", 0.0):
        hint = "Pass the data set without negatives; for fixed ones, use add_negatives."
        raise ArgumentError(message(who, "fixed queries", f"negatives = {share}", hint))


def check_whole(batch: MomentBatch) -> None:
    # Windows are drawn around the annotated moment, and would reveal the answer.
    if batch.has_windows:
        hint = "Pass whole_videos=True to MomentDataset."
        raise ArgumentError(message("evaluate", "whole videos", "windows of them", hint))


def batches(
    who: str, dataset: Dataset[Any], batch_size: int, *, windows: bool = False
) -> Iterator[MomentBatch]:
    """Yield the queries in order, which must be fixed and, without `windows`, of whole videos."""
    check_fixed(who, dataset)
    # Without its own generator, the loader would draw from torch's, and an evaluation between
    # epochs would change later training noise.
    for batch in DataLoader(
        dataset, batch_size=batch_size, collate_fn=collate_moments, generator=torch.Generator()
    ):
        if not windows:
            check_whole(batch)
        yield batch


class Answers(Gathered):
    """Collects answers, with the confidence and IoU of each query's best moment.

    IoUs of queries without a moment are NaN. It does not wait for the device until the end.
    """

    def __init__(self, with_saliency: bool = False) -> None:
        super().__init__()
        self.with_saliency = with_saliency

    def update(
        self,
        batch: MomentBatch,
        found: Localization,
        truth: Tensor,
        num_moments: Tensor | None = None,
    ) -> None:
        queries = list(zip(batch.qids, batch.queries, batch.video_ids, strict=True))
        ranked = found.ranked
        best = best_ious(ranked.moments[:, :1], truth, num_moments)[:, 0]
        iou = best.masked_fill(batch.num_moments < 1, torch.nan)
        of_clips: tuple[Tensor | None, ...] = (None, None, None)
        if self.with_saliency:
            of_clips = (found.saliency, batch.clip_seconds, batch.durations)
        moments = (ranked.moments, ranked.scores, ranked.valid)
        numbers = (found.confidence, iou, found.presence)
        self._rows.append((queries, *moments, *numbers, *of_clips))

    def compute(self) -> dict[str, Any]:
        """Return the fields of `Evaluation` except metrics and seconds."""
        predictions: list[Prediction] = []
        numbers = []
        for queries, *row in self.on_cpu()._rows:
            windows = windows_of(RankedMoments(*row[:3]))
            saliency = _saliency_of(*row[6:]) if self.with_saliency else [None] * len(queries)
            parts = zip(queries, windows, saliency, strict=True)
            predictions += [Prediction(*query, *answer) for query, *answer in parts]
            numbers.append(row[3:6])
        confidence, iou, presence = zip(*numbers, strict=True)
        return {
            "predictions": tuple(predictions),
            "confidence": torch.cat(confidence),
            "iou": torch.cat(iou),
            "presence": None if presence[0] is None else torch.cat(presence),
        }


def _saliency_of(
    saliency: Tensor, clip_seconds: Tensor, durations: Tensor
) -> Iterator[tuple[float, ...]]:
    """Yield the scores of each query's clips of 2 s."""
    for row, clip, duration in zip(saliency, clip_seconds, durations, strict=True):
        pieces = resample_saliency(row, float(clip), float(duration), CLIP_SECONDS)
        yield tuple(pieces.tolist())


def windows_of(ranked: RankedMoments) -> Iterator[tuple[tuple[float, float, float], ...]]:
    """Yield the moments of each query in the form of `Prediction`."""
    rows = torch.cat([ranked.moments, ranked.scores[..., None]], dim=-1)
    for row, valid in zip(rows.tolist(), ranked.valid.tolist(), strict=True):
        yield tuple((start, end, score) for start, end, score in compress(row, valid))


def of_all_processes(accelerator: "Accelerator | None", *parts: Any) -> tuple[Any, ...]:
    """Join the parts that each process collected; their shares are consecutive."""
    if accelerator is None or accelerator.num_processes == 1:
        return parts
    from accelerate.utils import gather_object

    gathered = gather_object([tuple(part.on_cpu() for part in parts)])
    return tuple(
        type(part).joined(of_processes)
        for part, of_processes in zip(parts, zip(*gathered, strict=True), strict=True)
    )
