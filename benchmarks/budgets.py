"""Accuracy by number of decoder passes and way of reading the map.

Used by `tables.py` for its tables "target" and "steps".
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tmapdiff import LocalizationMetrics, MomentDataset, MomentLocalizer
from tmapdiff.data import MomentBatch, collate_moments
from tmapdiff.metrics import best_ious
from tmapdiff.models import MapLocalizer

BUDGETS = (1, 2, 5, 10, 25, 50)
# Ways to read moments off a map. 0.49 is the literature's threshold; 0.55 is the best of 0.49, 0.55
# and 0.6 for Rank5@0.5 + Rank5@0.7 of a diffusion model on held-out training videos.
READINGS: dict[str, dict[str, Any]] = {
    "NMS 0.49": {"ranking": "nms", "nms_threshold": 0.49},
    "NMS 0.55": {"ranking": "nms", "nms_threshold": 0.55},
    "expected hits": {"ranking": "expected-hits"},
}
# Ways to use passes. `samples` is the default: it averages samples of one step each.
DEFAULT_RECIPE = "samples"
RECIPES = {
    DEFAULT_RECIPE: "mean of as many samples of one step",
    "ddim": "one sample, as many DDIM steps",
    "fresh noise": "control: as ddim, the noise drawn anew at each step",
    "frozen t": "control: as fresh noise, all steps at the first timestep",
}
# Each number of steps is a run of its own, so controls stop earlier; samples share one run.
LARGEST_CONTROL = 25


def maps_of(
    recipe: str, model: MomentLocalizer, features: Sequence[Tensor], seeds: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the maps after each budget of passes."""

    def seeded() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    if recipe == "samples":
        generators, total = seeded(), torch.zeros(())
        for passes in range(1, BUDGETS[-1] + 1):
            total = total + model.sample_maps(features, num_inference_steps=1, generator=generators)
            if passes in BUDGETS:
                yield passes, total / passes
    elif recipe == "ddim":
        for passes in BUDGETS:
            options = {"num_inference_steps": passes, "generator": seeded()}
            yield passes, model.sample_maps(features, **options)
    elif recipe == "frozen t":
        timesteps = [len(model.scheduler) - 1] * BUDGETS[-1]
        for passes, maps in enumerate(_renewed(model, features, seeded(), timesteps), start=1):
            if passes in BUDGETS:
                yield passes, maps
    else:
        for passes in (one for one in BUDGETS if one <= LARGEST_CONTROL):
            model.scheduler.set_timesteps(passes)
            *_, maps = _renewed(model, features, seeded(), model.scheduler.timesteps.tolist())
            yield passes, maps


def _renewed(
    model: MomentLocalizer,
    features: Sequence[Tensor],
    generators: Sequence[torch.Generator],
    timesteps: Sequence[int],
) -> Iterator[Tensor]:
    """Denoise at given timesteps, adding fresh noise to the clean maps at each step."""
    scheduler, device = model.scheduler, features[0].device
    clean: Tensor | None = None
    for timestep in timesteps:
        now = torch.full((len(generators),), timestep, device=device)
        noise = torch.stack([torch.randn(model.grid.num_cells, generator=g) for g in generators])
        noisy = noise.to(device)
        if clean is not None:
            noisy = scheduler.add_noise(scheduler.to_signal(clean), noisy, now)
        scores = model.predict_scores(noisy, now, features).float()
        clean = model.objective.activation(scores).clamp(0, 1)
        clean = clean.masked_fill(~model.grid.packed_mask(device), 0)
        yield clean


class _Reader:
    """Reads maps in each way, and collects metrics."""

    def __init__(self, model: MapLocalizer) -> None:
        self.model = model
        self.metrics: dict[tuple[str, int, str], LocalizationMetrics] = defaultdict(
            LocalizationMetrics
        )
        self.seconds: dict[tuple[str, int], float] = defaultdict(float)
        # Confidence and IoU of the default's answers.
        self.certainty: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def read(self, recipe: str, passes: int, maps: Tensor, batch: MomentBatch) -> None:
        for reading, options in READINGS.items():
            ranked = self.model.read_moments(
                maps, batch.clip_seconds, durations=batch.durations, **options
            ).ranked
            self.metrics[recipe, passes, reading].update(ranked, batch.moments, batch.num_moments)
            if reading == "expected hits" and recipe == DEFAULT_RECIPE and passes in (1, 10):
                iou = best_ious(ranked.moments[:, :1], batch.moments, batch.num_moments)[:, 0]
                certainty = self.certainty[f"{recipe}, {passes} passes"]
                certainty["confidence"] += [round(one, 5) for one in ranked.scores[:, 0].tolist()]
                certainty["iou"] += [round(one, 5) for one in iou.tolist()]

    def result(self) -> dict[str, Any]:
        budgets = [
            {
                "recipe": recipe,
                "passes": passes,
                "reading": reading,
                "seconds": self.seconds[recipe, passes],
                "metrics": metrics.compute(),
            }
            for (recipe, passes, reading), metrics in self.metrics.items()
        ]
        return {"budgets": budgets, "certainty": self.certainty}


