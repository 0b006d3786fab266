"""Evaluation of a localizer or a control, and files of results."""

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tmapdiff._core.checks import check_choice, check_int, check_list, message
from tmapdiff._core.files import written_beside
from tmapdiff.data import MomentDataset, add_negatives, write_submission
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.evaluation import (
    Evaluation,
    Protocol,
    draw_queries,
    evaluate,
    evaluate_didemo_prior,
    evaluate_oracle,
    evaluate_prior,
    fit_moment_prior,
)
from tmapdiff.maps import MapGrid
from tmapdiff.models import AnswerKind, MapLocalizer, Ranking
from tmapdiff.models.map_localizer import check_sampling
from tmapdiff.pipelines import MomentLocalizationPipeline
from tmapdiff.recipes.data import LocalizationData, encode_queries
from tmapdiff.recipes.training import DIDEMO_GRID, Recipe, TrainedLocalizer
from tmapdiff.video.frame_encoder import other_encoder

Control = Literal["prior", "oracle"]
_DRAWN = 4


@dataclass(frozen=True)
class SamplingOptions:
    """How answers are sampled from a localizer; None stands for the model's setting.

    Attributes:
        steps: Numbers of denoising steps. All are evaluated; the first gives the main result.
        num_samples: Samples per query, which are averaged.
        ranking: How moments are read off the maps.
        seed: Seed of the noise.
        answer: `ranked` for the best moments, `set` for a set of moments.

    Raises:
        ArgumentError: If a number is out of range.
        ConfigError: If the ranking or kind of answer is unknown.
    """

    steps: tuple[int, ...] = ()
    num_samples: int | None = None
    ranking: Ranking | None = None
    seed: int = 0
    answer: AnswerKind = "ranked"

    def __post_init__(self) -> None:
        who = "SamplingOptions"
        for count in check_list(who, "steps", self.steps):
            check_int(who, "steps", count, at_least=1)
        check_sampling(who, num_samples=self.num_samples, ranking=self.ranking, seed=self.seed)
        check_choice(who, "answer", self.answer, get_args(AnswerKind))

    def completed(self, model: MapLocalizer) -> "SamplingOptions":
        """Return the options with the defaults of `model` filled in."""
        config = model.config
        ranking = None if self.answer == "set" else self.ranking or config.ranking
        if not model.is_generative:
            return replace(self, steps=self.steps or (1,), num_samples=None, ranking=ranking)
        steps = self.steps or (config.num_inference_steps,)
        samples = self.num_samples or config.num_samples
        return replace(self, steps=steps, num_samples=samples, ranking=ranking)

    def arguments(self, steps: int) -> dict[str, Any]:
        """Return the arguments of `MapLocalizer.localize` for one of the numbers of steps."""
        return {
            "num_inference_steps": steps,
            "num_samples": self.num_samples,
            "ranking": self.ranking,
            "answer": self.answer,
        }


