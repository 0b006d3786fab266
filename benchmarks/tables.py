"""Train and print the paper's tables, each row on equal terms, over several seeds.

    python benchmarks/tables.py --table 3 --data path/to/charades
    python benchmarks/tables.py --table 2 --data path/to/didemo --features average_fc7.h5
    python benchmarks/tables.py --table qvhighlights --data path/to/folder --preset aligned
    python benchmarks/tables.py --table target steps --data path/to/charades --preset nano_tuned

Table 1 compares methods on Charades-STA and 2 on DiDeMo, 3 compares decoders, 4 objectives, 5 the
places of stylization (arXiv 2401.08232); they read maps by NMS and take a preset's sizes only.
Table "target" asks what diffusion is worth, beside the baseline and the same network as a
regressor, each read in the same ways; "steps" what further passes of the decoder are worth, and
shows two controls. All rows share features, grid, encoder, epochs, optimizer and seeds. Every run
leaves a JSON file; runs that have one are not repeated (a folder of results is of one preset, split
and limit), and one that was stopped, however hard, goes on from its last checkpoint. Without
features, Charades' are simulated from its action annotations, and DiDeMo's videos are made up.

Table "qvhighlights" is of real videos, described by captions that a model wrote of their frames.
Its folder holds the annotations of val, to train on, and of test; `captions.h5`, a sentence
embedding of each clip's caption; and `queries.npz`, with `texts` and their `embeddings`.
"qvhighlights-similarity" has the rows that need no training. "qvhighlights-parts" compares parts of
the aligned encoder, as a deterministic twin, and "qvhighlights-curve" shares of the training
videos. "qvhighlights-sets" judges answers that are sets of moments, "qvhighlights-sampling" ways to
train for that, and "qvhighlights-presence" whether models tell that a sentence is of another video.
"made-up-sets" needs no files. "lengths" trains on the shorter half of Charades' moments and tests
on the longer one, and the reverse.

    python benchmarks/tables.py --table target --data path/to/charades --preset nano_tuned --tune 6
    python benchmarks/tables.py --table target --data path/to/charades --preset nano_tuned \
        --tuned FILE

`--tune` gives each trained row the same number of trials on held-out training videos: the preset's
settings, then draws from SPACE or QVHIGHLIGHTS_SPACE, the same for all rows. The best of each, by
the sum of the first two metrics in one pass, goes to `tuned.json` in the results; `--tuned` trains
with them.
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, get_args

import numpy as np
import torch
from budgets import format_mean, measure_budgets, print_head, print_steps, print_target
from sets import load_made_up_sets, measure_sets, print_sets
from torch.utils.data import DataLoader
from typing_extensions import override

from tmapdiff import PRESETS, TmapdiffError, Trainer
from tmapdiff._core.checks import message
from tmapdiff._core.files import remove_folder, written_beside
from tmapdiff.data import AnnotationSet, add_negatives, collate_moments
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation import evaluate, fit_presence
from tmapdiff.models import SimilarityLocalizer
from tmapdiff.presets import DECODERS, Preset
from tmapdiff.provenance import describe_run
from tmapdiff.recipes import (
    Control,
    LocalizationData,
    ModelKind,
    Protocol,
    Recipe,
    evaluate_control,
)

# What `--tune` draws from, by data set.
SPACE: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1e-3, 2e-3, 4e-3),
    "epochs": (6, 9, 12),
    "dropout": (0.1, 0.3, 0.5),
    "channels": (64, 128, 192),
}
QVHIGHLIGHTS_SPACE: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1.5e-3, 3e-3, 6e-3),
    "epochs": (8, 12, 16),
    "dropout": (0.1, 0.2, 0.3),
    "channels": (32, 64),
}
ENCODER_SETTINGS = ("dropout", "channels")  # the others are fields of `TrainingConfig`
METRICS = ("Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU")
QVHIGHLIGHTS, SIMILARITY = "qvhighlights", "qvhighlights-similarity"
PARTS, CURVE = "qvhighlights-parts", "qvhighlights-curve"
SETS, SAMPLING = "qvhighlights-sets", "qvhighlights-sampling"
PRESENCE, MADE_UP_SETS = "qvhighlights-presence", "made-up-sets"
TARGET, STEPS, LENGTHS = "target", "steps", "lengths"
OBJECTIVES = ("bce-rescaled", "bce-full", "mse-full", "mse-rescaled", "l1-full", "huber-full")
QVHIGHLIGHTS_METRICS = (
    *("MR-full-R1@0.5", "MR-full-R1@0.7", "Rank5@0.5", "Rank5@0.7", "MR-full-mAP"),
    "HL-min-VeryGood-Hit1",
)
PRESENCE_METRICS = tuple(f"Presence-{one}" for one in ("AUROC", "Accuracy", "ECE", "AURC"))
DIDEMO_METRICS = ("Rank@1", "Rank@5", "mIoU", *METRICS[:4])


@dataclass(frozen=True)
class Row:
    """A row of a table: which model, changed how, and what the paper says of it."""

    label: str  # its name in the table
    model: ModelKind | Control = "diffusion"
    # Fields of the decoder that differ from the preset's.
    decoder: dict[str, Any] = field(default_factory=dict)
    objective: str = "mse-full"  # the training objective
    # Whether the run measures budgets of decoder passes and ways of reading maps (`budgets.py`),
    # rather than numbers of steps.
    budgets: bool = False
    # The paper's Rank1@0.5, Rank1@0.7, Rank5@0.5 and Rank5@0.7, where known.
    paper: tuple[float, ...] = ()
    # Of what is tuned, what differs from the preset.
    settings: dict[str, Any] = field(default_factory=dict)
    # Fields of the encoder that differ from the preset's.
    encoder: dict[str, Any] = field(default_factory=dict)
    # Whether the few numbers of `similarity` are fitted.
    fitted: bool = True
    # Whether the run reads sets of moments, and judges them (`sets.py`).
    sets: bool = False
    # Share of the training queries that are asked of other videos, to tell "not in this video".
    negatives: float = 0.0
    # Which half of the moments it is trained on, `short` or `long`; it is tested on the other half.
    lengths: str | None = None
    # Fields of scheduler and localizer that differ from the preset's, and options of `evaluate`.
    scheduler: dict[str, Any] = field(default_factory=dict)
    localizer: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)
    # Share of the training videos that it is trained on, in as many steps as on all of them.
    share: float = 1.0

    @property
    def is_trained(self) -> bool:
        """Whether it is trained, and can be tuned: a model, and not of a few fitted numbers."""
        return self.model in get_args(ModelKind) and self.model != "similarity"

    @property
    def name(self) -> str:
        """Names the row's runs; rows of two tables that are the same run share it."""
        if not self.fitted:
            return f"{self.model}-as-made"
        own = {"share": self.share, "negatives": self.negatives, "lengths": self.lengths}
        own = {name: one for name, one in own.items() if one != getattr(Row, name)}
        parts = self.decoder | self.encoder | self.scheduler | self.localizer | self.reading
        changes = sorted((parts | self.settings | own).items())
        changed = [
            f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in changes
        ]
        measured = ["budgets"] if self.budgets else ["sets"] if self.sets else []
        objective = [self.objective] if self.is_trained else []
        return "_".join([self.model, *objective, *changed, *measured])


