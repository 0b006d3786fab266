"""The styled residual in pieces, against its definition and against its layer."""

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.contracts import draw, triangle
from helpers.kernels import made
from torch import Tensor

from tmapdiff.errors import ConfigError, ShapeError
from tmapdiff.kernels.styled_residual import add_styled
from tmapdiff.layers import StylizationBlock

BATCH, CHANNELS, ROWS, COLUMNS = 5, 6, 7, 4


def block_and_inputs(**fields: object) -> tuple[StylizationBlock, Tensor, Tensor, Tensor]:
    block = StylizationBlock(CHANNELS, 8, num_groups=2, **fields)  # type: ignore[arg-type]
    for seed, parameter in enumerate(block.parameters()):
        parameter.data = draw(*parameter.shape, seed=seed)
    mask = triangle(ROWS, COLUMNS)
    x = draw(BATCH, CHANNELS, ROWS, COLUMNS, seed=9) * mask
    return block, x.requires_grad_(), block.project_time(draw(BATCH, 8, seed=10)), mask


@pytest.mark.parametrize("fields", [{}, {"norm": "layer"}, {"dropout": 0.5}])
@pytest.mark.parametrize("masked", ["one", "many", "none"])
def test_is_the_block_in_its_residual(fields: dict[str, object], masked: str) -> None:
    block, x, style, mask = block_and_inputs(**fields)
    given = {"one": mask, "many": mask.expand(BATCH, -1, -1), "none": None}[masked]
    found, expected = [], []
    for results, call in (
        (found, lambda: block.residual(x, style, given)),
        (expected, lambda: x + block.branch(x, style, given)),
    ):
        torch.manual_seed(0)
        result = call()
        wanted = [x, *block.mlp.parameters(), *block.project.parameters()]
        upper = draw(*result.shape, seed=11)
        gradients = torch.autograd.grad(result, wanted, upper, retain_graph=True)
        # Invalid cells pass gradients only if nothing sets them to 0.
        results += [result, gradients[0] * (1 if given is None else mask), *gradients[1:]]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_is_one_operation_only_where_it_can_be() -> None:
    def is_one(dtype: torch.dtype = torch.float32, **fields: object) -> bool:
        block, x, style, mask = block_and_inputs(**fields)
        call = block.to(dtype).residual
        return "AddStyled" in type(call(x.to(dtype), style.to(dtype), mask).grad_fn).__name__

    assert is_one()
    assert not is_one(torch.bfloat16)
    assert not is_one(norm="layer")
    assert not is_one(dropout=0.1)


def test_refuses_what_it_cannot_do() -> None:
    given = made("add_styled")
    for changes, error, text in (
        ({"x": given["x"][0]}, ShapeError, "add_styled: expected map features of shape"),
        ({"shift": given["bias"]}, ShapeError, "add_styled: expected shift of shape (B, C)"),
        ({"weight": given["weight"][:2]}, ShapeError, "add_styled: expected weight of shape"),
        ({"bias": given["bias"][:2]}, ShapeError, "add_styled: expected bias of shape (C)"),
        ({"mask": triangle(7, 2)}, ShapeError, "add_styled: expected mask of shape"),
        ({"num_groups": 4}, ConfigError, "expected channels divisible by num_groups = 4, got 6."),
        ({"backend": "triton"}, ConfigError, "expected backend to be one of eager, reference"),
    ):
        with refuses(error, text):
            add_styled(**{**given, "num_groups": 2, **changes})  # type: ignore[arg-type]
    masks = triangle(7, 5).expand(2, -1, -1)
    with refuses(ConfigError, "supports, got others: each sample has its own mask."):
        add_styled(**given, mask=masks, num_groups=2, backend="eager")
