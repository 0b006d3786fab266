"""Convolutions along a video over its similarities to a query."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmapdiff.layers._modules import dtype_of, module_list
from tmapdiff.maps.contrasts import REACHES, change_of, standardize

_DILATIONS = (1, 2, 4)
_NEAR_ROWS, _ALIKE = 6.0, 0.1
_SMALLEST_DEVIATION = 1e-3
_SMALLEST_NORM = 1e-12


class SequenceEncoder(nn.Module):
    """Encodes each row in its temporal context, by residual convolutions along the video.

    The inputs are the similarities: raw, standardized over the video, and averaged over nearby
    rows with similar features. Two more do not depend on the query: where the video changes
    (1 minus the cosine of the rows before and after), and how similar a row is to the video's mean.

    Args:
        num_similarities: Similarities per row.
        channels: Channels of the result.
        dropout: Share of the channels dropped in training.

    Shape:
        - rows: (B, T, C), of unit norm in each space; 0 after the video
        - similarities: (B, num_similarities, T)
        - inside: (B, T), bool: which rows belong to the video. Defaults to all
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
        # The inputs differ little along a video: lower precision would lose the differences.
        with torch.autocast(rows.device.type, enabled=False):
            x = self._read(rows, similarities, inside)
        inside = inside[:, None]
        x = self.project(x.where(inside, 0).to(dtype_of(self.project)))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + self.dropout(F.gelu(conv(norm(x.mT).mT.where(inside, 0))))
        return self.dropout(x).where(inside, 0).mT

    @staticmethod
    def _read(rows: Tensor, similarities: Tensor, inside: Tensor) -> Tensor:
        similarities = similarities.where(inside[:, None], 0)
        alike = average_alike(rows, similarities, inside)
        inside = inside[:, None]
        changes = [change_of(rows, reach, inside) for reach in REACHES]
        typical = rows @ F.normalize(rows.sum(1), dim=-1)[..., None]
        varying = torch.cat([similarities, alike, *changes, typical.mT], dim=1)
        return torch.cat([similarities, standardize(varying, inside, _SMALLEST_DEVIATION)], dim=1)


def average_alike(rows: Tensor, similarities: Tensor, inside: Tensor) -> Tensor:
    """Average similarities over nearby rows with similar features: a bilateral filter."""
    places = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype)
    apart = (places[:, None] - places).abs() / _NEAR_ROWS
    norm = rows.square().sum(-1).amax(1)[:, None, None].clamp(min=_SMALLEST_NORM)
    alike = (rows @ rows.mT / norm - 1) / _ALIKE - apart
    weight = alike.masked_fill(~inside[:, None], -torch.inf).softmax(-1)
    return similarities @ weight.mT
