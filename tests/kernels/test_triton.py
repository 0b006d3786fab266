"""Kernels against the reference in float64, in Triton's interpreter without a GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero
from helpers.contracts import draw, triangle
from helpers.kernels import DEVICE, LAYOUTS, MASKS, Allocations, guard, run
from torch import Tensor

from tmapdiff.kernels._launch import ceil_div
from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.stylization import stylize

pytest.importorskip("triton")
from tmapdiff.kernels.gate import triton as gate
from tmapdiff.kernels.stylization import triton as stylization

pytestmark = pytest.mark.interpreter


@dataclass(frozen=True)
class Form:
    """A kernel, and how its maps are divided.

    Attributes:
        call: The operation.
        op: Its operator and arguments, from inputs by name and a mask.
        maps: Name of the maps, which have `channels` channels.
        others: Names of the other inputs.
        tiles: Tile settings, small enough for several tiles.
    """

    call: Callable[..., Tensor]
    op: Callable[..., tuple[Any, ...]]
    maps: str
    channels: int
    others: tuple[str, ...]
    tiles: dict[str, int] = field(default_factory=dict)

    def make(
        self, dtype: torch.dtype = torch.float32, batch: int = 3, rows: int = 7, columns: int = 5
    ) -> dict[str, Tensor]:
        inputs = {self.maps: 1 + 2 * draw(batch, self.channels, rows, columns, dtype=dtype)}
        for seed, name in enumerate(self.others, 1):
            inputs[name] = draw(batch, self.channels, seed=seed, dtype=dtype)
        return inputs

    def there(self, **sizes: Any) -> dict[str, Tensor]:
        return {name: one.to(DEVICE) for name, one in self.make(**sizes).items()}


def gate_form(channels: int, gate_channels: int) -> Form:
    return Form(
        lambda **given: gate_features(channels=channels, **given),
        lambda convolved, mask: (gate._gate_op, (convolved, mask, channels)),
        "convolved",
        channels + gate_channels,
        (),
        {"_TILE": 64, "_CHANNELS": 4},
    )


def stylization_form(groups: int, **tiles: int) -> Form:
    return Form(
        lambda **given: stylize(num_groups=groups, **given),
        lambda x, scale, shift, mask: (
            stylization._stylize_op,
            (x, scale, shift, mask, groups),
        ),
        "x",
        15,
        ("scale", "shift"),
        {"_PART": 128, "_PROGRAMS": 18, **tiles},
    )


FORMS = {
    "shared gate": gate_form(5, 1),
    "own gates": gate_form(5, 5),
    "whole groups": stylization_form(3),
    "parts of groups": stylization_form(3, _WHOLE=0, _WHOLE_BACKWARD=0),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    return small(FORMS[request.param], monkeypatch)


@pytest.fixture(params=[name for name in FORMS if "gate" not in name])
def style(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    return small(FORMS[request.param], monkeypatch)


def small(form: Form, monkeypatch: pytest.MonkeyPatch) -> Form:
    for name, size in form.tiles.items():
        monkeypatch.setattr(gate if form.maps == "convolved" else stylization, name, size)
    return form


@pytest.mark.parametrize(
    ("dtype", "layout", "mask"),
    [
        *product([torch.float32], LAYOUTS, ["batched"]),
        (torch.float32, "channels_last", "none"),
        (torch.float32, "channels_last", "shared"),
        (torch.float32, "durations_outermost", "shared"),
        (torch.float16, "contiguous", "shared"),
        (torch.float16, "channels_last", "none"),
    ],
)
def test_equals_reference(
    dtype: torch.dtype, layout: str, mask: str, form: Form, allocations: Allocations
) -> None:
    valid = MASKS[mask]
    inputs = form.make(dtype)
    exact = {name: one.double() for name, one in inputs.items()}
    expected = run(form.call, exact, valid, "reference")
    laid = {name: one.to(DEVICE) for name, one in inputs.items()}
    laid[form.maps] = LAYOUTS[layout](laid[form.maps])
    if "slice" not in layout:
        laid = {name: guard(one) for name, one in laid.items()}
    upper = LAYOUTS[layout](draw(*expected["result"].shape, seed=3).to(laid[form.maps]))
    found = run(form.call, laid, valid, "triton", upper)
    allocations.check()
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert_close(found[name].cpu(), value, dtype, name)
    for name in ("result", form.maps) if valid is not None else ():
        assert_zero(found[name].cpu(), ~valid.unsqueeze(-3))


def test_invalid_cells_do_not_matter(form: Form) -> None:
    mask, inputs = MASKS["batched"], form.there()
    expected = run(form.call, inputs, mask, "triton")
    spoilt = inputs[form.maps].masked_fill(~mask.unsqueeze(1).to(DEVICE), torch.nan)
    found = run(form.call, {**inputs, form.maps: spoilt}, mask, "triton", spoil=True)
    for name, value in expected.items():
        assert_same(found[name], value, name)


@pytest.mark.parametrize("name", ["shared gate", "own gates"])
def test_nan_in_valid_cells_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = small(FORMS[name], monkeypatch)
    for channel in (0, 5):
        inputs = form.there()
        inputs["convolved"][1, channel, 2, 3] = torch.nan
        found = run(form.call, inputs, None, "triton")["result"].isnan().nonzero().tolist()
        assert [1, 0, 2, 3] in found
        assert all(place[0] == 1 and place[2:] == [2, 3] for place in found)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice_channels_last"])
def test_result_and_gradient_keep_the_layout(layout: str, form: Form) -> None:
    inputs = form.there()
    inputs[form.maps] = LAYOUTS[layout](inputs[form.maps])
    found = run(form.call, inputs, None, "triton")
    memory_format = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    for name in ("result", form.maps):
        assert found[name].is_contiguous(memory_format=memory_format), name


def test_runs_are_equal_bit_for_bit(form: Form) -> None:
    inputs = form.there()
    first, second = (run(form.call, inputs, MASKS["shared"], "triton") for _ in range(2))
    for name, value in first.items():
        assert_same(second[name], value, name)


@pytest.mark.parametrize(("batch", "rows", "columns"), [(0, 7, 5), (2, 0, 5), (2, 1, 1)])
def test_small_and_empty_maps(batch: int, rows: int, columns: int, form: Form) -> None:
    inputs = form.there(batch=batch, rows=rows, columns=columns)
    expected = run(form.call, inputs, None, "reference")
    for name, value in run(form.call, inputs, None, "triton").items():
        assert_close(value.cpu(), expected[name].double().cpu(), torch.float32, name)


def test_gradient_of_one_input_alone(form: Form) -> None:
    inputs = form.there()
    expected = run(form.call, inputs, None, "triton")
    for name, one in inputs.items():
        leaf = one.clone().requires_grad_()
        result = form.call(**{**inputs, name: leaf}, backend="triton")
        (gradient,) = torch.autograd.grad(result, leaf, draw(*result.shape, seed=3).to(DEVICE))
        assert_same(gradient, expected[name], name)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.compile
def test_operators_are_registered_soundly(form: Form) -> None:
    inputs = {name: one.requires_grad_() for name, one in form.there().items()}
    maps = inputs[form.maps].detach().to(memory_format=torch.channels_last).requires_grad_()
    mask = MASKS["shared"].to(DEVICE)
    torch.library.opcheck(*form.op(**{**inputs, form.maps: maps}, mask=mask))


@pytest.mark.compile
def test_compiles_in_one_graph(form: Form) -> None:
    mask = MASKS["shared"].to(DEVICE)

    def function(*given: Tensor) -> Tensor:
        named = dict(zip((form.maps, *form.others), given, strict=True))
        return form.call(**named, mask=mask, backend="triton") + 1

    inputs = [one.requires_grad_() for one in form.there().values()]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = [one(*inputs) for one in (function, compiled)]
    upper = draw(*results[0].shape, seed=3).to(DEVICE)
    assert_same(results[1], results[0])
    for one, two in zip(*(torch.autograd.grad(r, inputs, upper) for r in results), strict=True):
        assert_same(two, one)


# Stylization


def test_styles_of_other_dtype_and_shared_by_samples(style: Form) -> None:
    inputs = style.make()
    x = inputs["x"].half()
    scale, shift = inputs["scale"][:1].expand(3, -1), inputs["shift"][:, :1].expand(-1, 15)
    given = {"x": x, "scale": scale, "shift": shift}
    expected = run(style.call, {**given, "x": x.double()}, None, "reference")
    found = run(style.call, {n: one.to(DEVICE) for n, one in given.items()}, None, "triton")
    assert found["scale"].dtype == torch.float32
    for name, value in expected.items():
        assert_close(found[name].cpu(), value, torch.float16, name)


def test_a_large_mean_costs_little_accuracy(style: Form) -> None:
    inputs, mask = style.there(), triangle(7, 5)
    inputs["x"] = inputs["x"] + 1e4
    exact = {name: one.double() for name, one in inputs.items()}
    expected = run(style.call, exact, mask, "reference")["result"]
    found = run(style.call, inputs, mask, "triton")["result"]
    # Float32 represents 10,000 to about 0.001; mean square minus squared mean would be off by > 1.
    assert float((found - expected).abs().max()) < 5e-3


def test_tiles_cover_everything_once() -> None:
    sizes = product(
        [1, 8, 64, 1000],  # samples with 8 groups each
        [1, 8, 12, 64, 512, 5000],
        [1, 35, 256, 1024, 5000],
        [0, stylization._WHOLE],
    )
    for case in sizes:
        batch, width, cells, most = case
        rows = batch * 8
        tiling = stylization._tile(rows, width, cells, most)
        assert tiling.channels >= width, case
        if tiling.whole:
            assert tiling.cells >= cells, case
            assert tiling.cells * tiling.channels <= most, case
            continue
        assert (tiling.tiles - 1) * tiling.cells < cells <= tiling.tiles * tiling.cells, case
        covered = (tiling.splits - 1) * tiling.part_cells, tiling.splits * tiling.part_cells
        assert covered[0] < cells <= covered[1], case
        assert tiling.part_cells % tiling.cells == 0, case
        programs = stylization._PROGRAMS
        assert rows * tiling.splits >= min(rows * tiling.tiles, programs) / 2, case
        assert tiling.splits <= ceil_div(programs, rows), case


def test_large_maps_occupy_a_gpu() -> None:
    for batch in (8, 32, 64, 256):
        for width, most in ((32, stylization._WHOLE), (64, stylization._WHOLE_BACKWARD)):
            tiling = stylization._tile(batch * 8, width, 1024, most)
            assert batch * 8 * tiling.splits >= 256, (batch, width)
    for batch, channels in product((8, 32, 64), (64, 256, 512)):
        tile_cells, _ = gate._backward_tile_of(channels, 1024, batch)
        assert batch * 1024 // tile_cells >= 512, (batch, channels)
