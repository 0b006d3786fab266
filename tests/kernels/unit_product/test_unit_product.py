"""The unit product in few passes against its definition."""

from itertools import product

import pytest
import torch
from helpers.assertions import assert_close, assert_zero, refuses
from helpers.contracts import draw, triangle
from helpers.kernels import LAYOUTS
from torch import Tensor

from tmapdiff.errors import ConfigError, ShapeError
from tmapdiff.kernels.memory_order import memory_order
from tmapdiff.kernels.unit_product import unit_product

MASKS = {
    "none": None,
    "shared": triangle(7, 5),
    "batched": torch.stack([triangle(7, 5), torch.zeros(7, 5, dtype=torch.bool)]),
}


def made(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    maps = draw(2, 6, 7, 5, dtype=dtype)
    maps[0, :, 0, 0] = 0  # a cell without direction
    maps[0, :, 1, 0] = 1e-13
    return {"maps": maps, "vector": draw(2, 6, seed=1, dtype=dtype)}


def run(inputs: dict[str, Tensor], mask: Tensor | None, backend: str) -> dict[str, Tensor]:
    """Result and gradients; where cells are invalid, the incoming gradient is NaN."""
    leaves = {name: one.detach().requires_grad_() for name, one in inputs.items()}
    result = unit_product(**leaves, mask=mask, backend=backend)
    upper = draw(*result.shape, seed=2, dtype=result.dtype)
    upper[0, :, :2, 0] *= 1e-12
    if mask is not None:
        upper = upper.masked_fill(~mask.unsqueeze(-3), torch.nan)
    gradients = torch.autograd.grad(result, list(leaves.values()), upper)
    return {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize(
    ("dtype", "layout", "mask"),
    [
        *product([torch.float64], LAYOUTS, MASKS),
        *product([torch.float32], ["durations_outermost"], MASKS),
    ],
)
def test_equals_the_reference(dtype: torch.dtype, layout: str, mask: str) -> None:
    valid = MASKS[mask]
    given = {name: one.to(dtype) for name, one in made().items()}
    expected = run(made(), valid, "reference")
    if valid is not None:
        given["maps"] = given["maps"].masked_fill(~valid.unsqueeze(-3), torch.nan)
    given["maps"] = LAYOUTS[layout](given["maps"])
    found = run(given, valid, "eager")
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert_close(found[name], value.to(dtype), what=name)
    for name in ("result", "maps"):
        if valid is not None:
            assert_zero(found[name], ~valid.unsqueeze(-3))
        if layout in ("channels_last", "durations_outermost"):
            assert memory_order(found[name]) == memory_order(given["maps"])


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_cells_have_unit_norm(backend: str) -> None:
    result = unit_product(**made(), mask=MASKS["shared"], backend=backend)
    norms = result.norm(dim=1)
    assert_close(norms[1], MASKS["shared"].double())  # type: ignore[union-attr]
    assert float(norms[0, 0, 0]) == 0


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_what_overflows_is_nan_not_zero(backend: str) -> None:
    maps = torch.ones(1, 3, 2, 1)
    maps[0, 0, 1] = 1e30
    result = unit_product(maps, torch.ones(1, 3), backend=backend)
    assert bool(result[0, :, 0].isfinite().all())
    assert bool(result[0, :, 1].isnan().all())


def test_is_what_the_cpu_runs_unless_traced_or_in_half_precision() -> None:
    def is_eager(dtype: torch.dtype = torch.float32, call: object = unit_product) -> bool:
        given = {name: one.requires_grad_() for name, one in made(dtype).items()}
        return "UnitProduct" in type(call(**given).grad_fn).__name__  # type: ignore[operator]

    assert is_eager()
    assert is_eager(torch.float64)
    assert not is_eager(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_eager()
    torch._dynamo.reset()
    assert not is_eager(call=torch.compile(unit_product, backend="eager", fullgraph=True))


def test_refuses_what_does_not_fit() -> None:
    given = made()
    with refuses(ShapeError, "unit_product: expected map features of shape (B, C, N_k, A)"):
        unit_product(given["vector"], given["vector"])
    with refuses(ShapeError, "unit_product: expected vector of shape (B, C) with B = 2, C = 6"):
        unit_product(given["maps"], given["vector"][:, :5])
    with refuses(ConfigError, "expected backend to be one of eager, reference, got 'triton'."):
        unit_product(**given, backend="triton")
