import copy
import itertools
from typing import Any

import pytest
import torch
from helpers.assertions import (
    assert_close,
    assert_nonzero_exactly,
    assert_same,
    assert_zero,
    refuses,
)
from helpers.contracts import (
    Inputs,
    MaskedContract,
    ModuleContract,
    draw,
    evaluate,
    randomize_,
    tensors,
    triangle,
)
from helpers.host_sync import host_syncs
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.maps import MapGrid
from tmapdiff.models import MapFeatureBuilder, MultimodalEncoder, TextEncoder

WORDS = torch.tensor([[3, 1, 4, 0, 0], [5, 2, 6, 5, 3], [7, 0, 0, 0, 0]])
NUM_WORDS = torch.tensor([3, 5, 1])


class EagerContract(ModuleContract):
    """Contract of modules with an LSTM over packed sentences, which the compiler cannot trace."""

    @pytest.mark.compile
    def test_compiled_equals_eager(self) -> None:
        module, inputs = self.ready(), self.inputs(2)
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="eager")  # with graph breaks
        with torch.no_grad():
            pairs = zip(tensors(compiled(**inputs)), tensors(module(**inputs)), strict=True)
        for one, other in pairs:
            assert_close(one, other)


class TextEncoderContract(EagerContract):
    """Contract of text encoders of words and of features."""

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 4)]

    def test_equals_the_mean_of_the_states_of_each_sentence(self) -> None:
        encoder, words = self.ready(), self.inputs(3)["words"]
        result = encoder(words, NUM_WORDS)
        for row, length in enumerate(NUM_WORDS.tolist()):
            own = encoder.embedding(words[row : row + 1, :length])
            states, _ = nn.LSTM.forward(encoder.lstm, own)
            assert_close(result[row], encoder.linear(states[0].mean(0)))


class TestTextEncoder(TextEncoderContract):
    def make(self) -> nn.Module:
        return TextEncoder(8, word_channels=3, channels=4, num_layers=2)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        return {"words": WORDS[:batch], "num_words": NUM_WORDS[:batch]}

    def refused(self) -> list[tuple[Any, ...]]:
        return [
            ({"num_words": torch.tensor([3, 0])}, "num_words in 1 to 5, got 0", ArgumentError),
            ({"num_words": torch.tensor([6, 2])}, "num_words in 1 to 5, got 6", ArgumentError),
            ({"num_words": torch.tensor([1, -1])}, "num_words in 1 to 5, got -1", ArgumentError),
            ({"num_words": NUM_WORDS[:1]}, "num_words of shape (B) with B = 2"),
            ({"words": WORDS[0]}, "words of shape (B, L), got (5,)."),
        ]

    def test_padding_does_not_matter(self) -> None:
        encoder = self.ready()
        expected = evaluate(encoder, self.inputs(3))
        outside = torch.arange(5) >= NUM_WORDS[:, None]
        for padded in (
            WORDS.masked_fill(outside, 7),  # other padding
            torch.cat([WORDS, torch.full((3, 4), 6)], dim=1),  # more padding
        ):
            evaluation = evaluate(encoder, {"words": padded, "num_words": NUM_WORDS})
            assert_same(evaluation.outputs[0], expected.outputs[0])
            for name, gradient in expected.parameters.items():
                assert_close(evaluation.parameters[name], gradient, what=name)
        less = encoder(WORDS[[0, 2], :3], NUM_WORDS[[0, 2]])
        assert_close(less, expected.outputs[0][[0, 2]])

    def test_waits_for_no_device_once_words_are_checked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Lengths need values, so everything is on the CPU here, and copies are not detected.
        encoder = self.make()
        monkeypatch.setattr(encoder.lstm, "_goes_over_padding", lambda _: False)  # as on a device
        with host_syncs() as of_lengths:
            lengths = NUM_WORDS.sort(descending=True)[0]
            assert int(lengths.min()) >= 1
            assert int(lengths.max()) <= 5
            packed = nn.utils.rnn.pack_padded_sequence(draw(3, 5, 1), lengths, batch_first=True)
            states, _ = nn.LSTM(1, 1, batch_first=True)(packed)
            nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        with host_syncs() as checked:
            encoder(WORDS, NUM_WORDS)
        encoder.validate = False
        with host_syncs() as found:
            encoder(WORDS, NUM_WORDS)
        assert found == of_lengths
        assert checked == [*of_lengths, "_local_scalar_dense", "_local_scalar_dense"]

    def test_words_are_checked_apart_from_the_call(self) -> None:
        encoder = self.ready()
        with refuses(ArgumentError, "expected word indices in 0 to 7, the vocabulary, got 8"):
            encoder.check_words(WORDS.where(WORDS != 7, 8))
        with refuses(ArgumentError, "TextEncoder: expected integer words, got torch.float32."):
            encoder.check_words(WORDS.float())
        encoder.check_words(WORDS)

    def test_frozen_words_get_no_gradient(self) -> None:
        encoder = randomize_(TextEncoder(8, 3, 4, train_words=False))
        assert not encoder.embedding.weight.requires_grad
        assert "embedding.weight" not in evaluate(encoder, self.inputs(3)).parameters
        assert self.make().embedding.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"vocabulary_size": 1}, ArgumentError, "vocabulary_size to be an integer >= 2, got 1."),
        ({"word_channels": 0}, ArgumentError, "word_channels to be an integer >= 1, got 0."),
        ({"channels": 1}, ArgumentError, "channels to be an integer >= 2, got 1."),
        ({"channels": 5}, ConfigError, "even channels, got 5."),
        ({"num_layers": 0}, ArgumentError, "num_layers to be an integer >= 1, got 0."),
        ({"text_channels": 3}, ConfigError, "vocabulary_size = None with text_channels, got 8."),
        ({"vocabulary_size": None}, ArgumentError, "vocabulary_size to be an integer >= 2, got N"),
        ({"text_channels": 0}, ArgumentError, "text_channels to be an integer >= 1, got 0."),
    ],
)
def test_text_encoder_refuses(arguments: dict[str, int], kind: type[Exception], text: str) -> None:
    with refuses(kind, f"TextEncoder: expected {text}"):
        TextEncoder(**{"vocabulary_size": 8, "word_channels": 3, "channels": 4, **arguments})


