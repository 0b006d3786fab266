"""Features of clips and words that share a space: how alike they are before any training."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import (
    check_bool,
    check_choice,
    check_int,
    check_shape,
    check_sizes,
    message,
)
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.kernels.masking import fill_invalid
from tmapdiff.layers._modules import dtype_of, module_list
from tmapdiff.maps import MapGrid
from tmapdiff.maps.contrasts import (
    CONTRASTS,
    GEOMETRY,
    REACHES,
    cell_context,
    cell_means,
    change_of,
    contrast_features,
)

AlignedPart = Literal["sentence", "words", "metric", "sequence", "product", "learned"]
_METRIC_RANK = 32  # of what the learned metric adds to the identity
_SEQUENCE_CHANNELS = 32
_DILATIONS = (1, 2, 4)
_NEAR_ROWS, _ALIKE = 6.0, 0.1
_SMALLEST_DEVIATION = 1e-3
_SMALLEST_NORM = 1e-12  # shorter features are divided by it
# What brings contrasts to about unit size, where they are not.
_SCALES = {"middle above": 0.25, "log length": 0.5, "log length squared": 0.125}


class AlignedQuery(NamedTuple):
    """Queries as `Similarities` reads them, with unit norm in each space.

    Shape:
        - sentence: (B, C)
        - words: (B, L, C)
        - num_words: (B,)
    """

    sentence: Tensor
    words: Tensor
    num_words: Tensor


class Similarities(nn.Module):
    """How alike the rows of a video and a query are, by cosine, in one space or several.

    Features of several spaces, such as those of two models, stand side by side. Each gives a
    similarity of its own.

    Args:
        channels: Channels of the features, of clips and of words.
        spaces: Channels of each space. Defaults to one space of all.
        words: Whether to add the highest and the mean similarity over the words.
        metric: Whether to add a similarity that is learned, `<f + A f, e + B e>` with A and B of
            low rank: it begins as the mean over the spaces.
        sentence: Whether the similarity to the sentence, the mean of the words, is one.

    Shape:
        - rows: (B, T, channels), as `embed` gives them
        - query: as `embed_query` gives it
        - returns: (B, num_similarities, T)

    Raises:
        ArgumentError: If a number of channels is below 1 or a switch not True or False, at
            construction; if a query has no word or more than there are, in `embed_query`.
        ConfigError: If `spaces` do not add up, at construction.
        ShapeError: If a shape does not fit, in the call.
    """

    def __init__(
        self,
        channels: int,
        spaces: Sequence[int] | None = None,
        words: bool = False,
        metric: bool = False,
        sentence: bool = True,
    ) -> None:
        super().__init__()
        who = "Similarities"
        self.channels = check_int(who, "channels", channels, at_least=1)
        self.spaces = [channels] if spaces is None else check_sizes(who, "spaces", spaces)
        if sum(self.spaces) != channels:
            expected = f"spaces of {channels} channels together"
            raise ConfigError(message(who, expected, f"{self.spaces}: {sum(self.spaces)}"))
        for name, switch in (("words", words), ("metric", metric), ("sentence", sentence)):
            check_bool(who, name, switch)
        self.words, self.sentence = words, sentence
        self.of_rows = self.of_query = None
        if metric:
            self.of_rows, self.of_query = _from_zero(channels), _from_zero(channels)

    @property
    def num_similarities(self) -> int:
        """Similarities of each row."""
        return len(self.spaces) * (self.sentence + 2 * self.words) + (self.of_rows is not None)

    def embed(self, features: Tensor) -> Tensor:
        """Give features, (..., channels), unit norm in each space, in float32 at least."""
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        parts = wide.split(self.spaces, dim=-1)
        squares = (part.square().sum(-1, keepdim=True) for part in parts)
        # Not torch's norm, whose second derivative is NaN where it is 0.
        norms = (one.clamp(min=_SMALLEST_NORM**2).sqrt() for one in squares)
        return torch.cat([part / norm for part, norm in zip(parts, norms, strict=True)], dim=-1)

    def embed_query(self, words: Tensor, num_words: Tensor) -> AlignedQuery:
        """Embed words and their mean: the sentence.

        Shape:
            - words: (B, L, channels)
            - num_words: (B,), integer, 1 to L
        """
        sizes = check_shape("Similarities", "words", words, f"B L {self.channels}")
        check_shape("Similarities", "num_words", num_words, "B", sizes)
        check_num_words("Similarities", num_words, sizes["L"])
        num_words = num_words.to(words.device, non_blocking=True)
        inside = torch.arange(sizes["L"], device=words.device) < num_words[:, None]
        words = words.where(inside[..., None], 0)
        # The sum points where the mean does.
        return AlignedQuery(self.embed(words.sum(1)), self.embed(words), num_words)

    def forward(self, rows: Tensor, query: AlignedQuery) -> Tensor:
        """Compare; see the class."""
        sizes = check_shape("Similarities", "rows", rows, f"B T {self.channels}")
        check_shape("Similarities", "sentence", query.sentence, f"B {self.channels}", sizes)
        # Differences of similarities are small: less precision would lose them.
        with torch.autocast(rows.device.type, enabled=False):
            return self._compare(rows, query)

    def _compare(self, rows: Tensor, query: AlignedQuery) -> Tensor:
        found = []
        if self.sentence:
            found.append(self.cosines(rows, query.sentence[:, None]))
        if self.words:
            each = self.cosines(rows, query.words)  # (B, L, spaces, T)
            num_words = query.num_words[:, None, None, None]
            inside = torch.arange(each.shape[1], device=each.device)[:, None, None] < num_words
            found.append(each.masked_fill(~inside, -torch.inf).amax(1, keepdim=True))
            found.append(each.sum(1, keepdim=True) / num_words)
        found = [one.flatten(1, 2) for one in found]
        if self.of_rows is not None and self.of_query is not None:
            moved = query.sentence + self._added(self.of_query, query.sentence)
            learned = (rows + self._added(self.of_rows, rows)) @ moved[..., None]
            found.append(learned.mT / len(self.spaces))
        return torch.cat(found, dim=1)

    @staticmethod
    def _added(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.to(dtype_of(layer))).to(x.dtype)

    def cosines(self, rows: Tensor, words: Tensor) -> Tensor:
        """Compare words, (B, L, C), and rows, (B, T, C), in each space: (B, L, spaces, T)."""
        parts = zip(rows.split(self.spaces, -1), words.split(self.spaces, -1), strict=True)
        return torch.stack([word @ row.mT for row, word in parts], dim=2)


class SequenceEncoder(nn.Module):
    """Residual convolutions along a video: what a row is in the course of the video.

    It reads the similarities as they are, standardised in their video, and averaged over rows that
    are alike and near; and, whatever the query, where the video changes (1 less the cosine of the
    rows before and after) and how like its mean a row is.

    Args:
        num_similarities: Similarities of each row.
        channels: Channels of the result.
        dropout: Share of the channels dropped in training.

    Shape:
        - rows: (B, T, C), of unit norm in each space; 0 after the video
        - similarities: (B, num_similarities, T)
        - inside: (B, T), bool: which rows are of the video; all without it
        - returns: (B, T, channels), 0 after the video
    """

    def __init__(self, num_similarities: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        inputs = 3 * num_similarities + len(REACHES) + 1
        self.project = nn.Conv1d(inputs, channels, 3, padding=1)
        self.norms = module_list(nn.LayerNorm(channels) for _ in _DILATIONS)
        self.convs = module_list(
            nn.Conv1d(channels, channels, 3, padding=size, dilation=size) for size in _DILATIONS
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, similarities: Tensor, inside: Tensor | None = None) -> Tensor:
        """Encode; see the class."""
        if inside is None:
            inside = rows.new_ones(rows.shape[:2], dtype=torch.bool)
        similarities = similarities.where(inside[:, None], 0)
        alike = average_alike(rows, similarities, inside)
        inside = inside[:, None]
        changes = [change_of(rows, reach, inside) for reach in REACHES]
        typical = rows @ F.normalize(rows.sum(1), dim=-1)[..., None]
        varying = torch.cat([similarities, alike, *changes, typical.mT], dim=1)
        x = torch.cat([similarities, standardise(varying, inside)], dim=1)
        x = self.project(x.where(inside, 0).to(dtype_of(self.project)))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + self.dropout(F.gelu(conv(norm(x.mT).mT.where(inside, 0))))
        return self.dropout(x).where(inside, 0).mT


def average_alike(rows: Tensor, similarities: Tensor, inside: Tensor) -> Tensor:
    """Average similarities over rows that are alike and near: a bilateral filter."""
    places = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype)
    apart = (places[:, None] - places).abs() / _NEAR_ROWS
    norm = rows.square().sum(-1).amax(1)[:, None, None].clamp(min=_SMALLEST_NORM)
    alike = (rows @ rows.mT / norm - 1) / _ALIKE - apart
    weight = alike.masked_fill(~inside[:, None], -torch.inf).softmax(-1)
    return similarities @ weight.mT


def standardise(rows: Tensor, inside: Tensor) -> Tensor:
    """Shift and scale rows, (B, S, T), to mean 0 and variance 1 over those inside."""
    count = inside.sum(2, keepdim=True)
    centred = (rows - rows.where(inside, 0).sum(2, keepdim=True) / count).where(inside, 0)
    variance = centred.square().sum(2, keepdim=True) / count
    return centred / (variance + _SMALLEST_DEVIATION**2).sqrt()


class AlignedFusion(nn.Module):
    """Map features of videos and queries whose features share a space.

    Contrasts of similarities (`contrast_features`), and the product of the sentence with the mean
    of each candidate's rows, less that of the video, go through two linear layers. Both are brought
    to about unit size by fixed factors; results are about 1 / sqrt(out_channels) each, as a cell of
    unit norm has them, but keep their scale.

    Args:
        channels: Channels of the features, of clips and of words.
        out_channels: Channels of the map features.
        spaces: As for `Similarities`.
        parts: What is used: the similarity to the `sentence` and to the `words`, the learned
            `metric`, the `product`.
        dropout: Share of the products dropped in training.

    Shape:
        - rows: (B, T, channels), as `embed` of `similarities` gives them
        - query: as its `embed_query` gives it
        - num_clips: (B,), integer
        - returns: K tensors (B, out_channels, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError, ConfigError: As `Similarities`, at construction.
        ShapeError: If a shape does not fit, in the call.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        spaces: Sequence[int] | None = None,
        parts: Sequence[AlignedPart] = ("sentence", "words", "metric", "sequence", "product"),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        has_words, has_metric = "words" in parts, "metric" in parts
        has_sentence = "sentence" in parts
        self.has_contrasts = has_sentence or has_words or has_metric
        self.similarities = Similarities(
            channels, spaces, has_words, has_metric, has_sentence or "sequence" in parts
        )
        count, width = self.similarities.num_similarities, 0
        if self.has_contrasts:
            names = [name for name in CONTRASTS for _ in range(count)] + [*GEOMETRY]
            scales = [_SCALES.get(name.rstrip(" 0123456789."), 1.0) for name in names]
            self.contrast_scales: Tensor
            self.register_buffer("contrast_scales", torch.tensor(scales), persistent=False)
            width += len(scales)
        self.sequence: SequenceEncoder | None = None
        if "sequence" in parts:
            self.sequence = SequenceEncoder(count, _SEQUENCE_CHANNELS, dropout)
            width += 5 * _SEQUENCE_CHANNELS
        if "product" in parts:
            # Of unit norm, entries of width w are about 1 / sqrt(w), and products 1 / w.
            widths = [width for width in self.similarities.spaces for _ in range(width)]
            self.product_scales: Tensor
            self.register_buffer("product_scales", torch.tensor(widths).float(), persistent=False)
            width += channels
        self.has_product = "product" in parts
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            nn.Linear(width, out_channels), nn.ReLU(), nn.Linear(out_channels, out_channels)
        )
        for layer in self.layers:  # else they would shrink what comes in
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(
        self, rows: Tensor, query: AlignedQuery, grid: MapGrid, num_clips: Tensor | None = None
    ) -> list[Tensor]:
        """Make the map features; see the class."""
        inside = None
        if num_clips is not None:
            each = rows.shape[1] // grid.num_clips
            places = torch.arange(rows.shape[1], device=rows.device)
            inside = places < num_clips.to(rows.device)[:, None] * each
            rows = rows.where(inside[..., None], 0)
        parts = []
        if self.similarities.num_similarities:
            similarities = self.similarities(rows, query)
        if self.has_contrasts:
            contrasts = contrast_features(similarities, grid, num_clips)
            parts.append(contrasts * self.contrast_scales[:, None])
        if self.sequence is not None:
            encoded = self.sequence(rows, similarities, inside)
            parts.append(cell_context(encoded, grid, num_clips).to(rows.dtype))
        if self.has_product:
            count = rows.shape[1] if inside is None else inside.sum(1)[:, None, None]
            centred = rows - rows.sum(1, keepdim=True) / count
            means = cell_means(centred, grid, num_clips)
            product = means * (query.sentence * self.product_scales)[..., None]
            parts.append(self.dropout(product))
        # Channels innermost, as linear layers read them.
        packed = torch.cat([rearrange(one, "b c cells -> cells b c") for one in parts], dim=-1)
        made = self.layers(packed.to(dtype_of(self.layers)))
        made = made * made.shape[-1] ** -0.5
        maps = []
        pieces = made.split(grid.cells_per_scale)
        for scale, (piece, shape) in enumerate(zip(pieces, grid.shapes, strict=True)):
            one = rearrange(piece.unflatten(0, shape), "n a b c -> b c n a")
            maps.append(fill_invalid(one, grid.mask(scale, one.device, num_clips)))
        return maps