def _twin_with(label: str, *parts: str) -> Row:
    encoder = {"aligned_parts": list(parts), "map_layer": "max-pool"} if parts else {}
    return Row(label, model="deterministic", objective="mse-rescaled", encoder=encoder)


def _three_models(**changes: Any) -> list[Row]:
    return [
        Row("MS-2D-TAN", model="ms2dtan", objective="bce-rescaled", **changes),
        Row("deterministic twin", model="deterministic", objective="mse-rescaled", **changes),
        Row("diffusion", objective="mse-rescaled", **changes),
    ]


def _diffusion(change: str = "", **fields: Any) -> Row:
    label = ", ".join(["diffusion", change]) if change else "diffusion"
    return Row(label, objective="mse-rescaled", sets=True, **fields)


_BY_SIMILARITY = [
    Row("similarity, nothing fitted", model="similarity", fitted=False),
    Row("similarity, numbers fitted", model="similarity"),
]

_FOR_HALF: dict[str, Any] = {
    "label": "similarity, numbers fitted, for IoU above 0.5",
    "localizer": {"target_power": 12.0},
    "reading": {"hit_thresholds": [0.5]},
}

# What may keep samples from being all alike.
_LOUD: dict[str, Any] = {"scheduler": {"signal_scale": 1.0}}
_UNIFORM: dict[str, Any] = {"localizer": {"timestep_power": 0.0}}