class TestTextEncoderOfFeatures(TextEncoderContract):
    def make(self) -> nn.Module:
        return TextEncoder(None, word_channels=3, channels=4, num_layers=2, text_channels=6)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        return {"words": draw(3, 5, 6, dtype=dtype)[:batch], "num_words": NUM_WORDS[:batch]}

    def refused(self) -> list[tuple[Any, ...]]:
        num_words = "num_words in 1 to 5, got 6 in row 0."
        return [
            ({"words": WORDS[:2]}, "words of shape (B, L, 6), got (2, 5)."),
            ({"words": draw(2, 5, 7)}, "words of shape (B, L, 6), got (2, 5, 7"),
            ({"num_words": torch.tensor([6, 2])}, num_words, ArgumentError),
        ]

    def test_word_dropout_empties_features_in_training_only(self) -> None:
        encoder = randomize_(TextEncoder(None, 3, 4, 1, word_dropout=1.0, text_channels=6))
        words = self.inputs(3)["words"]
        dropped = encoder.train()(words, NUM_WORDS)
        assert_same(dropped, encoder.eval()(torch.zeros_like(words), NUM_WORDS))
        assert bool((dropped != encoder(words, NUM_WORDS)).any())


def test_map_features_are_made_by_layers_one_after_another() -> None:
    for train in (False, True):
        module, clips = (
            randomize_(MapFeatureBuilder(MapGrid(12, 3, 2), 3)).train(train),
            draw(3, 3, 12),
        )
        twin = copy.deepcopy(module)
        maps, x = module(clips), clips
        for scale, (rows, reused) in enumerate(((12, 0), (6, 1))):
            for column, layer in enumerate(twin.scales[scale], start=reused):
                x = by_torch(layer)(x)
                padded = nn.functional.pad(x, (0, rows - x.shape[-1]))
                assert_close(maps[scale][..., column], padded, what=f"{scale}, {column}")
        assert_same(maps[1][..., 0], maps[0][:, :, ::2, 1])
        for (name, one), (_, other) in zip(
            module.named_buffers(), twin.named_buffers(), strict=True
        ):
            assert_close(one.float(), other.float(), torch.float32, name)


def by_torch(layer: nn.Module) -> nn.Module:
    """Apply a layer with torch's modules, over (B, C, N)."""
    if isinstance(layer, nn.MaxPool1d):
        return nn.MaxPool1d(layer.kernel_size, layer.stride)
    conv, norm, activation = layer
    plain = nn.Conv1d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
    plain.load_state_dict(conv.state_dict())
    return nn.Sequential(plain, norm, activation)


