import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw, triangle

from tmapdiff.errors import ShapeError
from tmapdiff.kernels.masking import cells_of, check_map_features, fill_invalid, of_all_samples
from tmapdiff.layers import masked_group_norm


@pytest.mark.parametrize("num_groups", [1, 2, 6])
def test_equals_group_norm_of_the_valid_cells_alone(num_groups: int) -> None:
    x = 3 + 2 * draw(3, 6, 5, 4)
    assert_close(masked_group_norm(x, None, num_groups), F.group_norm(x, num_groups))
    expected = F.group_norm(x, num_groups, eps=0.5)
    assert_close(masked_group_norm(x, None, num_groups, eps=0.5), expected)
    masks = draw(3, 5, 4, seed=1) > 0
    result = masked_group_norm(x, masks, num_groups)
    for row, mask in enumerate(masks):
        expected = F.group_norm(x[row : row + 1, :, mask], num_groups)
        assert_close(result[row : row + 1, :, mask], expected)
        assert_zero(result[row], ~mask)


def test_statistics_of_half_precision_are_computed_in_float32() -> None:
    # 300 squared exceeds float16.
    x = (300 * draw(1, 2, 8, 8)).half()
    assert_close(masked_group_norm(x, None, 1), F.group_norm(x.float(), 1), torch.float16)


def test_one_valid_cell_and_equal_values_give_zeros() -> None:
    mask = torch.zeros(3, 2, dtype=torch.bool)
    mask[0, 0] = True
    for x in (draw(1, 2, 3, 2), torch.full((1, 2, 3, 2), 7.0)):
        assert_same(masked_group_norm(x, mask, 2), torch.zeros(1, 2, 3, 2))


def test_fill_invalid_removes_nan_in_value_and_gradient() -> None:
    mask = triangle(3, 2)
    x = draw(2, 4, 3, 2).masked_fill(~mask, torch.nan).requires_grad_()
    filled = fill_invalid(x, mask)
    assert_zero(filled, ~mask)
    assert_same(filled[:, :, mask], x[:, :, mask])
    (gradient,) = torch.autograd.grad(filled, x, torch.full_like(x, torch.nan).where(~mask, 1.0))
    assert_same(gradient, mask.expand_as(x).float())
    assert fill_invalid(x, None) is x


def test_check_map_features_names_what_is_wrong() -> None:
    for x, mask, text in (
        (None, None, "map features of shape (B, 4, N_k, A), got NoneType"),
        ([[1.0]], None, "map features of shape (B, 4, N_k, A), got list"),
        (draw(2, 5, 5, 3), None, "map features of shape (B, 4, N_k, A), got (2, 5, 5, 3)."),
        (draw(2, 4, 5, 3), triangle(5, 3).float(), "a mask of dtype bool, got torch.float32."),
        (draw(2, 4, 5, 3), triangle(4, 3), "mask of shape (N_k, A) with N_k = 5, A = 3, got (4, "),
        (draw(2, 4, 5, 3), triangle(5, 3).expand(3, -1, -1), "mask of shape (B, N_k, A) with B"),
    ):
        with refuses(ShapeError, f"Layer: expected {text}"):
            check_map_features("Layer", x, mask, 4)  # type: ignore[arg-type]


def test_layout_stays() -> None:
    x = draw(2, 4, 3, 2).to(memory_format=torch.channels_last)
    for result in (fill_invalid(x, triangle(3, 2)), masked_group_norm(x, triangle(3, 2), 2)):
        assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_mask_of_one_sample_is_one_for_all(dims):
    mask = draw(*[1, 5, 4][3 - dims :]) > 0
    found = of_all_samples(mask)
    assert found.shape == (5, 4)
    assert torch.equal(found, mask.view(5, 4))
    assert of_all_samples(None) is None
    of_two = draw(2, 5, 4) > 0
    assert of_all_samples(of_two) is of_two


def test_cells_of_a_mask_that_changed_are_looked_up_anew():
    mask = torch.zeros(3, 2, dtype=torch.bool)
    assert len(cells_of(mask).valid) == 0
    mask[1, 1] = True
    cells = cells_of(mask)
    assert cells.valid.tolist() == [3]
    assert len(cells.invalid[0]) == 5
    assert cells.sources.tolist() == [1, 1, 1, 0, 1, 1]
    assert cells_of(mask.T).valid.tolist() == [4]
    assert cells_of(mask[:0]).valid.numel() == 0


def test_cells_are_looked_up_on_the_cpu_whatever_the_default_device_is():
    mask = torch.tensor([[True, False, True, True, False, True, False]], device="cpu")
    with torch.device("meta"):
        cells = cells_of(mask)
    assert cells.sources.tolist() == [0, 4, 1, 2, 4, 3, 4]