# Of the paper's own numbers, those of Table 1 on I3D features are known here: MS-2D-TAN's from its
# public README, the paper's as differences to them. They are of real features: compare the order.
TABLES = {
    "1": [
        Row("best constant answer", model="prior"),
        Row("MS-2D-TAN", model="ms2dtan", objective="bce-rescaled", paper=(60.1, 37.4, 89.1, 59.2)),
        Row("deterministic twin", model="deterministic"),
        Row("deterministic twin, bce-rescaled", model="deterministic", objective="bce-rescaled"),
        Row("diffusion", paper=(60.3, 40.8, 79.7, 63.0)),
        Row("oracle (the grid's bound)", model="oracle"),
    ],
    "2": [
        Row("frequency prior", model="prior"),
        Row("MS-2D-TAN", model="ms2dtan", objective="bce-rescaled"),
        Row("deterministic twin", model="deterministic"),
        Row("diffusion"),
    ],
    "3": [
        *(Row(name, decoder=DECODERS[name]) for name in DECODERS if name.startswith("transformer")),
        Row("cnn-mul, H * F", decoder={"conditioning": "multiply"}),
        Row("cnn-mul, H * (1 + F)", decoder={"conditioning": "multiply-residual"}),
        Row("cnn-mul, H * sigmoid(F)", decoder={"conditioning": "multiply-gated"}),
        Row("cnn-concat"),
    ],
    "4": [Row(name, objective=name) for name in OBJECTIVES],
    "5": [
        Row("none", decoder={"stylization": "none"}),
        Row("fusion", decoder={"stylization": "fusion"}),
        Row("conv", decoder={"stylization": "conv"}),
        Row("both"),
    ],
    TARGET: _three_models(budgets=True),
    STEPS: [Row("diffusion", objective="mse-rescaled", budgets=True)],
    SIMILARITY: [*_BY_SIMILARITY, replace(_BY_SIMILARITY[1], **_FOR_HALF)],
    QVHIGHLIGHTS: [
        Row("best constant answer", model="prior"),
        *_BY_SIMILARITY,
        *_three_models(),
        Row("oracle (the grid's bound)", model="oracle"),
    ],
    PARTS: [
        _twin_with("learned", "learned"),
        _twin_with("product", "product"),
        _twin_with("contrasts", "sentence"),
        _twin_with("sequence", "sequence"),
        _twin_with("contrasts, sequence (the preset)"),
        _twin_with("... and the product", "sentence", "sequence", "product"),
        _twin_with("... and what is learned", "sentence", "sequence", "learned"),
    ],
    SETS: _three_models(sets=True),
    PRESENCE: [*_three_models(negatives=0.2), Row("similarity", model="similarity", negatives=0.2)],
    MADE_UP_SETS: [*_three_models(sets=True), _diffusion("signal scale 1", **_LOUD)],
    SAMPLING: [
        _diffusion(),
        _diffusion("signal scale 1", **_LOUD),
        _diffusion("uniform timesteps", **_UNIFORM),
        _diffusion("both", **_LOUD, **_UNIFORM),
    ],
    LENGTHS: [
        replace(row, label=f"{row.label}, trained on {half} moments", lengths=half)
        for half in ("short", "long")
        for row in _three_models()
    ],
    CURVE: [
        replace(_twin_with(f"{share:.0%} of the training videos"), share=share)
        for share in (0.25, 0.5, 1.0)
    ],
}


