"""Answers without training, from the similarity of clips and sentence."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from tmapdiff._core.checks import check_int, check_range, check_shape, message
from tmapdiff._core.newton import Derivatives, minimize
from tmapdiff.data.dataset import MomentBatch
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.maps import MapGrid
from tmapdiff.maps.contrasts import (
    CHANGES,
    CONTRASTS,
    GEOMETRY,
    change_features,
    check_smoothings,
    contrast_features,
)
from tmapdiff.maps.expected_hits import expect_map
from tmapdiff.maps.multiscale import DistinctMoments, distinct_moments
from tmapdiff.models._base import MapModel
from tmapdiff.models.aligned_similarities import Similarities, check_aligned
from tmapdiff.models.map_localizer import Generators, MapLocalizer, Query, Ranking

_DEFAULT_CONTRAST = "middle above 0.5"
_DEFAULT_TEMPERATURE = 0.25
_SMALLEST_GAIN = 1e-6  # in loss, of a step of the fit
_LEAST_DECAY = 1e-9  # makes the solution unique
_SMALLEST_SHARE = 1e-12  # variances below this share of the squared mean are rounding errors
_TEMPERATURES = tuple(2 ** (step / 2) for step in range(-4, 3))


class SimilarityEncoder(MapModel):
    """Computes map features without weights: contrasts of each candidate's similarity to the query.

    Features of clips and words must share a space, like those of CLIP, SigLIP, or one sentence
    encoder for captions and queries.

    `num_clips`, `num_anchors`, `num_scales`, `clip_channels`, `features_per_clip`, `spaces`,
    `words` and `smoothings` are as for `SimilarityLocalizer`.

    Args:
        text_channels: Channels of the word features; `clip_channels`, which is the default.
        vocabulary_size: None, as words are features.

    Raises:
        ArgumentError, ConfigError: If a size is too small or does not divide, or word features do
            not have `clip_channels` channels.
    """

    @register_to_config
    def __init__(
        self,
        num_clips: int,
        num_anchors: int,
        num_scales: int,
        clip_channels: int,
        text_channels: int | None = None,
        vocabulary_size: int | None = None,
        features_per_clip: int = 1,
        spaces: Sequence[int] | None = None,
        words: bool = False,
        smoothings: Sequence[int] = (1, 5, 9),
    ) -> None:
        super().__init__()
        who = "SimilarityEncoder"
        check_int(who, "features_per_clip", features_per_clip, at_least=1)
        self.grid = MapGrid(num_clips, num_anchors, num_scales)
        self.similarities = Similarities(clip_channels, spaces, words)
        text_channels = clip_channels if text_channels is None else text_channels
        check_aligned(who, clip_channels, text_channels, vocabulary_size)
        check_smoothings(who, smoothings)
        self.register_to_config(text_channels=text_channels)

    @property
    def channels(self) -> int:
        """Channels of the map features."""
        return len(CONTRASTS) * self.similarities.num_similarities + len(GEOMETRY) + len(CHANGES)

    def packed(
        self, features: Tensor, words: Tensor, num_words: Tensor, num_clips: Tensor | None = None
    ) -> Tensor:
        """Compute the map features, packed over all scales: (B, channels, cells).

        `features`, `words`, `num_words`, `num_clips` and errors are as for `forward`.
        """
        who, each = "SimilarityEncoder", self.config.features_per_clip
        axes = f"B T {self.config.clip_channels}"
        count = check_shape(who, "features", features, axes, {"B": words.shape[0]})["T"]
        clips, rest = divmod(count, each)
        if rest or (num_clips is None and clips != self.grid.num_clips):
            whole = f"{self.grid.num_clips} clips" if num_clips is None else "whole clips"
            expected, got = f"{whole} of {each} features", f"{count} features"
            raise ShapeError(message(who, expected, got))
        rows = self.similarities.embed(features)
        query = self.similarities.embed_query(words, num_words)
        given = (self.grid.resized(clips), num_clips)
        smoothings = self.config.smoothings
        contrasts = contrast_features(self.similarities(rows, query), *given, smoothings=smoothings)
        changes = change_features(rows, *given)
        return torch.cat([contrasts, changes.to(contrasts.dtype)], dim=1)

    def forward(
        self, features: Tensor, words: Tensor, num_words: Tensor, num_clips: Tensor | None = None
    ) -> list[Tensor]:
        """Compute the map features; arguments are as for `MultimodalEncoder`.

        Shape:
            - features: (B, N * features_per_clip, clip_channels)
            - words: (B, L, clip_channels)
            - num_words, num_clips: (B,), integer
            - returns: K tensors (B, channels, N_k, A), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a query is empty or longer than L.
            ConfigError: If N does not divide into the scales.
        """
        packed = self.packed(features, words, num_words, num_clips)
        grid = self.grid.resized(features.shape[1] // self.config.features_per_clip)
        parts = packed.split(grid.cells_per_scale, dim=2)
        return [one.unflatten(2, shape) for one, shape in zip(parts, grid.shapes, strict=True)]


class SimilarityLocalizer(MapLocalizer):
    """Finds moments by the similarity of clips and sentence alone: usable without training.

    Features of clips and words must share a space. A candidate's score is a weighted sum of its
    contrasts (`contrast_features`) and of how the video changes there (`change_features`). Softmax
    over the candidates turns scores into probabilities of moments, and the map holds the
    expectation of the target under them.

    The default weights need no fitting: the similarity is smoothed over 5 rows and standardized in
    its video, and the score is its excess over 0.5, summed over the candidate and divided by the
    candidate's length to the power 0.3. `fit` finds better weights, and a temperature for the
    confidence, on a few hundred queries.

    In the default grid, every moment of up to 32 clips is a candidate; longer ones have steps of
    two clips. Grids of more than 2,048 candidates are slower, as their tables are not cached.

    `nms_threshold`, `ranking` and `presence_weights` are as for `MomentLocalizer`.

    Args:
        clip_channels: Channels of the features, of clips and of words.
        num_clips: Clips of the finest scale.
        num_anchors: Durations per scale.
        num_scales: Number of scales.
        spaces: Channels of each space, if features of several spaces are concatenated; the default
            weights average their scores.
        words: Whether to compare each word in addition to their mean.
        features_per_clip: Feature rows per clip.
        smoothings: Numbers of rows to average similarities over, see `contrast_features`.
        target_power: In `fit`, a candidate's target probability is proportional to its IoU to
            this power.
        objective: Defines the target map (`tmapdiff.losses.get_objective`); its loss is not used.

    Raises:
        ArgumentError, ConfigError: If a number is out of range or a choice unknown.

    Example:
        >>> model = SimilarityLocalizer(clip_channels=4, num_clips=8, num_anchors=8, num_scales=1)
        >>> clips = torch.eye(4)[[0, 0, 0, 1, 1, 1, 2, 3]][None]
        >>> sentence = torch.eye(4)[1][None, None]  # one word
        >>> found = model.localize(clips, sentence, torch.tensor([1]), torch.tensor([2.0]))
        >>> found.ranked.moments[0, 0]
        tensor([ 6., 12.])
    """

    @register_to_config
    def __init__(
        self,
        clip_channels: int,
        num_clips: int = 64,
        num_anchors: int = 32,
        num_scales: int = 2,
        spaces: Sequence[int] | None = None,
        words: bool = False,
        features_per_clip: int = 1,
        smoothings: Sequence[int] = (1, 5, 9),
        target_power: float = 8.0,
        objective: str = "mse-rescaled",
        nms_threshold: float = 0.49,
        ranking: Ranking = "nms",
        presence_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = SimilarityEncoder(
            num_clips,
            num_anchors,
            num_scales,
            clip_channels,
            features_per_clip=features_per_clip,
            spaces=spaces,
            words=words,
            smoothings=smoothings,
        )
        check_range("SimilarityLocalizer", "target_power", target_power, 0, open_low=True)
        self._set_up(self.encoder.grid, objective, nms_threshold, ranking)
        weight = torch.zeros(self.encoder.channels)
        # Each contrast has all similarities in order, first those to the sentence, one per space.
        count, similarities = len(self.encoder.similarities.spaces), self.encoder.similarities
        first = CONTRASTS.index(_DEFAULT_CONTRAST) * similarities.num_similarities
        weight[first : first + count] = 1 / count
        self.weight = nn.Parameter(weight)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(_DEFAULT_TEMPERATURE))

    def score(
        self, features: Tensor, words: Tensor, num_words: Tensor, num_clips: Tensor | None = None
    ) -> Tensor:
        """Compute the score of every candidate moment, the weighted sum of its contrasts.

        `features`, `words`, `num_words` and `num_clips` are as for `localize`.

        Shape:
            - returns: (B, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a query is empty or longer than L.
        """
        contrasts = self.encoder.packed(features, words, num_words, num_clips)
        cells = rearrange(contrasts, "b c cells -> cells c b")  # their memory layout
        with torch.autocast(cells.device.type, enabled=False):
            return (self.weight.to(cells.dtype)[None, None] @ cells)[:, 0].T

    @override
    def _loss(self, iou: Tensor, grid: MapGrid, query: Query, generator: Generators) -> Tensor:
        # Cross-entropy to probabilities proportional to a power of the IoU. It is 0 if no candidate
        # overlaps a moment: scores rank candidates, and do not predict whether there is a moment.
        *_, num_clips = query
        scores = self.score(*query) / self.temperature
        candidates = distinct_moments(grid, scores.device)
        logs = _pick(candidates, scores, num_clips, -torch.inf).log_softmax(1)
        wanted = self._wanted(_pick(candidates, iou, num_clips, 0))
        return -(wanted * logs.masked_fill(wanted == 0, 0)).sum(1).mean()

    @override
    def count_cells(self, features: Tensor, num_clips: Tensor | None = None) -> Tensor:
        # The loss is a mean over queries, and several processes weight their losses by this.
        return torch.tensor(len(features), device=features.device)

    def _wanted(self, iou: Tensor) -> Tensor:
        """Compute the target probability of each candidate from its IoU; both are (B, M)."""
        power = iou**self.config.target_power
        return power / power.sum(1, keepdim=True).clamp(min=torch.finfo(power.dtype).tiny)

    @torch.no_grad()
    def fit(self, batches: Iterable[MomentBatch], *, weight_decay: float = 1e-5) -> float:
        """Fit weights and temperature on annotated queries. This takes seconds on a CPU.

        The weights minimize the loss, which is convex, by Newton's method. The temperature then
        minimizes the squared error of the map, which calibrates the confidence. Queries without a
        moment have no effect; for these, call `tmapdiff.evaluation.fit_presence` afterwards, as
        presence weights are discarded. It takes 4 bytes per query, candidate and contrast (34 or
        more).

        Args:
            batches: `MomentBatch`es, for example from a `DataLoader` of a `MomentDataset`. A few
                hundred queries suffice; do not evaluate on them.
            weight_decay: Factor of the squared weights in the loss, for contrasts of unit size.

        Returns:
            Mean loss per query with a moment, including decay.

        Raises:
            ArgumentError: If no query has a moment that a candidate overlaps, features are not
                finite, or a number is out of range; the model is then unchanged.
        """
        who = "SimilarityLocalizer.fit"
        check_range(who, "weight_decay", weight_decay, 0)
        with torch.autocast(self.weight.device.type, enabled=False):
            return self._fit(who, [self._part(batch) for batch in batches], weight_decay)

    def _fit(self, who: str, parts: Sequence["_FitPart"], weight_decay: float) -> float:
        parts = [part for part in parts if len(part.wanted)]
        total = sum(len(part.wanted) for part in parts)
        if not total:
            expected = "at least one query with a moment that a candidate overlaps"
            raise ArgumentError(message(who, expected, "none"))

        # 1. Weights, for contrasts of unit size.
        sizes = _deviations(parts)
        if not bool(sizes.isfinite().all()):
            raise ArgumentError(message(who, "finite features", "NaN or infinity"))

        def loss(weight: Tensor) -> Derivatives:
            value = weight_decay * weight.square().sum()
            gradient = 2 * weight_decay * weight
            hessian = 2 * max(weight_decay, _LEAST_DECAY) * torch.eye(len(weight)).to(weight)
            for part in parts:
                own = part.cross_entropy(weight / sizes)
                value = value + own.value / total
                gradient = gradient + own.gradient / sizes / total
                hessian = hessian + own.hessian / sizes / sizes[:, None] / total
            return Derivatives(value, gradient, hessian)

        # Start at zero: from a saturated softmax, Newton's steps lead far away.
        weight, smallest = minimize(loss, torch.zeros_like(sizes), _SMALLEST_GAIN)
        self.weight.copy_(weight / sizes)
        self.register_to_config(presence_weights=None)  # fitted on other maps

        # 2. Temperature.
        tried = weight.new_tensor(_TEMPERATURES)
        errors = torch.stack([self._squared_errors(part, tried.float()) for part in parts]).sum(0)
        self.temperature.copy_(tried[errors.argmin()])
        return float(smallest)

    def _part(self, batch: MomentBatch) -> "_FitPart":
        own = batch.to(self.weight.device)
        features, num_clips = own.features, own.num_clips
        grid = self.grid_of(features, num_clips)
        iou = self._ious(grid, own.moments, own.clip_seconds, own.num_moments, num_clips)
        contrasts = self.encoder.packed(features, own.words, own.num_words, num_clips).float()
        candidates = distinct_moments(grid, iou.device)
        picked = _pick(candidates, iou, num_clips, torch.nan)
        valid = ~picked.isnan()
        iou = picked.nan_to_num(0)
        rows = rearrange(contrasts[:, :, candidates.cells[:, 0]], "b c m -> b m c").contiguous()
        wanted = self._wanted(iou)
        kept = wanted.any(1)  # others would only weaken the loss against the decay
        rows, valid, iou, wanted = (one[kept] for one in (rows, valid, iou, wanted))
        return _FitPart(rows, valid, iou, wanted, candidates)

    def _squared_errors(self, part: "_FitPart", temperatures: Tensor) -> Tensor:
        """Sum the squared errors of the maps at each of the temperatures, (n,)."""
        scores = part.contrasts @ self.weight.float() / temperatures[:, None, None]
        count = len(temperatures)
        valid, iou = (one.repeat(count, 1) for one in (part.valid, part.iou))
        maps = self._expect(scores.flatten(0, 1), valid, part.candidates)
        errors = (maps - self.objective.target(iou)).square().masked_fill(~valid, 0)
        return errors.unflatten(0, (count, -1)).sum((1, 2)).double()

    @override
    def _predict(self, grid: MapGrid, query: Query) -> Tensor:
        *_, num_clips = query
        scores = self.score(*query) / self.temperature
        candidates = distinct_moments(grid, scores.device)
        picked = _pick(candidates, scores, num_clips, -torch.inf)
        maps = self._expect(picked, picked > -torch.inf, candidates)
        mask = grid.packed_mask(maps.device, num_clips)
        # Cells of different scales may share a candidate.
        return maps.index_select(1, candidates.places).masked_fill(~mask, 0)

    def _expect(self, logits: Tensor, valid: Tensor, candidates: DistinctMoments) -> Tensor:
        """Compute the map's expectation from scores / temperature; all are (B, M)."""
        likelihood = logits.masked_fill(~valid, -torch.inf).softmax(1)
        return expect_map(candidates.moments, likelihood, self.objective.target)


def _pick(
    candidates: DistinctMoments, packed: Tensor, num_clips: Tensor | None, outside: float
) -> Tensor:
    """Pick each candidate's number from (B, cells); `outside` if it ends after the video."""
    picked = packed.index_select(1, candidates.cells[:, 0])
    if num_clips is None:
        return picked
    over = candidates.moments[:, 1] > num_clips.to(picked.device)[:, None]
    return picked.masked_fill(over, outside)


class _FitPart(NamedTuple):
    """Data of a batch for fitting: contrasts, (B, M, C), and data of each candidate, (B, M)."""

    contrasts: Tensor
    valid: Tensor
    iou: Tensor
    wanted: Tensor
    candidates: DistinctMoments

    def rows(self) -> Tensor:
        """Return the contrasts of all candidates, (rows, C), in double."""
        return self.contrasts[self.valid].double()

    def cross_entropy(self, weight: Tensor) -> Derivatives:
        """Sum the cross-entropy over the queries, in double for small differences."""
        contrasts = self.contrasts.double()
        logits = (contrasts @ weight).masked_fill(~self.valid, -torch.inf)
        logs, wanted = logits.log_softmax(1), self.wanted.double()
        # Targets sum to 1 for each query, up to rounding.
        chances = logs.exp() * wanted.sum(1, keepdim=True)
        loss = -(wanted * logs.masked_fill(~self.valid, 0)).sum()
        mean = (chances[:, None] @ contrasts)[:, 0]
        gradient = mean.sum(0) - torch.einsum("bm,bmc->c", wanted, contrasts)
        rooted = (contrasts * chances.sqrt()[..., None]).flatten(0, 1)
        return Derivatives(loss, gradient, rooted.T @ rooted - mean.T @ mean)


def _deviations(parts: Sequence[_FitPart]) -> Tensor:
    """Compute the standard deviation of each contrast over all candidates; 1 where it is 0."""
    total = sum(int(part.valid.sum()) for part in parts)
    mean = torch.stack([part.rows().sum(0) for part in parts]).sum(0) / total
    squares = torch.stack([(part.rows() - mean).square().sum(0) for part in parts])
    variance = squares.sum(0) / total
    # Equal numbers differ from their mean only by rounding. NaN stays NaN.
    return variance.sqrt().masked_fill(variance <= _SMALLEST_SHARE * mean.square(), 1)
