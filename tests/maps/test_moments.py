import pytest
import torch
from helpers.assertions import assert_same, refuses
from helpers.host_sync import no_host_sync, on_a_device
from helpers.oracles import greedy_nms
from helpers.strategies import grids
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import MapGrid, MultiScaleMapSampler, rank_candidates, rank_moments, temporal_nms
from tmapdiff.errors import ArgumentError, ShapeError

quick = settings(max_examples=60, deadline=None)


@st.composite
def candidates(draw, count):
    """Integers, so that many IoUs are exactly at a threshold and some moments are equal."""
    starts = draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    return [[a, a + b] for a, b in zip(starts, lengths, strict=True)]


@quick
@given(st.data(), st.integers(0, 3), st.integers(1, 25), st.booleans())
def test_nms_equals_a_plain_loop(data, batch, count, shared):
    threshold = data.draw(st.sampled_from([0.0, 0.25, 1 / 3, 0.49, 0.5, 0.7, 1.0]))
    top_n = data.draw(st.integers(1, 7))
    if shared:
        moments = [data.draw(candidates(count))] * batch
    else:
        moments = [data.draw(candidates(count)) for _ in range(batch)]
    scores = torch.stack(
        [torch.randperm(count, generator=torch.Generator().manual_seed(r)) for r in range(batch)]
        or [torch.zeros(count)]
    )[:batch].float()
    dropped = data.draw(st.integers(0, count))
    scores = scores.masked_fill(scores < dropped, -torch.inf)

    if shared:
        given_moments = torch.tensor(moments[0] if moments else data.draw(candidates(count)))
    else:
        given_moments = torch.tensor(moments).reshape(batch, count, 2)
    picks = temporal_nms(given_moments.float(), scores, threshold=threshold, top_n=top_n)
    assert picks.shape == (batch, top_n)
    for row in range(batch):
        expected = greedy_nms(moments[row], scores[row].tolist(), threshold, top_n)
        assert picks[row].tolist() == expected + [-1] * (top_n - len(expected))


def test_both_ways_to_compare_candidates_agree():
    # Few queries compare on the fly; many use a table of pairs.
    moments = torch.rand(50, 2).sort(dim=1).values
    scores = torch.rand(64, 50)
    together = temporal_nms(moments, scores, threshold=0.3, top_n=3)
    alone = [temporal_nms(moments, row[None], threshold=0.3, top_n=3)[0] for row in scores]
    assert torch.equal(together, torch.stack(alone))


@quick
@given(grids(), st.integers(1, 6), st.sampled_from([0.3, 0.49, 0.5]))
def test_ranking_equals_a_loop_over_cells(grid, top_n, threshold):
    mask = grid.dense_mask()
    dense = torch.rand(2, *mask.shape).masked_fill(~mask, torch.nan)
    seconds = torch.tensor([0.5, 1.25])
    ranked = rank_moments(dense, mask, seconds, top_n=top_n, nms_threshold=threshold)
    assert len(ranked) == 2
    for row in range(2):
        places = [(s, c) for s in range(len(mask)) for c in range(len(mask)) if mask[s, c]]
        moments = [[s, s + c + 1] for s, c in places]
        scores = [float(dense[row, s, c]) for s, c in places]
        kept = greedy_nms(moments, scores, threshold, top_n)
        assert ranked.valid[row].tolist() == [True] * len(kept) + [False] * (top_n - len(kept))
        for place, index in enumerate(kept):
            expected = [float(seconds[row]) * clips for clips in moments[index]]
            assert ranked.moments[row, place].tolist() == pytest.approx(expected)
            assert float(ranked.scores[row, place]) == pytest.approx(scores[index])
        missing = ~ranked.valid[row]
        assert (ranked.scores[row, missing] == -torch.inf).all()
        assert (ranked.moments[row, missing] == 0).all()


def test_bad_arguments_are_refused():
    good = {"moments": torch.rand(4, 2), "scores": torch.rand(2, 4), "threshold": 0.5, "top_n": 1}
    for changes, kind, text in (
        ({"scores": torch.rand(4)}, ShapeError, "scores of shape (B, M), got (4,)."),
        ({"moments": torch.rand(3, 2)}, ShapeError, "moments of shape (M, 2) with M = 4"),
        ({"moments": torch.rand(1, 4, 2)}, ShapeError, "moments of shape (B, M, 2) with B = 2"),
        (
            {"scores": torch.ones(2, 4) > 0},
            ArgumentError,
            "scores of a floating dtype, got",
        ),
        ({"threshold": 1.5}, ArgumentError, "threshold in [0, 1], got 1.5."),
        ({"top_n": 0}, ArgumentError, "top_n to be an integer >= 1, got 0."),
    ):
        with refuses(kind, f"temporal_nms: expected {text}"):
            temporal_nms(**{**good, **changes})
    mask, one = torch.ones(4, 4, dtype=torch.bool), torch.ones(1)
    for dense, seconds, text in (
        (torch.zeros(1, 4, 5), one, "dense of shape (B, N, N), got (1, 4, 5)."),
        (torch.zeros(1, 5, 5), one, "mask of shape (N, N) with N = 5, got (4, 4)."),
        (torch.zeros(1, 4, 4), torch.ones(2), "clip_seconds of shape (B) with B = 1"),
    ):
        with refuses(ShapeError, f": expected {text}"):
            rank_moments(dense, mask, seconds)


