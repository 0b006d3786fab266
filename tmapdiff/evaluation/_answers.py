"""A localizer's answers to the queries of a data set, batch by batch."""

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from typing_extensions import Self

from tmapdiff._core.checks import check_int, message
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
    accelerator: "Accelerator | None",
    **options: Any,
) -> Iterator[tuple[MomentBatch, Localization]]:
    """Localize this process's share of a data set; see `evaluate`."""
    check_int("evaluate", "batch_size", batch_size, at_least=1)
    check_int("evaluate", "seed", seed, at_least=0)
    count = check_int("evaluate", "queries", len(dataset), at_least=1)  # type: ignore[arg-type]
    check_fixed("evaluate", dataset)
    model = model.evaluation_view()  # once for all batches
    first = 0
    if accelerator is not None:
        share = share_of(count, accelerator.num_processes, accelerator.process_index)
        dataset, first = Subset(dataset, share), share.start
    for batch in whole_batches(dataset, batch_size):
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
        options.pop("eta", None)
        for name in ("num_inference_steps", "num_samples"):
            if (value := options.pop(name, None)) not in (None, 1):
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


def whole_batches(dataset: Dataset[Any], batch_size: int) -> Iterator[MomentBatch]:
    for batch in batches(dataset, batch_size):
        check_whole(batch)
        yield batch


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


def batches(dataset: Dataset[Any], batch_size: int) -> DataLoader[Any]:
    # Without its own generator, the loader would draw from torch's, and an evaluation between
    # epochs would change later training noise.
    return DataLoader(
        dataset, batch_size=batch_size, collate_fn=collate_moments, generator=torch.Generator()
    )


class Answers:
    """Collects answers, with the confidence and IoU of each query's best moment.

    IoUs of queries without a moment are NaN. It is updated batch by batch, like metrics, and does
    not wait for the device until the end.
    """

    def __init__(self, with_saliency: bool = False) -> None:
        self.with_saliency = with_saliency
        self.queries: list[tuple[int | str, str, str]] = []  # (id, query, video)
        self.ranked: list[RankedMoments] = []
        self.confidence: list[Tensor] = []
        self.iou: list[Tensor] = []
        self.presence: list[Tensor | None] = []
        self.saliency: list[tuple[Tensor, ...]] = []  # (saliency, clip seconds, durations)

    def update(
        self,
        batch: MomentBatch,
        found: Localization,
        truth: Tensor,
        num_moments: Tensor | None = None,
    ) -> None:
        self.queries += zip(batch.qids, batch.queries, batch.video_ids, strict=True)
        self.ranked.append(found.ranked)
        self.confidence.append(found.confidence)
        best = best_ious(found.ranked.moments[:, :1], truth, num_moments)[:, 0]
        self.iou.append(best.masked_fill(batch.num_moments < 1, torch.nan))
        self.presence.append(found.presence)
        if self.with_saliency:
            self.saliency.append((found.saliency, batch.clip_seconds, batch.durations))

    def on_cpu(self) -> Self:
        copy = type(self)()
        copy.queries = self.queries
        copy.ranked = [
            RankedMoments(ranked.moments.cpu(), ranked.scores.cpu(), ranked.valid.cpu())
            for ranked in self.ranked
        ]
        copy.confidence = [scores.cpu() for scores in self.confidence]
        copy.iou = [ious.cpu() for ious in self.iou]
        copy.presence = [None if one is None else one.cpu() for one in self.presence]
        copy.saliency = [tuple(one.cpu() for one in some) for some in self.saliency]
        return copy

    @classmethod
    def joined(cls, parts: Iterable["Answers"]) -> Self:
        """Join the answers of several processes, in their order."""
        whole = cls()
        for part in parts:
            whole.queries += part.queries
            whole.ranked += part.ranked
            whole.confidence += part.confidence
            whole.iou += part.iou
            whole.presence += part.presence
            whole.saliency += part.saliency
        return whole

    def compute(self, began: float) -> dict[str, Any]:
        """Return the fields of `Evaluation` except the metrics; seconds are since `began`."""
        windows = chain.from_iterable(map(windows_of, self.ranked))
        predictions = tuple(
            Prediction(*query, of_query, saliency)
            for query, of_query, saliency in zip(
                self.queries, windows, self._saliency(), strict=True
            )
        )
        presence = [one for one in self.presence if one is not None]
        return {
            "predictions": predictions,
            "seconds": time.perf_counter() - began,
            "confidence": torch.cat(self.confidence).cpu(),
            "iou": torch.cat(self.iou).cpu(),
            "presence": torch.cat(presence).cpu() if presence else None,
        }

    def _saliency(self) -> Iterator[tuple[float, ...] | None]:
        """Yield the scores of each query's clips of 2 s, or None."""
        if not self.saliency:
            yield from [None] * len(self.queries)
        for some in self.saliency:
            for row, clip, duration in zip(*(one.cpu() for one in some), strict=True):
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
