import doctest

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import (
    Inputs,
    MaskArgumentContract,
    MaskedContract,
    draw,
    evaluate,
    named_tensors,
    randomize_,
    triangle,
)
from torch import Tensor, nn

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.layers import StylizationBlock
from tmapdiff.models import MapDecoder, MapDiffusionDecoder, decoder

FIELDS = {
    "num_clips": 8,
    "num_anchors": 3,
    "num_scales": 2,
    "feature_channels": 2,
    "channels": 4,
    "time_channels": 4,
    "kernel_sizes": (3, 5),
    "num_groups": 2,
}
MASKS = [triangle(8, 3), triangle(4, 3)]
PACKED = torch.cat([mask.flatten() for mask in MASKS])


class TestMapDecoder(MaskArgumentContract):
    fast_gradcheck = True
    compile_backend = "eager"  # quick to compile

    def make(self) -> nn.Module:
        return MapDecoder(
            feature_channels=2, channels=4, time_channels=3, kernel_sizes=[3, 5], num_groups=2
        )

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        return {
            "noisy": draw(batch, 5, 3, dtype=dtype),
            "features": draw(batch, 2, 5, 3, seed=1, dtype=dtype),
            "time_embedding": draw(batch, 3, seed=2, dtype=dtype),
            "mask": triangle(5, 3),
        }

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 5, 3)]

    def refused(self) -> list[tuple[Inputs, type[Exception], str]]:
        return [
            ({"noisy": draw(2, 5, 4)}, ShapeError, "expected noisy of shape (B, 5, 3)"),
            ({"features": draw(2, 3, 5, 3)}, ShapeError, "map features of shape (B, 2, N_k, A)"),
            ({"time_embedding": draw(2, 4)}, ShapeError, "time_embedding of shape (B, 3)"),
            ({"mask": triangle(4, 3)}, ShapeError, "mask of shape (N_k, A) with N_k = 5, A = 3"),
        ]

    def expected_repr(self) -> str:
        return "(head): Conv2d(4, 1, kernel_size=(1, 1)"

    def valid_inputs(self) -> dict[str, Tensor]:
        return {"noisy": triangle(5, 3), "features": triangle(5, 3)}

    def valid_outputs(self) -> list[Tensor]:
        return [triangle(5, 3)]

    def test_no_mask_means_all_valid(self) -> None:
        with pytest.raises(TypeError, match="mask"):  # a decoder always has invalid cells
            super().test_no_mask_means_all_valid()

    def test_equals_its_parts(self) -> None:
        one, inputs = self.ready(), self.inputs(2)
        mask, time = inputs["mask"], inputs["time_embedding"]
        x = one.condition(inputs["noisy"], inputs["features"], mask)
        x = x + one.fusion_style(x, time, mask)
        for conv, style in zip(one.convs, one.conv_styles, strict=True):
            x = conv(x, mask)
            x = x + style(x, time, mask)
        assert_close(one(**inputs), one.head(x)[:, 0] * mask)


