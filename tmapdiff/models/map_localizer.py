"""What all localizers share: targets from moments, and moments from maps."""

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

from tmapdiff._core.checks import check_choice, check_length, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
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
from tmapdiff.models.presence import (
    check_presence_weights,
    presence_features,
    presence_reader,
)
from tmapdiff.models.protocols import (
    Objective,
    check_registered,
    find_objective,
    part_config,
    part_field,
)

Generators = torch.Generator | Sequence[torch.Generator] | None
Ranking = Literal["nms", "expected-hits", "nms-then-expected-hits"]
AnswerKind = Literal["ranked", "set"]


def check_generators(who: str, generator: Any, count: int) -> None:
    """Check that `generator` is one, one for each of `count`, or None.

    Raises:
        ArgumentError: If it is something else.
        ShapeError: If there are not as many.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return
    several = isinstance(generator, list | tuple)
    if not several or not all(isinstance(one, torch.Generator) for one in generator):
        expected = "generator to be a torch.Generator or a list of such"
        raise ArgumentError(message(who, expected, repr(generator)))
    check_length(who, "generator", generator, count)


@dataclass(frozen=True)
class Localization:
    """What a localizer found.

    Attributes:
        ranked: Best moments of each query, in seconds, with scores; or its set of moments, of which
            there are `ranked.num_moments`, possibly none.
        grid: The candidate moments.
        maps: Predicted maps of all scales, packed.
        num_clips: Clips of each video, when they differ.
        target: What the maps are an expectation of, as a function of the IoU; None if not known.
        presence: How likely each query has an answer in its video at all; None of a model that was
            not fitted to tell (`tmapdiff.evaluation.fit_presence`).

    Shape:
        - maps: (B, cells)
        - num_clips: (B,)
        - presence: (B,), float64, in [0, 1]
    """

    ranked: RankedMoments
    grid: MapGrid
    maps: Tensor = field(repr=False)
    num_clips: Tensor | None = None
    target: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    presence: Tensor | None = None

    @cached_property
    def dense(self) -> Tensor:
        """Merged map, `[start clip, duration in clips - 1]`: (B, N, N). Made on first request."""
        return MultiScaleMapSampler(self.grid).merge(self.grid.unpack(self.maps), self.num_clips)[0]

    @cached_property
    def mask(self) -> Tensor:
        """Which cells of `dense` are candidates, bool: (N, N), or (B, N, N) with `num_clips`."""
        return self.grid.dense_mask(self.maps.device, self.num_clips)

    @cached_property
    def saliency(self) -> Tensor:
        """How likely each clip of the grid lies in the answer: (B, N). Made on first request.

        Of the maps, whatever the ranking, by `map_saliency`; `resample_saliency` brings a row to
        clips of another length.

        Raises:
            ArgumentError: If `target` is None.
        """
        if self.target is None:
            raise ArgumentError(message("Localization", "a target, for saliency", "none"))
        return map_saliency(self.maps, self.grid, self.num_clips, target=self.target)

    @property
    def confidence(self) -> Tensor:
        """Score of each query's best moment, (B,); more is surer.

        With another ranking than `nms` and an objective of the rescaled IoU, how often it should
        hit. A `PlattCalibrator`, fitted on queries not trained on, makes a probability of any. An
        empty set has 0.
        """
        best = self.ranked.scores[:, 0]
        return best if self.ranked.present is None else best.clamp(min=0)


class MapLocalizer(MapModel):
    """Base of the models that answer a query with a score of every candidate moment.

    A subclass makes an `encoder` and calls `_set_up` in its constructor, and has `loss` and
    `predict_maps`.
    """

    encoder: MultimodalEncoder  # or any `MapEncoder`
    grid: MapGrid
    objective: Objective
    _supports_gradient_checkpointing = True

    def _set_up(
        self, grid: MapGrid, objective: str | Objective, nms_threshold: float, ranking: Ranking
    ) -> None:
        """Set up what answers are made with, and check it."""
        who = type(self).__name__
        check_range(who, "nms_threshold", nms_threshold, 0, 1)
        check_choice(who, "ranking", ranking, get_args(Ranking))
        check_presence_weights(who, self.encoder, self.config.get("presence_weights"))
        self.grid = grid
        self.objective = find_objective(who, objective)
        self.build_iou_maps = IoUMapBuilder(grid)
        self.sampler = MultiScaleMapSampler(grid)

    def register_to_config(self, **fields: Any) -> None:
        """Keep `fields` as JSON gives them back; of parts, what makes them anew."""
        for name, value in fields.items():
            if name == "objective":
                fields[name] = getattr(value, "name", value)
            elif isinstance(value, nn.Module | ConfigMixin):
                fields[name] = part_config(value)
        super().register_to_config(**fields)

    @override
    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        # Parts may have been exchanged since the model was made.
        for name in ("encoder", "decoder", "scheduler"):
            field = f"{name}_config"
            if field in self.config:
                now, saved = part_config(getattr(self, name)), self.config[field] or {}
                if not saved.items() <= now.items():
                    self.register_to_config(**{field: now})
        self.register_to_config(objective=self.objective)
        check_registered(type(self).__name__, self.config, self.objective)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def is_generative(self) -> bool:
        """Whether predictions are samples: drawn from noise, in a number of denoising steps."""
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
            words: Word indices, padded with 0.
            num_words: Words of each query.
            moments: Annotated moments, in seconds.
            clip_seconds: Seconds a clip lasts, for each sample.
            num_moments: Moments that count, for each sample; may be 0. All, if None.
            num_clips: Clips of each video, when videos are shorter than the grid.
            generator: Source of timesteps and noise, on the features' device: one, or one per query
                (these are then independent of how queries are batched). Not used where nothing is
                drawn.

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, L)
            - num_words, clip_seconds, num_moments, num_clips: (B,)
            - moments: (B, 2) or (B, M, 2)
            - returns: ()

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty, a moment is no moment of the video, or a video
                has no clip or more than there are features of.
        """
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
        """Check what a batch holds, as `loss` does: where that is free, before it goes to a device.

        Takes `features`, `words`, `moments`, `clip_seconds`, `num_moments` and `num_clips` of
        `loss`.

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a word is not in the vocabulary, a moment is no moment of the video,
                or a video has no clip or more than there are features of.
        """
        if (text_encoder := self._text_encoder) is not None:
            text_encoder.check_words(words)
        grid = self.grid_of(features, num_clips)
        grid.check_num_clips(num_clips, wait=True)
        IoUMapBuilder(grid).check(moments, clip_seconds, num_moments)

    def count_cells(self, features: Tensor, num_clips: Tensor | None = None) -> Tensor:
        """Count the valid cells of a batch: what `loss` is the mean over.

        Shape:
            - features: (B, N, clip_channels)
            - num_clips: (B,)
            - returns: ()
        """
        mask = self.grid_of(features, num_clips).packed_mask(features.device, num_clips)
        return mask.sum() if num_clips is not None else mask.sum() * len(features)

    def weights_not_finite(self) -> list[str]:
        """Name the weights and statistics that hold NaN or infinity: of a damaged model."""
        return [
            name
            for name, one in (*self.named_parameters(), *self.named_buffers())
            if not bool(one.isfinite().all())
        ]

    @contextmanager
    def without_checks(self) -> Iterator[None]:
        """Trust what batches hold: for those that `check_values` has seen.

        On a device each check of a value makes the host wait until all that was asked for is done.
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
        """Let torch.compile speed up what holds most of the work, in place.

        Names of weights stay, and copies are not compiled. What draws random numbers is left out,
        as compiled code draws others; but for dropout.
        """
        for part in self._compilable_parts():
            # Once for each size of batch: layers ask for strides, which must be numbers.
            part.compile(dynamic=False)

    def _compilable_parts(self) -> list[nn.Module]:
        map_features = getattr(self.encoder, "map_features", None)
        return [] if map_features is None else [map_features]

    @property
    def _text_encoder(self) -> TextEncoder | None:
        """What checks words; an encoder of one's own does that itself, if at all."""
        found = getattr(self.encoder, "text_encoder", None)
        return found if isinstance(found, TextEncoder) else None

    # accelerate and DistributedDataParallel wrap `forward`.
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the training loss; `args` and `kwargs` are those of `loss`."""
        return self.loss(*args, **kwargs)

    def predict_maps(self, *args: Any, **kwargs: Any) -> Tensor:
        """Predict the map that the objective learns.

        `*args` are `features`, `words`, `num_words` and, when videos differ in length, `num_clips`,
        as for `localize`; `**kwargs` tell how samples are drawn, if the model is generative.

        Shape:
            - returns: (B, cells), 0 in invalid cells
        """
        raise NotImplementedError

    def predict_samples(self, *args: Any, **kwargs: Any) -> Tensor:
        """Predict the maps that a set of moments is read off: all samples, if the model draws some.

        `*args` and `**kwargs` are those of `predict_maps`, which is the mean of these.

        Shape:
            - returns: (B, S, cells), 0 in invalid cells; S is 1 of a model that does not sample
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
        answer: AnswerKind = "ranked",
        presence: Tensor | None = None,
        **sampling: Any,
    ) -> Localization:
        """Find the moments that queries describe: predict maps, merge, rank.

        As in evaluation mode, whatever mode the model is in.

        Args:
            features: Features of the clips.
            words: Word indices, padded with 0.
            num_words: Words of each query.
            clip_seconds: Seconds a clip lasts, for each sample.
            num_clips: Clips of each video, when they differ. The features may then be of another
                number of clips than the configuration's.
            durations: Seconds each video lasts; moments end there at the latest, and are float64 if
                these are. (Seconds that float32 rounds up lie after the video: `MomentBatch` rounds
                down.)
            top_n: Moments per query; of a set, at most.
            ranking: How moments are read off the map: `nms` takes the highest cells that do not
                overlap (`rank_moments`), `expected-hits` the moments that together hit most often
                (`rank_by_expected_hits`), `nms-then-expected-hits` the highest cell first, and then
                those that hit most often where it fails. Defaults to the configuration's.
            nms_threshold: Highest IoU that two moments of a query may have. Only for `nms`, where
                it defaults to the configuration's, and for sets, where it defaults to 1: any.
            temperature: Not for `nms`: how flat the likelihoods of moments are, see
                `rank_by_expected_hits`. Defaults to 1, as deconvolved.
            answer: `ranked` gives the best moments, however well they fit; `set` those that there
                seem to be, possibly none, with probabilities for scores (`read_moment_sets`): of
                several samples, the set that agrees best with all.
            presence: For sets: how likely each query has a moment at all. Defaults to what the
                model was fitted to tell (`presence`), else to what the maps say.
            **sampling: As for `predict_maps`.

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, L)
            - num_words, clip_seconds, num_clips, durations, presence: (B,)

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty, or an argument is out of range; if there is an
                `nms_threshold` with neither `nms` nor a set, a `temperature` with either, a
                `ranking` with a set, or a `presence` without one; if scores are not finite, as
                damaged weights or features make them.
            ConfigError: If there is no such ranking or kind of answer.
        """
        self._check_reading(ranking, nms_threshold, temperature, answer, presence)
        predict = self.predict_samples if answer == "set" else self.predict_maps
        maps = predict(features, words, num_words, num_clips, **sampling)
        mean = maps.mean(dim=1) if maps.dim() == 3 else maps
        told = self.presence(features, words, num_words, mean, num_clips)
        if answer == "set" and presence is None:
            presence = told
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
            answer=answer,
            presence=presence,
        )
        return replace(found, presence=told)

    def presence(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        maps: Tensor,
        num_clips: Tensor | None = None,
    ) -> Tensor | None:
        """Tell how likely each query has an answer in its video at all, of the map it was given.

        A calibrated probability, which `tmapdiff.evaluation.fit_presence` has to have fitted; None
        of a model for which it has not: maps alone do not tell. `maps` is what `predict_maps` gave,
        or a mean of such; `features`, `words`, `num_words` and `num_clips` are as for `localize`.

        Shape:
            - maps: (B, cells)
            - returns: (B,), float64, in [0, 1]

        Raises:
            ShapeError, ArgumentError: As `localize`.
        """
        reader = presence_reader(self)
        if reader is None:
            return None
        self._check_scores(maps, self.grid_of(features, num_clips), num_clips, None)
        return reader(presence_features(self, features, words, num_words, maps, num_clips))

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
        answer: AnswerKind = "ranked",
        presence: Tensor | None = None,
        held: Tensor | None = None,
    ) -> Localization:
        """Read moments off predicted maps: what `localize` does with them.

        `maps` is what `predict_maps` or `predict_samples` gave, or a mean of such; a ranking is
        read off the mean over samples. `grid` has the candidate moments, when clips are not as many
        as the configuration's (`grid_of`). `held` tells which cells are candidates, of maps that
        are put together of windows; by default all valid ones are. `clip_seconds`, `num_clips`,
        `durations`, `top_n`, `ranking`, `nms_threshold`, `temperature`, `answer` and `presence` are
        as for `localize`.

        Shape:
            - maps: (B, cells) or (B, S, cells)
            - held: (B, cells), bool
            - presence: (B,)

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If an argument is out of range, or given with an answer that has no use
                for it, as for `localize`; if a map is not finite in a valid cell.
            ConfigError: If there is no such ranking or kind of answer.
        """
        ranking = self._check_reading(ranking, nms_threshold, temperature, answer, presence)
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
                **options,
            )
        return Localization(ranked, grid, maps, num_clips, self.objective.target)

    def _check_reading(
        self,
        ranking: Ranking | None,
        nms_threshold: float | None,
        temperature: float | None,
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
            ("presence", presence, not is_set, as_ranked),
            ("temperature", temperature, nms, by_nms),
            ("nms_threshold", nms_threshold, not nms and not is_set, by_hits),
        ):
            if in_vain and value is not None:
                hint = f"Pass {instead} with it."
                raise ArgumentError(message(who, f"no {name} with {other}", value, hint))
        return chosen

    def _check_scores(
        self, maps: Tensor, grid: MapGrid, num_clips: Tensor | None, held: Tensor | None
    ) -> None:
        """Refuse scores that are not finite: ranking would pass over them without a word."""
        sizes = check_shape(type(self).__name__, "maps", maps, f"B {grid.num_cells}")
        mask = grid.packed_mask(maps.device, num_clips).expand(sizes["B"], -1)
        if held is not None:
            check_shape(type(self).__name__, "held", held, f"B {grid.num_cells}", sizes)
            mask = mask & held
        for row, cell in (~maps.isfinite() & mask).nonzero().tolist():
            hint = "All weights are finite: check features of video and query, and the precision."
            if bad := self.weights_not_finite():
                hint = f"Weights are not finite: {', '.join(bad[:3])} ({len(bad)} in all)."
            got = f"{maps[row, cell]:g} in row {row}"
            raise ArgumentError(message(type(self).__name__, "finite scores", got, hint))

    def _targets(
        self,
        features: Tensor,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor | None,
        num_clips: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Map to learn, (B, cells), and which of its cells are valid."""
        iou = self._ious(features, moments, clip_seconds, num_moments, num_clips)
        grid = self.grid_of(features, num_clips)
        return self.objective.target(iou), grid.packed_mask(iou.device, num_clips)

    def _ious(
        self,
        features: Tensor,
        moments: Tensor,
        clip_seconds: Tensor,
        num_moments: Tensor | None,
        num_clips: Tensor | None,
    ) -> Tensor:
        """IoU of each cell with the annotated moments, (B, cells)."""
        grid, build = self.grid_of(features, num_clips), self.build_iou_maps
        grid.check_num_clips(num_clips, wait=build.validate)
        if grid != self.grid:
            build = IoUMapBuilder(grid, validate=build.validate)
        return build.packed(moments, clip_seconds, num_moments)

    def grid_of(self, features: Tensor, num_clips: Tensor | None) -> MapGrid:
        """Return the candidate moments of a batch: the configuration's, unless clips are counted.

        Shape:
            - features: (B, N, clip_channels)
            - num_clips: (B,)
        """
        if num_clips is None:
            return self.grid
        return self.grid.resized(
            features.shape[1] // (part_field(self.encoder, "features_per_clip") or 1)
        )
