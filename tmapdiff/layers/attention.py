"""Attention between the cells of maps: the parts of the Transformer decoder."""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import check_bool, check_int, check_range, check_shape
from tmapdiff.errors import ConfigError
from tmapdiff.kernels._derivatives import is_transformed, with_second_gradient
from tmapdiff.kernels.masking import check_map_features, fill_invalid
from tmapdiff.layers._modules import dtype_of, module_list
from tmapdiff.layers.stylization import Norm, NoStylization, StylizationBlock

_SINUSOIDS = 64  # sines and cosines of a start, and of a duration


class MomentPositionEmbedder(nn.Module):
    """Embeds the start and duration of each cell: sinusoids, then an MLP.

    Positions are in clips of the finest scale, so that all scales and grid sizes share one
    embedding.

    Args:
        channels: Channels of the embedding.

    Shape:
        - moments: (T, 2), start and end in clips
        - returns: (T, channels)

    Raises:
        ArgumentError: If `channels` is below 1, at construction.
        ShapeError: If `moments` is not (T, 2), in the call.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5, on two coordinates.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_int("MomentPositionEmbedder", "channels", channels, at_least=1)
        self.sinusoids = Timesteps(_SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = TimestepEmbedding(2 * _SINUSOIDS, channels)

    def forward(self, moments: Tensor) -> Tensor:
        """Embed candidate moments; see the class."""
        check_shape("MomentPositionEmbedder", "moments", moments, "T 2")
        start, end = moments.unbind(-1)
        sinusoids = self.sinusoids(rearrange([start, end - start], "two t -> (t two)"))
        sinusoids = rearrange(sinusoids, "(t two) c -> t (two c)", two=2)
        return self.mlp(sinusoids.to(dtype_of(self.mlp.linear_1)))


class MapTransformerLayer(nn.Module):
    """Attention between cells, then a feed-forward net on each, both conditioned on the timestep.

    `x + S(attention(norm(x)))`, then `x + S(feed_forward(norm(x)))`, where S is a
    `StylizationBlock`, or the identity if the layer is not stylized. Cells form a sequence; invalid
    ones are not attended to.

    Args:
        channels: Channels of the cells.
        time_channels: Channels of the time embedding.
        num_heads: Attention heads; must divide `channels`.
        expansion: Hidden channels of the feed-forward net, as a multiple of `channels`.
        stylized: Whether to use stylization blocks.
        norm: As in `StylizationBlock`.
        num_groups: As in `StylizationBlock`.
        dropout: Share of activations dropped in training.

    Shape:
        - x: (B, channels, T, 1)
        - time_embedding: (B, time_channels); None unless stylized
        - context: (B, channels, T, 1), more cells to attend to, or None
        - mask: (T, 1) or (B, T, 1), bool, for both `x` and `context`; None means all are valid
        - returns: (B, channels, T, 1), 0 in invalid cells

    Raises:
        ArgumentError: If a size is too small, `dropout` is outside [0, 1] or `stylized` is not True
            or False, at construction.
        ConfigError: If `channels` is not divisible, at construction.
        ShapeError: If a shape does not fit, in the call.

    Source: MotionDiffuse, arXiv 2208.15001, section 3.3; Zhang et al., arXiv 2401.08232, 3.3.
    """

    def __init__(
        self,
        channels: int,
        time_channels: int,
        num_heads: int = 8,
        expansion: int = 4,
        stylized: bool = True,
        norm: Norm = "group",
        num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        who = "MapTransformerLayer"
        self.channels = check_int(who, "channels", channels, at_least=1)
        check_int(who, "num_heads", num_heads, at_least=1)
        check_int(who, "expansion", expansion, at_least=1)
        check_range(who, "dropout", dropout, 0, 1)
        check_bool(who, "stylized", stylized)
        if channels % num_heads:
            raise ConfigError(
                f"{who}: expected channels divisible by num_heads = {num_heads}, got {channels}."
            )
        self.attention_norm = nn.LayerNorm(channels)
        self.num_heads = num_heads
        self.attention_dropout = dropout
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.attention_out = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(expansion * channels, channels),
        )
        self.styles = module_list(
            StylizationBlock(channels, time_channels, norm, num_groups, dropout)
            if stylized
            else NoStylization()
            for _ in range(2)
        )

    def forward(
        self,
        x: Tensor,
        time_embedding: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer; see the class."""
        who, axes = "MapTransformerLayer", f"B {self.channels} T 1"
        sizes = check_shape(who, "x", x, axes)
        check_map_features(who, x, mask, self.channels)
        if context is not None:
            check_shape(who, "context", context, axes, sizes)
        x = fill_invalid(x, mask)
        encoded = None if context is None else self.encode_context(context, mask)
        attending, feeding = self.styles
        x = x + attending(self.attend(x, encoded, mask), time_embedding, mask)
        x = x + feeding(self.feed(x), time_embedding, mask)
        return fill_invalid(x, mask)

    def encode_context(self, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute keys and values, (B, T, 2 * channels), for a call's `context` and `mask`."""
        return self.key_value(_tokens(fill_invalid(context, mask)).to(dtype_of(self.key_value)))

    def feed(self, x: Tensor) -> Tensor:
        """Apply the feed-forward net to each cell."""
        return _maps(self.feed_forward(_tokens(x)))

    def attend(self, x: Tensor, encoded: Tensor | None, mask: Tensor | None) -> Tensor:
        """Let cells attend to each other and to the `encoded` keys and values of a context."""
        tokens = self.attention_norm(_tokens(x))
        key_value = self.key_value(tokens)
        seen = None if mask is None else mask[..., 0].expand(tokens.shape[:2])
        if encoded is not None:
            key_value = torch.cat([key_value, encoded], dim=1)
            seen = None if seen is None else torch.cat([seen, seen], dim=1)
        if seen is not None:
            # Attention to nothing is NaN on some backends; samples without valid cells see zeros.
            seen = rearrange(seen | ~seen.any(dim=1, keepdim=True), "b t -> b 1 1 t")
        query = rearrange(self.query(tokens), "b t (h c) -> b h t c", h=self.num_heads)
        key, value = rearrange(key_value, "b t (two h c) -> two b h t c", two=2, h=self.num_heads)
        dropout = self.attention_dropout if self.training else 0.0
        attended = _attended(query, key, value, seen, dropout)
        attended = self.attention_out(rearrange(attended, "b h t c -> b t (h c)"))
        return fill_invalid(_maps(attended), mask)


def _attended(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, dropout: float
) -> Tensor:
    if is_transformed(query, key, value):
        return _plainly_attended(query, key, value, seen, dropout)
    result = F.scaled_dot_product_attention(query, key, value, seen, dropout)
    if dropout:  # its mask cannot be redrawn, so torch refuses second derivatives
        return result
    return with_second_gradient(result, _plainly_attended, query, key, value, seen)


def _plainly_attended(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Attend in plain operations, as torch's fused attention has only first derivatives."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return F.dropout(scores.softmax(dim=-1), dropout) @ value


def _tokens(maps: Tensor) -> Tensor:
    return rearrange(maps, "b c t 1 -> b t c")


def _maps(tokens: Tensor) -> Tensor:
    return rearrange(tokens, "b t c -> b c t 1")
