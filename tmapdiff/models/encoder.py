"""Encoders of words and clips into map features, which condition the decoder."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from einops import rearrange, reduce
from torch import Tensor, nn
from typing_extensions import override

from tmapdiff._core.checks import (
    check_bool,
    check_choice,
    check_int,
    check_length,
    check_range,
    check_shape,
    check_sizes,
    message,
)
from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.kernels.masking import fill_invalid
from tmapdiff.layers._modules import dtype_of, module_list
from tmapdiff.layers.pointwise import PointwiseConv2d
from tmapdiff.maps import MapGrid
from tmapdiff.models._base import MapModel, grid_of_maps
from tmapdiff.models.aligned import DEFAULT_PARTS, AlignedFusion, AlignedPart, check_parts
from tmapdiff.models.aligned_similarities import AlignedQuery, check_aligned, check_num_words
from tmapdiff.models.lstm import PaddedLSTM

PADDING, UNKNOWN = 0, 1  # indices of padding and of words outside the vocabulary
_SMALLEST_NORM = 1e-12  # smaller norms are replaced by it
MapLayer = Literal["conv", "max-pool"]


class TextEncoder(nn.Module):
    """Encodes each sentence as one vector: embeddings, bidirectional LSTM, mean over the words.

    With `text_channels`, words are features of another model, such as the tokens of
    `TransformersTextEncoder`, and a linear layer replaces the embeddings.

    `vocabulary_size`, `word_channels`, `train_words`, `word_dropout` and `text_channels` are as for
    `MultimodalEncoder`.

    Args:
        channels: Channels of the result; even.
        num_layers: Layers of the LSTM.

    Shape:
        - words: (B, L), integer; (B, L, text_channels) if they are features
        - num_words: (B,), integer, 1 to L; on the CPU, or the call waits for the device
        - returns: (B, channels)

    Attributes:
        validate: Whether the call checks that words are in the vocabulary, which makes it wait for
            the device. Turn it off if `check_words` has checked them.

    Raises:
        ArgumentError: At construction, if a size is too small or `train_words` is not True or
            False. In the call, if a sentence is empty or longer than L, or a word is not an
            integer in the vocabulary.
        ConfigError: At construction, if `channels` is odd, or both `vocabulary_size` and
            `text_channels` are given.
        ShapeError: In the call, if a shape does not fit.

    Source: MS-2D-TAN, arXiv 2012.02646, section 3.1.
    """

    def __init__(
        self,
        vocabulary_size: int | None,
        word_channels: int = 300,
        channels: int = 512,
        num_layers: int = 3,
        train_words: bool = True,
        word_dropout: float = 0.0,
        text_channels: int | None = None,
    ) -> None:
        super().__init__()
        who = "TextEncoder"
        check_int(who, "word_channels", word_channels, at_least=1)
        check_int(who, "channels", channels, at_least=2)
        check_int(who, "num_layers", num_layers, at_least=1)
        check_bool(who, "train_words", train_words)
        if channels % 2:
            raise ConfigError(f"{who}: expected even channels, got {channels}.")
        self.text_channels = text_channels
        self.embedding: nn.Embedding | nn.Linear
        if text_channels is None:
            size = check_int(who, "vocabulary_size", vocabulary_size, at_least=2)
            self.embedding = nn.Embedding(size, word_channels, padding_idx=PADDING)
            self.embedding.weight.requires_grad_(train_words)
        else:
            check_int(who, "text_channels", text_channels, at_least=1)
            if vocabulary_size is not None:
                expected = "vocabulary_size = None with text_channels"
                raise ConfigError(message(who, expected, vocabulary_size))
            self.embedding = nn.Linear(text_channels, word_channels)
        self.lstm = PaddedLSTM(word_channels, channels // 2, num_layers)
        self.linear = nn.Linear(channels, channels)
        self.word_dropout = check_range(who, "word_dropout", word_dropout, 0, 1)
        self.validate = True

    def forward(self, words: Tensor, num_words: Tensor) -> Tensor:
        """Encode sentences; see the class."""
        axes = "B L" if self.text_channels is None else f"B L {self.text_channels}"
        sizes = check_shape("TextEncoder", "words", words, axes)
        check_shape("TextEncoder", "num_words", num_words, "B", sizes)
        if not sizes["B"]:
            return self.linear(self.embedding.weight.new_zeros(0, self.linear.in_features))
        lengths = num_words.cpu()
        check_num_words("TextEncoder", lengths, sizes["L"])
        if self.validate:
            self.check_words(words)
        if self.text_channels is not None:
            words = words.to(dtype_of(self.embedding))
        if self.training and self.word_dropout:
            # Padding may be dropped too, as it is not read.
            dropped = torch.rand(words.shape[:2], device=words.device) < self.word_dropout
            if self.text_channels is None:
                words = words.masked_fill(dropped, UNKNOWN)
            else:
                words = words.masked_fill(dropped[..., None], 0)
        states = self.lstm(self.embedding(words), lengths)
        # States of padding are zero.
        count = lengths[:, None].to(states.device, states.dtype, non_blocking=True)
        return self.linear(reduce(states, "b l c -> b c", "sum") / count)

    def check_words(self, words: Tensor) -> None:
        """Raise ArgumentError unless all words are in the vocabulary; waits for the device."""
        if self.text_channels is not None:
            return
        if words.is_floating_point():
            raise ArgumentError(f"TextEncoder: expected integer words, got {words.dtype}.")
        known = len(self.embedding.weight)
        low, high = (int(end) for end in words.aminmax())
        if low < 0 or high >= known:
            got = low if low < 0 else high
            hint = "Encode sentences with the vocabulary that the model was trained with."
            expected = f"word indices in 0 to {known - 1}, the vocabulary"
            raise ArgumentError(message("TextEncoder", expected, got, hint))


class MapFeatureBuilder(nn.Module):
    """Builds features of every candidate moment from clip features, by stacked layers.

    In the finest map, a layer over two neighboring starts computes each column from the previous
    one, so that column `j` sees `j + 1` clips. Scale `k` reuses every second column of scale
    `k - 1`, and continues from its last column with a strided layer.

    Args:
        grid: The candidate moments. N may differ from its number of clips.
        channels: Channels of clip features and map features.
        layer: `conv` is a convolution with batch normalization and tanh, `max-pool` takes the
            maximum over the moment's clips.

    Shape:
        - clips: (B, channels, N)
        - returns: K tensors (B, channels, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError: At construction, if `channels` is below 1.
        ConfigError: At construction, if `layer` is unknown; in the call, if N does not divide into
            the scales.
        ShapeError: In the call, if the shape of `clips` does not fit.

    Source: MS-2D-TAN, arXiv 2012.02646, section 3.3.
    """

    def __init__(self, grid: MapGrid, channels: int, layer: MapLayer = "conv") -> None:
        super().__init__()
        check_int("MapFeatureBuilder", "channels", channels, at_least=1)
        check_choice("MapFeatureBuilder", "layer", layer, get_args(MapLayer))
        self.grid = grid
        self.channels = channels
        self.layer = layer
        # The last column of the previous scale lasts A of its clips. The next duration that is a
        # whole number of this scale's clips is 1 or 2 of those clips longer.
        reused = grid.num_anchors // 2
        bridge = (3, 2) if grid.num_anchors % 2 == 0 else (2, 2)
        kernels = [[(1, 1), *[(2, 1)] * (grid.num_anchors - 1)]]
        kernels += [[bridge, *[(2, 1)] * (grid.num_anchors - reused - 1)]] * (grid.num_scales - 1)
        self.scales = module_list(
            nn.Sequential(*(self._layer(*kernel) for kernel in scale)) for scale in kernels
        )

    def _layer(self, kernel_size: int, stride: int) -> nn.Module:
        if self.layer == "max-pool":
            return NeighbourMax(kernel_size, stride)
        return NeighbourLayer(
            NeighbourConv1d(self.channels, self.channels, kernel_size, stride),
            nn.BatchNorm1d(self.channels),
            nn.Tanh(),
        )

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Build the map features; see the class."""
        sizes = check_shape("MapFeatureBuilder", "clips", clips, f"B {self.channels} N")
        maps: list[Tensor] = []
        # With starts outermost and channels innermost, layers are products of large matrices, and
        # the maps have the memory layout that spectral convolutions read.
        x = rearrange(clips, "b c n -> n b c")
        for scale, (rows, columns) in enumerate(self.grid.resized(sizes["N"]).shapes):
            pieces = list(maps[-1][1::2, : 2 * rows : 2]) if scale else []
            filling = x.new_zeros(rows, *x.shape[1:])
            for layer in self.scales[scale]:
                x = layer(x)
                pieces += [x, filling[: rows - len(x)]]
            maps.append(torch.cat(pieces).view(columns, rows, *x.shape[1:]))
        return [rearrange(one, "a n b c -> b c n a") for one in maps]


# The layers of `MapFeatureBuilder` read rows: (N, B, C).


class NeighbourConv1d(nn.Conv1d):
    """`nn.Conv1d` over rows, as one product of large matrices."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        (size,), (stride,) = self.kernel_size, self.stride
        last = len(input) - size
        seen = [input[first : last + first + 1 : stride] for first in range(size)]
        weight = rearrange(self.weight, "d c s -> d (s c)")
        return F.linear(torch.cat(seen, dim=-1), weight, self.bias)


class NeighbourLayer(nn.Sequential):
    """Convolution, batch normalization and activation of rows."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        conv, norm, activation = self
        convolved = conv(input)
        return activation(norm(convolved.flatten(0, 1))).view_as(convolved)


class NeighbourMax(nn.MaxPool1d):
    """`nn.MaxPool1d` over rows."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return rearrange(super().forward(rearrange(input, "n b c -> b c n")), "b c n -> n b c")


def unit_product(maps: Tensor, vector: Tensor, mask: Tensor | None) -> Tensor:
    """Multiply the channels of maps by a vector per sample, and scale each cell to unit norm.

    Computes in float32 or wider: in float16, products and norms would overflow from 256 on, and
    underflow.

    Shape:
        - maps: (B, C, N_k, A)
        - vector: (B, C)
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, C, N_k, A), 0 in invalid cells

    Source: MS-2D-TAN, arXiv 2012.02646, section 3.3: Hadamard product, then L2 norm.
    """
    given = torch.promote_types(maps.dtype, vector.dtype)
    wide = torch.promote_types(given, torch.float32)
    # Filled twice, to keep values and gradients of invalid cells out of the vector's gradient.
    filled = fill_invalid(maps.to(wide), mask)
    product = fill_invalid(filled * vector.to(wide)[..., None, None], mask)
    # Not torch's norm, whose second derivative is NaN at 0.
    squares = product.square().sum(1, keepdim=True)
    norm = squares.clamp(min=_SMALLEST_NORM**2).sqrt()
    # NaN, not 0, where the norm overflows.
    return (product / (norm + 0 * squares)).to(given)


class EncodedQuery(NamedTuple):
    """Queries encoded by an encoder with `aligned`.

    Shape:
        - sentence: (B, channels); None without the part `learned`
    """

    sentence: Tensor | None
    aligned: AlignedQuery


class MultimodalEncoder(MapModel):
    """Encodes queries and videos into map features, which condition the decoder.

    Words -> embeddings -> LSTM -> mean -> linear; clips -> linear, ReLU -> stacked convolutions ->
    linear; both are multiplied, and L2-normalized over the channels of each cell.

    `aligned` is for clip and word features that share a space (CLIP, SigLIP, one sentence encoder
    for captions and queries). It adds features of their similarity: how each candidate contrasts
    with the rest of its video, and how the similarity changes along it (`AlignedFusion`). Without
    the part `learned`, these are the only map features.

    Args:
        num_clips: Clips of the finest scale.
        num_anchors: Durations per scale.
        num_scales: Number of scales.
        vocabulary_size: Words, including padding (index 0) and the unknown word; None with
            `text_channels`.
        clip_channels: Channels of the clip features.
        word_channels: Channels of a word's embedding.
        channels: Channels of the hidden layers and of the map features.
        num_text_layers: Layers of the LSTM.
        train_words: Whether the word embeddings are trained.
        dropout: Share of the clip features dropped in training.
        map_layer: `conv` or `max-pool`, see `MapFeatureBuilder`.
        features_per_clip: Feature rows per clip, averaged after the first linear layer.
        word_dropout: Share of the words that training replaces by the unknown word; features are
            set to 0.
        text_channels: Channels of the words, if they are features of another model, such as the
            tokens of `TransformersTextEncoder`, or its sentences as one word each.
        aligned: Whether clip and word features share a space. If features of several spaces are
            concatenated, the channels of each space.
        aligned_parts: Parts to use with `aligned`. `sentence` and `words` are contrasts of a
            similarity: to the mean of the words; its maximum and mean over the words. `sequence` is
            a convolutional network along the video that reads these similarities and where the
            video changes. `product` is the product of the features, and `learned` the network
            without `aligned`. Trained on a thousand queries, more parts than the defaults were no
            better.

    Raises:
        ArgumentError, ConfigError: If a size is too small or does not divide, a layer or part is
            unknown, not exactly one of `vocabulary_size` and `text_channels` is given, or, with
            `aligned`, `text_channels` is not `clip_channels`.

    Source: MS-2D-TAN, arXiv 2012.02646, sections 3.1 to 3.3; Zhang et al., arXiv 2401.08232, 3.1.
    """

    @register_to_config
    def __init__(
        self,
        num_clips: int,
        num_anchors: int,
        num_scales: int,
        vocabulary_size: int | None,
        clip_channels: int,
        word_channels: int = 300,
        channels: int = 512,
        num_text_layers: int = 3,
        train_words: bool = True,
        dropout: float = 0.0,
        map_layer: MapLayer = "conv",
        features_per_clip: int = 1,
        word_dropout: float = 0.0,
        text_channels: int | None = None,
        aligned: bool | Sequence[int] = False,
        aligned_parts: Sequence[AlignedPart] = DEFAULT_PARTS,
    ) -> None:
        super().__init__()
        who = "MultimodalEncoder"
        check_int(who, "clip_channels", clip_channels, at_least=1)
        check_int(who, "features_per_clip", features_per_clip, at_least=1)
        self.grid = MapGrid(num_clips, num_anchors, num_scales)
        # Not named `dropout`: diffusers returns the field for an attribute of its name.
        self.clip_dropout = nn.Dropout(check_range(who, "dropout", dropout, 0, 1))
        spaces, is_learned = None, True
        if aligned is not False:
            check_aligned(who, clip_channels, text_channels, vocabulary_size)
            spaces = [clip_channels] if aligned is True else check_sizes(who, "aligned", aligned)
            is_learned = "learned" in check_parts(who, aligned_parts)
        if is_learned:
            self.text_encoder = TextEncoder(
                vocabulary_size,
                word_channels,
                channels,
                num_text_layers,
                train_words,
                word_dropout,
                text_channels,
            )
            self.clip_encoder = nn.Linear(clip_channels, channels)
            self.map_features = MapFeatureBuilder(self.grid, channels, map_layer)
            self.fuse_map = PointwiseConv2d(channels, channels)
        self.is_learned, self.aligned_fusion = is_learned, None
        if spaces and set(aligned_parts) != {"learned"}:
            self.aligned_fusion = AlignedFusion(
                clip_channels, channels, spaces, aligned_parts, dropout
            )

    def load_word_vectors(self, vectors: Tensor) -> None:
        """Set the word embeddings, for example to GloVe vectors.

        Shape:
            - vectors: (vocabulary_size, word_channels)

        Raises:
            ShapeError: If the shape does not fit.
            ConfigError: If words are features.
        """
        if self.config.text_channels is not None:
            got = f"text_channels = {self.config.text_channels}"
            raise ConfigError(message("MultimodalEncoder", "words that are indices", got))
        weight = self.text_encoder.embedding.weight
        rows, columns = weight.shape
        check_shape("MultimodalEncoder", "word vectors", vectors, f"{rows} {columns}")
        with torch.no_grad():
            weight.copy_(vectors)
            weight[PADDING] = 0

    def encode_video(self, features: Tensor, num_clips: Tensor | None = None) -> list[Tensor]:
        """Encode videos. The result can be reused for all queries about the same video.

        Shape:
            - features: (B, N * features_per_clip, clip_channels)
            - num_clips: (B,), integer
            - returns: K tensors (B, channels, N_k, A). With `aligned`, the normalized features
              follow; without the part `learned`, they are the only tensor

        Raises:
            ShapeError: If the shape does not fit.
            ConfigError: If N does not divide into the scales.
        """
        pooled = self.config.features_per_clip
        rows = self.grid.num_clips * pooled if num_clips is None else "N"
        axes = f"B {rows} {self.config.clip_channels}"
        check_shape("MultimodalEncoder", "features", features, axes)
        if features.shape[1] % pooled:
            expected, got = f"{pooled} features for each clip", f"{features.shape[1]} features"
            raise ShapeError(message("MultimodalEncoder", expected, got))
        encoded = []
        if self.is_learned:
            learned = features.to(dtype_of(self.clip_encoder))
            clips = F.relu(self.clip_encoder(self.clip_dropout(learned)))
            maps = self.map_features(reduce(clips, "b (n p) c -> b c n", "mean", p=pooled))
            encoded = [self.fuse_map(one) for one in maps]
        if self.aligned_fusion is not None:
            encoded.append(self.aligned_fusion.similarities.embed(features))
        return encoded

    def encode_query(self, words: Tensor, num_words: Tensor) -> Tensor | EncodedQuery:
        """Encode queries, for `fuse`.

        Shape:
            - words: (B, L), integer; or (B, L, text_channels)
            - num_words: (B,), integer
            - returns: (B, channels); with `aligned`, an `EncodedQuery`

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty or longer than L.
        """
        sentence = self.text_encoder(words, num_words) if self.is_learned else None
        if self.aligned_fusion is not None:
            query = self.aligned_fusion.similarities.embed_query(words, num_words)
            return EncodedQuery(sentence, query)
        encoded: Any = sentence
        return encoded

    def fuse(
        self,
        video_maps: Sequence[Tensor],
        sentence: Tensor | EncodedQuery,
        num_clips: Tensor | None = None,
    ) -> list[Tensor]:
        """Combine encoded videos and queries into map features.

        `video_maps` is the result of `encode_video`, `sentence` that of `encode_query`.

        Shape:
            - num_clips: (B,), integer
            - returns: K tensors (B, channels, N_k, A), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
        """
        if self.aligned_fusion is None:
            return self._multiply(video_maps, sentence, num_clips)
        who = "MultimodalEncoder.fuse"
        if not isinstance(sentence, EncodedQuery):
            expected = "the result of encode_query, as the encoder is aligned"
            raise ArgumentError(message(who, expected, type(sentence).__name__))
        check_length(who, "video_maps", video_maps, self.grid.num_scales * self.is_learned + 1)
        *maps, rows = video_maps
        grid = self.grid
        if num_clips is not None:
            grid = grid.resized(rows.shape[1] // self.config.features_per_clip)
        fused = self.aligned_fusion(rows, sentence.aligned, grid, num_clips)
        if self.is_learned:
            learned = self._multiply(maps, sentence.sentence, num_clips)
            fused = [one + other for one, other in zip(learned, fused, strict=True)]
        return fused

    def _multiply(
        self, video_maps: Sequence[Tensor], sentence: Any, num_clips: Tensor | None
    ) -> list[Tensor]:
        who, channels = "MultimodalEncoder.fuse", self.config.channels
        sizes = check_shape(who, "sentence", sentence, f"B {channels}")
        grid = grid_of_maps(who, "video_maps", video_maps, channels, self.grid, num_clips, sizes)
        return [
            unit_product(one, sentence, grid.mask(scale, one.device, num_clips))
            for scale, one in enumerate(video_maps)
        ]

    def forward(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        num_clips: Tensor | None = None,
    ) -> list[Tensor]:
        """Encode videos and queries into map features.

        Args:
            features: Features of the clips.
            words: Word indices, padded with 0; with `text_channels`, features.
            num_words: Words of each query.
            num_clips: Clips of each video, if they differ. The number of clips N may then be other
                than the configured one.

        Shape:
            - features: (B, N * features_per_clip, clip_channels)
            - words: (B, L), integer; or (B, L, text_channels)
            - num_words, num_clips: (B,), integer
            - returns: K tensors (B, channels, N_k, A), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty or longer than L.
            ConfigError: If N does not divide into the scales.
        """
        query = self.encode_query(words, num_words)
        return self.fuse(self.encode_video(features, num_clips), query, num_clips)
