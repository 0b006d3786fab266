from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import (
    Inputs,
    MaskedContract,
    draw,
    evaluate,
    randomize_,
    triangle,
)
from helpers.fields import SMALLEST_DECODER as FIELDS
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.layers import StylizationBlock
from tmapdiff.models import MapDiffusionDecoder

TRANSFORMER = {"architecture": "transformer", "num_layers": 1, "num_heads": 2}
MASKS = [triangle(8, 3), triangle(4, 3)]
PACKED = torch.cat([mask.flatten() for mask in MASKS])


class TestMapDiffusionDecoder(MaskedContract):
    num_decoders = 2
    compile_backend = "eager"  # quick to compile

    def make(self) -> nn.Module:
        return MapDiffusionDecoder(**FIELDS)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        return {
            "noisy": draw(batch, 36, dtype=dtype),
            "timestep": torch.tensor([999, 10, 500])[:batch],
            "features": [draw(batch, 2, rows, 3, seed=rows, dtype=dtype) for rows in (8, 4)],
        }

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 36)]

    def refused(self) -> list[tuple[Any, ...]]:
        features = self.inputs(2)["features"]
        wide = [features[0], draw(3, 2, 4, 3)]
        return [
            ({"noisy": draw(2, 35)}, "noisy of shape (B, 36) with B = 2, got (2, 35)."),
            ({"noisy": draw(2, 8, 3)}, "noisy of shape (B, cells)"),
            ({"timestep": torch.ones(3)}, "timestep of shape (B) with B = 2, got (3,)."),
            ({"features": features[:1]}, "features to be a list of 2, got 1."),
            ({"features": draw(2, 2)}, "features to be a list of 2, got Tensor."),
            ({"features": features[::-1]}, "features[0] of shape (B, 2, 8, 3), got (2, 2, 4, 3)."),
            ({"features": wide}, "features[1] of shape (B, 2, 4, 3) with B = 2, got"),
            ({"timestep": 5.0}, "timestep to be an integer >= 0, got 5.0.", ArgumentError),
        ]

    def valid_inputs(self) -> dict[str, Tensor]:
        return {"noisy": PACKED, "features[0]": MASKS[0], "features[1]": MASKS[1]}

    def valid_outputs(self) -> list[Tensor]:
        return [PACKED]

    def test_packs_the_decoders_of_its_scales(self) -> None:
        whole, inputs = self.ready(), self.inputs(2)
        time = whole.embed_timestep(inputs["timestep"])
        parts = [
            one(noisy.reshape(2, *mask.shape), features, time, mask).flatten(1)
            for one, noisy, features, mask in zip(
                whole.decoders,
                inputs["noisy"].split([24, 12], 1),
                inputs["features"],
                MASKS,
                strict=True,
            )
        ]
        assert_same(whole(**inputs), torch.cat(parts, 1))

    def test_scales_do_not_influence_each_other(self) -> None:
        whole, inputs = self.ready(), self.inputs(2)
        names = [name for name, _ in whole.decoders[0].named_parameters()]
        assert names == [name for name, _ in whole.decoders[1].named_parameters()]
        for scale, cells in enumerate((slice(0, 24), slice(24, 36))):
            one_scale = _OneScale(whole, cells)
            evaluation = evaluate(one_scale, inputs)
            other = 1 - scale
            assert_zero(evaluation.inputs[f"features[{other}]"], torch.tensor(True))
            assert bool((evaluation.inputs[f"features[{scale}]"] != 0).any())
            elsewhere = torch.ones(36, dtype=torch.bool)
            elsewhere[cells] = False
            assert_zero(evaluation.inputs["noisy"], elsewhere)
            for name in names:
                own, others = (
                    evaluation.parameters[f"whole.decoders.{k}.{name}"] for k in (scale, other)
                )
                assert_zero(others, torch.tensor(True), name)
                assert bool((own != 0).any()), name

    def test_scales_start_with_different_weights(self) -> None:
        weights = [torch.cat([one.flatten() for one in scale.head.state_dict().values()])
                   for scale in self.make().decoders]  # fmt: skip
        assert len(weights) == self.num_decoders
        assert all(bool((weights[0] != other).any()) for other in weights[1:])


class TestTransformerDecoder(TestMapDiffusionDecoder):
    fields = TRANSFORMER

    def make(self) -> nn.Module:
        return MapDiffusionDecoder(**{**FIELDS, "norm": "layer", **self.fields})

    def test_packs_the_decoders_of_its_scales(self) -> None:
        whole, inputs = self.ready(), self.inputs(2)
        time = whole.embed_timestep(inputs["timestep"])
        expected = torch.zeros(2, 36)
        for scale, (decoder, mask, first) in enumerate(
            zip(whole.decoders, MASKS, (0, 24), strict=True)
        ):
            for row in range(2):
                cells = [(i, j) for i, j in mask.nonzero().tolist()]
                packed = torch.tensor([first + i * 3 + j for i, j in cells])
                found = decoder(
                    inputs["noisy"][row : row + 1, packed],
                    torch.stack([inputs["features"][scale][row, :, i, j] for i, j in cells], 1)[
                        None
                    ],
                    torch.tensor([[i, i + j + 1] for i, j in cells]) * 2**scale,
                    time[row : row + 1],
                )
                expected[row, packed] = found[0]
        assert_close(whole(**inputs), expected)