@dataclass(frozen=True)
class Terms:
    """What all rows share."""

    results: Path  # folder of the JSON files
    scratch: Path  # folder of unfinished runs
    dataset: str = "charades-sta"  # or `didemo` or `qvhighlights`
    data: Path | None = None  # folder of the annotation files
    features: str = "timeline"  # `timeline`, an HDF5 file, or a folder.
    preset: str = "nano"  # the models' size and their training
    epochs: int | None = None  # Passes over the training set. Defaults to the preset's.
    steps: tuple[int, ...] = (1, 2, 5)  # numbers of denoising steps to evaluate with
    # Share of the training videos to evaluate on instead of the test set.
    holdout: float | None = None
    limit: int | None = None  # Pairs to train on and to test on. Defaults to all.
    device: str | None = None  # `cpu`. Defaults to whatever accelerate chooses.
    threads: int = 1  # threads of torch in each process
    tuning: bool = False  # whether one pass is measured of rows that measure budgets

    @property
    def protocol(self) -> Protocol:
        """How answers are judged."""
        return "rank" if self.dataset in ("charades-sta", MADE_UP_SETS) else self.dataset

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the table's columns."""
        others = {"didemo": DIDEMO_METRICS, QVHIGHLIGHTS: QVHIGHLIGHTS_METRICS}
        return others.get(self.dataset, METRICS)

    @property
    def space(self) -> dict[str, tuple[Any, ...]]:
        """Settings that are tuned."""
        return QVHIGHLIGHTS_SPACE if self.dataset == QVHIGHLIGHTS else SPACE

    def result(self, row: Row, seed: int) -> Path:
        """Where a run's JSON file is."""
        return self.results / f"{row.name}-seed{seed}.json"

    def check(self, result: Path) -> None:
        """Raise ArgumentError if a JSON file is of a run on other terms: of another split, say."""
        found = json.loads(result.read_text())
        for name, own in self.recorded.items():
            if found.get(name, own) != own:
                expected, hint = f"{name} = {own} of all results", "Name another --results."
                raise ArgumentError(message(f"tables: {result}", expected, found[name], hint))

    @property
    def recorded(self) -> dict[str, Any]:
        """What each JSON file says of the terms, and must be alike in a folder."""
        return {
            "preset": self.preset,
            "held_out_training_videos": self.holdout,
            "limit": self.limit,
            "epochs": self.epochs,
        }

    def unfinished(self, row: Row, seed: int) -> Path:
        """Where a run is until it has a JSON file."""
        return self.scratch / self.results.name / f"{row.name}-seed{seed}"

    def recipe(self, row: Row, seed: int) -> "RowRecipe":
        """How a row is made and trained; controls have a recipe for the sake of their grid."""
        epochs = self.epochs or PRESETS[self.preset].training.epochs
        tuned = {name: one for name, one in row.settings.items() if name not in ENCODER_SETTINGS}
        training = {"epochs": round(epochs / row.share), "negatives": row.negatives, **tuned}
        return RowRecipe(
            self.preset,
            "diffusion" if row.model in get_args(Control) else row.model,
            objective=None if row.model == "similarity" else row.objective,
            seed=seed,
            training={**training, "checkpoint_minutes": 1.0, "keep_checkpoints": 2},
            row=row,
        )


