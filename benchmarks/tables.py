"""Train and print the paper's tables, each row on equal terms, over several seeds.

    python benchmarks/tables.py --table 3 --data path/to/charades
    python benchmarks/tables.py --table 1 3 4 5 --data path/to/charades --preset base

    python benchmarks/tables.py --table 2 --data path/to/didemo --features average_fc7.h5
    python benchmarks/tables.py --table target steps --data path/to/charades --preset best

Table 1 compares methods on Charades-STA and 2 on DiDeMo, 3 compares decoders, 4 objectives, 5 the
places of stylization (arXiv 2401.08232); they read maps by NMS and take a preset's
sizes only. Table "target" asks what diffusion is worth, beside the
baseline and the same network as a regressor, each read in the same ways; "steps" asks what further
passes of the decoder are worth, and shows two controls. All rows share features, grid, encoder,
epochs, optimizer and seeds. Every run leaves a JSON file; runs that have one are not repeated, and
one that was stopped, however hard, goes on from its last checkpoint, of each epoch and minute.
Without features, Charades' are simulated from its action annotations, and DiDeMo's videos are made
up.
"""

import argparse
import json
import os
import re
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
from typing import Any

import torch
from budgets import format_mean, measure_budgets, print_steps, print_target

from tmapdiff import (
    PRESETS,
    ActionTimelineFeatures,
    MomentDataset,
    TmapdiffError,
    Trainer,
    Vocabulary,
    load_charades_sta,
    open_feature_store,
)
from tmapdiff._core.files import remove_folder, written_beside
from tmapdiff.data import (
    SEGMENT_SECONDS,
    AnnotationSet,
    FeatureStore,
    SyntheticDiDeMo,
    keep_consensus,
    load_didemo,
)
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation import (
    evaluate,
    evaluate_didemo,
    evaluate_didemo_prior,
    evaluate_oracle,
    evaluate_prior,
    fit_moment_prior,
)
from tmapdiff.models import MapLocalizer
from tmapdiff.presets import DECODERS, Preset
from tmapdiff.provenance import describe_run

METRICS = ("Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU")
DIDEMO = "2"  # the table of another data set
TARGET, STEPS = "target", "steps"
DIDEMO_METRICS = ("Rank@1", "Rank@5", "mIoU", *METRICS[:4])
DIDEMO_GRID = {"num_clips": 6, "num_anchors": 6, "num_scales": 1}


@dataclass(frozen=True)
class Row:
    """A row of a table: which model, changed how, and what the paper says of it.

    Attributes:
        label: Its name in the table.
        model: `diffusion`, `deterministic`, `ms2dtan`, `prior` or `oracle`.
        decoder: Fields of the decoder that differ from the preset's.
        objective: The training objective.
        budgets: Whether the run measures budgets of decoder passes and ways of reading maps
            (`budgets.py`), rather than numbers of steps.
        paper: The paper's Rank1@0.5, Rank1@0.7, Rank5@0.5 and Rank5@0.7, where known.
    """

    label: str
    model: str = "diffusion"
    decoder: dict[str, Any] = field(default_factory=dict)
    objective: str = "mse-full"
    budgets: bool = False
    paper: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Names the row's runs; rows of two tables that are the same run share it."""
        if self.model in ("prior", "oracle"):
            return self.model
        changed = [f"{key}={value}" for key, value in sorted(self.decoder.items())]
        measured = ["budgets"] if self.budgets else []
        return "_".join([self.model, self.objective, *changed, *measured])


def _decoder_row(variant: str) -> Row:
    # The default decoder's fields are the preset's: its row is the other tables' row.
    return Row(variant, decoder={} if variant == "cnn-concat" else DECODERS[variant])


