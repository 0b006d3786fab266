"""Answers that are sets of moments: what samples are worth beside one map.

Used by `tables.py` for its tables "qvhighlights-sets" and "made-up-sets".
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from budgets import format_mean, print_head
from torch import Tensor
from torch.utils.data import DataLoader

from tmapdiff import MomentDataset, MomentLocalizer
from tmapdiff.data import (
    ActionTimelineFeatures,
    Annotation,
    AnnotationSet,
    CharadesVideo,
    MomentBatch,
    collate_moments,
)
from tmapdiff.data.sampling import generator_for, torch_generator_for
from tmapdiff.data.synthetic import made_up
from tmapdiff.maps import RankedMoments
from tmapdiff.metrics import SetMetrics
from tmapdiff.models import MapLocalizer
from tmapdiff.recipes import LocalizationData

PASSES = (1, 5, 10, 25)
ALL, SEVERAL = "all queries", "queries with several moments"
TWIN = "deterministic twin"
METRICS = ("Set-F1@0.5", "Set-F1@0.7", "Set-count-error", "Set-exact")


def ways_of(
    model: MapLocalizer, batch: MomentBatch, seed: int, positions: Sequence[int]
) -> Iterator[tuple[str, int, Tensor]]:
    """Yield how maps were made, in how many passes, and the maps: (B, cells) or (B, S, cells)."""
    given = batch.features, batch.words, batch.num_words, batch.num_clips
    if not isinstance(model, MomentLocalizer) or not model.is_generative:
        yield "one map", 1, model.predict_maps(*given)
        return
    features = model.encoder(*given)
    for steps in (1, 5):
        samples = model.draw_samples(
            features,
            PASSES[-1] // steps,
            num_clips=batch.num_clips,
            num_inference_steps=steps,
            generator=[torch_generator_for(seed, position) for position in positions],
        )
        for passes in PASSES:
            if passes < steps:
                continue
            some = samples[:, : passes // steps]
            spent = f"{passes // steps} of {steps} {'steps' if steps > 1 else 'step'}"
            yield f"{spent}, mean map", passes, some.mean(dim=1)
            if some.shape[1] > 1:
                yield f"{spent}, minimum Bayes risk", passes, some


@torch.no_grad()
def measure_sets(model: MapLocalizer, dataset: MomentDataset, seed: int) -> dict[str, Any]:
    """Read sets off a model's maps in each way, and judge them."""
    found: dict[tuple[str, int, str], SetMetrics] = defaultdict(SetMetrics)
    loader = DataLoader(dataset, 64, collate_fn=collate_moments)
    first = 0
    for batch in loader:
        positions = range(first, first + len(batch))
        first += len(batch)
        several = batch.num_moments > 1
        for way, passes, maps in ways_of(model, batch, seed, positions):
            ranked = model.read_moments(
                maps,
                batch.clip_seconds,
                grid=model.grid_of(batch.features, batch.num_clips),
                num_clips=batch.num_clips,
                durations=batch.durations,
                answer="set",
            ).ranked
            for queries, kept in ((ALL, torch.ones_like(several)), (SEVERAL, several)):
                if kept.any():
                    rows = (one[kept] for one in (ranked.moments, ranked.scores, ranked.valid))
                    truth = batch.moments[kept], batch.num_moments[kept]
                    found[way, passes, queries].update(RankedMoments(*rows), *truth)
    return {
        "sets": [
            {"way": way, "passes": passes, "queries": queries, "metrics": metrics.compute()}
            for (way, passes, queries), metrics in found.items()
        ]
    }