def test_every_query_has_its_own_candidates_and_its_own_end():
    grid = MapGrid(8, 4, 1)
    num_clips = torch.tensor([8, 5, 1])
    maps = torch.rand(3, 8, 4)
    dense, mask = MultiScaleMapSampler(grid).merge([maps], num_clips)
    clip_seconds, durations = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7.5, 9.0, 2.5])
    together = rank_moments(dense, mask, clip_seconds, durations=durations, top_n=6)
    for row in range(3):
        alone = rank_moments(dense[row : row + 1], mask[row], clip_seconds[row : row + 1], top_n=6)
        assert torch.equal(together.valid[row], alone.valid[0])
        assert torch.equal(together.scores[row], alone.scores[0])
        cut = alone.moments[0].clamp(max=float(durations[row]))
        assert torch.equal(together.moments[row], cut)
    assert int(together.valid[2].sum()) == 1
    with refuses(ShapeError, "rank_candidates: expected durations of shape (B) with B = 3"):
        rank_moments(dense, mask, clip_seconds, durations=durations[:2])
    with refuses(ShapeError, "rank_moments: expected mask of shape (B, N, N)"):
        rank_moments(dense, mask[:2], clip_seconds)


def test_moments_are_in_clips_without_clip_seconds():
    grid = MapGrid(8, 4, 2)
    dense, mask = MultiScaleMapSampler(grid).merge([torch.rand(2, *one) for one in grid.shapes])
    for durations in (None, torch.tensor([5.5, 8.0])):
        found = rank_moments(dense, mask, durations=durations)
        expected = rank_moments(dense, mask, torch.ones(2), durations=durations)
        assert torch.equal(found.moments, expected.moments)
        assert torch.equal(found.scores, expected.scores)
    half = rank_moments(dense.bfloat16(), mask)
    assert half.moments.dtype == torch.float32


def test_nan_scores_are_never_picked():
    moments = torch.tensor([[0, 2], [0, 3], [6, 8]])
    scores = torch.tensor([[0.5, torch.nan, 0.1], [torch.nan] * 3])
    picks = temporal_nms(moments, scores, threshold=0.5, top_n=3)
    assert picks.tolist() == [[0, 2, -1], [-1, -1, -1]]
    assert scores[0, 1].isnan()


@quick
@given(
    grids(),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.3, 0.49, 0.5, 1.0]),
    st.integers(0, 1000),
    st.booleans(),
)
def test_candidates_are_ranked_as_dense_maps(grid, top_n, threshold, seed, batched):
    random, sampler = torch.Generator().manual_seed(seed), MultiScaleMapSampler(grid)
    # Few distinct values: ties go to the earliest cell.
    packed = torch.randint(0, 4, (3, grid.num_cells), generator=random).float()
    packed[torch.rand(packed.shape, generator=random) < 0.1] = torch.nan
    num_clips = torch.randint(1, grid.num_clips + 1, (3,), generator=random) if batched else None
    seconds = 1 + torch.rand(3, generator=random)
    options = {"top_n": top_n, "nms_threshold": threshold, "durations": grid.num_clips * seconds}
    found = rank_candidates(*sampler.merge_packed(packed, num_clips), seconds, **options)
    dense = sampler.merge(grid.unpack(packed), num_clips)
    expected = rank_moments(*dense, seconds, **options)
    assert_same(found.valid, expected.valid)
    assert_same(found.scores, expected.scores)
    assert_same(found.moments, expected.moments)


@pytest.mark.parametrize("dtype", [torch.int16, torch.bfloat16])
def test_seconds_in_few_bits_are_multiplied_in_more(dtype):
    candidates, seconds = torch.tensor([[101, 257]], dtype=torch.int16), torch.tensor([200])
    found = rank_candidates(candidates, torch.ones(1, 1), seconds.to(dtype), top_n=1)
    assert found.moments.tolist() == [[[20_200, 51_400]]]


def test_of_equal_candidates_the_first_is_picked():
    grid = MapGrid(6, 3, 1)
    ranked = rank_candidates(
        *MultiScaleMapSampler(grid).merge_packed(torch.zeros(1, 18)), torch.ones(1), nms_threshold=0
    )
    assert ranked.moments[0].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]


@pytest.mark.parametrize("batch", [2, 400])
def test_a_device_is_never_waited_for(batch):
    candidates, scores = MultiScaleMapSampler(MapGrid(8, 4, 2)).merge_packed(torch.rand(batch, 48))
    with no_host_sync():
        rank_candidates(candidates, scores, torch.ones(batch), durations=torch.ones(batch))
    with on_a_device() as put:
        given, durations = put((candidates, scores, torch.ones(batch))), put(torch.ones(batch))
        with no_host_sync():
            ranked = rank_candidates(*given, durations=durations)
    assert ranked.moments.device.type == "cuda"


def test_candidates_that_do_not_fit_are_refused():
    candidates, scores, seconds = torch.tensor([[0, 1], [1, 2]]), torch.rand(3, 2), torch.ones(3)
    good = {"candidates": candidates, "scores": scores, "clip_seconds": seconds}
    for changes, text in (
        ({"scores": scores[0]}, "scores of shape (B, M), got (2,)."),
        ({"candidates": candidates[:1]}, "candidates of shape (M, 2) with M = 2"),
        ({"clip_seconds": seconds[:2]}, "clip_seconds of shape (B) with B = 3"),
        ({"durations": seconds[:2]}, "durations of shape (B) with B = 3"),
    ):
        with refuses(ShapeError, f"rank_candidates: expected {text}"):
            rank_candidates(**{**good, **changes})


def test_without_candidates_nothing_is_ranked():
    nowhere = torch.zeros(4, 4, dtype=torch.bool)
    for seconds in (None, torch.ones(2)):
        ranked = rank_moments(torch.rand(2, 4, 4), nowhere, seconds)
        assert not bool(ranked.valid.any() | ranked.moments.any() | ranked.clips.any())
        assert bool((ranked.scores == -torch.inf).all())
        assert ranked.moments.shape == ranked.clips.shape == (2, 5, 2)
