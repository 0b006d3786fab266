import math

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.host_sync import no_host_sync, on_a_device
from helpers.oracles import looped_pieces, looped_saliency
from helpers.strategies import grids
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import MapGrid, MultiScaleMapSampler, deconvolve_map, temporal_iou
from tmapdiff.errors import ArgumentError, ShapeError, SizeLimitError
from tmapdiff.losses import rescale_iou
from tmapdiff.maps import candidate_likelihoods, clip_saliency, map_saliency, resample_saliency
from tmapdiff.maps import expected_hits_fast as fast

quick = settings(max_examples=40, deadline=None)
F64 = torch.float64


def poisoned(grid, num_clips, seed):
    """Packed maps with NaN and infinity in all cells without a candidate."""
    random = torch.Generator().manual_seed(seed)
    packed = 0.01 + torch.rand(len(num_clips), grid.num_cells, generator=random, dtype=F64) ** 3
    outside = ~grid.packed_mask(num_clips=num_clips)
    poison = torch.tensor([torch.nan, torch.inf, 1e30], dtype=F64)
    return packed.where(~outside, poison[torch.arange(grid.num_cells) % 3])


@quick
@given(grids(), st.integers(0, 1000), st.data())
def test_equals_a_loop_over_the_candidates_of_each_video(grid, seed, data):
    lengths = st.integers(1, grid.num_clips)
    num_clips = torch.tensor([data.draw(lengths), data.draw(lengths)])
    packed = poisoned(grid, num_clips, seed)
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    found = map_saliency(packed, grid, num_clips, target=rescale_iou)
    for row, clips in enumerate(num_clips.tolist()):
        # This video alone, with its candidates picked by hand.
        kept = [
            index
            for index, (_, end) in enumerate(candidates.tolist())
            if end <= clips and scores[row, index] > -math.inf
        ]
        moments = candidates[kept]
        response = rescale_iou(temporal_iou(moments[:, None].double(), moments.double()))
        own = deconvolve_map(scores[row : row + 1, kept], response)[0].tolist()
        expected = looped_saliency(own, moments.tolist(), clips)
        assert found[row, :clips].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert not bool((found[row, clips:].abs() > 1e-12).any())
    assert bool(((found >= 0) & (found <= 1 + 1e-12)).all())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_nothing_is_left_of_what_has_ended(dtype):
    candidates = torch.tensor([[0, 2], [1, 3], [7, 9], [8, 99]])
    likelihood = torch.tensor([[0.1, 0.2, 0.3, 1e-9]], dtype=dtype)
    found = clip_saliency(likelihood, candidates, 10)
    expected = [[0.1, 0.3, 0.2, 0, 0, 0, 0, 0.3, 0.3 + 1e-9, 1e-9]]
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=1e-16)


def test_videos_in_blocks_and_cells_that_no_window_holds(monkeypatch):
    grid, num_clips = MapGrid(96, 4, 3), torch.tensor([96, 60, 5])
    packed = poisoned(grid, num_clips, 0)
    packed[0, ::7] = -torch.inf
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    few = candidate_likelihoods(candidates, scores, target=rescale_iou)
    calls, spread = [], fast.CandidateBlocks.spread
    monkeypatch.setattr(fast, "_LARGEST_KEPT", 0)
    monkeypatch.setattr(fast, "_CACHED_ROWS", 1)  # one query at a time
    monkeypatch.setattr(fast.CandidateBlocks, "spread", lambda *a: calls.append(1) or spread(*a))
    many = candidate_likelihoods(candidates, scores, target=rescale_iou)
    assert len(calls) == 3
    assert_close(many, few)
    assert not bool(few[scores == -torch.inf].any())
    assert_close(few.sum(dim=1).clamp(max=1), few.sum(dim=1))


def test_no_candidates_and_no_gradient():
    none = torch.zeros(0, 2, dtype=torch.int64)
    likelihood = candidate_likelihoods(none, torch.zeros(3, 0), target=rescale_iou)
    assert clip_saliency(likelihood, none, 4).tolist() == [[0] * 4] * 3
    scores = torch.rand(1, 2, requires_grad=True)
    both = torch.tensor([[0, 1], [1, 2]])
    assert not candidate_likelihoods(both, scores, target=rescale_iou).requires_grad


def test_a_device_is_never_waited_for():
    grid = MapGrid(8, 4, 2)
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(torch.rand(3, grid.num_cells))
    with on_a_device() as put:
        given = put((candidates, scores))
        with no_host_sync():
            likelihood = candidate_likelihoods(*given, target=rescale_iou)
            found = clip_saliency(likelihood, given[0], 8)
    assert found.device.type == "cuda"


@quick
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.floats(0.2, 9),
    st.floats(0.3, 1),
    st.floats(0.3, 7),
)
def test_pieces_have_the_mean_of_their_time(saliency, clip_seconds, share, seconds):
    duration = share * len(saliency) * clip_seconds
    found = resample_saliency(
        torch.tensor(saliency, dtype=F64), clip_seconds, duration, seconds
    ).tolist()
    expected = looped_pieces(saliency, clip_seconds, duration, seconds)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_no_piece_is_lost_to_rounding():
    assert 0.6 / 0.2 < 3
    assert len(resample_saliency(torch.ones(4), 0.15, 0.6, 0.2)) == 3


def test_errors_say_what_is_wrong():
    likelihood, candidates = torch.rand(2, 3), torch.tensor([[0, 1], [1, 2], [0, 2]])
    with refuses(ShapeError, "clip_saliency: expected candidates of shape (M, 2) with M = 3"):
        clip_saliency(likelihood, candidates[:2], 4)
    with refuses(ArgumentError, "clip_saliency: expected num_clips to be an integer >= 1, got 0"):
        clip_saliency(likelihood, candidates, 0)
    for saliency, seconds, kind, text in (
        (likelihood, 2, ShapeError, "saliency of shape (N)"),
        (likelihood[0], 0, ArgumentError, "seconds in (0, inf), got 0"),
        (likelihood[0], 1e-9, SizeLimitError, "pieces of 1e-09 s of at most"),
    ):
        with refuses(kind, f"resample_saliency: expected {text}"):
            resample_saliency(saliency, 1.0, 3.0, seconds)
    good = {"candidates": candidates, "scores": likelihood, "target": rescale_iou}
    for changes, kind, text in (
        ({"candidates": candidates[:2]}, ShapeError, "candidates of shape (M, 2) with M = 3"),
        ({"target": "mse"}, ArgumentError, "target to be a function, got 'mse'."),
        ({"num_iterations": 0}, ArgumentError, "num_iterations to be an integer >= 1, got 0."),
    ):
        with refuses(kind, f"candidate_likelihoods: expected {text}"):
            candidate_likelihoods(**{**good, **changes})