@dataclass(frozen=True)
class RowRecipe(Recipe):
    """A recipe with a row's decoder; for the paper's tables, with the paper's settings only."""

    row: Row = Row("")

    @override
    def preset_for(self, protocol: Protocol) -> Preset:
        preset = super().preset_for(protocol)
        row = self.row
        if not (row.budgets or row.sets or row.lengths or protocol == QVHIGHLIGHTS):
            preset = preset.as_published()
        settings = row.settings
        encoder = {name: settings[name] for name in ENCODER_SETTINGS if name in settings}
        encoder |= row.encoder
        return replace(
            preset,
            encoder={**preset.encoder, **encoder},
            decoder={**preset.decoder, **row.decoder},
            scheduler={**preset.scheduler, **row.scheduler},
            localizer={**preset.localizer, **row.localizer},
        )


@lru_cache(maxsize=1)
def load_data(terms: Terms) -> LocalizationData:
    """Load queries and features; training queries of DiDeMo are of all annotators."""
    if terms.dataset == "didemo" and terms.features == "timeline":
        data = LocalizationData.make_up("didemo")
    elif terms.dataset == MADE_UP_SETS:
        data = load_made_up_sets()
    elif terms.data is None:
        raise ArgumentError(f"tables: expected --data, the folder of {terms.dataset}, got none.")
    elif terms.dataset == QVHIGHLIGHTS:
        data = load_qvhighlights(terms.data)
    else:
        data = LocalizationData.load(terms.data, features=[terms.features], format=terms.dataset)
    if terms.holdout is not None:
        data = data.hold_out(terms.holdout)
    return data.with_features_only().limit(terms.limit)


def load_qvhighlights(folder: Path) -> LocalizationData:
    """Load queries of val and test, embeddings of captions, and those of the sentences."""
    data = LocalizationData.load(
        folder / "highlight_val_release.jsonl",
        folder / "highlight_test_with_gt.jsonl",
        features=[folder / "captions.h5"],
        seconds_per_feature=2.0,
        protocol="qvhighlights",
    )
    with np.load(folder / "queries.npz") as file:
        vectors = torch.from_numpy(file["embeddings"]).float()[:, None]
        # Spaces as the loader of annotations leaves them.
        sentences = (" ".join(text.split()) for text in file["texts"])
        words = dict(zip(sentences, vectors, strict=True))
    return replace(data, word_features=words)


def split_lengths(data: LocalizationData, trained_on: str) -> LocalizationData:
    """Keep one half of the moments to train on, and the other to test on, split by the median."""

    def lengths(items: AnnotationSet) -> list[float]:
        return [max(end - start for start, end in item.moments) for item in items]

    middle = statistics.median(lengths(data.train))

    def half(items: AnnotationSet, *, short: bool) -> AnnotationSet:
        each = zip(items, lengths(items), strict=True)
        kept = [item for item, length in each if (length <= middle) == short]
        return AnnotationSet(kept, items.report)

    short = trained_on == "short"
    train, test = half(data.train, short=short), half(data.test, short=not short)
    return replace(data, train=train, test=test)


def dataset_of(table: str) -> str:
    if table.startswith(QVHIGHLIGHTS):
        return QVHIGHLIGHTS
    return {"2": "didemo", MADE_UP_SETS: MADE_UP_SETS}.get(table, "charades-sta")


def run(row: Row, seed: int, terms: Terms) -> dict[str, Any]:
    """Train and evaluate one row with one seed; the result is also written as JSON."""
    torch.set_num_threads(terms.threads)
    began = time.perf_counter()
    data, recipe = load_data(terms), terms.recipe(row, seed)
    if row.share < 1:
        data = replace(data, train=data.train.split_videos(1 - row.share)[0])
    if row.lengths:
        data = split_lengths(data, row.lengths)
    held = data.hold_out(0.1) if row.negatives else None
    if held is not None:
        data = replace(data, train=held.train)
    result: dict[str, Any] = {"row": asdict(row), "seed": seed, **terms.recorded}
    if row.model in get_args(Control):
        result["metrics"] = {"0": evaluate_control(row.model, recipe, data).rows[row.model]}
    else:
        result |= _train(recipe, terms, data, held)
    result |= {
        "features": data.store.description,
        "trained_on": f"{len(data.train):,} pairs",
        "evaluated_on": f"{len(data.test):,} pairs",
        "seconds": time.perf_counter() - began,
        **describe_run(str(Path(__file__).parent)),
    }
    with written_beside(terms.result(row, seed), durable=True) as new:
        new.write_text(to_json(result) + "\n")
    remove_folder(terms.unfinished(row, seed))  # not before
    return result


