"""Kernels against the reference in float64; in triton's interpreter where there is no GPU."""

from itertools import product

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero
from helpers.contracts import draw, triangle
from helpers.kernels import DEVICE, LAYOUTS, Allocations, guard
from torch import Tensor

from tmapdiff.kernels.gate import gate_features

pytest.importorskip("triton")
from tmapdiff.kernels.gate import triton as kernels

CHANNELS = 5
MASKS = {
    "none": None,
    "shared": triangle(7, 5),
    "batched": torch.stack(
        [triangle(7, 5), torch.zeros(7, 5, dtype=torch.bool), torch.arange(35).view(7, 5) == 9]
    ),
}


@pytest.fixture(params=[1, CHANNELS], ids=["shared-gate", "own-gates"], autouse=True)
def gate_channels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Channels of the gate, with tiles so small that there are several of cells and of channels."""
    monkeypatch.setattr(kernels, "_TILE", 64)
    monkeypatch.setattr(kernels, "_CHANNELS", 4)
    return request.param


def make(gate_channels: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    given = CHANNELS + gate_channels
    return {
        "convolved": 2 * draw(3, given, 7, 5, dtype=dtype),
        "bias": draw(given, seed=1).to(dtype),
    }


def run(
    inputs: dict[str, Tensor],
    mask: Tensor | None,
    backend: str,
    upper: Tensor | None = None,
) -> dict[str, Tensor]:
    """Result and gradients, the result weighted with `upper`."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    mask = None if mask is None else mask.to(leaves["convolved"].device)
    result = gate_features(**leaves, mask=mask, channels=CHANNELS, backend=backend)
    if upper is None:
        upper = draw(*result.shape, seed=3, dtype=torch.float32)
    gradients = torch.autograd.grad(result, list(leaves.values()), upper.to(result))
    return {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
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
    dtype: torch.dtype,
    layout: str,
    mask: str,
    with_bias: bool,
    gate_channels: int,
    allocations: Allocations,
) -> None:
    inputs = make(gate_channels, dtype)
    if not with_bias:
        del inputs["bias"]
    expected = run({n: t.double() for n, t in inputs.items()}, MASKS[mask], "reference")
    laid = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
    laid["convolved"] = LAYOUTS[layout](laid["convolved"])
    if "slice" not in layout:
        laid = {name: guard(tensor) for name, tensor in laid.items()}
    upper = LAYOUTS[layout](draw(3, CHANNELS, 7, 5, seed=3).to(laid["convolved"]))
    actual = run(laid, MASKS[mask], "triton", upper)
    allocations.check()
    for name, value in expected.items():
        assert actual[name].dtype == dtype
        assert_close(actual[name].cpu(), value, dtype, name)
    if MASKS[mask] is not None:
        assert_zero(actual["result"].cpu(), ~MASKS[mask].unsqueeze(-3))
        assert_zero(actual["convolved"].cpu(), ~MASKS[mask].unsqueeze(-3))


def test_invalid_cells_do_not_matter(gate_channels: int) -> None:
    mask = MASKS["batched"]
    inputs = {name: tensor.to(DEVICE) for name, tensor in make(gate_channels).items()}
    expected = run(inputs, mask, "triton")
    invalid = ~mask.unsqueeze(1).to(DEVICE)
    spoilt = {**inputs, "convolved": inputs["convolved"].masked_fill(invalid, torch.nan)}
    upper = draw(3, CHANNELS, 7, 5, seed=3).to(DEVICE).masked_fill(invalid, torch.nan)
    actual = run(spoilt, mask, "triton", upper)
    for name, value in expected.items():
        assert_same(actual[name], value, name)


def test_nan_in_valid_cells_shows(gate_channels: int) -> None:
    for channel in (0, CHANNELS):
        inputs = {name: tensor.to(DEVICE) for name, tensor in make(gate_channels).items()}
        inputs["convolved"][1, channel, 2, 3] = torch.nan
        result = run(inputs, None, "triton")["result"].isnan().nonzero().tolist()
        assert [1, 0, 2, 3] in result
        assert all(place[0] == 1 and place[2:] == [2, 3] for place in result)


def test_result_and_gradient_keep_the_layout(gate_channels: int) -> None:
    for form in (torch.contiguous_format, torch.channels_last):
        inputs = {name: tensor.to(DEVICE) for name, tensor in make(gate_channels).items()}
        inputs["convolved"] = inputs["convolved"].contiguous(memory_format=form)
        found = run(inputs, None, "triton")
        assert found["result"].is_contiguous(memory_format=form)
        assert found["convolved"].is_contiguous(memory_format=form)


def test_runs_are_equal_bit_for_bit(gate_channels: int) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in make(gate_channels).items()}
    first, second = (run(inputs, MASKS["shared"], "triton") for _ in range(2))
    for name, value in first.items():
        assert_same(second[name], value, name)


@pytest.mark.parametrize("shape", [(0, 7, 5), (2, 0, 5), (2, 1, 1)])
def test_small_and_empty_maps(shape: tuple[int, ...], gate_channels: int) -> None:
    inputs = {name: tensor.to(DEVICE) for name, tensor in make(gate_channels).items()}
    batch, *cells = shape
    inputs["convolved"] = draw(batch, CHANNELS + gate_channels, *cells).to(DEVICE)
    expected = run(inputs, None, "reference")
    for name, value in run(inputs, None, "triton").items():
        assert_close(value, expected[name], torch.float32, name)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operator_is_registered_soundly(gate_channels: int) -> None:
    convolved, bias = (t.to(DEVICE).requires_grad_() for t in make(gate_channels).values())
    mask = MASKS["shared"].to(DEVICE)
    torch.library.opcheck(kernels._gate_op, (convolved, mask, CHANNELS, bias))
    torch.library.opcheck(kernels._gate_op, (convolved, None, CHANNELS, None))


def test_compiles_in_one_graph(gate_channels: int) -> None:
    def function(convolved: Tensor, bias: Tensor) -> Tensor:
        return gate_features(convolved, channels=CHANNELS, bias=bias, backend="triton") + 1

    inputs = [tensor.to(DEVICE).requires_grad_() for tensor in make(gate_channels).values()]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    results = [one(*inputs) for one in (function, compiled)]
    upper = draw(*results[0].shape, seed=3).to(DEVICE)
    assert_same(results[1], results[0])
    for one, two in zip(*(torch.autograd.grad(r, inputs, upper) for r in results), strict=True):
        assert_same(two, one)


def test_large_maps_occupy_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for batch in (8, 32, 64):
        for channels in (64, 256, 512):
            tile_cells, _ = kernels._backward_tile_of(channels, 1024, batch)
            assert batch * 1024 // tile_cells >= 512
