from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import (
    Inputs,
    MaskedContract,
    draw,
    randomize_,
    triangle,
)
from helpers.pipelines import (
    QUERIES,
    WORDS,
    answer_of,
    assert_alike,
    make_features,
    make_localizer,
    make_pipe,
    seeds,
)
from helpers.text_encoders import tiny_text_encoder
from models.test_encoder import FIELDS as WORDS_FIELDS
from models.test_encoder import NUM_WORDS, EagerContract
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.maps import MapGrid
from tmapdiff.maps.contrasts import CONTRASTS, cell_means, contrast_features
from tmapdiff.models import MS2DTAN, MultimodalEncoder
from tmapdiff.models.aligned import AlignedFusion

FIELDS = {**WORDS_FIELDS, "vocabulary_size": None, "clip_channels": 5, "text_channels": 5}
ALL = ("sentence", "words", "sequence", "product", "learned")


def aligned(**fields: object) -> MultimodalEncoder:
    torch.manual_seed(0)
    return MultimodalEncoder(**{**FIELDS, "aligned": True, "aligned_parts": ALL, **fields})


def inputs(batch: int = 3, dtype: torch.dtype = torch.float32, rows: int = 8) -> Inputs:
    return {
        "features": draw(batch, rows, 5, dtype=dtype),
        "words": draw(batch, 5, 5, seed=1, dtype=dtype),
        "num_words": NUM_WORDS[:batch],
    }


class TestAlignedEncoder(MaskedContract, EagerContract):
    def make(self) -> nn.Module:
        return aligned(aligned=(3, 2), features_per_clip=2)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        return inputs(batch, dtype, 16)

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 4, 8, 3), (batch, 4, 4, 3)]

    def refused(self) -> list[tuple[Any, ...]]:
        sentence = "Similarities: expected sentence of shape (B, 5) with B = 3, got (2, 5)"
        text_encoder = "TextEncoder: expected num_words in 1 to 5, got 0 in row 0."
        return [
            ({"features": draw(2, 16, 4)}, "features of shape (B, 16, 5), got"),
            ({"features": draw(3, 16, 5)}, sentence),
            ({"num_words": torch.tensor([0, 1])}, text_encoder, ArgumentError),
        ]

    def valid_outputs(self) -> list[Tensor]:
        return [triangle(8, 3), triangle(4, 3)]


def test_padding_of_words_is_not_read() -> None:
    encoder, given = randomize_(aligned()).eval(), inputs()
    outside = torch.arange(5) >= NUM_WORDS[:, None]
    poisoned = {**given, "words": given["words"].masked_fill(outside[..., None], torch.nan)}
    fusion = encoder.aligned_fusion
    for one, other in zip(
        fusion.similarities.embed_query(poisoned["words"], NUM_WORDS),
        fusion.similarities.embed_query(given["words"], NUM_WORDS),
        strict=True,
    ):
        assert_same(one, other)


def test_map_features_are_two_layers_over_contrasts_and_products() -> None:
    fusion = randomize_(AlignedFusion(5, 4, (3, 2), ("sentence", "product"))).double().eval()
    grid, rows = MapGrid(8, 3, 2), draw(3, 8, 5, dtype=torch.float64)
    similarities = fusion.similarities
    query = similarities.embed_query(draw(3, 5, 5, seed=1, dtype=torch.float64), NUM_WORDS)
    unit = similarities.embed(rows)
    contrasts = contrast_features(similarities(unit, query), grid)
    scale = torch.tensor(
        [0.25 if "above" in name else 1.0 for name in CONTRASTS for _ in range(2)]
        + [0.5, 0.125, 1, 1, 1]
    )
    means = cell_means(unit - unit.mean(1, keepdim=True), grid)
    product = means * query.sentence[..., None] * torch.tensor([3, 3, 3, 2, 2])[:, None]
    stacked = torch.cat([contrasts * scale[:, None], product], dim=1)
    first, _, last = fusion.layers
    hidden = torch.einsum("oc,bck->bok", first.weight, stacked) + first.bias[:, None]
    made = torch.einsum("oc,bck->bok", last.weight, hidden.clamp(min=0)) + last.bias[:, None]
    for one, other in zip(
        fusion(unit, query, grid), (made / 2).split(grid.cells_per_scale, 2), strict=True
    ):
        valid = triangle(*one.shape[2:])
        assert_close(one, other.unflatten(2, one.shape[2:]) * valid)