def to_json(result: dict[str, Any]) -> str:
    """Write a result to be read and compared: indented, but lists of numbers in one line each."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)


def _train(
    recipe: RowRecipe, terms: Terms, data: LocalizationData, held: LocalizationData | None
) -> dict[str, Any]:
    row, protocol = recipe.row, data.protocol
    options = recipe.set_options(data)
    train_set, test_set = data.make_train_set(**options), data.make_test_set(**options)
    width, text_channels = data.store.feature_dim, data.text_channels
    model = recipe.build(options["vocabulary"], width, protocol, text_channels=text_channels)
    config = recipe.training_config(data)
    began = time.perf_counter()
    if isinstance(model, SimilarityLocalizer):
        averaged, epochs = model.eval(), 0
        if row.fitted:
            model.fit(DataLoader(train_set, 64, collate_fn=collate_moments))
    else:
        trainer = Trainer(
            model,
            train_set,
            config,
            terms.unfinished(row, recipe.seed),
            device=terms.device,
            show_progress=False,
        )
        epochs = config.epochs - trainer.resume().progress.epoch
        trainer.train()
        averaged = trainer.ema_model.eval()
    training_seconds = time.perf_counter() - began
    if held is not None:
        asked = replace(held, test=add_negatives(held.test)).make_test_set(**options)
        fit_presence(averaged, asked, seed=recipe.seed)
    result: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "training": asdict(config),
        "seconds_an_epoch": training_seconds / max(epochs, 1),
    }
    if row.budgets and not terms.tuning:
        return result | measure_budgets(averaged, test_set, recipe.seed)
    if row.sets and not terms.tuning:
        result |= measure_sets(averaged, test_set, recipe.seed)
    judged: Any = {"seed": recipe.seed, "protocol": protocol, **row.reading}
    found = {
        str(steps): evaluate(averaged, test_set, num_inference_steps=steps, **judged)
        for steps in (terms.steps if averaged.is_generative else (1,))
    }
    metrics = {steps: dict(one.metrics) for steps, one in found.items()}
    if row.negatives:
        asked = replace(data, test=add_negatives(data.test)).make_test_set(**options)
        told = evaluate(averaged, asked, **judged | {"protocol": "rank"}).metrics
        metrics["1"] |= {name: one for name, one in told.items() if name.startswith("Presence-")}
    return result | {
        "metrics": metrics,
        "queries_per_second": {steps: one.queries_per_second for steps, one in found.items()},
    }


def trials_of(row: Row, count: int, terms: Terms) -> list[Row]:
    """Give a row the preset's settings, then `count - 1` draws from the data set's space."""
    # Of each setting, all values before one comes again: a Latin hypercube.
    columns = []
    for name, values in terms.space.items():
        shuffler = random.Random(name)
        columns.append([one for _ in range(count) for one in shuffler.sample(values, len(values))])
    drawn = [dict(zip(terms.space, values, strict=True)) for values in zip(*columns, strict=False)]
    return [replace(row, settings=settings) for settings in ({}, *drawn[: count - 1])]


def choose(rows: Sequence[Row], count: int, terms: Terms) -> None:
    """Print what the trials of each row gave, and write the best settings to `tuned.json`."""
    best = {}
    print_head(["", *terms.space, *terms.metrics])
    for row in rows:
        scores = {}
        for trial in trials_of(row, count, terms):
            metrics = json.loads(terms.result(trial, 0).read_text())["metrics"]["1"]
            scores[trial.name] = sum(metrics[name] for name in terms.metrics[:2]), trial.settings
            settings = [f"{trial.settings.get(name, '-')}" for name in terms.space]
            print("|", *(f"{cell} |" for cell in [row.label, *settings]), end=" ")
            print(*(f"{metrics[name]:.1f} |" for name in terms.metrics))
        best[row.name] = max(scores.values(), key=lambda one: one[0])[1]
    (terms.results / "tuned.json").write_text(json.dumps(best, indent=1) + "\n")


def tuned_row(row: Row, settings: Mapping[str, Any], file: Path) -> Row:
    """Give a row the settings that a file has for it; only what is not trained has none."""
    if not row.is_trained:
        return row
    if row.name not in settings:
        raise ArgumentError(message(f"tables: {file}", f"settings of {row.name}", "none"))
    return replace(row, settings=settings[row.name])


def print_table(table: str, rows: Sequence[Row], terms: Terms, seeds: range) -> None:
    """Print a table as Markdown from the JSON files that are there."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        paths = (terms.result(row, seed) for seed in seeds)
        found[row.label] = [json.loads(path.read_text()) for path in paths if path.exists()]
    complete = [result for results in found.values() for result in results]
    if not complete:
        return
    first = next((result for result in complete if "training" in result), complete[0])
    grid = terms.recipe(rows[0], 0).preset_for(terms.protocol).make_grid()
    print(f"\n### Table {table}\n\nFeatures: {'; '.join({r['features'] for r in complete})}.")
    split = "test set" if terms.holdout is None else f"{terms.holdout:g} of the training videos"
    print(
        f"Preset {terms.preset} ({grid.num_clips} clips, {grid.num_anchors} durations, "
        f"{grid.num_scales} scales), {first.get('training', {}).get('epochs', '-')} epochs, "
        f"{first['trained_on']}; evaluated on {first['evaluated_on']} of the {split}; "
        f"EMA weights; mean ± standard deviation over seeds, percent.\n"
    )
    if table == TARGET:
        print_target(found, terms.metrics)
    elif table == STEPS:
        print_steps(found[rows[0].label], terms.metrics)
    elif rows[0].sets:
        print_sets(found)
    else:
        print_rows(rows, found, terms)