@dataclass(frozen=True)
class Results:
    """Results of an evaluation. Of a control, there are only `rows`.

    Attributes:
        rows: Metrics in percent, by the name of the row.
        evaluation: The main evaluation.
        sampling: How its answers were sampled.
        model: The localizer.
        dataset: The queries.
    """

    rows: Mapping[str, Mapping[str, float]]
    evaluation: Evaluation | None = None
    sampling: SamplingOptions | None = None
    model: MapLocalizer | None = None
    dataset: MomentDataset | None = None

    def summary(self) -> dict[str, Any]:
        """Return the content of metrics.json: the main metrics, their settings, and all rows."""
        if self.evaluation is None or self.model is None or self.sampling is None:
            (only,) = self.rows.values()
            return {**only, "rows": self.rows}
        return {
            **self.evaluation.metrics,
            "model": type(self.model).__name__,
            "objective": self.model.objective.name,
            **self.sampling.arguments(self.sampling.steps[0]),
            "rows": self.rows,
            "queries_per_second": self.evaluation.queries_per_second,
        }

    def write(self, output: str | os.PathLike[str], details: Mapping[str, Any]) -> tuple[str, ...]:
        """Write metrics.json and, for a localizer, predictions.jsonl and maps.png.

        Args:
            output: Folder.
            details: Further fields of metrics.json, such as the origin of the results.

        Returns:
            Names of the files.

        Raises:
            FileError: If a file cannot be written.
        """
        folder, names = Path(output), ["metrics.json"]
        if self.evaluation and self.model and self.dataset and self.sampling:
            write_submission(self.evaluation.predictions, folder / "predictions.jsonl")
            queries = len(self.dataset)
            figure = draw_queries(
                self.model,
                self.dataset,
                range(0, queries, max(1, queries // _DRAWN))[:_DRAWN],
                seed=self.sampling.seed,
                **self.sampling.arguments(self.sampling.steps[0]),
            )
            with written_beside(folder / "maps.png") as new:
                figure.savefig(new)
            names += ["predictions.jsonl", "maps.png"]
        with written_beside(folder / "metrics.json") as new:
            new.write_text(json.dumps({**self.summary(), **details}, indent=2) + "\n")
        return tuple(names)


def evaluate_localizer(
    model: MapLocalizer,
    dataset: MomentDataset,
    sampling: SamplingOptions,
    *,
    protocol: Protocol = "rank",
    label: str = "",
    accelerator: Any = None,
) -> Results:
    """Evaluate a localizer with each number of steps.

    Args:
        model: The localizer.
        dataset: The queries.
        sampling: How answers are sampled.
        protocol: As for `tmapdiff.evaluation.evaluate`.
        label: Prefix of the name of each row.
        accelerator: As for `tmapdiff.evaluation.evaluate`.

    Raises:
        ArgumentError, ConfigError: As `tmapdiff.evaluation.evaluate`.
    """
    completed = sampling.completed(model)
    common: Any = {"seed": sampling.seed, "protocol": protocol, "accelerator": accelerator}
    evaluations = [
        evaluate(model, dataset, **sampling.arguments(steps), **common) for steps in completed.steps
    ]
    named = zip(completed.steps, evaluations, strict=True)
    rows = {f"{label}steps {steps}": evaluation.metrics for steps, evaluation in named}
    return Results(rows, evaluations[0], completed, model, dataset)


def evaluate_trained(
    trained: TrainedLocalizer, sampling: SamplingOptions, data: LocalizationData
) -> Results:
    """Evaluate a trained model, the last step's weights, and the best constant answer.

    If the model predicts presence and all test queries have a moment, each query is also asked of
    another video, for a row with the metrics of presence.

    Args:
        trained: Result of `Recipe.train`.
        sampling: How answers are sampled.
        data: The data that it was trained on.

    Raises:
        ArgumentError, ConfigError: As `tmapdiff.evaluation.evaluate`.
    """
    model, test_set = trained.model, trained.test_set
    rows: dict[str, Mapping[str, float]] = {}
    if data.protocol == "didemo":
        rows["best constant"] = evaluate_didemo_prior(data.train, data.test)
    elif test_set.clip_seconds is None:  # the prior is only defined for videos of the grid's length
        prior = fit_moment_prior(model.grid, trained.train_set)
        rows["best constant"] = evaluate_prior(model.grid, prior, test_set, protocol=data.protocol)
    both: Any = {"protocol": data.protocol, "accelerator": trained.accelerator}
    first = replace(sampling, steps=sampling.completed(model).steps[:1])
    raw = evaluate_localizer(trained.raw_model, test_set, first, label="raw weights, ", **both)
    results = evaluate_localizer(model, test_set, sampling, label="EMA weights, ", **both)
    rows = {**rows, **raw.rows, **results.rows}
    if model.config.get("presence_weights") and all(item.moments for item in data.test):
        asked = None
        with suppress(ArgumentError):  # there are no other videos
            asked = add_negatives(data.test)
        if asked is not None:
            of_test = test_set.vocabulary, test_set.clip_seconds, test_set.features_per_clip
            dataset = replace(data, test=asked).make_test_set(model.grid, *of_test)
            answered = evaluate_localizer(model, dataset, first, accelerator=trained.accelerator)
            (found,) = answered.rows.values()
            rows["in this video, or in another"] = {
                name: one for name, one in found.items() if name.startswith("Presence-")
            }
    return replace(results, rows=rows)


def make_pipeline_test_set(
    pipeline: MomentLocalizationPipeline, data: LocalizationData
) -> MomentDataset:
    """Build the test set to evaluate a pipeline on.

    Warns if another frame encoder than the pipeline's made the features, or if videos are more than
    twice as long as all training videos: the pipeline would search them in windows, but here they
    are searched as a whole.

    Args:
        pipeline: The pipeline.
        data: Source of the test queries.

    Raises:
        ConfigError: If the features do not have the model's number of channels, or, for DiDeMo, the
            pipeline's grid does not consist of DiDeMo's 21 moments.
        ArgumentError: As `MomentDataset`.
        CheckpointError: If the pipeline's text encoder is damaged.
    """
    who = "make_pipeline_test_set"
    encoder = pipeline.localizer.encoder.config
    if data.store.feature_dim != encoder.clip_channels:
        expected = f"features of {encoder.clip_channels} channels, as in training"
        got = f"{data.store.feature_dim} from {data.store.description}"
        raise ConfigError(message(who, expected, got))
    grid, clip_seconds = pipeline.localizer.grid, pipeline.config.clip_seconds
    if data.protocol == "didemo" and (grid != MapGrid(**DIDEMO_GRID) or not clip_seconds):
        expected = "a pipeline with DiDeMo's 21 moments, as trained on DiDeMo"
        raise ConfigError(message(who, expected, repr(grid)))
    if text := other_encoder(pipeline.frame_encoder, data.store):
        warnings.warn(text, stacklevel=2)
    durations = pipeline.config.durations
    if clip_seconds is None and durations is not None:
        longer = {item.video_id for item in data.test if item.duration > 2 * durations[-1]}
        if longer:
            text = f"more than twice as long as the training videos ({durations[-1]:g} s at most)."
            text += " They are searched as a whole here, but in windows by the pipeline."
            warnings.warn(f"{len(longer)} videos are {text}", stacklevel=2)
    if pipeline.text_encoder is not None:
        words = encode_queries(data.test, pipeline.encode_queries)
        data = replace(data, word_features=words)
    return data.make_test_set(grid, pipeline.vocabulary, clip_seconds, encoder.features_per_clip)


def evaluate_control(control: Control, recipe: Recipe, data: LocalizationData) -> Results:
    """Evaluate a control without a model, on a recipe's grid.

    Args:
        control: `prior`, the best constant answer, or `oracle`, the true maps.
        recipe: Recipe that defines the grid.
        data: The data set.

    Raises:
        ArgumentError: If a part of the data set is empty.
        ConfigError: If the control is unknown.
    """
    check_choice("evaluate_control", "control", control, get_args(Control))
    if data.protocol == "didemo" and control == "prior":
        return Results({control: evaluate_didemo_prior(data.train, data.test)})
    options = recipe.set_options(data)
    grid, test_set = options["grid"], data.make_test_set(**options)
    protocol = "rank" if data.protocol == "didemo" else data.protocol
    if control == "oracle":
        return Results({control: evaluate_oracle(grid, test_set, protocol=protocol)})
    prior = fit_moment_prior(grid, data.make_train_set(**options))
    return Results({control: evaluate_prior(grid, prior, test_set, protocol=protocol)})
