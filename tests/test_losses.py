import math

import pytest
import torch
from helpers.assertions import refuses

from tmapdiff import MapGrid, get_objective
from tmapdiff.errors import ConfigError, ShapeError
from tmapdiff.losses import OBJECTIVES

GRID = MapGrid(8, 4, 2)
MASK = GRID.packed_mask()


def loss_of_a_cell(name: str, score: float, iou: float) -> float:
    target = min(max((iou - 0.5) / 0.5, 0.0), 1.0) if name.endswith("rescaled") else iou
    if name.startswith("mse"):
        return (score - target) ** 2
    error = abs(score - target)
    if name.startswith("l1"):
        return error
    if name.startswith("huber"):
        return error - 0.05 if error > 0.1 else error**2 / 0.2
    probability = 1 / (1 + math.exp(-score))
    return -(target * math.log(probability) + (1 - target) * math.log(1 - probability))


def poisoned(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    scores, iou = torch.randn(batch, GRID.num_cells), torch.rand(batch, GRID.num_cells)
    return scores.masked_fill(~MASK, torch.nan), iou.masked_fill(~MASK, torch.nan)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_equals_a_loop_over_valid_cells(name):
    objective = get_objective(name)
    scores, iou = poisoned()
    found = objective(scores, objective.target(iou), MASK)
    cells = [
        loss_of_a_cell(name, float(scores[row, cell]), float(iou[row, cell]))
        for row in range(len(scores))
        for cell in range(GRID.num_cells)
        if MASK[cell]
    ]
    assert float(found) == pytest.approx(sum(cells) / len(cells), rel=1e-5)
    batched = objective(scores, objective.target(iou), MASK.expand(len(scores), -1))
    torch.testing.assert_close(batched, found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_invalid_cells_get_no_gradient(name):
    objective = get_objective(name)
    scores, iou = poisoned()
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(scores, objective.target(iou), MASK), scores)
    assert (gradient[:, ~MASK] == 0).all()
    assert (gradient[:, MASK] != 0).any(dim=0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_activation_turns_the_best_scores_into_the_target(name):
    objective = get_objective(name)
    target = objective.target(torch.rand(1, GRID.num_cells).clamp(0.01, 0.99)).clamp(0.01, 0.99)
    best = target.logit() if name.startswith("bce") else target
    torch.testing.assert_close(objective.activation(best), target)
    here = objective(best, target, MASK)
    for nudge in (-0.1, 0.1):
        assert objective(best + nudge, target, MASK) > here


def test_half_precision_scores_are_summed_in_full_precision():
    scores, target = torch.rand(2, GRID.num_cells), torch.rand(2, GRID.num_cells)
    found = get_objective("mse-full")(scores.bfloat16(), target, MASK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, get_objective("mse-full")(scores.bfloat16().float(), target, MASK)
    )


def test_losses_in_half_precision_do_not_overflow():
    scores = torch.full((4000, GRID.num_cells), 2.0, dtype=torch.float16)
    assert get_objective("mse-full")(scores, torch.zeros_like(scores), MASK) == 4


def test_no_valid_cell_is_no_loss():
    zeros = torch.zeros(2, GRID.num_cells)
    assert get_objective("mse-full")(zeros + 1, zeros, torch.zeros_like(MASK)) == 0


def test_bad_arguments_are_refused():
    with refuses(ConfigError, "expected objective to be one of mse-full, mse-rescaled, l1-full"):
        get_objective("mse")
    objective, maps = get_objective("mse-full"), torch.zeros(2, GRID.num_cells)
    with refuses(ShapeError, "MapObjective mse-full: expected target of shape (B, cells) with B ="):
        objective(maps, maps[:1], MASK)
    with refuses(ShapeError, "MapObjective mse-full: expected mask of shape (cells) with cells ="):
        objective(maps, maps, MASK[:-1])
