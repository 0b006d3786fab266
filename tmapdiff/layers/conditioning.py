"""How the map features of video and query meet the noisy map."""

import torch
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._checks import check_int, check_shape
from tmapdiff.layers.norm import check_map_features, fill_invalid


class ConcatConditioning(nn.Module):
    """Concatenates the embedded noisy map and the map features: `[Linear(noisy), F]`.

    Args:
        feature_channels: Channels of the map features.
        channels: Channels that the noisy map is embedded in.

    Shape:
        - noisy: (B, N_k, A)
        - features: (B, feature_channels, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool; all cells are valid if None
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
        self.channels = check_int(who, "channels", channels, at_least=1)
        self.embed = nn.Conv2d(1, channels, kernel_size=1)

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.channels + self.feature_channels

    def forward(self, noisy: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed and concatenate; see the class."""
        who = "ConcatConditioning"
        check_map_features(who, features, mask, self.feature_channels)
        batch, _, rows, columns = features.shape
        check_shape(who, "noisy", noisy, f"B {rows} {columns}", {"B": batch})
        embedded = self.embed(fill_invalid(rearrange(noisy, "b n a -> b 1 n a"), mask))
        return fill_invalid(torch.cat([embedded, features.to(embedded.dtype)], dim=1), mask)