GRIDS = pytest.mark.parametrize(
    ("num_clips", "num_anchors", "num_scales"),
    [
        # Even and odd numbers of durations, up to all clips of the coarsest scale.
        (8, 4, 2),
        (8, 2, 3),
        (12, 3, 3),
        (20, 3, 3),
        (20, 5, 3),
        (16, 4, 3),
        (16, 4, 2),
        (24, 6, 2),
        (8, 1, 4),
        (8, 1, 1),
        (6, 6, 1),
        (7, 3, 1),
        (1, 1, 1),
    ],
)


@GRIDS
def test_max_pool_is_the_maximum_of_a_cell_s_clips(
    num_clips: int, num_anchors: int, num_scales: int
) -> None:
    grid = MapGrid(num_clips, num_anchors, num_scales)
    clips = draw(2, 3, num_clips)
    builder = MapFeatureBuilder(grid, 3, "max-pool")
    assert list(builder.parameters()) == []
    for scale, features in enumerate(builder(clips)):
        for i, j in itertools.product(range(num_clips // 2**scale), range(num_anchors)):
            start, end = i * 2**scale, (i + j + 1) * 2**scale
            expected = clips[:, :, start:end].amax(-1) if end <= num_clips else torch.zeros(2, 3)
            assert_same(features[:, :, i, j], expected)


@GRIDS
def test_a_cell_sees_exactly_its_clips(num_clips: int, num_anchors: int, num_scales: int) -> None:
    grid = MapGrid(num_clips, num_anchors, num_scales)
    builder = randomize_(MapFeatureBuilder(grid, channels=2)).double().eval()
    clips = draw(1, 2, num_clips, dtype=torch.float64).requires_grad_()
    maps = builder(clips)
    assert len(maps) == num_scales
    for scale, features in enumerate(maps):
        rows = num_clips // 2**scale
        assert features.shape == (1, 2, rows, num_anchors)
        sums = features.sum((0, 1)).flatten()
        (gradients,) = torch.autograd.grad(
            sums,
            clips,
            torch.eye(len(sums), dtype=torch.float64),
            is_grads_batched=True,
            retain_graph=True,
        )
        seen = (gradients != 0).any(2).reshape(rows, num_anchors, num_clips)
        expected = torch.zeros_like(seen)
        for i, j in itertools.product(range(rows), range(num_anchors)):
            if i + j + 1 <= rows:
                expected[i, j, i * 2**scale : (i + j + 1) * 2**scale] = True
        assert_nonzero_exactly(seen.double(), expected, f"scale {scale}")
        assert_same(features * triangle(rows, num_anchors), features)


def test_feature_builder_refuses() -> None:
    for channels in (0, -2, 1.5):
        text = f"MapFeatureBuilder: expected channels to be an integer >= 1, got {channels!r}."
        with refuses(ArgumentError, text):
            MapFeatureBuilder(MapGrid(8, 2, 2), channels)  # type: ignore[arg-type]
    builder = MapFeatureBuilder(MapGrid(12, 3, 2), channels=3)
    with refuses(ConfigError, "The nearest valid value is 10."):
        builder(draw(2, 3, 11))
    for clips in (draw(2, 4, 12), draw(3, 12)):
        text = f"MapFeatureBuilder: expected clips of shape (B, 3, N), got {tuple(clips.shape)}."
        with refuses(ShapeError, text):
            builder(clips)


FIELDS = {
    "num_clips": 8,
    "num_anchors": 3,
    "num_scales": 2,
    "vocabulary_size": 8,
    "clip_channels": 3,
    "word_channels": 3,
    "channels": 4,
    "num_text_layers": 1,
}


class TestMultimodalEncoder(MaskedContract, EagerContract):
    def make(self) -> nn.Module:
        return MultimodalEncoder(**FIELDS)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        return {
            "features": draw(batch, 8, 3, dtype=dtype),
            "words": WORDS[:batch],
            "num_words": NUM_WORDS[:batch],
        }

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 4, 8, 3), (batch, 4, 4, 3)]

    def refused(self) -> list[tuple[Any, ...]]:
        fuse = "MultimodalEncoder.fuse: expected video_maps[0] of shape (B, 4, 8, 3) with B = 2, g"
        text_encoder = "TextEncoder: expected num_words in 1 to 5, got 0 in row 0."
        return [
            ({"features": draw(2, 7, 3)}, "features of shape (B, 8, 3), got (2, 7, 3)."),
            ({"features": draw(2, 8, 4)}, "features of shape (B, 8, 3), got (2, 8, 4)."),
            ({"features": draw(3, 8, 3)}, fuse),
            ({"num_words": torch.tensor([0, 1])}, text_encoder, ArgumentError),
        ]

    def valid_outputs(self) -> list[Tensor]:
        return [triangle(8, 3), triangle(4, 3)]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_keeps_invalid_cells_zero(self, dtype: torch.dtype) -> None:
        for one, cells in zip(
            self.ready(dtype)(**self.inputs(3, dtype)), self.valid_outputs(), strict=True
        ):
            assert_zero(one, ~cells)
            assert bool(one.isfinite().all())

    def test_is_the_fusion_of_video_and_sentence(self) -> None:
        encoder, inputs = self.ready(), self.inputs(3)
        video = encoder.encode_video(inputs["features"])
        sentence = encoder.text_encoder(inputs["words"], inputs["num_words"])
        for one, two, maps, cells in zip(
            encoder(**inputs),
            encoder.fuse(video, sentence),
            video,
            self.valid_outputs(),
            strict=True,
        ):
            assert_same(one, two)
            text = sentence[:, :, None, None]
            product = maps * text
            norm = product.square().sum(1, keepdim=True).sqrt()
            assert_close(one, product / norm * cells)

    def test_encodes_clips_before_it_builds_maps(self) -> None:
        encoder, features = self.ready(), self.inputs(3)["features"]
        linear = encoder.clip_encoder
        clips = (features @ linear.weight.T + linear.bias).clamp(min=0).mT
        maps = encoder.map_features(clips)
        for one, built in zip(encoder.encode_video(features), maps, strict=True):
            weight, bias = encoder.fuse_map.weight[:, :, 0, 0], encoder.fuse_map.bias
            expected = torch.einsum("oc,bcna->bona", weight, built) + bias[:, None, None]
            assert_close(one, expected)

    def test_loads_word_vectors(self) -> None:
        encoder = self.ready()
        vectors = draw(8, 3, seed=9, dtype=torch.float64)
        encoder.load_word_vectors(vectors)
        weight = encoder.text_encoder.embedding.weight
        assert_same(weight[1:].detach(), vectors[1:].float())
        assert_zero(weight[0], torch.tensor(True))
        assert weight.requires_grad
        assert weight.grad_fn is None
        for wrong in (draw(7, 3), draw(8, 4), draw(8)):
            got = tuple(wrong.shape)
            text = f"MultimodalEncoder: expected word vectors of shape (8, 3), got {got}."
            with refuses(ShapeError, text):
                encoder.load_word_vectors(wrong)

    def test_fuse_refuses(self) -> None:
        encoder = self.ready()
        video = encoder.encode_video(draw(2, 8, 3))
        who = "MultimodalEncoder.fuse: expected"
        for maps, sentence, text in (
            (video, draw(2, 5), f"{who} sentence of shape (B, 4), got (2, 5)."),
            (video[:1], draw(2, 4), f"{who} video_maps to be a list of 2, got 1."),
            (video[::-1], draw(2, 4), f"{who} video_maps[0] of shape (B, 4, 8, 3)"),
            (video, draw(3, 4), f"{who} video_maps[0] of shape (B, 4, 8, 3) with B = 3"),
        ):
            with refuses(ShapeError, text):
                encoder.fuse(maps, sentence)