def _product_row(product: str, formula: str) -> Row:
    return Row(f"cnn-mul, {formula}", decoder={"conditioning": product})


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
    DIDEMO: [
        Row("frequency prior", model="prior"),
        Row("MS-2D-TAN", model="ms2dtan", objective="bce-rescaled"),
        Row("deterministic twin", model="deterministic"),
        Row("diffusion"),
    ],
    "3": [
        _decoder_row("transformer-xattn-ss"),
        _decoder_row("transformer-xattn"),
        _decoder_row("transformer-concat"),
        _product_row("multiply", "H * F"),
        _product_row("multiply-residual", "H * (1 + F)"),
        _product_row("multiply-gated", "H * sigmoid(F)"),
        _decoder_row("cnn-concat"),
    ],
    "4": [
        Row(objective, objective=objective)
        for objective in (
            "bce-rescaled",
            "bce-full",
            "mse-full",
            "mse-rescaled",
            "l1-full",
            "huber-full",
        )
    ],
    "5": [
        Row("none", decoder={"stylization": "none"}),
        Row("fusion", decoder={"stylization": "fusion"}),
        Row("conv", decoder={"stylization": "conv"}),
        Row("both"),
    ],
    TARGET: [
        Row("MS-2D-TAN", model="ms2dtan", objective="bce-rescaled", budgets=True),
        Row("deterministic twin", model="deterministic", objective="mse-rescaled", budgets=True),
        Row("diffusion", objective="mse-rescaled", budgets=True),
    ],
    STEPS: [Row("diffusion", objective="mse-rescaled", budgets=True)],
}


@dataclass(frozen=True)
class Terms:
    """What all rows share.

    Attributes:
        didemo: Whether the data set is DiDeMo; Charades-STA, if not.
        data: Folder of the annotation files.
        features: `timeline`, an HDF5 file, or a folder.
        preset: The models' size and their training.
        epochs: Passes over the training set; the preset's, if None.
        steps: Numbers of denoising steps to evaluate with.
        holdout: Share of the training videos to evaluate on instead of the test set.
        limit: Pairs to train on and to test on; all, if None.
        scratch: Folder of unfinished runs.
        results: Folder of the JSON files.
        device: `cpu`, or whatever accelerate chooses, if None.
        threads: Threads of torch in each process.
    """

    didemo: bool
    data: Path | None
    features: str
    preset: str
    epochs: int | None
    steps: tuple[int, ...]
    holdout: float | None
    limit: int | None
    scratch: Path
    results: Path
    device: str | None
    threads: int

    @property
    def size(self) -> Preset:
        """The preset, with DiDeMo's grid for DiDeMo."""
        preset = PRESETS[self.preset]
        return replace(preset, grid=DIDEMO_GRID) if self.didemo else preset

    def preset_of(self, row: Row) -> Preset:
        """Give the preset; for the paper's tables, without what is not the paper's."""
        return self.size if row.budgets else self.size.as_published()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the table's columns."""
        return DIDEMO_METRICS if self.didemo else METRICS

    def result(self, row: Row, seed: int) -> Path:
        """Where a run's JSON file is."""
        return self.results / f"{row.name}-seed{seed}.json"

    def unfinished(self, row: Row, seed: int) -> Path:
        """Where a run is until it has a JSON file."""
        return self.scratch / self.results.name / f"{row.name}-seed{seed}"


@lru_cache(maxsize=1)
def load_data(terms: Terms) -> tuple[MomentDataset, MomentDataset, AnnotationSet]:
    """Training and evaluation pairs with their features; training pairs of all annotators."""
    train, test, store = load_didemo_files(terms) if terms.didemo else load_charades_files(terms)
    if terms.holdout is not None:
        train, test = train.split_videos(terms.holdout, seed=0)
    train, test = train.restrict_to(store), test.restrict_to(store)
    if terms.limit is not None:
        train, test = train.limit(terms.limit), test.limit(terms.limit)
    vocabulary = Vocabulary.from_sentences(pair.query for pair in train)
    clips = terms.size.grid["num_clips"]
    seconds = SEGMENT_SECONDS if terms.didemo else None
    # Of several annotators, one to learn from, and all to be judged by.
    learned = keep_consensus(train) if terms.didemo else train
    return (
        MomentDataset(learned, store, vocabulary, clips, clip_seconds=seconds),
        MomentDataset(test, store, vocabulary, clips, clip_seconds=seconds),
        train,
    )