@pytest.mark.exhaustive
class TestCrossAttentionDecoder(TestTransformerDecoder):
    fields = {**TRANSFORMER, "conditioning": "cross-attention"}  # noqa: RUF012


class TestJointTransformerDecoder(TestTransformerDecoder):
    num_decoders = 1
    fields = {**TestCrossAttentionDecoder.fields, "joint_scales": True}  # noqa: RUF012

    def test_packs_the_decoders_of_its_scales(self) -> None:
        whole, inputs = self.ready(), self.inputs(2)
        cells = PACKED.nonzero()[:, 0]
        features = torch.cat([one.flatten(2) for one in inputs["features"]], 2)
        moments = [
            [i * 2**scale, (i + j + 1) * 2**scale]
            for scale, mask in enumerate(MASKS)
            for i, j in mask.nonzero().tolist()
        ]
        found = whole.decoders[0](
            inputs["noisy"][:, cells],
            features[..., cells],
            torch.tensor(moments),
            whole.embed_timestep(inputs["timestep"]),
        )
        result = whole(**inputs)
        assert_close(result[:, PACKED], found)
        assert_zero(result, ~PACKED)

    def test_scales_do_not_influence_each_other(self) -> None:
        # With a joint sequence, scales do exchange information.
        evaluation = evaluate(_OneScale(self.ready(), slice(0, 24)), self.inputs(2))
        assert float(evaluation.inputs["noisy"][:, 24:].abs().max()) > 1e-3
        assert float(evaluation.inputs["features[1]"].abs().max()) > 1e-3


VARIANTS = [
    {},
    {"conditioning": "multiply"},
    TRANSFORMER,
    TestCrossAttentionDecoder.fields,
    TestJointTransformerDecoder.fields,
]


@pytest.mark.parametrize("fields", VARIANTS)
def test_short_videos_are_masked_as_if_they_were_alone(fields: dict[str, object]) -> None:
    whole = randomize_(MapDiffusionDecoder(**{**FIELDS, **fields})).double().eval()
    inputs = TestMapDiffusionDecoder().inputs(3, torch.float64)
    num_clips = torch.tensor([8, 5, 1])
    spoilt, valid = dict(inputs), whole.grid.packed_mask(num_clips=num_clips)
    spoilt["noisy"] = inputs["noisy"].masked_fill(~valid, torch.nan)
    spoilt["features"] = [
        one.masked_fill(~whole.grid.mask(k, num_clips=num_clips)[:, None], torch.nan)
        for k, one in enumerate(inputs["features"])
    ]
    with torch.no_grad():
        result = whole(**spoilt, num_clips=num_clips)
        assert_zero(result, ~valid)
        for row in range(3):
            alone = {
                name: [one[row : row + 1] for one in value]
                if isinstance(value, list)
                else value[row : row + 1]
                for name, value in spoilt.items()
            }
            found = whole(**alone, num_clips=num_clips[row : row + 1])
            assert_close(result[row : row + 1], found)
        assert_close(whole(**inputs, num_clips=torch.full((3,), 8)), whole(**inputs))


@pytest.mark.parametrize("fields", VARIANTS)
def test_larger_grids_need_only_be_announced(fields: dict[str, object]) -> None:
    whole = randomize_(MapDiffusionDecoder(**{**FIELDS, **fields})).eval()
    inputs = {
        "noisy": draw(2, 3 * (12 + 6)),
        "timestep": torch.tensor([999, 10]),
        "features": [draw(2, 2, rows, 3, seed=rows) for rows in (12, 6)],
    }
    text = "MapDiffusionDecoder: expected features[0] of shape (B, 2, 8, 3), got (2, 2, 12, 3)."
    with refuses(ShapeError, text):
        whole(**inputs)
    result = whole(**inputs, num_clips=torch.tensor([12, 8]))
    assert result.shape == (2, 54)
    assert_zero(result[1], ~whole.grid.resized(12).packed_mask(num_clips=torch.tensor([8]))[0])
    with refuses(ConfigError, "expected num_clips divisible by 2**(num_scales - 1) = 2, got 11."):
        odd = [draw(2, 2, rows, 3) for rows in (11, 6)]
        whole(**{**inputs, "features": odd}, num_clips=torch.tensor([11, 8]))
    with refuses(ShapeError, "num_clips of shape (B) with B = 2, got (3,)."):
        whole(**inputs, num_clips=torch.tensor([12, 8, 8]))


class _OneScale(nn.Module):
    def __init__(self, whole: MapDiffusionDecoder, cells: slice) -> None:
        super().__init__()
        self.whole = whole
        self.cells = cells

    def forward(self, **inputs: object) -> Tensor:
        return self.whole(**inputs)[:, self.cells]


