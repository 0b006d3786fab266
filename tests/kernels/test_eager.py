"""Eager implementations with hand-written gradients, against autograd of the reference."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw, triangle
from helpers.kernels import LAYOUTS, MASKS, OPERATIONS, made, run
from torch import Tensor

from tmapdiff.errors import ConfigError
from tmapdiff.kernels.masking import fill_invalid, fill_invalid_
from tmapdiff.kernels.memory_order import memory_order
from tmapdiff.kernels.stylization import stylize

F64 = torch.float64
EAGER = [name for name, one in OPERATIONS.items() if "eager" in one.backends]


def operation(name: str) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """The operation and its inputs, maps first."""
    inputs = {one: tensor.detach() for one, tensor in made(name, batch=3).items()}
    maps, *_ = inputs
    inputs[maps] = 1 + 2 * inputs[maps]
    return OPERATIONS[name].call, inputs


PIECES = [2 * 6 * 7 * 5, 1]  # values per piece of `add_styled`


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize(
    ("dtype", "layout"), [*product([F64], LAYOUTS), (torch.float32, "durations_outermost")]
)
def test_equals_the_reference(
    name: str, dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, inputs = operation(name)
    maps = next(iter(inputs))
    masks = {**MASKS, "empty": torch.zeros(7, 5, dtype=torch.bool)}
    upper = draw(*call(**inputs).shape, seed=3, dtype=F64)
    if name == "add_styled":
        del masks["batched"]
    for (mask, valid), piece in product(masks.items(), PIECES if name == "add_styled" else [0]):
        what = f"{mask}, {piece}"
        monkeypatch.setattr("tmapdiff.kernels.styled_residual.eager._PIECE", piece)
        expected = run(call, inputs, valid, "reference", upper)
        given = {one: tensor.to(dtype) for one, tensor in inputs.items()}
        if valid is not None:
            given[maps] = given[maps].masked_fill(~valid.unsqueeze(-3), torch.nan)
        given[maps] = LAYOUTS[layout](given[maps])
        before = given[maps].clone()
        found = run(call, given, valid, "eager", upper, spoil=True)
        torch.testing.assert_close(given[maps], before, rtol=0, atol=0, equal_nan=True)
        for one, value in expected.items():
            assert found[one].dtype == dtype
            assert_close(found[one], value.to(dtype), what=f"{one}, {what}")
        for one in ("result", maps):
            if valid is not None:
                assert_zero(found[one], ~valid.unsqueeze(-3))
            if layout in ("channels_last", "durations_outermost"):
                assert memory_order(found[one]) == memory_order(given[maps]), what


def test_no_samples() -> None:
    for name in EAGER:
        call, inputs = operation(name)
        none = {n: one if n in ("weight", "bias") else one[:0] for n, one in inputs.items()}
        found = run(call, none, MASKS["shared"], "eager")
        assert found["result"].shape == (0, *call(**inputs).shape[1:]), name
        assert not any(bool(one.any()) for one in found.values()), name


def is_eager(call: Callable[..., Tensor], inputs: dict[str, Tensor], dtype: torch.dtype) -> bool:
    leaves = {n: one.detach().to(dtype).requires_grad_() for n, one in inputs.items()}
    kind = type(call(**leaves).grad_fn).__name__
    return kind in ("_StylizeBackward", "_GateBackward", "_AddStyledBackward")


@pytest.fixture
def large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat maps as large; small ones use the reference."""
    monkeypatch.setattr("tmapdiff.kernels.gate._FEW_WITH_GRADIENT", 0)


@pytest.mark.usefixtures("large_maps")
@pytest.mark.parametrize("name", EAGER)
def test_is_what_the_cpu_runs_but_in_half_precision(name: str) -> None:
    call, inputs = operation(name)
    assert is_eager(call, inputs, torch.float32)
    assert is_eager(call, inputs, torch.float64)
    assert not is_eager(call, inputs, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixes = name == "add_styled"  # which autocast chooses the dtype of
        assert is_eager(call, inputs, torch.float32) is not mixes
    with refuses(ConfigError, "inputs that backend 'eager' supports, got others: they hold"):
        call(**{one: tensor.half() for one, tensor in inputs.items()}, backend="eager")


def test_layer_norm_has_no_fast_form() -> None:
    x, style = draw(2, 4, 3, 3), draw(2, 4)
    with refuses(ConfigError, "supports, got others: there are no groups."):
        stylize(x, style, style, num_groups=None, backend="eager")


@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_a_large_mean_costs_little_accuracy(mean: float) -> None:
    x, style = mean + draw(2, 4, 16, 8), draw(2, 4)
    given = {"mask": triangle(16, 8), "num_groups": 2}
    expected = stylize(x.double(), style.double(), style.double(), **given, backend="reference")
    # Float32 represents 10,000 to about 0.001; mean square minus squared mean would be off by more
    # than the values themselves.
    for backend in ("reference", "eager"):
        found = stylize(x, style, style, **given, backend=backend)
        assert float((found - expected).abs().max()) < 5e-3, backend


# Layouts in which cells cannot be viewed as one dimension.
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
