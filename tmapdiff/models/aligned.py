"""Map features from clip and word features that share a space."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import check_choice, message
from tmapdiff.errors import ConfigError
from tmapdiff.kernels.masking import fill_invalid
from tmapdiff.layers._modules import dtype_of
from tmapdiff.maps import MapGrid
from tmapdiff.maps.contrasts import (
    CONTRASTS,
    GEOMETRY,
    cell_context,
    cell_means,
    contrast_features,
)
from tmapdiff.models.aligned_sequence import SequenceEncoder
from tmapdiff.models.aligned_similarities import AlignedQuery, Similarities

AlignedPart = Literal["sentence", "words", "sequence", "product", "learned"]
# The best on held-out queries of the combinations tried (docs/results/qvhighlights.md).
DEFAULT_PARTS: tuple[AlignedPart, ...] = ("sentence", "sequence")
_SEQUENCE_CHANNELS = 32
# Factors that bring contrasts to about unit size; 1 for the others.
_SCALES = {"middle above": 0.25, "log length": 0.5, "log length squared": 0.125}


class AlignedFusion(nn.Module):
    """Builds map features from clip and word features that share a space.

    Each part computes several numbers per candidate. Two linear layers read them all:

    - `sentence`, `words`: contrasts (`contrast_features`) of the similarity to the mean of the
      words, and of its maximum and mean over the words (`Similarities`). With `sequence`, the first
      is always included
    - `sequence`: means in and around the candidate (`cell_context`) of convolutions along the
      video. They read those similarities, always including the sentence's, and the places where
      the video changes (`SequenceEncoder`)
    - `product`: the sentence times the candidate's mean row, after subtracting the video's mean

    Results are about 1 / sqrt(out_channels) each, as in a cell of unit norm, but are not
    normalized. The part `learned` belongs to `MultimodalEncoder` and is ignored here.

    Args:
        channels: Channels of the features, of clips and of words.
        out_channels: Channels of the map features.
        spaces: As for `Similarities`.
        parts: Parts to use, see above.
        dropout: Share of the products and of the `sequence` channels dropped in training.

    Shape:
        - rows: (B, T, channels), from `similarities.embed`
        - query: from `similarities.embed_query`
        - num_clips: (B,), integer
        - returns: K tensors (B, out_channels, N_k, A), 0 in invalid cells
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        spaces: Sequence[int] | None = None,
        parts: Sequence[AlignedPart] = DEFAULT_PARTS,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        has_words, has_sentence = "words" in parts, "sentence" in parts
        self.has_contrasts = has_sentence or has_words
        self.similarities = Similarities(
            channels, spaces, has_words, has_sentence or "sequence" in parts
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
            # In w channels of unit norm, entries are about 1 / sqrt(w), and products 1 / w.
            widths = [width for width in self.similarities.spaces for _ in range(width)]
            self.product_scales: Tensor
            self.register_buffer("product_scales", torch.tensor(widths).float(), persistent=False)
            width += channels
        self.has_product = "product" in parts
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            nn.Linear(width, out_channels), nn.ReLU(), nn.Linear(out_channels, out_channels)
        )
        for layer in self.layers:  # torch's defaults would shrink the input
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(
        self, rows: Tensor, query: AlignedQuery, grid: MapGrid, num_clips: Tensor | None = None
    ) -> list[Tensor]:
        """Build the map features; see the class."""
        inside = None
        if num_clips is not None:
            each = rows.shape[1] // grid.num_clips
            places = torch.arange(rows.shape[1], device=rows.device)
            inside = places < num_clips.to(rows.device).long()[:, None] * each
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
            centered = rows - rows.sum(1, keepdim=True) / count
            means = cell_means(centered, grid, num_clips)
            product = means * (query.sentence * self.product_scales)[..., None]
            parts.append(self.dropout(product))
        # Linear layers read the innermost axis.
        packed = torch.cat([rearrange(one, "b c cells -> cells b c") for one in parts], dim=-1)
        made = self.layers(packed.to(dtype_of(self.layers)))
        made = made * made.shape[-1] ** -0.5
        maps = []
        pieces = made.split(grid.cells_per_scale)
        for scale, (piece, shape) in enumerate(zip(pieces, grid.shapes, strict=True)):
            one = rearrange(piece.unflatten(0, shape), "n a b c -> b c n a")
            maps.append(fill_invalid(one, grid.mask(scale, one.device, num_clips)))
        return maps


def check_parts(who: str, parts: Sequence[AlignedPart]) -> Sequence[AlignedPart]:
    """Return the parts, or raise ConfigError if there are none or one is unknown."""
    known = get_args(AlignedPart)
    if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
        expected = f"aligned_parts to be a list of {', '.join(known)}"
        raise ConfigError(message(who, expected, repr(parts)))
    for part in parts:
        check_choice(who, "aligned_parts", part, known)
    return parts