def print_sets(found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print how good the sets of each model are, and how much better than its twin's."""
    for queries in (ALL, SEVERAL):
        scores = {label: _scores_of(results, queries) for label, results in found.items()}
        twin = scores.get(TWIN, {}).get(("one map", 1), {})
        print(f"\nOf {queries}; `minus twin` is of {METRICS[0]}, of the same seed.\n")
        print_head(
            ["", "samples, and how they are read", "passes", "seeds", *METRICS, "minus twin"]
        )
        for label, ways in scores.items():
            for (way, passes), by_seed in ways.items():
                cells = [format_mean([one[name] for one in by_seed.values()]) for name in METRICS]
                shared = by_seed.keys() & twin.keys() if label != TWIN else ()
                more = [by_seed[seed][METRICS[0]] - twin[seed][METRICS[0]] for seed in shared]
                cells.append(format_mean(more, signed=True))
                print(f"| {label} | {way} | {passes} | {len(by_seed)} |", end=" ")
                print(*(f"{cell} |" for cell in cells))


def _scores_of(
    results: Sequence[dict[str, Any]], queries: str
) -> dict[tuple[str, int], dict[int, dict[str, float]]]:
    """Gather what each way of reading gave in each seed."""
    scores: dict[tuple[str, int], dict[int, dict[str, float]]] = defaultdict(dict)
    for result in results:
        for one in result["sets"]:
            if one["queries"] == queries:
                scores[one["way"], one["passes"]][result["seed"]] = one["metrics"]
    return scores


# What a person does in the made-up videos.
_DEEDS = ("opens", "closes", "pours", "drinks", "washes", "throws", "folds", "eats")
_SECONDS, _GAP = 60.0, (2.0, 4.0)
_COUNT_ODDS = (0.4, 0.3, 0.2, 0.1)  # of a deed that is done once, twice, ...
_INTERRUPTED = 1 / 3  # of what is done


def make_up_sets(split: str, num_videos: int) -> tuple[dict[str, CharadesVideo], AnnotationSet]:
    """Make videos of a minute in which a person does four things, each one to four times.

    Of each, these four are asked for, and one that is not done. A third of what is done is
    interrupted for two to four seconds. Whether that makes one moment or two is decided by a coin,
    for all moments of a query alike: nothing in the video tells.
    """
    videos, items = {}, []
    for number in range(num_videos):
        video_id = f"sets-{split}-{number}"
        random = generator_for(video_id)
        actions: list[tuple[int, float, float]] = []
        for place, deed in enumerate(random.permutation(len(_DEEDS))[:5].tolist()):
            halves = random.integers(2) == 1
            moments: list[tuple[float, float]] = []
            for start, end, gap in _occurrences(random) if place < 4 else ():
                parts = [(start, end)] if gap is None else [(start, gap[0]), (gap[1], end)]
                actions += [(deed, *part) for part in parts]
                moments += parts if halves else [(start, end)]
            query = f"the person {_DEEDS[deed]} something."
            items.append(Annotation(len(items), video_id, query, _SECONDS, tuple(moments)))
        videos[video_id] = CharadesVideo(_SECONDS, tuple(sorted(actions, key=lambda one: one[1])))
    return videos, made_up(f"made-up sets ({split})", items)


def _occurrences(
    random: np.random.Generator,
) -> Iterator[tuple[float, float, tuple[float, float] | None]]:
    """Draw when a deed is done, and when it is interrupted, if it is."""
    count = 1 + int(random.choice(len(_COUNT_ODDS), p=_COUNT_ODDS))
    slot = _SECONDS / count
    for index in range(count):
        length = min(float(random.uniform(5, 14)), slot - 3)
        start = round(index * slot + float(random.uniform(0, slot - 2 - length)), 2)
        gap = None
        if random.random() < _INTERRUPTED:
            pause = float(random.uniform(*_GAP))
            first = start + float(random.uniform(0.35, 0.65)) * (length - pause)
            gap = round(first, 2), round(first + pause, 2)
        yield start, round(start + length, 2), gap


def load_made_up_sets() -> LocalizationData:
    """Make up 400 videos to train on and 200 to test on, with simulated features."""
    videos, train = make_up_sets("train", 400)
    others, test = make_up_sets("test", 200)
    store = ActionTimelineFeatures(
        {**videos, **others}, num_classes=len(_DEEDS), drop=0.0, jitter=0.3, noise=1.0
    )
    return LocalizationData("made-up sets", train, test, store, "rank", True)
