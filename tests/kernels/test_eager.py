"""Gradients written by hand, in few passes, against what autograd makes of the reference."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw, triangle
from helpers.kernels import LAYOUTS
from torch import Tensor

from tmapdiff.errors import ConfigError
from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.masking import fill_invalid, fill_invalid_
from tmapdiff.kernels.memory_order import memory_order
from tmapdiff.kernels.stylization import stylize

MASKS = {
    "none": None,
    "shared": triangle(7, 5),
    "batched": torch.stack(
        [triangle(7, 5), torch.zeros(7, 5, dtype=torch.bool), torch.arange(35).view(7, 5) == 9]
    ),
}

Operation = Callable[..., Tensor]
# What is called, its inputs, and which of them is the map.
OPERATIONS: dict[str, tuple[Operation, dict[str, Tensor], str]] = {
    "stylize": (
        lambda **given: stylize(num_groups=3, **given),
        {
            "x": 3 + 2 * draw(3, 6, 7, 5, dtype=torch.float64),
            "scale": draw(3, 6, seed=1, dtype=torch.float64),
            "shift": draw(3, 6, seed=2, dtype=torch.float64),
        },
        "x",
    ),
    "gate": (
        lambda **given: gate_features(channels=4, **given),
        {"convolved": 2 * draw(3, 8, 7, 5, dtype=torch.float64)},
        "convolved",
    ),
    "shared gate with bias": (
        lambda **given: gate_features(channels=4, **given),
        {
            "convolved": 2 * draw(3, 5, 7, 5, dtype=torch.float64),
            "bias": draw(5, seed=1, dtype=torch.float64),
        },
        "convolved",
    ),
}


def run(
    operation: Operation, inputs: dict[str, Tensor], mask: Tensor | None, backend: str, spoil: bool
) -> dict[str, Tensor]:
    """Result and gradients, the result weighted; with NaN where it must not matter, if `spoil`."""
    leaves = {name: one.detach().requires_grad_() for name, one in inputs.items()}
    result = operation(**leaves, mask=mask, backend=backend)
    upper = draw(*result.shape, seed=3, dtype=result.dtype)
    if spoil and mask is not None:
        upper = upper.masked_fill(~mask.unsqueeze(-3), torch.nan)
    gradients = torch.autograd.grad(result, list(leaves.values()), upper)
    return {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize(
    ("dtype", "layout", "mask"),
    [
        *product([torch.float64], LAYOUTS, MASKS),
        *product([torch.float32], ["durations_outermost"], MASKS),
    ],
)
def test_equals_the_reference(name: str, dtype: torch.dtype, layout: str, mask: str) -> None:
    operation, inputs, maps = OPERATIONS[name]
    valid = MASKS[mask]
    expected = run(operation, inputs, valid, "reference", spoil=False)
    given = {one: tensor.to(dtype) for one, tensor in inputs.items()}
    if valid is not None:
        given[maps] = given[maps].masked_fill(~valid.unsqueeze(-3), torch.nan)
    given[maps] = LAYOUTS[layout](given[maps])
    before = given[maps].clone()
    found = run(operation, given, valid, "eager", spoil=True)
    torch.testing.assert_close(given[maps], before, rtol=0, atol=0, equal_nan=True)
    for one, value in expected.items():
        assert found[one].dtype == dtype
        assert_close(found[one], value.to(dtype), what=one)
    for one in ("result", maps):
        if valid is not None:
            assert_zero(found[one], ~valid.unsqueeze(-3))
        if layout in ("channels_last", "durations_outermost"):
            assert memory_order(found[one]) == memory_order(given[maps])


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_is_what_the_cpu_runs_unless_traced_or_in_half_precision(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, inputs, _ = OPERATIONS[name]
    monkeypatch.setattr("tmapdiff.kernels.gate._FEW_WITH_GRADIENT", 0)

    def is_eager(dtype: torch.dtype, call: Operation = operation) -> bool:
        leaves = {n: one.detach().to(dtype).requires_grad_() for n, one in inputs.items()}
        return type(call(**leaves).grad_fn).__name__ in ("_StylizeBackward", "_GateBackward")

    assert is_eager(torch.float32)
    assert is_eager(torch.float64)
    assert not is_eager(torch.float16)
    torch._dynamo.reset()
    assert not is_eager(torch.float32, torch.compile(operation, backend="eager", fullgraph=True))
    with refuses(ConfigError, "inputs that backend 'eager' can run, got others: they hold"):
        operation(**{one: tensor.half() for one, tensor in inputs.items()}, backend="eager")


def test_layer_norm_has_no_eager_form() -> None:
    x, style = draw(2, 4, 3, 3), draw(2, 4)
    with refuses(ConfigError, "can run, got others: there are no groups."):
        stylize(x, style, style, num_groups=None, backend="eager")


@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_a_large_mean_costs_little_accuracy(mean: float) -> None:
    x, style = mean + draw(2, 4, 16, 8), draw(2, 4)
    given = {"mask": triangle(16, 8), "num_groups": 2}
    expected = stylize(x.double(), style.double(), style.double(), **given, backend="reference")
    assert float((stylize(x, style, style, **given, backend="eager") - expected).abs().max()) < 5e-3


# Layouts in which cells are no one dimension.
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "fewer_durations": lambda x: torch.cat([x, x], dim=3)[..., : x.shape[3]],
    "samples_between": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
}


@pytest.mark.parametrize("layout", [*LAYOUTS, *APART])
@pytest.mark.parametrize("mask", list(MASKS))
def test_fills_invalid_cells_in_place(layout: str, mask: str) -> None:
    x = (LAYOUTS | APART)[layout](draw(3, 4, 7, 5))
    expected = fill_invalid(x.clone(), MASKS[mask])
    assert fill_invalid_(x, MASKS[mask]) is x
    assert_same(x, expected)