def test_features_in_place_of_words_have_no_word_vectors() -> None:
    encoder = MultimodalEncoder(**{**FIELDS, "vocabulary_size": None}, text_channels=6)
    with refuses(ConfigError, "expected words that are indices, got text_channels = 6."):
        encoder.load_word_vectors(torch.zeros(6, 3))
    twin = MultimodalEncoder.from_config(encoder.config)
    assert twin.text_encoder.text_channels == 6


def test_dropout_drops_clip_features_in_training_only() -> None:
    with_dropout = randomize_(MultimodalEncoder(**FIELDS, dropout=1.0))
    without = randomize_(MultimodalEncoder(**FIELDS))
    clips = draw(2, 8, 3)
    for one, two in zip(
        with_dropout.eval().encode_video(clips), without.eval().encode_video(clips), strict=True
    ):
        assert_same(one, two)
    for one, two in zip(
        with_dropout.train().encode_video(clips), without.train().encode_video(clips), strict=True
    ):
        assert bool((one != two).any())


def test_word_dropout_makes_words_unknown_in_training_only() -> None:
    text = randomize_(TextEncoder(12, 3, 4, 1, word_dropout=1.0))
    words, num_words = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]), torch.tensor([4, 2])
    unknown = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    kept, dropped = text.eval()(words, num_words), text.train()(words, num_words)
    assert_same(dropped, text.eval()(unknown, num_words))
    assert float((kept - dropped).detach().abs().max()) > 0.01

    some = randomize_(TextEncoder(12, 1, 2, 1, word_dropout=0.3)).train()
    seen: list[Tensor] = []
    some.embedding.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    words = torch.full((100, 50), 7)
    some(words, torch.full((100,), 50))
    assert set(seen[0].unique().tolist()) == {1, 7}
    assert float((seen[0] == 1).float().mean()) == pytest.approx(0.3, abs=0.03)
    encoder = MultimodalEncoder(**FIELDS, word_dropout=0.25)
    assert encoder.text_encoder.word_dropout == 0.25


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"word_dropout": 1.5}, ArgumentError, "word_dropout in [0, 1], got 1.5."),
        ({"clip_channels": 0}, ArgumentError, "clip_channels to be an integer >= 1, got 0."),
        ({"num_clips": 9}, ConfigError, "num_clips divisible by 2**(num_scales - 1) = 2, got 9."),
        ({"num_anchors": 5}, ConfigError, "num_anchors <= 4"),
        ({"dropout": -0.1}, ArgumentError, "dropout in [0, 1], got -0.1."),
        ({"channels": 5}, ConfigError, "even channels, got 5."),
    ],
)
def test_encoder_refuses(fields: dict[str, object], kind: type[Exception], text: str) -> None:
    with refuses(kind, text):
        MultimodalEncoder(**{**FIELDS, **fields})


