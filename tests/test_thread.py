"""From annotation to metric with an oracle as the model: all conventions must agree."""

import pytest
import torch

from tmapdiff import (
    IoUMapBuilder,
    LocalizationMetrics,
    MapGrid,
    MapScheduler,
    MultiScaleMapSampler,
    rank_by_expected_hits,
    rank_moments,
)
from tmapdiff.losses import rescale_iou

GRIDS = [MapGrid(64, 16, 3), MapGrid(32, 8, 3), MapGrid(12, 5, 2), MapGrid(16, 16, 1)]
QUERIES = 24
CLIP_SECONDS = torch.linspace(0.3, 2.0, QUERIES)


def reachable_moments(grid: MapGrid) -> torch.Tensor:
    """Moments off the grid lines, each hit by some cell with IoU above 0.7."""
    generator, moments = torch.Generator().manual_seed(0), []
    while len(moments) < QUERIES:
        seconds = float(CLIP_SECONDS[len(moments)])
        start, end = torch.rand(2, generator=generator).sort().values.tolist()
        moment = (start * grid.num_clips * seconds, end * grid.num_clips * seconds)
        if moment[1] > moment[0] and grid.best_iou(moment, seconds) > 0.75:
            moments.append(moment)
    return torch.tensor(moments)


def localize(grid, moments, oracle) -> dict[str, float]:
    scheduler, metrics = MapScheduler(), LocalizationMetrics()
    truth = scheduler.to_signal(IoUMapBuilder(grid).packed(moments, CLIP_SECONDS))
    scheduler.set_timesteps(7)
    first = scheduler.timesteps[:1].expand(QUERIES)
    maps = scheduler.add_noise(truth, torch.randn_like(truth), first)
    for timestep in scheduler.timesteps.tolist():
        maps = scheduler.step(oracle(truth), timestep, maps, eta=1.0).prev_sample
    dense, mask = MultiScaleMapSampler(grid).merge(grid.unpack(scheduler.to_iou(maps)))
    metrics.update(rank_moments(dense, mask, CLIP_SECONDS), moments)
    return metrics.compute()


OTHERS = {
    "zeros": torch.zeros_like,
    "another query": lambda truth: truth.roll(7, dims=0),
    "shifted cells": lambda truth: truth.roll(5, dims=1),
    "negated": torch.neg,
    "noise": torch.randn_like,
}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_perfect_denoiser_finds_every_moment_and_others_do_not(grid):
    moments = reachable_moments(grid)
    found = localize(grid, moments, oracle=lambda truth: truth)
    assert found["Rank1@0.5"] == found["Rank1@0.7"] == found["Rank5@0.7"] == 100
    assert found["mIoU"] > 75
    for name, wrong in OTHERS.items():
        assert localize(grid, moments, oracle=wrong)["Rank1@0.7"] < 60, name


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_expected_hits_find_every_moment_of_a_true_map(grid):
    moments = reachable_moments(grid)
    maps = [rescale_iou(one) for one in IoUMapBuilder(grid)(moments, CLIP_SECONDS)]
    dense, mask = MultiScaleMapSampler(grid).merge(maps)
    metrics = LocalizationMetrics()
    metrics.update(rank_by_expected_hits(dense, mask, CLIP_SECONDS, target=rescale_iou), moments)
    found = metrics.compute()
    assert found["Rank1@0.5"] == found["Rank5@0.7"] == 100
    assert found["mIoU"] > 75
