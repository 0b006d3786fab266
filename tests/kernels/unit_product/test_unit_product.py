"""The unit product with any backend."""

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.contracts import draw, triangle
from torch import Tensor

from tmapdiff.errors import ConfigError, ShapeError
from tmapdiff.kernels.unit_product import unit_product


def made() -> dict[str, Tensor]:
    maps = draw(2, 6, 7, 5, dtype=torch.float64)
    maps[0, :, 0, 0] = 0  # a zero vector
    return {"maps": maps, "vector": draw(2, 6, seed=1, dtype=torch.float64)}


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_cells_have_unit_norm(backend: str) -> None:
    result = unit_product(**made(), mask=triangle(7, 5), backend=backend)
    norms = result.norm(dim=1)
    assert_close(norms[1], triangle(7, 5).double())
    assert float(norms[0, 0, 0]) == 0


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_what_overflows_is_nan_not_zero(backend: str) -> None:
    maps = torch.ones(1, 3, 2, 1)
    maps[0, 0, 1] = 1e30
    result = unit_product(maps, torch.ones(1, 3), backend=backend)
    assert bool(result[0, :, 0].isfinite().all())
    assert bool(result[0, :, 1].isnan().all())


def test_refuses_what_does_not_fit() -> None:
    given = made()
    with refuses(ShapeError, "unit_product: expected map features of shape (B, C, N_k, A)"):
        unit_product(given["vector"], given["vector"])
    with refuses(ShapeError, "unit_product: expected vector of shape (B, C) with B = 2, C = 6"):
        unit_product(given["maps"], given["vector"][:, :5])
    with refuses(ConfigError, "expected backend to be one of eager, reference, got 'triton'."):
        unit_product(**given, backend="triton")
