"""The base of all localizers: targets from moments, and moments from maps."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin
from torch import Tensor, nn
from typing_extensions import override

from tmapdiff._core.checks import (
    check_choice,
    check_int,
    check_length,
    check_range,
    check_shape,
    message,
)
from tmapdiff._core.configs import flatten
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.maps import (
    IoUMapBuilder,
    MapGrid,
    MultiScaleMapSampler,
    RankedMoments,
    map_saliency,
    rank_candidates,
    rank_candidates_by_expected_hits,
    read_moment_sets,
)
from tmapdiff.models._base import MapModel, answering
from tmapdiff.models.encoder import MultimodalEncoder, TextEncoder
from tmapdiff.models.presence import check_presence_weights, presence_features
from tmapdiff.models.protocols import (
    Objective,
    check_registered,
    find_objective,
    part_config,
    part_field,
)

Generators = torch.Generator | Sequence[torch.Generator] | None
Query = tuple[Tensor, Tensor, Tensor, Tensor | None]  # features, words, num_words, num_clips
Ranking = Literal["nms", "expected-hits", "nms-then-expected-hits"]
AnswerKind = Literal["ranked", "set"]


def check_generators(who: str, generator: Any, count: int) -> list[torch.Generator | None]:
    """Return a list of the generator or None, or of `count` generators; raise if it is neither."""
    if generator is None or isinstance(generator, torch.Generator):
        return [generator]
    several = isinstance(generator, list | tuple)
    if not several or not all(isinstance(one, torch.Generator) for one in generator):
        expected = "generator to be a torch.Generator or a list of them"
        raise ArgumentError(message(who, expected, repr(generator)))
    check_length(who, "generator", generator, count)
    return list(generator) or [None]  # for an empty batch


def check_sampling(who: str, *, ranking: Any, seed: Any, **counts: Any) -> None:
    """Check a ranking, a seed, and counts of at least 1. None, the model's default, is valid."""
    for name, count in counts.items():
        if count is not None:
            check_int(who, name, count, at_least=1)
    if ranking is not None:
        check_choice(who, "ranking", ranking, get_args(Ranking))
    check_int(who, "seed", seed, at_least=0)


@dataclass(frozen=True)
class Localization:
    """Result of a localizer.

    Attributes:
        ranked: Best moments of each query, in seconds, with scores; or its set of
            `ranked.num_moments` moments, possibly none.
        grid: The candidate moments.
        maps: Predicted maps of all scales, packed.
        num_clips: Clips of each video, if they differ.
        target: Function of the IoU whose expectation the maps predict.
        presence: Predicted probability that each query has an answer in its video; None if the
            model has no presence weights (`tmapdiff.evaluation.fit_presence`).

    Shape:
        - maps: (B, cells)
        - num_clips: (B,)
        - presence: (B,), float64, in [0, 1]
    """

    ranked: RankedMoments
    grid: MapGrid
    maps: Tensor = field(repr=False)
    num_clips: Tensor | None = None
    target: Callable[[Tensor], Tensor] = field(repr=False, kw_only=True)
    presence: Tensor | None = None

    @cached_property
    def dense(self) -> Tensor:
        """Merged map, `[start clip, duration in clips - 1]`: (B, N, N). Computed on first use."""
        return MultiScaleMapSampler(self.grid).merge(self.grid.unpack(self.maps), self.num_clips)[0]

    @cached_property
    def mask(self) -> Tensor:
        """Which cells of `dense` are candidates, bool: (N, N), or (B, N, N) with `num_clips`."""
        return self.grid.dense_mask(self.maps.device, self.num_clips)

    @cached_property
    def saliency(self) -> Tensor:
        """Probability that each clip lies in the answer: (B, N). Computed on first use.

        It comes from the maps (`map_saliency`), whatever the ranking. `resample_saliency` converts
        a row to clips of another length.
        """
        return map_saliency(self.maps, self.grid, self.num_clips, target=self.target)

    @property
    def confidence(self) -> Tensor:
        """Score of each query's best moment, (B,); 0 for an empty set.

        With an objective of the rescaled IoU and another ranking than `nms`, it estimates how often
        the moment is a hit. A `PlattCalibrator`, fitted on held-out queries, turns any score into a
        probability.
        """
        best = self.ranked.scores[:, 0]
        return best if self.ranked.presence is None else best.clamp(min=0)