class TestMapDiffusionDecoder(MaskedContract):
    fast_gradcheck = True
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

    def refused(self) -> list[tuple[Inputs, type[Exception], str]]:
        who = "MapDiffusionDecoder: expected"
        features = self.inputs(2)["features"]
        return [
            ({"noisy": draw(2, 35)}, ShapeError, f"{who} noisy of shape (B, 36), got (2, 35)."),
            ({"noisy": draw(2, 8, 3)}, ShapeError, f"{who} noisy of shape (B, 36)"),
            (
                {"timestep": torch.tensor([1, 2, 3])},
                ShapeError,
                f"{who} timestep of shape (B) with B = 2, got (3,).",
            ),
            ({"timestep": 5}, ShapeError, f"{who} timestep of shape (B) with B = 2, got int."),
            (
                {"features": features[:1]},
                ShapeError,
                f"{who} features to be a list of 2, got 1.",
            ),
            ({"features": draw(2, 2)}, ShapeError, f"{who} features to be a list of 2"),
            (
                {"features": features[::-1]},
                ShapeError,
                f"{who} features[0] of shape (B, 2, 8, 3) with B = 2, got (2, 2, 4, 3).",
            ),
            (
                {"features": [features[0], draw(3, 2, 4, 3)]},
                ShapeError,
                f"{who} features[1] of shape (B, 2, 4, 3) with B = 2, got (3, 2, 4, 3).",
            ),
        ]

    def expected_repr(self) -> str:
        return "(scales): ModuleList(\n    (0-1): 2 x MapDecoder("

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
                whole.scales,
                inputs["noisy"].split([24, 12], 1),
                inputs["features"],
                MASKS,
                strict=True,
            )
        ]
        assert_same(whole(**inputs), torch.cat(parts, 1))

    def test_scales_do_not_influence_each_other(self) -> None:
        whole, inputs = self.ready(), self.inputs(2)
        names = [name for name, _ in whole.scales[0].named_parameters()]
        assert names == [name for name, _ in whole.scales[1].named_parameters()]
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
                    evaluation.parameters[f"whole.scales.{k}.{name}"] for k in (scale, other)
                )
                assert_zero(others, torch.tensor(True), name)
                assert bool((own != 0).any()), name

    def test_scales_start_with_different_weights(self) -> None:
        one, two = (scale.head.weight for scale in self.make().scales)
        assert bool((one != two).any())

    def test_noise_and_features_matter(self) -> None:
        whole, inputs = self.ready(), self.inputs(2)
        evaluation = evaluate(whole, inputs)
        for name in named_tensors(inputs).keys() - {"timestep"}:
            assert float(evaluation.inputs[name].abs().max()) > 1e-3


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


@pytest.mark.parametrize(
    ("stylization", "blocks_a_scale", "has_fusion"),
    [("none", 0, False), ("fusion", 1, True), ("conv", 2, False), ("both", 3, True)],
)
def test_stylization_is_where_the_time_comes_in(
    stylization: str, blocks_a_scale: int, has_fusion: bool
) -> None:
    whole = MapDiffusionDecoder(**FIELDS, stylization=stylization)
    plain = MapDiffusionDecoder(**FIELDS, stylization="none")
    names, plain_names = set(whole.state_dict()), set(plain.state_dict())
    blocks = [part for part in whole.modules() if isinstance(part, StylizationBlock)]
    assert len(blocks) == 2 * blocks_a_scale
    assert plain_names <= names
    added = names - plain_names
    assert {name.split(".")[2] for name in added if name.startswith("scales")} == {
        kind for kind in ("fusion_style", "conv_styles")
        if (kind == "fusion_style" and has_fusion)
        or (kind == "conv_styles" and stylization in ("conv", "both"))
    }  # fmt: skip
    # Parameters that nothing trains would stop distributed training.
    assert any(name.startswith("embed_timestep") for name in added) == (stylization != "none")

    # Time is unknown to a new decoder, and to one without stylization.
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
    assert_same(outputs_at(styled, 500), outputs_at(plain, 500))


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
        ({"kernel_sizes": ()}, ConfigError, "MapDecoder: expected kernel_sizes to be a list of at"),
        ({"kernel_sizes": (4,)}, ConfigError, "expected an odd kernel_size, got 4."),
        ({"num_groups": 4}, ConfigError, "channels divisible by num_groups = 4, got 6."),
        ({"gate": "x"}, ConfigError, "gate to be one of shared, channel, got 'x'."),
        ({"norm": "x"}, ConfigError, "norm to be one of group, layer, got 'x'."),
        ({"channels": 0}, ArgumentError, "channels to be an integer >= 1, got 0."),
        ({"time_channels": 0}, ArgumentError, "time_channels to be an integer >= 1, got 0."),
        ({"num_scales": 0}, ArgumentError, "num_scales to be an integer >= 1, got 0."),
        ({"num_clips": 7}, ConfigError, "The nearest that divides is 6."),
        ({"num_anchors": 5}, ConfigError, "num_anchors <= 4"),
    ],
)
def test_refuses(fields: dict[str, object], kind: type[Exception], text: str) -> None:
    with refuses(kind, text):
        MapDiffusionDecoder(**{**FIELDS, **fields})


def test_example_of_the_docstring_runs() -> None:
    (test,) = (
        test
        for test in doctest.DocTestFinder(recurse=False).find(
            MapDiffusionDecoder, globs={**vars(decoder), "torch": torch}
        )
    )
    assert test.examples
    report: list[str] = []
    assert doctest.DocTestRunner().run(test, out=report.append).failed == 0, "".join(report)
