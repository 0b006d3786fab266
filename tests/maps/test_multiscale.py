import pytest
import torch
from helpers.assertions import assert_same, refuses
from helpers.host_sync import no_host_sync, on_a_device
from helpers.oracles import cell_moment, cells
from helpers.strategies import grids
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import MapGrid, MultiScaleMapSampler
from tmapdiff.errors import ShapeError
from tmapdiff.maps import multiscale

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


def test_wrong_shapes_are_refused():
    sampler, fine = MultiScaleMapSampler(GRID), torch.zeros(1, 8, 4)
    for call, args, text in (
        (sampler.split, [torch.zeros(1, 8, 7)], "dense of shape (B, 8, 8), got (1, 8, 7)."),
        (sampler.merge, [[fine]], "maps to be a list of 2, got 1."),
        (sampler.merge, [torch.zeros(2, 1, 8, 4)], "maps to be a list of 2, got Tensor."),
        (sampler.merge, [[fine, torch.zeros(2, 4, 4)]], "maps[1] of shape (B, 4, 4) with B = 1"),
        (sampler.merge_packed, [torch.zeros(2, 47)], "packed of shape (B, 48), got (2, 47)."),
        (sampler.merge_packed, [torch.zeros(2, 48), torch.ones(3)], "num_clips of shape (B)"),
    ):
        with refuses(ShapeError, f"MultiScaleMapSampler.{call.__name__}: expected {text}"):
            call(*args)


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


@quick
@given(grids(), st.integers(0, 1000))
def test_packed_candidates_equal_a_loop(grid, seed):
    packed = grid.pack(poisoned_maps(grid))
    counts = torch.randint(
        1, grid.num_clips + 1, (2,), generator=torch.Generator().manual_seed(seed)
    )
    best: dict[tuple[int, int], torch.Tensor] = {}
    table = cells(grid.num_clips, grid.num_anchors, grid.num_scales)
    for cell, (scale, row, column, valid) in enumerate(table):
        if valid:
            moment = cell_moment(scale, row, column)
            score = packed[:, cell]
            best[moment] = torch.maximum(best[moment], score) if moment in best else score
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed)
    assert candidates.tolist() == [list(moment) for moment in sorted(best)]
    assert_same(scores, torch.stack([best[moment] for moment in sorted(best)], dim=1))

    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, counts)
    for row, count in enumerate(counts.tolist()):
        expected = [
            float(best[moment][row]) if moment[1] <= count else -torch.inf
            for moment in sorted(best)
        ]
        assert scores[row].tolist() == expected


def test_packed_candidates_hand_gradients_to_the_best_scale():
    sampler, packed = MultiScaleMapSampler(GRID), GRID.pack(poisoned_maps(GRID)).requires_grad_()
    dense, mask = sampler.merge(GRID.unpack(packed))
    (expected,) = torch.autograd.grad(dense[:, mask].square().sum(), packed)
    (found,) = torch.autograd.grad(sampler.merge_packed(packed)[1].square().sum(), packed)
    assert_same(found, expected)


def test_candidates_of_few_grids_are_kept_safely():
    assert multiscale.distinct_moments.cache_parameters()["maxsize"] < 100
    multiscale.distinct_moments.cache_clear()
    sampler, packed = MultiScaleMapSampler(GRID), torch.randn(2, GRID.num_cells)
    with torch.inference_mode():
        candidates, scores = sampler.merge_packed(packed)
        candidates.zero_()
        scores.zero_()
    found = sampler.merge_packed(packed.requires_grad_())
    found[1].sum().backward()
    assert_same(found[0], MultiScaleMapSampler(MapGrid(8, 4, 2)).merge_packed(packed)[0])
    assert bool(found[0].any())


def test_a_device_is_waited_for_once_a_grid(monkeypatch):
    sampler, num_clips = MultiScaleMapSampler(GRID), torch.tensor([8, 5])
    packed = torch.randn(2, GRID.num_cells)
    sampler.merge_packed(packed)
    with no_host_sync():
        sampler.merge_packed(packed)
        sampler.merge(GRID.unpack(packed))
        sampler.split(torch.randn(2, 8, 8))
    known = multiscale.distinct_moments(GRID, torch.device("cpu"))
    with on_a_device() as put:
        there = put(known)
        monkeypatch.setattr(multiscale, "distinct_moments", lambda grid, device: there)
        given = put((packed, num_clips))
        with no_host_sync():
            candidates, scores = sampler.merge_packed(*given)
            sampler.merge(GRID.unpack(given[0]), given[1])
    assert candidates.device.type == scores.device.type == "cuda"
    assert scores.shape == (2, len(candidates))
