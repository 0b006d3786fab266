"""Batches of a data set, and what a localizer answers to them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from tmapdiff._core.checks import check_int
from tmapdiff.data import (
    MomentBatch,
    collate_moments,
)
from tmapdiff.data.sampling import share_of, torch_generator_for
from tmapdiff.errors import ArgumentError
from tmapdiff.models import Localization, MapLocalizer

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class SamplingOptions:
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


def localized(
    model: MapLocalizer,
    dataset: Dataset[Any],
    batch_size: int,
    sampling: "SamplingOptions",
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
    for batch in whole_batches(dataset, batch_size):
        positions = range(first, first + len(batch))
        first += len(batch)
        batch = batch.to(model.device)
        yield (
            batch,
            localize_batch(model, batch, {**options, **sampling.arguments(model, positions)}),
        )


def localize_batch(
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


def whole_batches(dataset: Dataset[Any], batch_size: int) -> Iterator[MomentBatch]:
    for batch in batches(dataset, batch_size):
        check_whole(batch)
        yield batch


def check_whole(batch: MomentBatch) -> None:
    # A window is drawn around the annotated moment: it would give the answer away.
    if batch.has_windows:
        raise ArgumentError(
            "evaluate: expected whole videos, got windows of them. "
            "Pass whole_videos=True to MomentDataset."
        )


def batches(dataset: Dataset[Any], batch_size: int) -> DataLoader[Any]:
    # With a generator of its own: the loader would draw from torch's, and an evaluation between two
    # epochs would change the noise of the second.
    return DataLoader(
        dataset, batch_size=batch_size, collate_fn=collate_moments, generator=torch.Generator()
    )