class MapLocalizer(MapModel):
    """Base of the models that score every candidate moment for a query.

    A subclass sets `encoder` and calls `_set_up` in its constructor, and implements `_loss` and
    `_predict`.
    """

    encoder: MultimodalEncoder  # or any `MapEncoder`
    grid: MapGrid
    objective: Objective
    _supports_gradient_checkpointing = True

    def _set_up(
        self, grid: MapGrid, objective: str | Objective, nms_threshold: float, ranking: Ranking
    ) -> None:
        who = type(self).__name__
        check_range(who, "nms_threshold", nms_threshold, 0, 1)
        check_choice(who, "ranking", ranking, get_args(Ranking))
        check_presence_weights(who, self.encoder, self.config.get("presence_weights"))
        self.grid = grid
        self.objective = find_objective(who, objective)
        self.build_iou_maps = IoUMapBuilder(grid)
        self.sampler = MultiScaleMapSampler(grid)

    def register_to_config(self, **fields: Any) -> None:
        """Store `fields` in JSON types, and parts as their configurations."""
        for name, value in fields.items():
            if name == "objective":
                fields[name] = getattr(value, "name", value)
            elif isinstance(value, nn.Module | ConfigMixin):
                fields[name] = part_config(value)
        super().register_to_config(**fields)

    def record_parts(self) -> None:
        """Store the configurations of parts that were replaced since construction."""
        for name in ("encoder", "decoder", "scheduler"):
            field = f"{name}_config"
            if field in self.config:
                now, saved = part_config(getattr(self, name)), self.config[field] or {}
                if not saved.items() <= now.items():
                    self.register_to_config(**{field: now})
        self.register_to_config(objective=self.objective)

    @override
    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        self.record_parts()
        check_registered(type(self).__name__, self.config, self.objective)
        self._check_rebuilt()
        super().save_pretrained(save_directory, **kwargs)

    def _check_rebuilt(self) -> None:
        """Raise ArgumentError if the saved configuration would build other parts.

        If the `__init__` of a part changes a value before it calls its parent's, the configuration
        has the changed one, which would be changed again.
        """
        saved = {name: one for name, one in self.config.items() if not name.startswith("_")}
        try:
            with torch.device("meta"):
                again = type(self).from_config(saved)
                again.record_parts()
        except ConfigError as error:
            raise ArgumentError(f"{type(self).__name__}: cannot be rebuilt: {error}") from error
        except Exception:
            return  # not everything can be built without memory
        rebuilt = dict(flatten(again.config))
        for name, value in flatten(saved):
            if rebuilt.get(name) != value:
                expected = f"a part that {name} = {value!r} rebuilds"
                got = f"one with {rebuilt.get(name)!r}"
                hint = "Pass arguments to the parent's __init__ unchanged, or rename them."
                raise ArgumentError(message(type(self).__name__, expected, got, hint))

    @property
    def is_generative(self) -> bool:
        """Whether predictions are samples, denoised from noise in several steps."""
        return False

    def loss(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor | None = None,
        num_clips: Tensor | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Compute the training loss on a batch.

        Args:
            features: Features of the clips.
            words: Word indices, padded with 0; with `text_channels`, features.
            num_words: Number of words of each query.
            moments: Annotated moments, in seconds.
            clip_seconds: Seconds per clip of each sample.
            num_moments: Valid moments of each sample, possibly 0. Defaults to all.
            num_clips: Clips of each video, if any is shorter than the grid.
            generator: Source of timesteps and noise, on the features' device: one, or one per
                query, which makes them independent of batching. Ignored by models that draw
                nothing.

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, L), integer; or (B, L, text_channels)
            - num_words, clip_seconds, num_moments, num_clips: (B,)
            - moments: (B, 2) or (B, M, 2)
            - returns: ()

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty, a moment is invalid (see `IoUMapBuilder`), or
                `num_clips` is out of range.
        """
        grid = self.grid_of(features, num_clips)
        iou = self._ious(grid, moments, clip_seconds, num_moments, num_clips)
        return self._loss(iou, grid, (features, words, num_words, num_clips), generator)

    def _loss(self, iou: Tensor, grid: MapGrid, query: Query, generator: Generators) -> Tensor:
        """Compute the loss of a query whose IoU maps on the `grid` are `iou`, (B, cells)."""
        raise NotImplementedError

    def check_values(
        self,
        features: Tensor,
        words: Tensor,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor | None = None,
        num_clips: Tensor | None = None,
    ) -> None:
        """Check the values of a batch as `loss` does, but on the CPU, where checks are cheap.

        `features`, `words`, `moments`, `clip_seconds`, `num_moments` and `num_clips` are as for
        `loss`.

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a word is not in the vocabulary, a moment is invalid (see
                `IoUMapBuilder`), or `num_clips` is out of range.
        """
        if (text_encoder := self._text_encoder) is not None:
            text_encoder.check_words(words)
        grid = self.grid_of(features, num_clips)
        grid.check_num_clips(num_clips, wait=True)
        IoUMapBuilder(grid).check(moments, clip_seconds, num_moments)

    def count_cells(self, features: Tensor, num_clips: Tensor | None = None) -> Tensor:
        """Count the valid cells of a batch, over which `loss` is the mean.

        Shape:
            - features: (B, N, clip_channels)
            - num_clips: (B,)
            - returns: ()
        """
        mask = self.grid_of(features, num_clips).packed_mask(features.device, num_clips)
        return mask.sum() if num_clips is not None else mask.sum() * len(features)

    def weights_not_finite(self) -> list[str]:
        """Return the names of weights and buffers that hold NaN or infinity."""
        return [
            name
            for name, one in (*self.named_parameters(), *self.named_buffers())
            if not bool(one.isfinite().all())
        ]

    @contextmanager
    def without_checks(self) -> Iterator[None]:
        """Skip checks of values, for batches that `check_values` has checked.

        On a GPU, each check makes the CPU wait until all queued work is done.
        """
        checking: list[Any] = [self.build_iou_maps, *filter(None, [self._text_encoder])]
        before = [one.validate for one in checking]
        try:
            for one in checking:
                one.validate = False
            yield
        finally:
            for one, validate in zip(checking, before, strict=True):
                one.validate = validate

    def compile_parts(self) -> None:
        """Compile the most expensive parts with torch.compile, in place.

        Parts that draw random numbers are not compiled, except for dropout, as compiled code draws
        different ones. Copies of the model are not compiled.
        """
        for part in self._compilable_parts():
            # Not dynamic: layers need strides to be numbers. Each batch size is compiled once.
            part.compile(dynamic=False)

    def _compilable_parts(self) -> list[nn.Module]:
        map_features = getattr(self.encoder, "map_features", None)
        return [] if map_features is None else [map_features]

    @property
    def _text_encoder(self) -> TextEncoder | None:
        """Return the text encoder, which checks words; None for a custom encoder."""
        found = getattr(self.encoder, "text_encoder", None)
        return found if isinstance(found, TextEncoder) else None

    # accelerate and DistributedDataParallel wrap `forward`.
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call `loss` with `args` and `kwargs`."""
        return self.loss(*args, **kwargs)

    @answering
    def predict_maps(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        num_clips: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Predict the map that the objective learns.

        `features`, `words`, `num_words` and `num_clips` are as for `localize`; `**sampling` are the
        sampling options of a generative model.

        Shape:
            - returns: (B, cells), 0 in invalid cells
        """
        grid = self.grid_of(features, num_clips)
        grid.check_num_clips(num_clips, wait=True)
        return self._predict(grid, (features, words, num_words, num_clips), **sampling)

    def _predict(self, *args: Any, **kwargs: Any) -> Tensor:
        """Predict the maps of a query: `_predict(grid, query, **sampling)`."""
        raise NotImplementedError

    def predict_samples(self, *args: Any, **kwargs: Any) -> Tensor:
        """Predict all samples of the map; `predict_maps` returns their mean.

        `*args` and `**kwargs` are those of `predict_maps`.

        Shape:
            - returns: (B, S, cells), 0 in invalid cells; S is 1 if the model is not generative
        """
        return self.predict_maps(*args, **kwargs)[:, None]

    @answering
    def localize(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        clip_seconds: Tensor,
        *,
        num_clips: Tensor | None = None,
        durations: Tensor | None = None,
        top_n: int = 5,
        ranking: Ranking | None = None,
        nms_threshold: float | None = None,
        temperature: float | None = None,
        hit_thresholds: Sequence[float] | None = None,
        answer: AnswerKind = "ranked",
        presence: Tensor | None = None,
        **sampling: Any,
    ) -> Localization:
        """Find the moments that queries describe, as in evaluation mode.

        Args:
            features: Features of the clips.
            words: Word indices, padded with 0; with `text_channels`, features.
            num_words: Words of each query.
            clip_seconds: Seconds per clip of each sample.
            num_clips: Clips of each video, if they differ. The number of clips N may then be other
                than the configured one.
            durations: Length of each video in seconds. Moments are cut there, and are float64 if
                the durations are.
            top_n: Moments per query; for sets, at most this many.
            ranking: How moments are read off the map. `nms` takes the highest cells that do not
                overlap (`rank_moments`), `expected-hits` the moments that together hit most often
                (`rank_by_expected_hits`), and `nms-then-expected-hits` the highest cell, then the
                moments that hit most often where it fails. Defaults to the configured ranking.
            nms_threshold: Highest IoU that two moments of a query may have. Only for `nms`, where
                it defaults to the configured threshold, and for sets, where it defaults to 1: any.
            temperature: Not for `nms`: how flat the likelihoods of moments are, see
                `rank_by_expected_hits`. Defaults to 1, which leaves them as deconvolved.
            hit_thresholds: Not for `nms`: IoUs above which an answer is a hit. Defaults to
                (0.5, 0.7), which count alike; (0.5,) finds rough places more often, and exact
                boundaries less often.
            answer: `ranked` returns the best moments, however poor; `set` a set of moments,
                possibly empty, with probabilities as scores (`read_moment_sets`). From several
                samples, it is the set that agrees best with all of them.
            presence: Only for sets: probability that each query has a moment. Defaults to the
                result of `presence`, or, without presence weights, to an estimate from the maps.
            **sampling: As for `predict_maps`.

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, L), integer; or (B, L, text_channels)
            - num_words, clip_seconds, num_clips, durations, presence: (B,)

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty, an argument is out of range, or scores are not
                finite because weights or features are damaged; if an argument is given that the
                ranking or kind of answer does not use.
            ConfigError: If the ranking or the kind of answer is unknown.
        """
        self._check_reading(ranking, nms_threshold, temperature, hit_thresholds, answer, presence)
        predict = self.predict_samples if answer == "set" else self.predict_maps
        maps = predict(features, words, num_words, num_clips, **sampling)
        mean = maps.mean(dim=1) if maps.dim() == 3 else maps
        predicted = self.presence(features, words, num_words, mean, num_clips)
        if answer == "set" and presence is None:
            presence = predicted
        found = self.read_moments(
            maps,
            clip_seconds,
            grid=self.grid_of(features, num_clips),
            num_clips=num_clips,
            durations=durations,
            top_n=top_n,
            ranking=ranking,
            nms_threshold=nms_threshold,
            temperature=temperature,
            hit_thresholds=hit_thresholds,
            answer=answer,
            presence=presence,
        )
        return replace(found, presence=predicted)

    def presence(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        maps: Tensor,
        num_clips: Tensor | None = None,
    ) -> Tensor | None:
        """Predict the calibrated probability that each query has an answer in its video.

        Returns None unless `tmapdiff.evaluation.fit_presence` has fitted the model. `maps` is the
        result of `predict_maps`, or a mean of several; `features`, `words`, `num_words` and
        `num_clips` are as for `localize`.

        Shape:
            - maps: (B, cells)
            - returns: (B,), float64, in [0, 1]

        Raises:
            ShapeError, ArgumentError: As `localize`.
        """
        if (weights := self.config.get("presence_weights")) is None:
            return None
        self._check_scores(maps, self.grid_of(features, num_clips), num_clips, None)
        given = presence_features(self, features, words, num_words, maps, num_clips)
        weight, bias = given.new_tensor(weights).split([len(weights) - 1, 1])
        return (given @ weight + bias).sigmoid()

    def read_moments(
        self,
        maps: Tensor,
        clip_seconds: Tensor,
        *,
        grid: MapGrid | None = None,
        num_clips: Tensor | None = None,
        durations: Tensor | None = None,
        top_n: int = 5,
        ranking: Ranking | None = None,
        nms_threshold: float | None = None,
        temperature: float | None = None,
        hit_thresholds: Sequence[float] | None = None,
        answer: AnswerKind = "ranked",
        presence: Tensor | None = None,
        held: Tensor | None = None,
    ) -> Localization:
        """Read moments off predicted maps, as `localize` does.

        `maps` is the result of `predict_maps` or `predict_samples`, or a mean of several; rankings
        read the mean over samples. `grid` defaults to the configured one (see `grid_of`). `held`
        marks the candidate cells of maps merged from windows, and defaults to all valid cells.
        `clip_seconds`, `num_clips`, `durations`, `top_n`, `ranking`, `nms_threshold`,
        `temperature`, `hit_thresholds`, `answer` and `presence` are as for `localize`.

        Shape:
            - maps: (B, cells) or (B, S, cells)
            - held: (B, cells), bool
            - presence: (B,)

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: As `localize`.
            ConfigError: If the ranking or the kind of answer is unknown.
        """
        ranking = self._check_reading(
            ranking, nms_threshold, temperature, hit_thresholds, answer, presence
        )
        grid = self.grid if grid is None else grid
        grid.check_num_clips(num_clips, wait=True)
        samples = maps[:, None] if isinstance(maps, Tensor) and maps.dim() == 2 else maps
        count = check_shape(type(self).__name__, "maps", samples, f"B S {grid.num_cells}")["S"]
        maps = samples.mean(dim=1) if count > 1 else samples[:, 0]
        self._check_scores(maps, grid, num_clips, held)
        if held is not None:
            maps = maps.masked_fill(~held, -torch.inf)
            samples = samples.masked_fill(~held[:, None], -torch.inf)
        read, each = (samples.flatten(0, 1), count) if answer == "set" else (maps, 1)
        counts = None if num_clips is None else num_clips.repeat_interleave(each)
        candidates, scores = MultiScaleMapSampler(grid).merge_packed(read, counts)
        options: dict[str, Any] = {"durations": durations, "top_n": top_n}
        if answer == "set":
            ranked = read_moment_sets(
                candidates,
                scores.unflatten(0, (-1, count)),
                clip_seconds,
                target=self.objective.target,
                presence=presence,
                nms_threshold=1.0 if nms_threshold is None else nms_threshold,
                **options,
            )
        elif ranking == "nms":
            own = self.config.nms_threshold if nms_threshold is None else nms_threshold
            options["nms_threshold"] = own
            ranked = rank_candidates(candidates, scores, clip_seconds, **options)
        else:
            ranked = rank_candidates_by_expected_hits(
                candidates,
                scores,
                clip_seconds,
                target=self.objective.target,
                highest_first=ranking != "expected-hits",
                temperature=1.0 if temperature is None else temperature,
                thresholds=(0.5, 0.7) if hit_thresholds is None else hit_thresholds,
                **options,
            )
        return Localization(ranked, grid, maps, num_clips, target=self.objective.target)

    def _check_reading(
        self,
        ranking: Ranking | None,
        nms_threshold: float | None,
        temperature: float | None,
        hit_thresholds: Sequence[float] | None,
        answer: AnswerKind,
        presence: Tensor | None,
    ) -> Ranking:
        who = type(self).__name__
        chosen: Ranking = self.config.ranking if ranking is None else ranking
        check_choice(who, "ranking", chosen, get_args(Ranking))
        check_choice(who, "answer", answer, get_args(AnswerKind))
        by_nms = ("ranking 'nms'", "ranking='expected-hits'")
        by_hits = (f"ranking {chosen!r}", "ranking='nms'")
        as_set, as_ranked = ("answer 'set'", "answer='ranked'"), ("answer 'ranked'", "answer='set'")
        is_set, nms = answer == "set", chosen == "nms"
        for name, value, in_vain, (other, instead) in (
            ("ranking", ranking, is_set, as_set),
            ("temperature", temperature, is_set, as_set),
            ("hit_thresholds", hit_thresholds, is_set, as_set),
            ("presence", presence, not is_set, as_ranked),
            ("temperature", temperature, nms, by_nms),
            ("hit_thresholds", hit_thresholds, nms, by_nms),
            ("nms_threshold", nms_threshold, not nms and not is_set, by_hits),
        ):
            if in_vain and value is not None:
                hint = f"To use it, pass {instead}."
                raise ArgumentError(message(who, f"no {name} with {other}", value, hint))
        return chosen

    def _check_scores(
        self, maps: Tensor, grid: MapGrid, num_clips: Tensor | None, held: Tensor | None
    ) -> None:
        """Reject scores that are not finite, which ranking would silently ignore."""
        sizes = check_shape(type(self).__name__, "maps", maps, f"B {grid.num_cells}")
        mask = grid.packed_mask(maps.device, num_clips).expand(sizes["B"], -1)
        if held is not None:
            check_shape(type(self).__name__, "held", held, f"B {grid.num_cells}", sizes)
            mask = mask & held
        for row, cell in (~maps.isfinite() & mask).nonzero().tolist():
            hint = "All weights are finite: check the features and the precision."
            if bad := self.weights_not_finite():
                hint = f"These weights are not finite: {', '.join(bad[:3])} ({len(bad)} in all)."
            got = f"{maps[row, cell]:g} in row {row}"
            raise ArgumentError(message(type(self).__name__, "finite scores", got, hint))

    def _ious(
        self,
        grid: MapGrid,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor | None,
        num_clips: Tensor | None,
    ) -> Tensor:
        """Build the packed IoU maps on the grid of a batch."""
        build = self.build_iou_maps
        grid.check_num_clips(num_clips, wait=build.validate)
        if grid != self.grid:
            build = IoUMapBuilder(grid, validate=build.validate)
        return build.packed(moments, clip_seconds, num_moments)

    def grid_of(self, features: Tensor, num_clips: Tensor | None) -> MapGrid:
        """Return the grid of a batch: the configured one, or with `num_clips` that of `features`.

        Shape:
            - features: (B, N, clip_channels)
            - num_clips: (B,)
        """
        if num_clips is None:
            return self.grid
        return self.grid.resized(
            features.shape[1] // (part_field(self.encoder, "features_per_clip") or 1)
        )