def load_charades_files(terms: Terms) -> tuple[AnnotationSet, AnnotationSet, FeatureStore]:
    if terms.data is None:
        raise ArgumentError("tables: expected --data, the folder of Charades-STA, got none.")
    store: FeatureStore
    if terms.features == "timeline":
        store = ActionTimelineFeatures.from_charades(terms.data)
    else:
        store = open_feature_store(terms.features)
    train, test = (load_charades_sta(terms.data, split) for split in ("train", "test"))
    return train, test, store


def load_didemo_files(terms: Terms) -> tuple[AnnotationSet, AnnotationSet, FeatureStore]:
    if terms.features == "timeline":
        made_up = [SyntheticDiDeMo(split=split) for split in ("train", "test")]
        videos = {**made_up[0].videos, **made_up[1].videos}
        classes = SyntheticDiDeMo.num_classes
        store = ActionTimelineFeatures(videos, num_classes=classes, drop=0.0, jitter=0.5, noise=1.0)
        return made_up[0].annotations, made_up[1].annotations, store
    if terms.data is None:
        raise ArgumentError("tables: expected --data, the folder of DiDeMo, got none.")
    train, test = (load_didemo(terms.data, split) for split in ("train", "test"))
    return train, test, open_feature_store(terms.features, SEGMENT_SECONDS)


def build_model(row: Row, preset: Preset, train: MomentDataset, seed: int) -> MapLocalizer:
    torch.manual_seed(seed)
    sizes = {
        "vocabulary_size": len(train.vocabulary),
        "clip_channels": train.store.feature_dim,
        "objective": row.objective,
    }
    if row.model == "ms2dtan":
        return preset.build_ms2dtan(**sizes)
    return preset.build(**sizes, decoder=row.decoder, deterministic=row.model == "deterministic")


def run(row: Row, seed: int, terms: Terms) -> dict[str, Any]:
    """Train and evaluate one row with one seed; the result is also written as JSON."""
    torch.set_num_threads(terms.threads)
    began = time.perf_counter()
    train, test, annotators = load_data(terms)
    grid = terms.size.make_grid()
    result: dict[str, Any] = {"row": asdict(row), "seed": seed, "preset": terms.preset}
    if row.model == "prior" and terms.didemo:
        result["metrics"] = {"0": evaluate_didemo_prior(annotators, test.annotations)}
    elif row.model == "prior":
        result["metrics"] = {"0": evaluate_prior(grid, fit_moment_prior(grid, train), test)}
    elif row.model == "oracle":
        result["metrics"] = {"0": evaluate_oracle(grid, test)}
    else:
        result |= _train(row, seed, terms, train, test)
    result |= {
        "features": train.store.description,
        "trained_on": f"{len(train):,} pairs",
        "evaluated_on": f"{len(test):,} pairs",
        "held_out_training_videos": terms.holdout,
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
    row: Row,
    seed: int,
    terms: Terms,
    train: MomentDataset,
    test: MomentDataset,
) -> dict[str, Any]:
    changes: dict[str, Any] = {"seed": seed, "checkpoint_minutes": 1.0, "keep_checkpoints": 2}
    if terms.epochs is not None:
        changes["epochs"] = terms.epochs
    config = replace(terms.size.training, **changes)
    model = build_model(row, terms.preset_of(row), train, seed)
    folder = terms.unfinished(row, seed)
    trainer = Trainer(model, train, config, folder, device=terms.device, show_progress=False)
    began, done = time.perf_counter(), trainer.resume().progress.epoch
    trainer.train()
    training_seconds = time.perf_counter() - began
    averaged = trainer.ema_model.eval()
    result: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "training": asdict(config),
        "seconds_an_epoch": training_seconds / max(config.epochs - done, 1),
    }
    if row.budgets:
        return result | measure_budgets(averaged, test, seed)
    metrics: dict[str, dict[str, float]] = {}
    speed: dict[str, float] = {}
    for steps in terms.steps if averaged.is_generative else (1,):
        sampling = {"num_inference_steps": steps} if averaged.is_generative else {}
        judge = evaluate_didemo if terms.didemo else evaluate
        found = judge(averaged, test, seed=seed, **sampling)
        metrics[str(steps)], speed[str(steps)] = found.metrics, found.queries_per_second
    return result | {"metrics": metrics, "queries_per_second": speed}


