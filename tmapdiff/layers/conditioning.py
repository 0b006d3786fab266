"""Conditioning the noisy map on the map features of video and query."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from tmapdiff._core.checks import check_choice, check_int, check_shape
from tmapdiff.kernels.masking import check_map_features, fill_invalid
from tmapdiff.kernels.memory_order import inverse_order, memory_order
from tmapdiff.layers._modules import dtype_of, is_plain
from tmapdiff.layers.pointwise import PointwiseConv2d, concat_channels

Product = Literal["plain", "residual", "gated"]


class ConcatConditioning(nn.Module):
    """Concatenates the embedded noisy map and the map features: `[Linear(noisy), F]`.

    Args:
        feature_channels: Channels of the map features.
        channels: Channels of the embedded noisy map.

    Shape:
        - noisy: (B, N_k, A)
        - features: (B, feature_channels, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool; None means that all cells are valid
        - returns: (B, out_channels, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError: If a size is below 1, at construction.
        ShapeError: If a shape does not fit, in the call.

    Source: Zhang et al., arXiv 2401.08232, section 3.3 and Table 3 ("CNN, concat").
    """

    def __init__(self, feature_channels: int, channels: int) -> None:
        super().__init__()
        who = "ConcatConditioning"
        self.feature_channels = check_int(who, "feature_channels", feature_channels, at_least=1)
        self.out_channels = check_int(who, "channels", channels, at_least=1) + feature_channels
        self.embed = MaskedEmbed(1, channels)

    def forward(self, noisy: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed and concatenate; see the class."""
        _check_inputs("ConcatConditioning", noisy, features, mask, self.feature_channels)
        # Filling stops gradients from invalid cells.
        return fill_invalid(self.combine(noisy, self.encode_features(features, mask), mask), mask)

    def encode_features(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute what depends on the map features only."""
        return fill_invalid(features, mask)

    def combine(self, noisy: Tensor, encoded: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the rest, from `noisy` maps and `encoded` features, 0 in invalid cells."""
        cells = rearrange(noisy, "b n a -> b 1 n a")
        if is_plain(self.embed, MaskedEmbed):
            embedded = self.embed(cells, mask, memory_order(encoded))
        else:
            embedded = fill_invalid(self.embed(fill_invalid(cells, mask)), mask)
        return concat_channels(embedded, encoded.to(embedded.dtype))


class MaskedEmbed(PointwiseConv2d):
    """Embeds noisy maps of one channel, with zeros in invalid cells.

    The mask is a second channel, with the bias as its weight. This saves the pass over the largest
    maps that filling invalid cells would take.
    """

    @override
    def forward(
        self, input: Tensor, mask: Tensor | None = None, order: Sequence[int] = (0, 2, 3, 1)
    ) -> Tensor:
        if self.in_channels > 1 or self.bias is None:  # as LoRA makes them
            return super().forward(input)
        mask = torch.ones_like(input, dtype=torch.bool) if mask is None else mask.unsqueeze(-3)
        valid = mask.expand_as(input)
        cells = torch.cat([torch.where(valid, input, 0), valid.to(input.dtype)], dim=1)
        order = [*(dim for dim in order if dim != 1), 1]
        weight = torch.stack([self.weight.flatten(), self.bias], dim=1)
        return F.linear(cells.permute(order), weight).permute(inverse_order(order))


class MultiplyConditioning(nn.Module):
    """Multiplies the embedded noisy map H with the projected map features F.

    Args:
        feature_channels: Channels of the map features, which should have unit norm in each cell.
        channels: Channels of the product.
        product: `plain` is `H * F`, `residual` is `H * (1 + F)`, `gated` is `H * sigmoid(F)`.

    Shape:
        - noisy: (B, N_k, A)
        - features: (B, feature_channels, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool; None means that all cells are valid
        - returns: (B, out_channels, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError: If a size is below 1, at construction.
        ConfigError: If `product` is unknown, at construction.
        ShapeError: If a shape does not fit, in the call.

    Source: Zhang et al., arXiv 2401.08232, Table 3 ("CNN, mul"), which does not define the product.
    """

    def __init__(self, feature_channels: int, channels: int, product: Product = "plain") -> None:
        super().__init__()
        who = "MultiplyConditioning"
        self.feature_channels = check_int(who, "feature_channels", feature_channels, at_least=1)
        self.out_channels = check_int(who, "channels", channels, at_least=1)
        self.product = check_choice(who, "product", product, get_args(Product))
        self.embed = PointwiseConv2d(1, channels)
        self.project = PointwiseConv2d(feature_channels, channels)

    def forward(self, noisy: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed, project and multiply; see the class."""
        _check_inputs("MultiplyConditioning", noisy, features, mask, self.feature_channels)
        return self.combine(noisy, self.encode_features(features, mask), mask)

    def encode_features(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute what depends on the map features only."""
        # Features of unit norm are about 1 / sqrt(channels) each: too small as factors.
        scaled = fill_invalid(features, mask) * self.feature_channels**0.5
        projected = self.project(scaled.to(dtype_of(self.project)))
        if self.product == "residual":
            projected = 1 + projected
        elif self.product == "gated":
            projected = projected.sigmoid()
        return projected

    def combine(self, noisy: Tensor, encoded: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the rest, from `noisy` maps and `encoded` features."""
        embedded = self.embed(fill_invalid(rearrange(noisy, "b n a -> b 1 n a"), mask))
        return fill_invalid(embedded * encoded, mask)

    def extra_repr(self) -> str:
        """Show settings that are not visible in submodules."""
        return f"product={self.product}"


def _check_inputs(
    who: str, noisy: Tensor, features: Tensor, mask: Tensor | None, feature_channels: int
) -> None:
    check_map_features(who, features, mask, feature_channels)
    batch, _, rows, columns = features.shape
    check_shape(who, "noisy", noisy, f"B {rows} {columns}", {"B": batch})
