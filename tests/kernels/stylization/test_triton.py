"""Kernels against the reference in float64; in triton's interpreter where there is no GPU."""

from itertools import product

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero
from helpers.contracts import draw, triangle
from helpers.kernels import DEVICE, LAYOUTS, Allocations, guard
from torch import Tensor

from tmapdiff.kernels._launch import ceil_div
from tmapdiff.kernels.stylization import stylize

pytest.importorskip("triton")
from tmapdiff.kernels.stylization import triton as kernels

# Of each: how a group is shared among programs, and its channels.
WAYS = {"whole": 3, "parts": 3, "layer": None}
MASKS = {
    "none": None,
    "shared": triangle(7, 5),
    # One sample without valid cells, one with one alone.
    "batched": torch.stack(
        [triangle(7, 5), torch.zeros(7, 5, dtype=torch.bool), torch.arange(35).view(7, 5) == 9]
    ),
}


@pytest.fixture(params=WAYS)
def num_groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Groups, with tiles so small that groups are shared as they are on large maps."""
    if request.param == "parts":
        monkeypatch.setattr(kernels, "_WHOLE", 0)
        monkeypatch.setattr(kernels, "_WHOLE_BACKWARD", 0)
    monkeypatch.setattr(kernels, "_PART", 128)
    monkeypatch.setattr(kernels, "_PROGRAMS", 18)
    return WAYS[request.param]


def make(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "x": 1 + 2 * draw(3, 15, 7, 5, dtype=dtype),
        "scale": draw(3, 15, seed=1, dtype=dtype),
        "shift": draw(3, 15, seed=2, dtype=dtype),
    }


def run(
    inputs: dict[str, Tensor],
    mask: Tensor | None,
    num_groups: int | None,
    backend: str,
    upper: Tensor | None = None,
) -> dict[str, Tensor]:
    """Result and gradients, the result weighted with `upper`."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    mask = None if mask is None else mask.to(leaves["x"].device)
    result = stylize(**leaves, mask=mask, num_groups=num_groups, backend=backend)
    if upper is None:
        upper = draw(*result.shape, seed=3, dtype=torch.float32)
    gradients = torch.autograd.grad(result, list(leaves.values()), upper.to(result))
    return {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}


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
    dtype: torch.dtype, layout: str, mask: str, num_groups: int | None, allocations: Allocations
) -> None:
    inputs = make(dtype)
    expected = run({n: t.double() for n, t in inputs.items()}, MASKS[mask], num_groups, "reference")
    laid = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    laid["x"] = LAYOUTS[layout](laid["x"])
    if "slice" not in layout:
        laid = {name: guard(tensor) for name, tensor in laid.items()}
    upper = LAYOUTS[layout](draw(*laid["x"].shape, seed=3).to(laid["x"]))
    actual = run(laid, MASKS[mask], num_groups, "triton", upper)
    allocations.check()
    for name, value in expected.items():
        assert actual[name].dtype == dtype
        assert_close(actual[name].cpu(), value, dtype, name)
    if MASKS[mask] is not None:
        assert_zero(actual["result"].cpu(), ~MASKS[mask].unsqueeze(-3))
        assert_zero(actual["x"].cpu(), ~MASKS[mask].unsqueeze(-3))


def test_invalid_cells_do_not_matter(num_groups: int | None) -> None:
    mask = MASKS["batched"]
    inputs = {name: tensor.to(DEVICE) for name, tensor in make().items()}
    expected = run(inputs, mask, num_groups, "triton")
    invalid = ~mask.unsqueeze(1).to(DEVICE)
    spoilt = {**inputs, "x": inputs["x"].masked_fill(invalid, torch.nan)}
    upper = draw(3, 15, 7, 5, seed=3).to(DEVICE).masked_fill(invalid, torch.nan)
    actual = run(spoilt, mask, num_groups, "triton", upper)
    for name, value in expected.items():
        assert_same(actual[name], value, name)


def test_styles_of_other_dtype_and_shared_by_samples(num_groups: int | None) -> None:
    inputs = make()
    x = inputs["x"].half()
    scale, shift = inputs["scale"][:1].expand(3, -1), inputs["shift"][:, :1].expand(-1, 15)
    expected = run({"x": x.double(), "scale": scale, "shift": shift}, None, num_groups, "reference")
    laid = {"x": x.to(DEVICE), "scale": scale.to(DEVICE), "shift": shift.to(DEVICE)}
    actual = run(laid, None, num_groups, "triton")
    assert actual["scale"].dtype == torch.float32
    for name, value in expected.items():
        assert_close(actual[name].cpu(), value, torch.float16, name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice_channels_last"])
def test_result_and_gradient_keep_the_layout(layout: str, num_groups: int | None) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in make().items()}
    inputs["x"] = LAYOUTS[layout](inputs["x"])
    found = run(inputs, None, num_groups, "triton")
    form = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    assert found["result"].is_contiguous(memory_format=form)
    assert found["x"].is_contiguous(memory_format=form)