def print_table(table: str, terms: Terms, seeds: range) -> None:
    """Print a table as Markdown from the JSON files that are there."""
    rows = TABLES[table]
    found = {
        row.label: [
            json.loads(path.read_text())
            for seed in seeds
            if (path := terms.result(row, seed)).exists()
        ]
        for row in rows
    }
    complete = [result for results in found.values() for result in results]
    if not complete:
        return
    first = next((result for result in complete if "training" in result), complete[0])
    grid = terms.size.make_grid()
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
    else:
        print_rows(rows, found, terms)


def print_rows(
    rows: Sequence[Row], found: Mapping[str, list[dict[str, Any]]], terms: Terms
) -> None:
    """Print the metrics of each row after each number of steps, beside the paper's."""
    print("| | parameters | steps | seeds |", *(f"{name} |" for name in terms.metrics), "paper |")
    print("| --- |" + " --- |" * (4 + len(terms.metrics)))
    for row in rows:
        results = found[row.label]
        paper = " / ".join(f"{value:.1f}" for value in row.paper) or "-"
        for steps in results[0]["metrics"] if results else ["-"]:
            cells = [
                format_mean(
                    [r["metrics"][steps][name] for r in results if name in r["metrics"][steps]]
                )
                for name in terms.metrics
            ]
            millions = f"{results[0]['parameters'] / 1e6:.2f} M" if _trained(results) else "-"
            shown = steps if _trained(results) else "-"
            print(f"| {row.label} | {millions} | {shown} | {len(results)} |", end=" ")
            print(*(f"{cell} |" for cell in cells), f"{paper} |")
    if any(row.paper for row in rows):
        print("\npaper: Rank1@0.5 / Rank1@0.7 / Rank5@0.5 / Rank5@0.7 on I3D features.")


def _trained(results: list[dict[str, Any]]) -> bool:
    return bool(results) and "parameters" in results[0]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", nargs="+", choices=list(TABLES), required=True, help="tables to make")
    add("--data", type=Path, help="folder with the Charades-STA files; for table 2, with DiDeMo's")
    add(
        "--features",
        default="timeline",
        help="an HDF5 file, a folder of feature files, or 'timeline': features simulated from "
        "Charades' action annotations (default: timeline)",
    )
    add(
        "--preset", choices=list(PRESETS), default="nano", help="size of all models (default: nano)"
    )
    add("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    add("--epochs", type=int, help="passes over the training set (default: the preset's)")
    add(
        "--steps",
        type=int,
        nargs="+",
        default=[1, 2, 5],
        help="denoising steps to evaluate with (default: 1 2 5)",
    )
    add("--holdout", type=float, help="evaluate on this share of the training videos instead")
    add("--limit", type=int, help="pairs to train on and to test on (default: all)")
    add("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    add("--device", choices=["auto", "cpu"], default="auto", help="(default: auto)")
    add("--results", type=Path, help="folder of JSON files (default: runs/tables-<preset>)")
    add("--scratch", type=Path, default=Path("runs/tables-unfinished"), help="unfinished runs")
    add("--print-only", action="store_true", help="train nothing; print what there is")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if DIDEMO in args.table and len(args.table) > 1:
        raise ArgumentError("tables: expected table 2 alone, as it has another data set.")
    didemo = args.table == [DIDEMO]
    name = f"tables-{'didemo-' if didemo else ''}{args.preset}"
    terms = Terms(
        didemo=didemo,
        data=args.data,
        features=args.features,
        preset=args.preset,
        epochs=args.epochs,
        steps=tuple(args.steps),
        holdout=args.holdout,
        limit=args.limit,
        scratch=args.scratch,
        results=args.results or Path("runs") / name,
        device=None if args.device == "auto" else args.device,
        threads=max(1, (os.cpu_count() or 1) // args.jobs),
    )
    seeds = range(args.seeds)
    wanted = {
        (row.name, seed): (row, seed)
        for seed in seeds  # all rows of a seed first: an unfinished table has all its rows
        for table in args.table
        for row in TABLES[table]
        if not terms.result(row, seed).exists()
    }
    failed = 0 if args.print_only else run_all(list(wanted.values()), terms, args.jobs)
    for table in args.table:
        print_table(table, terms, seeds)
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