def test_what_is_aligned_is_added_to_what_is_learned() -> None:
    both, given = randomize_(aligned()).eval(), inputs()
    learned = MultimodalEncoder(**FIELDS).eval()
    learned.load_state_dict({k: v for k, v in both.state_dict().items() if "aligned" not in k})
    apart = aligned(aligned_parts=ALL[:-1]).eval()
    apart.load_state_dict({k: v for k, v in both.state_dict().items() if "aligned" in k})
    maps = (learned(**given), apart(**given))
    for one, own, other in zip(both(**given), *maps, strict=True):
        assert_close(one, own + other)


def test_weights_are_as_without_it_but_for_its_own() -> None:
    torch.manual_seed(0)
    without = MultimodalEncoder(**FIELDS).state_dict()
    found = aligned().state_dict()
    added = [name for name in found if name not in without]
    assert all(name.startswith("aligned_fusion.") for name in added)
    assert list(found)[: len(without)] == list(without)
    for name, one in without.items():
        assert_same(found[name], one, name)


@pytest.mark.parametrize("part", ALL)
def test_each_part_can_be_alone_and_left_out(part: str) -> None:
    others = [one for one in ALL if one != part]
    given, shapes = inputs(), [(3, 4, 8, 3), (3, 4, 4, 3)]
    for parts in ([part], others, others[::-1]):
        encoder = aligned(aligned_parts=parts)
        assert [tuple(one.shape) for one in encoder(**given)] == shapes
        assert MultimodalEncoder.from_config(encoder.config).config == encoder.config
    names = [name for name, _ in aligned(aligned_parts=others).named_parameters()]
    assert any("text_encoder" in name for name in names) == (part != "learned")


def test_clips_are_counted_in_integers_of_any_size() -> None:
    fusion, grid = AlignedFusion(4, 6, parts=("sentence", "sequence")), MapGrid(160, 2, 1)
    given = fusion.similarities.embed(torch.randn(1, 320, 4))  # more rows than uint8 counts
    query = fusion.similarities.embed_query(torch.randn(1, 2, 4), torch.tensor([2]))
    (expected,), (found,) = (
        fusion(given, query, grid, torch.tensor([150], dtype=dtype))
        for dtype in (torch.int64, torch.uint8)
    )
    assert_same(found, expected)


def test_the_scale_of_features_does_not_matter_without_the_learned_part() -> None:
    encoder, given = aligned(aligned_parts=ALL[:-1]).eval(), inputs()
    larger = {**given, "features": 9 * given["features"], "words": 7 * given["words"]}
    for one, other in zip(encoder(**given), encoder(**larger), strict=True):
        assert_close(one, other)


def test_short_videos_are_encoded_as_if_they_were_alone() -> None:
    encoder, given = randomize_(aligned()).eval(), inputs(2, rows=12)
    num_clips = torch.tensor([12, 7])
    given["features"][1, 7:] = 0
    maps = encoder(**given, num_clips=num_clips)
    alone = {name: one[1:] for name, one in given.items()}
    alone["features"] = alone["features"][:, :8]
    for one, other in zip(maps, encoder(**alone, num_clips=num_clips[1:]), strict=True):
        assert_close(one[1:, :, : other.shape[2]], other)
        assert_zero(one[1:, :, other.shape[2] :], torch.tensor(True))
    # Rows after a video are not read and have no gradient, except in the learned part.
    apart = randomize_(aligned(aligned_parts=ALL[:-1])).eval()
    expected = apart(**given, num_clips=num_clips)
    given["features"][1, 7:] = torch.nan
    found = apart(**given, num_clips=num_clips)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    sum(one.sum() for one in found).backward()
    assert all(bool(one.grad.isfinite().all()) for one in apart.parameters())