def test_a_large_mean_costs_little_accuracy(num_groups: int | None) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in make().items()}
    inputs["x"] = inputs["x"] + 1e4
    mask = triangle(7, 5)
    expected = run({n: t.double() for n, t in inputs.items()}, mask, num_groups, "reference")
    found = run(inputs, mask, num_groups, "triton")["result"]
    # Float32 holds 10,000 to about 0.001; mean square less squared mean would be off by 1 and more.
    assert float((found - expected["result"]).abs().max()) < 5e-3


def test_runs_are_equal_bit_for_bit(num_groups: int | None) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in make().items()}
    first, second = (run(inputs, MASKS["shared"], num_groups, "triton") for _ in range(2))
    for name, value in first.items():
        assert_same(second[name], value, name)


@pytest.mark.parametrize("shape", [(0, 15, 7, 5), (2, 15, 0, 5), (2, 15, 1, 1)])
def test_small_and_empty_maps(shape: tuple[int, ...], num_groups: int | None) -> None:
    inputs = {
        "x": draw(*shape).to(DEVICE),
        "scale": draw(shape[0], 15, seed=1).to(DEVICE),
        "shift": draw(shape[0], 15, seed=2).to(DEVICE),
    }
    expected = run(inputs, None, num_groups, "reference")
    for name, value in run(inputs, None, num_groups, "triton").items():
        assert_close(value.cpu(), expected[name].double().cpu(), torch.float32, name)


def test_gradient_of_one_input_alone(num_groups: int | None) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in make().items()}
    expected = run(inputs, None, num_groups, "triton")
    for name in inputs:
        leaf = inputs[name].clone().requires_grad_()
        result = stylize(**{**inputs, name: leaf}, num_groups=num_groups, backend="triton")
        (gradient,) = torch.autograd.grad(result, leaf, draw(*result.shape, seed=3).to(DEVICE))
        assert_same(gradient, expected[name], name)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_are_registered_soundly(num_groups: int | None) -> None:
    inputs = [t.to(DEVICE).requires_grad_() for t in make().values()]
    inputs[0] = inputs[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    mask = MASKS["shared"].to(DEVICE)
    torch.library.opcheck(kernels._stylize_op, (*inputs, mask, num_groups, 1e-5))


def test_compiles_in_one_graph(num_groups: int | None) -> None:
    def function(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return stylize(x, scale, shift, mask, num_groups=num_groups, backend="triton") + 1

    mask = MASKS["shared"].to(DEVICE)
    inputs = [tensor.to(DEVICE).requires_grad_() for tensor in make().values()]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = [one(*inputs) for one in (function, compiled)]
    upper = draw(*results[0].shape, seed=3).to(DEVICE)
    assert_same(results[1], results[0])
    for one, two in zip(*(torch.autograd.grad(r, inputs, upper) for r in results), strict=True):
        assert_same(two, one)


@pytest.mark.parametrize("batch", [1, 8, 64, 1000])
@pytest.mark.parametrize("width", [1, 8, 12, 64, 512, 5000])
@pytest.mark.parametrize("cells", [1, 35, 256, 1024, 5000])
@pytest.mark.parametrize("most", [0, kernels._WHOLE])
def test_tiles_cover_everything_once(batch: int, width: int, cells: int, most: int) -> None:
    rows = batch * 8
    tiling = kernels._tile(rows, width, cells, most)
    assert tiling.channels >= width
    if tiling.whole:
        assert tiling.cells >= cells
        assert tiling.cells * tiling.channels <= most
        return
    assert (tiling.tiles - 1) * tiling.cells < cells <= tiling.tiles * tiling.cells
    assert (tiling.splits - 1) * tiling.part_cells < cells <= tiling.splits * tiling.part_cells
    assert tiling.part_cells % tiling.cells == 0
    assert rows * tiling.splits >= min(rows * tiling.tiles, kernels._PROGRAMS) / 2
    assert tiling.splits <= ceil_div(kernels._PROGRAMS, rows)


@pytest.mark.parametrize("batch", [8, 32, 64, 256])
def test_large_maps_occupy_a_gpu(batch: int) -> None:
    for width, most in ((32, kernels._WHOLE), (64, kernels._WHOLE_BACKWARD)):
        tiling = kernels._tile(batch * 8, width, 1024, most)
        assert batch * 8 * tiling.splits >= 256, width
