"""The definition against other definitions, and `stylize` with any backend."""

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import draw, triangle

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.kernels.stylization import stylize


@pytest.mark.parametrize("num_groups", [1, 2, 6, None])
def test_equals_torch_on_the_valid_cells_alone(num_groups: int | None) -> None:
    x = 3 + 2 * draw(3, 6, 5, 4, dtype=torch.float64)
    scale, shift = draw(3, 6, seed=1).double(), draw(3, 6, seed=2).double()
    masks = draw(3, 5, 4, seed=3) > 0
    result = stylize(x, scale, shift, masks, num_groups=num_groups)
    for row, mask in enumerate(masks):
        cells = x[row : row + 1, :, mask]
        if num_groups is None:
            normalized = F.layer_norm(cells.mT, (6,)).mT
        else:
            normalized = F.group_norm(cells, num_groups)
        styled = F.silu(normalized * (1 + scale[row, :, None]) + shift[row, :, None])
        assert_close(result[row : row + 1, :, mask], styled)
        assert_same(result[row, :, ~mask], torch.zeros_like(result[row, :, ~mask]))


@pytest.mark.parametrize("num_groups", [2, None])
def test_layout_stays_with_and_without_a_mask(num_groups: int | None) -> None:
    x = draw(2, 6, 5, 4).to(memory_format=torch.channels_last)
    styles = draw(2, 6), draw(2, 6)
    for mask in (None, triangle(5, 4)):
        result = stylize(x, *styles, mask, num_groups=num_groups)
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_rounded_once() -> None:
    x, scale, shift = draw(2, 4, 8, 4).half(), draw(2, 4, seed=1), draw(2, 4, seed=2)
    exact = stylize(x.float(), scale, shift, num_groups=2)
    assert_same(stylize(x, scale, shift, num_groups=2), exact.half())


def test_refuses() -> None:
    given = {"x": draw(2, 6, 5, 3), "scale": draw(2, 6), "shift": draw(2, 6), "num_groups": 3}
    for changes, kind, text in (
        ({"num_groups": 0}, ArgumentError, "num_groups to be an integer >= 1, got 0."),
        ({"num_groups": 4}, ConfigError, "channels divisible by num_groups = 4, got 6."),
        ({"x": draw(2, 6, 5)}, ShapeError, "map features of shape (B, C, N_k, A), got (2, 6, 5)."),
        ({"scale": draw(3, 6)}, ShapeError, "scale of shape (B, C) with B = 2, C = 6, got (3, 6)."),
        ({"shift": draw(2, 5)}, ShapeError, "shift of shape (B, C) with B = 2, C = 6, got (2, 5)."),
        ({"mask": triangle(5, 2)}, ShapeError, "mask of shape (N_k, A) with N_k = 5, A = 3, got ("),
    ):
        with refuses(kind, f"stylize: expected {text}"):
            stylize(**{**given, **changes})


def test_refuses_backends_that_cannot_run() -> None:
    x, style = draw(2, 6, 5, 3, dtype=torch.float64), draw(2, 6)
    with refuses(ConfigError, "kernels.stylization: expected backend to be one of", "'cuda'"):
        stylize(x, style, style, num_groups=3, backend="cuda")
    with refuses(ConfigError, "inputs that backend 'triton' supports"):
        stylize(x, style, style, num_groups=3, backend="triton")