def test_a_video_is_encoded_once_for_several_queries() -> None:
    encoder, given = randomize_(aligned()).eval(), inputs()
    given["features"] = given["features"][:1].expand(3, -1, -1)
    once = [one.expand(3, *one.shape[1:]) for one in encoder.encode_video(given["features"][:1])]
    query = encoder.encode_query(given["words"], given["num_words"])
    for one, other in zip(encoder.fuse(once, query), encoder(**given), strict=True):
        assert_close(one, other)
    with refuses(ArgumentError, "the result of encode_query, as the encoder is aligned, got"):
        encoder.fuse(once, query.sentence)
    with refuses(ShapeError, "video_maps to be a list of 3, got 2."):
        encoder.fuse(once[:2], query)


def test_autocast_keeps_the_precision_of_similarities() -> None:
    encoder, given = aligned(aligned_parts=("sentence",)).eval(), inputs()
    fusion = encoder.aligned_fusion
    rows, query = fusion.similarities.embed(given["features"]), None
    with torch.autocast("cpu", torch.bfloat16):
        query = fusion.similarities.embed_query(given["words"], NUM_WORDS)
        found = fusion.similarities(rows, query)
    assert_same(found, fusion.similarities(rows, query))


@pytest.mark.parametrize("spaces", [True, (3, 2)])
def test_an_aligned_model_is_saved_and_loaded(tmp_path: Path, spaces: object) -> None:
    config = {**FIELDS, "aligned": spaces, "aligned_parts": ALL}
    model = randomize_(MS2DTAN(encoder_config=config, kernel_sizes=[3]))
    model.save_pretrained(tmp_path)
    loaded, given = MS2DTAN.from_pretrained(tmp_path), inputs()
    assert_same(loaded.predict_maps(**given), model.predict_maps(**given))
    for one, other in zip(loaded.buffers(), model.buffers(), strict=True):
        assert_same(one, other)


def test_the_baseline_can_be_aligned() -> None:
    config = {**FIELDS, "aligned": [3, 2], "aligned_parts": ["sentence", "words"]}
    model = MS2DTAN(encoder_config=config, kernel_sizes=[3])
    moments = torch.tensor([[0.0, 4.0], [2.0, 5.0], [6.0, 8.0]])
    model.loss(**inputs(), moments=moments, clip_seconds=torch.ones(3)).backward()
    assert all(one.grad is not None for one in model.parameters())
    assert model.predict_maps(**inputs()).shape == (3, model.grid.num_cells)


def test_what_shares_no_space_is_refused() -> None:
    for fields, text in (
        ({"clip_channels": 6}, "word features in the clips' space, text_channels = 6, got text_ch"),
        ({"text_channels": None, "vocabulary_size": 9}, "got text_channels = None and a vocabula"),
        ({"aligned": (2, 2)}, "spaces that add up to 5 channels, got [2, 2]: 4."),
        ({"aligned": ()}, "aligned to be a list of at least one size, got ()."),
        ({"aligned": "yes"}, "aligned to be a list"),
        ({"aligned": None}, "aligned to be a list"),
        ({"aligned_parts": []}, "aligned_parts to be a list of sentence, words"),
        ({"aligned_parts": "words"}, "aligned_parts to be a list of sentence, words"),
        ({"aligned_parts": ["word"]}, "one of sentence, words, sequence"),
    ):
        with refuses(ConfigError, text):
            aligned(**fields)
    with refuses(ArgumentError, "aligned to be an integer >= 1, got 0."):
        aligned(aligned=(5, 0))


def test_a_pipeline_encodes_an_aligned_video_once() -> None:
    fields = {"text_channels": 16, "vocabulary_size": None, "clip_channels": 16, "aligned": True}
    model = make_localizer(encoder=fields)
    parts = {"text_encoder": tiny_text_encoder(WORDS), "text_features": "tokens"}
    pipe = make_pipe(model, vocabulary=None, **parts)
    video = make_features(30, channels=16)
    together = pipe(video, QUERIES, generator=seeds(3))
    for row, query in enumerate(QUERIES):
        alone = pipe(video, query, generator=seeds(1, row))
        assert_alike(answer_of(together, row), alone)