def test_features_of_a_clip_are_averaged_after_the_first_layer() -> None:
    fields = {**FIELDS, "features_per_clip": 3}
    encoder = randomize_(MultimodalEncoder(**fields)).eval()
    plain = MultimodalEncoder(**FIELDS).eval()
    plain.load_state_dict(encoder.state_dict())
    features = draw(2, 24, 3)
    clips = torch.relu(encoder.clip_encoder(features)).reshape(2, 8, 3, -1).mean(2)
    expected = [plain.fuse_map(one) for one in plain.map_features(clips.mT)]
    for one, other in zip(encoder.encode_video(features), expected, strict=True):
        assert_close(one, other)
    with refuses(ShapeError, "features of shape (B, 24, 3), got (2, 23, 3)."):
        encoder.encode_video(features[:, 1:])
    with refuses(ShapeError, "MultimodalEncoder: expected 3 features for each clip, got 23 feat"):
        encoder.encode_video(features[:, 1:], num_clips=torch.tensor([8, 7]))


@pytest.mark.parametrize("map_layer", ["conv", "max-pool"])
def test_short_videos_are_encoded_as_if_they_were_alone(map_layer: str) -> None:
    encoder = randomize_(MultimodalEncoder(**{**FIELDS, "map_layer": map_layer})).eval()
    longer = draw(2, 12, 3)
    num_clips = torch.tensor([12, 7])
    words, num_words = torch.tensor([[1, 2], [3, 4]]), torch.tensor([2, 2])
    spoilt = longer.clone()
    spoilt[1, 7:] = 100.0
    maps = encoder(spoilt, words, num_words, num_clips)
    grid = encoder.grid.resized(12)
    for scale, one in enumerate(maps):
        mask = grid.mask(scale, num_clips=num_clips)
        assert_zero(one, ~mask[:, None].expand_as(one))
        assert_close(one[:1], encoder(longer, words, num_words, num_clips)[scale][:1])
    # The same clips alone, on the encoder's own grid: cells of both grids are equal.
    alone = encoder(longer[1:, :8], words[1:], num_words[1:], num_clips[1:])
    for scale, one in enumerate(alone):
        assert_close(maps[scale][1:, :, : one.shape[2]], one)
