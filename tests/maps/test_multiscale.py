import pytest
import torch
from helpers.assertions import refuses
from helpers.oracles import cell_moment, cells
from helpers.strategies import grids
from hypothesis import given, settings

from tmapdiff import MapGrid, MultiScaleMapSampler
from tmapdiff.errors import ShapeError

quick = settings(max_examples=40, deadline=None)
GRID = MapGrid(8, 4, 2)


def poisoned_maps(grid, batch=2, channels=()):
    """Random maps with NaN in every invalid cell."""
    return [
        torch.randn(batch, *channels, *shape).masked_fill(~grid.mask(scale), torch.nan)
        for scale, shape in enumerate(grid.shapes)
    ]


@quick
@given(grids())
def test_split_equals_a_loop(grid):
    dense = torch.randn(2, grid.num_clips, grid.num_clips)
    maps = MultiScaleMapSampler(grid).split(dense)
    for scale, row, column, valid in cells(grid.num_clips, grid.num_anchors, grid.num_scales):
        start, end = cell_moment(scale, row, column)
        expected = dense[:, start, end - start - 1] if valid else torch.zeros(2)
        assert torch.equal(maps[scale][:, row, column], expected)


@quick
@given(grids())
def test_merge_equals_a_loop_and_does_not_read_invalid_cells(grid):
    maps = poisoned_maps(grid)
    dense, mask = MultiScaleMapSampler(grid).merge(maps)
    best = torch.full((2, grid.num_clips, grid.num_clips), -torch.inf)
    for scale, row, column, valid in cells(grid.num_clips, grid.num_anchors, grid.num_scales):
        if valid:
            start, end = cell_moment(scale, row, column)
            place = best[:, start, end - start - 1]
            place[:] = torch.maximum(place, maps[scale][:, row, column])
    assert torch.equal(dense, best)
    assert torch.equal(mask, best[0] > -torch.inf)
    assert torch.equal(mask, grid.dense_mask())


@quick
@given(grids())
def test_merge_undoes_split_on_the_cells_that_a_scale_holds(grid):
    sampler = MultiScaleMapSampler(grid)
    dense = torch.randn(2, grid.num_clips, grid.num_clips)
    merged, mask = sampler.merge(sampler.split(dense))
    assert torch.equal(merged[:, mask], dense[:, mask])
    assert (merged[:, ~mask] == -torch.inf).all()


def test_invalid_cells_get_no_gradient_and_leak_none():
    sampler = MultiScaleMapSampler(GRID)
    maps = [one.requires_grad_() for one in poisoned_maps(GRID)]
    dense, mask = sampler.merge(maps)
    gradients = torch.autograd.grad(dense[:, mask].square().sum(), maps)
    for scale, gradient in enumerate(gradients):
        assert gradient.isfinite().all()
        assert (gradient[:, ~GRID.mask(scale)] == 0).all()
    assert any(gradient.any() for gradient in gradients)

    whole = torch.randn(2, 8, 8)
    outside = ~GRID.dense_mask()
    poisoned = whole.masked_fill(outside, torch.nan).requires_grad_()
    loss = sum(one.square().sum() for one in sampler.split(poisoned))
    (gradient,) = torch.autograd.grad(loss, poisoned)
    assert loss.isfinite()
    assert (gradient[:, outside] == 0).all()


def test_features_are_sampled_and_merged_channel_by_channel():
    sampler = MultiScaleMapSampler(GRID)
    dense = torch.randn(2, 3, 8, 8)
    split = sampler.split(dense)
    merged, _ = sampler.merge(split)
    for channel in range(3):
        alone = sampler.split(dense[:, channel])
        for scale in range(2):
            assert torch.equal(split[scale][:, channel], alone[scale])
        assert torch.equal(merged[:, channel], sampler.merge(alone)[0])


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches_and_inputs_stay_as_they_are(batch):
    sampler = MultiScaleMapSampler(GRID)
    maps = [torch.randn(batch, *shape) for shape in GRID.shapes]
    before = [one.clone() for one in maps]
    dense, _ = sampler.merge(maps)
    assert dense.shape == (batch, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


def test_wrong_shapes_are_refused():
    sampler = MultiScaleMapSampler(GRID)
    with refuses(ShapeError, "split: expected dense of shape (B, 8, 8), got (1, 8, 7). Features"):
        sampler.split(torch.zeros(1, 8, 7))
    with refuses(ShapeError, "merge: expected maps to be a list of 2, got 1."):
        sampler.merge([torch.zeros(1, 8, 4)])
    with refuses(
        ShapeError, "merge: expected maps[1] of shape (B, 4, 4) with B = 1, got (2, 4, 4)"
    ):
        sampler.merge([torch.zeros(1, 8, 4), torch.zeros(2, 4, 4)])


@pytest.mark.parametrize("channels", [None, 2])
def test_merging_reads_nothing_past_a_video_s_end(channels):
    grid = MapGrid(8, 3, 2)
    sampler, num_clips = MultiScaleMapSampler(grid), torch.tensor([8, 5, 2])
    shapes = [(3, *([channels] if channels else []), *shape) for shape in grid.shapes]
    maps = [torch.rand(shape) for shape in shapes]
    masks = [grid.mask(k, num_clips=num_clips) for k in range(2)]
    if channels:
        masks = [mask[:, None].expand(shape) for mask, shape in zip(masks, shapes, strict=True)]
    spoilt = [one.masked_fill(~mask, torch.nan) for one, mask in zip(maps, masks, strict=True)]
    dense, mask = sampler.merge(spoilt, num_clips)
    assert torch.equal(mask, grid.dense_mask(num_clips=num_clips))
    for row, count in enumerate(num_clips.tolist()):
        shared, _ = sampler.merge([one[row : row + 1] for one in maps])
        inside = mask[row]
        assert inside.sum() < grid.dense_mask().sum() or count == 8
        found = dense[row][..., inside]
        assert torch.equal(found, shared[0][..., inside])
        assert bool((dense[row][..., ~inside] == -torch.inf).all())
    with refuses(ShapeError, "MultiScaleMapSampler.merge: expected num_clips of shape (B)"):
        sampler.merge(maps, num_clips[:2])
