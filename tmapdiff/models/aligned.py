"""Features of clips and words that share a space: how alike they are, before anything is learned."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import check_bool, check_int, check_shape, check_sizes, message
from tmapdiff.errors import ArgumentError, ConfigError

AlignedPart = Literal["sentence", "words", "metric", "product"]
_METRIC_RANK = 32  # of what the learned metric adds to the identity


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
        metric: Whether to add a similarity that is learned: it begins as the mean over the spaces.

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
    ) -> None:
        super().__init__()
        who = "Similarities"
        self.channels = check_int(who, "channels", channels, at_least=1)
        self.spaces = [channels] if spaces is None else check_sizes(who, "spaces", spaces)
        if sum(self.spaces) != channels:
            expected = f"spaces of {channels} channels together"
            raise ConfigError(message(who, expected, f"{self.spaces}: {sum(self.spaces)}"))
        check_bool(who, "words", words)
        check_bool(who, "metric", metric)
        self.words = words
        self.of_rows = self.of_query = None
        if metric:
            self.of_rows, self.of_query = _from_zero(channels), _from_zero(channels)

    @property
    def num_similarities(self) -> int:
        """Similarities of each row."""
        return len(self.spaces) * (3 if self.words else 1) + (self.of_rows is not None)

    def embed(self, features: Tensor) -> Tensor:
        """Give features, (..., channels), unit norm in each space."""
        parts = features.split(self.spaces, dim=-1)
        return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1)

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
        found = self._cosines(rows, query.sentence[:, None])
        if self.words:
            each = self._cosines(rows, query.words)  # (B, spaces, L, T)
            inside = torch.arange(each.shape[2], device=each.device) < query.num_words[:, None]
            inside = inside[:, None, :, None]
            best = each.masked_fill(~inside, -torch.inf).amax(2, keepdim=True)
            mean = each.sum(2, keepdim=True) / query.num_words[:, None, None, None]
            found = torch.cat([found, best, mean], dim=2)
        found = rearrange(found, "b s l t -> b (l s) t")
        if self.of_rows is not None and self.of_query is not None:
            moved = query.sentence + self.of_query(query.sentence)
            learned = torch.einsum("btc,bc->bt", rows + self.of_rows(rows), moved)
            found = torch.cat([found, learned[:, None] / len(self.spaces)], dim=1)
        return found

    def _cosines(self, rows: Tensor, words: Tensor) -> Tensor:
        """Cosines of words, (B, L, C), and rows, (B, T, C), in each space: (B, spaces, L, T)."""
        parts = zip(rows.split(self.spaces, -1), words.split(self.spaces, -1), strict=True)
        return torch.stack([word @ row.mT for row, word in parts], dim=1)


def _from_zero(channels: int) -> nn.Sequential:
    down = nn.Linear(channels, min(channels, _METRIC_RANK), bias=False)
    up = nn.Linear(down.out_features, channels, bias=False)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, up)


def check_num_words(who: str, num_words: Tensor, most: int) -> Tensor:
    """Return the words of each query on the CPU, or raise ArgumentError if they are not 1 to L."""
    lengths = num_words.cpu()
    if len(lengths) and (int(lengths.min()) < 1 or int(lengths.max()) > most):
        row = int(((lengths < 1) | (lengths > most)).nonzero()[0])
        expected, got = f"num_words in 1 to {most}", f"{int(lengths[row])} in row {row}"
        raise ArgumentError(message(who, expected, got))
    return lengths


def check_aligned(
    who: str, clip_channels: int, text_channels: int | None, vocabulary_size: int | None = None
) -> None:
    """Raise ConfigError unless clips and words are features of as many channels."""
    if text_channels != clip_channels or vocabulary_size is not None:
        expected = f"words that are features of the clips' space, text_channels = {clip_channels}"
        got = f"text_channels = {text_channels}"
        if vocabulary_size is not None:
            got += f" and a vocabulary of {vocabulary_size} words"
        raise ConfigError(message(who, expected, got))