def print_rows(
    rows: Sequence[Row], found: Mapping[str, list[dict[str, Any]]], terms: Terms
) -> None:
    """Print the metrics of each row after each number of steps, beside the paper's."""
    metrics = terms.metrics + (PRESENCE_METRICS if rows[0].negatives else ())
    print_head(["", "parameters", "steps", "seeds", *metrics, "paper"])
    for row in rows:
        results = found[row.label]
        paper = " / ".join(f"{value:.1f}" for value in row.paper) or "-"
        for steps in results[0]["metrics"] if results else ["-"]:
            there = [one["metrics"][steps] for one in results]
            cells = [format_mean([one[name] for one in there if name in one]) for name in metrics]
            trained = bool(results) and "parameters" in results[0]
            millions = f"{results[0]['parameters'] / 1e6:.2f} M" if trained else "-"
            shown = steps if trained else "-"
            print(f"| {row.label} | {millions} | {shown} | {len(results)} |", end=" ")
            print(*(f"{cell} |" for cell in cells), f"{paper} |")
    if any(row.paper for row in rows):
        print("\npaper: Rank1@0.5 / Rank1@0.7 / Rank5@0.5 / Rank5@0.7 on I3D features.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", nargs="+", choices=list(TABLES), required=True, help="tables to make")
    add("--data", type=Path, help="folder with the Charades-STA files; for table 2, with DiDeMo's")
    add("--features", default="timeline", help="HDF5 file, or folder (default: simulated features)")
    add("--preset", choices=PRESETS, default="nano", help="(default: nano)")
    add("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    add("--epochs", type=int, help="passes over the training set (default: the preset's)")
    add("--steps", type=int, nargs="+", default=[1, 2, 5], help="denoising steps (default: 1 2 5)")
    add("--holdout", type=float, help="evaluate on this share of the training videos instead")
    add("--limit", type=int, help="pairs to train on and to test on (default: all)")
    add("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    add("--device", choices=["auto", "cpu"], default="auto", help="(default: auto)")
    add("--results", type=Path, help="folder of JSON files (default: runs/tables-<preset>)")
    add("--scratch", type=Path, default=Path("runs/tables-unfinished"), help="unfinished runs")
    add("--tune", type=int, metavar="N", help="N trials of each row on held-out videos instead")
    add("--tuned", type=Path, help="settings of the rows, as --tune writes them")
    add("--print-only", action="store_true", help="train nothing; print what there is")
    args = parser.parse_args(arguments)

    datasets = {dataset_of(table) for table in args.table}
    if len(datasets) > 1:
        raise ArgumentError("tables: expected tables of one data set, got those of several.")
    (dataset,) = datasets
    name = "-".join(["tables", *(one for one in datasets if one != "charades-sta"), args.preset])
    alike = ("scratch", "data", "features", "preset", "epochs", "holdout", "limit")
    terms = Terms(
        results=args.results or Path("runs") / (f"{name}-tuning" if args.tune else name),
        dataset=dataset,
        steps=(1,) if args.tune else tuple(args.steps),
        device=None if args.device == "auto" else args.device,
        threads=max(1, (os.cpu_count() or 1) // args.jobs),
        tuning=args.tune is not None,
        **{name: getattr(args, name) for name in alike},
    )
    if args.tune and terms.holdout is None:
        terms = replace(terms, holdout=0.1)
    tables = {table: TABLES[table] for table in args.table}
    if PARTS in tables and not PRESETS[terms.preset].encoder.get("aligned"):
        expected = f"a preset with an aligned encoder for table {PARTS}"
        raise ArgumentError(message("tables", expected, f"--preset {terms.preset}"))
    if args.tuned:
        settings = json.loads(args.tuned.read_text())
        tables = {
            table: [tuned_row(row, settings, args.tuned) for row in rows]
            for table, rows in tables.items()
        }
    seeds = range(1 if args.tune else args.seeds)
    rows = [row for table in tables.values() for row in table]
    if args.tune:
        tuned = [row for row in rows if row.is_trained]
        rows = [trial for row in tuned for trial in trials_of(row, args.tune, terms)]
    for path in {terms.result(row, seed) for row in rows for seed in seeds}:
        if path.exists():
            terms.check(path)
    wanted = {
        (row.name, seed): (row, seed)
        for seed in seeds  # all rows of a seed first: an unfinished table has all its rows
        for row in rows
        if not terms.result(row, seed).exists()
    }
    failed = 0 if args.print_only else run_all(list(wanted.values()), terms, args.jobs)
    if args.tune and not failed:
        choose(tuned, args.tune, terms)
    elif not args.tune:
        for table, rows in tables.items():
            print_table(table, rows, terms, seeds)
    return 1 if failed else 0


def end_with_parent() -> None:
    """End this process when the one that started it does, be it killed: another may follow."""
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def run_all(wanted: list[tuple[Row, int]], terms: Terms, jobs: int) -> int:
    """Make the runs, several at a time; return how many failed."""
    if not wanted:
        return 0
    failed = 0
    # Processes of their own: no run changes the random numbers of another.
    with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
        running = {pool.submit(run, row, seed, terms): (row, seed) for row, seed in wanted}
        for count, job in enumerate(as_completed(running), start=1):
            row, seed = running[job]
            print(f"[{count}/{len(running)}] {row.name} seed {seed}: ", end="")
            try:
                result = job.result()
            except (TmapdiffError, BrokenProcessPool) as error:
                failed += 1
                print(f"failed: {error}", flush=True)
                continue
            first = next(iter(result.get("metrics", {}).values()), None)
            first = first or result["budgets"][0]["metrics"]
            shown = " / ".join(f"{first[m]:.1f}" for m in terms.metrics if m in first)
            print(f"{shown} ({result['seconds']:.0f} s)", flush=True)
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