def outputs_at(whole: MapDiffusionDecoder, timestep: int) -> Tensor:
    inputs = TestMapDiffusionDecoder().inputs(2)
    with torch.no_grad():
        return whole.eval()(**{**inputs, "timestep": torch.full((2,), timestep)})


@pytest.mark.parametrize("architecture", ["conv", "transformer"])
@pytest.mark.parametrize(
    ("stylization", "blocks_a_scale", "has_fusion"),
    [("none", 0, False), ("fusion", 1, True), ("conv", 2, False), ("both", 3, True)],
)
def test_stylization_is_where_the_time_comes_in(
    architecture: str, stylization: str, blocks_a_scale: int, has_fusion: bool
) -> None:
    fields = {**FIELDS, "architecture": architecture}
    whole = MapDiffusionDecoder(**fields, stylization=stylization)
    plain = MapDiffusionDecoder(**fields, stylization="none")
    added = set(whole.state_dict()) - set(plain.state_dict())
    blocks = [part for part in whole.modules() if isinstance(part, StylizationBlock)]
    assert len(blocks) == 2 * blocks_a_scale
    assert any("fusion_style" in name for name in added) == has_fusion
    # Unused parameters would break distributed training.
    assert any(name.startswith("embed_timestep") for name in added) == (stylization != "none")

    # A new decoder, and one without stylization, ignores the time.
    assert_same(outputs_at(whole, 0), outputs_at(whole, 999))
    randomize_(whole)
    difference = float((outputs_at(whole, 0) - outputs_at(whole, 999)).abs().max())
    assert (difference > 0.01) == (stylization != "none")


def test_stylization_starts_as_the_identity() -> None:
    plain = randomize_(MapDiffusionDecoder(**FIELDS, stylization="none"))
    styled = MapDiffusionDecoder(**FIELDS, stylization="both")
    left = styled.load_state_dict(plain.state_dict(), strict=False)
    assert left.unexpected_keys == []
    assert left.missing_keys
    # Without a block before it, the first convolution is computed in two parts.
    assert_close(outputs_at(styled, 500), outputs_at(plain, 500))


@pytest.mark.parametrize("field", [{"gate": "channel"}, {"norm": "layer"}])
def test_fields_reach_the_layers(field: dict[str, str]) -> None:
    whole = MapDiffusionDecoder(**FIELDS, **field)
    ((name, value),) = field.items()
    found = [vars(part)[name] for part in whole.modules() if name in vars(part)]
    assert found.count(value) >= 4
    assert set(found) == {value}
    assert whole.config[name] == value


def test_dropout_reaches_the_layers() -> None:
    whole = MapDiffusionDecoder(**FIELDS, dropout=0.25)
    rates = [part.p for part in whole.modules() if isinstance(part, nn.Dropout)]
    assert rates == [0.25] * 6


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"stylization": "all"}, ConfigError, "stylization to be one of none, fusion, conv, both"),
        ({"kernel_sizes": ()}, ConfigError, "ConvMapDecoder: expected kernel_sizes to be a list"),
        ({"kernel_sizes": (4,)}, ConfigError, "expected an odd kernel_size, got 4."),
        ({"num_groups": 4}, ConfigError, "channels divisible by num_groups = 4, got 6."),
        ({"gate": "x"}, ConfigError, "gate to be one of shared, channel, got 'x'."),
        ({"norm": "x"}, ConfigError, "norm to be one of group, layer, got 'x'."),
        ({"channels": 0}, ArgumentError, "channels to be an integer >= 1, got 0."),
        ({"time_channels": 0}, ArgumentError, "time_channels to be an integer >= 1, got 0."),
        ({"num_scales": 0}, ArgumentError, "num_scales to be an integer >= 1, got 0."),
        ({"num_clips": 7}, ConfigError, "The nearest valid value is 6."),
        ({"num_anchors": 5}, ConfigError, "num_anchors <= 4"),
        ({"architecture": "rnn"}, ConfigError, "architecture to be one of conv, transformer"),
        ({"conditioning": "add"}, ConfigError, "conditioning to be one of concat, multiply, "),
        ({"conditioning": "cross-attention"}, ConfigError, "another conditioning than 'cross-att"),
        ({"joint_scales": True}, ConfigError, "joint_scales to be off. It needs architecture 'tr"),
        ({**TRANSFORMER, "num_heads": 3}, ConfigError, "num_heads = 3, got 4."),
        ({**TRANSFORMER, "num_layers": 0}, ArgumentError, "num_layers to be an integer >= 1"),
        ({**TRANSFORMER, "stylization": "x"}, ConfigError, "none, fusion, conv, both, got 'x'."),
        ({**TRANSFORMER, "conditioning": "x"}, ConfigError, "concat, multiply, "),
    ],
)
def test_refuses(fields: dict[str, object], kind: type[Exception], text: str) -> None:
    with refuses(kind, text):
        MapDiffusionDecoder(**{**FIELDS, **fields})