@torch.no_grad()
def measure_budgets(model: MapLocalizer, dataset: MomentDataset, seed: int) -> dict[str, Any]:
    """Measure each recipe, number of passes and reading, and the seconds of the passes.

    A generative model encodes each query once, outside the measured time. The seconds of other
    models include encoding.
    """
    reader, first = _Reader(model), 0
    for batch in DataLoader(dataset, batch_size=64, collate_fn=collate_moments):
        batch = batch.to(model.device)
        # Each query has its own noise, as in `evaluate`.
        seeds = [seed * 1_000_000_007 + first + row for row in range(len(batch))]
        first += len(batch)
        words = (batch.features, batch.words, batch.num_words)
        if not isinstance(model, MomentLocalizer) or not model.is_generative:
            began = _now(model)
            maps = model.predict_maps(*words)
            reader.seconds[DEFAULT_RECIPE, 1] += _now(model) - began
            reader.read(DEFAULT_RECIPE, 1, maps, batch)
            continue
        features = model.encoder(*words)
        for recipe in RECIPES:
            began, spent = _now(model), 0.0
            for passes, maps in maps_of(recipe, model, features, seeds):
                # Samples share one run; each number of steps is a run of its own.
                seconds = _now(model) - began
                spent = spent + seconds if recipe in ("samples", "frozen t") else seconds
                reader.seconds[recipe, passes] += spent
                reader.read(recipe, passes, maps, batch)
                began = _now(model)
    return reader.result()


def _now(model: MapLocalizer) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def print_target(found: dict[str, list[dict[str, Any]]], metrics: Sequence[str]) -> None:
    """Print each model and reading, and the differences between diffusion and the others."""
    ways = [(passes, reading) for passes in (1, 10) for reading in READINGS]
    found = dict(found)
    print_head(["", "passes", "read by", "seeds", *metrics])
    for label, results in found.items():
        for passes, reading in ways:
            entries = [_entry(one, DEFAULT_RECIPE, passes, reading) for one in results]
            rows = [entry.get("metrics") for entry in entries]
            _print_row(f"{label} | {passes} | {reading}", rows, metrics)
    print("\nDifferences of the same seed, diffusion read by expected hits, minus\n")
    print_head(["", "its passes", "read by", "seeds", *metrics])
    diffusion = {one["seed"]: one for one in found.pop("diffusion", [])}
    for label, others in found.items():
        for passes, reading in ways:
            rows = []
            for other in others:
                one = diffusion.get(other["seed"], {"budgets": []})
                ours = _entry(one, DEFAULT_RECIPE, passes, "expected hits").get("metrics")
                theirs = _entry(other, DEFAULT_RECIPE, 1, reading).get("metrics")
                if ours and theirs:
                    rows.append({name: ours[name] - theirs[name] for name in metrics})
            _print_row(f"{label} | {passes} | {reading}", rows, metrics, signed=True)


def print_steps(results: list[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Print the metrics of each number of passes and way to use them."""
    for recipe, meaning in RECIPES.items():
        print(f"\n`{recipe}`: {meaning}.\n")
        print_head(["passes", "read by", "seconds", "seeds", *metrics])
        for reading in ("NMS 0.49", "expected hits"):
            for passes in BUDGETS:
                found = [_entry(one, recipe, passes, reading) for one in results]
                spent = format_mean([entry["seconds"] for entry in found if entry])
                rows = [entry.get("metrics") for entry in found]
                _print_row(f"{passes} | {reading} | {spent}", rows, metrics)


def _entry(result: dict[str, Any], recipe: str, passes: int, reading: str) -> dict[str, Any]:
    """Return a measurement of a run; {} if it is missing."""
    wanted = {"recipe": recipe, "passes": passes, "reading": reading}.items()
    return next((entry for entry in result["budgets"] if wanted <= entry.items()), {})


def print_head(names: Sequence[str]) -> None:
    print("|", *(f"{name} |" for name in names))
    print("|" + " --- |" * len(names))


def _print_row(
    start: str,
    rows: Sequence[dict[str, float] | None],
    metrics: Sequence[str],
    signed: bool = False,
) -> None:
    there = [row for row in rows if row is not None]
    if there:
        cells = [format_mean([row[name] for row in there], signed) for name in metrics]
        print(f"| {start} | {len(there)} |", *(f"{cell} |" for cell in cells))


def format_mean(values: Sequence[float], signed: bool = False) -> str:
    """Format a mean and, for several values, their standard deviation."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{'+' if signed else ''}.1f}{spread}"