def _from_zero(channels: int) -> nn.Sequential:
    down = nn.Linear(channels, min(channels, _METRIC_RANK), bias=False)
    up = nn.Linear(down.out_features, channels, bias=False)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, up)


def check_num_words(who: str, num_words: Tensor, most: int) -> None:
    """Raise ArgumentError unless each query has 1 to `most` words; waits for their device."""
    if not len(num_words) or torch.compiler.is_compiling() or num_words.is_meta:
        return
    if int(num_words.min()) < 1 or int(num_words.max()) > most:
        row = int(((num_words < 1) | (num_words > most)).nonzero()[0])
        expected, got = f"num_words in 1 to {most}", f"{int(num_words[row])} in row {row}"
        raise ArgumentError(message(who, expected, got))


def check_aligned(
    who: str, clip_channels: int, text_channels: int | None, vocabulary_size: int | None = None
) -> None:
    """Raise ConfigError unless clips and words are features of as many channels."""
    if text_channels is not None:
        text_channels = check_int(who, "text_channels", text_channels, at_least=1)
    if text_channels != clip_channels or vocabulary_size is not None:
        expected = f"words that are features of the clips' space, text_channels = {clip_channels}"
        got = f"text_channels = {text_channels}"
        if vocabulary_size is not None:
            got += f" and a vocabulary of {vocabulary_size} words"
        raise ConfigError(message(who, expected, got))


def check_parts(who: str, parts: Sequence[AlignedPart]) -> Sequence[AlignedPart]:
    """Return the parts of a fusion, or raise ConfigError if there is none or one is unknown."""
    known = get_args(AlignedPart)
    if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
        expected = f"aligned_parts to be a list of {', '.join(known)}"
        raise ConfigError(message(who, expected, repr(parts)))
    for part in parts:
        check_choice(who, "aligned_parts", part, known)
    return parts
