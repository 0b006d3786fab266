"""Similarities of clips and queries whose features share a space."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tmapdiff._core.checks import check_bool, check_int, check_shape, check_sizes, message
from tmapdiff.errors import ArgumentError, ConfigError

_SMALLEST_NORM = 1e-12  # shorter features are divided by this


class AlignedQuery(NamedTuple):
    """Queries embedded for `Similarities`, with unit norm in each space.

    Shape:
        - sentence: (B, C)
        - words: (B, L, C)
        - num_words: (B,)
    """

    sentence: Tensor
    words: Tensor
    num_words: Tensor


class Similarities(nn.Module):
    """Computes cosine similarities of video rows and a query, in one feature space or several.

    Features of several spaces, such as those of two models, are concatenated. Each space has its
    own similarities.

    Args:
        channels: Channels of the features, of clips and of words.
        spaces: Channels of each space. Defaults to a single space.
        words: Whether to add the maximum and the mean of the similarities over the words.
        sentence: Whether to include the similarity to the sentence, the mean of the words.

    Shape:
        - rows: (B, T, channels), from `embed`
        - query: from `embed_query`
        - returns: (B, num_similarities, T)
    """

    def __init__(
        self,
        channels: int,
        spaces: Sequence[int] | None = None,
        words: bool = False,
        sentence: bool = True,
    ) -> None:
        super().__init__()
        who = "Similarities"
        self.channels = check_int(who, "channels", channels, at_least=1)
        self.spaces = [channels] if spaces is None else check_sizes(who, "spaces", spaces)
        if sum(self.spaces) != channels:
            expected = f"spaces that add up to {channels} channels"
            raise ConfigError(message(who, expected, f"{self.spaces}: {sum(self.spaces)}"))
        for name, switch in (("words", words), ("sentence", sentence)):
            check_bool(who, name, switch)
        self.words, self.sentence = words, sentence

    @property
    def num_similarities(self) -> int:
        """Similarities per row."""
        return len(self.spaces) * (self.sentence + 2 * self.words)

    def embed(self, features: Tensor) -> Tensor:
        """Normalize features, (..., channels), in each space, in float32 at least."""
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        parts = wide.split(self.spaces, dim=-1)
        squares = (part.square().sum(-1, keepdim=True) for part in parts)
        # The second derivative of torch's norm is NaN at 0.
        norms = (one.clamp(min=_SMALLEST_NORM**2).sqrt() for one in squares)
        return torch.cat([part / norm for part, norm in zip(parts, norms, strict=True)], dim=-1)

    def embed_query(self, words: Tensor, num_words: Tensor) -> AlignedQuery:
        """Embed words and the sentence, their mean.

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
        # The sum has the direction of the mean.
        return AlignedQuery(self.embed(words.sum(1)), self.embed(words), num_words)

    def forward(self, rows: Tensor, query: AlignedQuery) -> Tensor:
        """Compute the similarities; see the class."""
        sizes = check_shape("Similarities", "rows", rows, f"B T {self.channels}")
        check_shape("Similarities", "sentence", query.sentence, f"B {self.channels}", sizes)
        wide = torch.promote_types(rows.dtype, query.sentence.dtype)
        query = AlignedQuery(query.sentence.to(wide), query.words.to(wide), query.num_words)
        # Differences between similarities are small: lower precision would lose them.
        with torch.autocast(rows.device.type, enabled=False):
            return self._compare(rows.to(wide), query)

    def _compare(self, rows: Tensor, query: AlignedQuery) -> Tensor:
        found = []
        if self.sentence:
            found.append(self.to_sentence(rows, query)[:, None])
        if self.words:
            each = self._cosines(rows, query.words)  # (B, L, spaces, T)
            num_words = query.num_words[:, None, None, None]
            inside = torch.arange(each.shape[1], device=each.device)[:, None, None] < num_words
            found.append(each.masked_fill(~inside, -torch.inf).amax(1, keepdim=True))
            found.append(each.sum(1, keepdim=True) / num_words)
        return torch.cat([one.flatten(1, 2) for one in found], dim=1)

    def to_sentence(self, rows: Tensor, query: AlignedQuery) -> Tensor:
        """Compute the cosine to the sentence in each space: (B, spaces, T)."""
        with torch.autocast(rows.device.type, enabled=False):
            return self._cosines(rows, query.sentence[:, None].to(rows.dtype))[:, 0]

    def _cosines(self, rows: Tensor, words: Tensor) -> Tensor:
        """Compute cosines of words, (B, L, C), and rows, (B, T, C): (B, L, spaces, T)."""
        parts = zip(rows.split(self.spaces, -1), words.split(self.spaces, -1), strict=True)
        return torch.stack([word @ row.mT for row, word in parts], dim=2)


def check_num_words(who: str, num_words: Tensor, most: int) -> None:
    """Raise ArgumentError unless each query has 1 to `most` words; waits for the device."""
    if torch.compiler.is_compiling() or num_words.is_meta or not len(num_words):
        return
    if int(num_words.min()) < 1 or int(num_words.max()) > most:
        row = int(((num_words < 1) | (num_words > most)).nonzero()[0])
        expected, got = f"num_words in 1 to {most}", f"{int(num_words[row])} in row {row}"
        raise ArgumentError(message(who, expected, got))


def check_aligned(
    who: str, clip_channels: int, text_channels: int | None, vocabulary_size: int | None = None
) -> None:
    """Raise ConfigError unless words are features with as many channels as the clips'."""
    if text_channels is not None:
        text_channels = check_int(who, "text_channels", text_channels, at_least=1)
    if text_channels != clip_channels or vocabulary_size is not None:
        expected = f"word features in the clips' space, text_channels = {clip_channels}"
        got = f"text_channels = {text_channels}"
        if vocabulary_size is not None:
            got += f" and a vocabulary of {vocabulary_size} words"
        raise ConfigError(message(who, expected, got))
