import pytest
import torch
from helpers.assertions import assert_close
from helpers.oracles import candidates_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tmapdiff import MapGrid, MultiScaleMapSampler, rank_candidates_by_expected_hits, temporal_iou
from tmapdiff.losses import rescale_iou
from tmapdiff.maps import expected_hits_fast as fast
from tmapdiff.maps.expected_hits import soft_hits
from tmapdiff.maps.expected_hits_fast import CandidateBlocks

quick = settings(max_examples=30, deadline=None)
F64 = torch.float64


@st.composite
def long_candidates(draw):
    """Candidates of a grid with many more clips than its longest moment."""
    anchors, scales = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    clips = draw(st.integers(6, 12)) * anchors * 2 ** (scales - 1)
    return candidates_of(MapGrid(clips, anchors, scales))


functions = st.sampled_from([soft_hits, rescale_iou, lambda iou: iou + 0.5])


@quick
@given(long_candidates(), functions, st.booleans(), st.integers(0, 100))
def test_bands_are_the_table_of_all_pairs(candidates, function, some_are_missing, seed):
    random = torch.Generator().manual_seed(seed)
    if some_are_missing:
        kept = torch.rand(len(candidates), generator=random) < 0.9
        candidates = candidates[kept][torch.randperm(int(kept.sum()), generator=random)]
    blocks = CandidateBlocks.find(candidates)
    assume(blocks is not None)
    whole = function(temporal_iou(candidates[:, None].double(), candidates.double()))
    band = blocks.ious(F64).map(function)

    chances = torch.rand(2, len(candidates), generator=random, dtype=F64)
    spread = blocks.spread(chances)
    assert torch.equal(spread[:, blocks.places], chances)
    spread = spread.clamp(min=0)
    product = band @ spread.T
    assert_close(product[blocks.places], whole @ chances.T)

    picks = torch.randint(len(candidates), (2,), generator=random)
    rows = band.rows(blocks.places[picks])
    assert_close(rows[:, blocks.places], whole[picks])

    covered = whole[picks]
    gains = torch.stack([(whole - covered[k]).clamp(min=0) @ chances[k] for k in range(2)])
    everything = band.all_gains(spread, rows)
    assert_close(everything[:, blocks.places], gains)
    which = torch.randint(len(candidates), (3, 4), generator=random)
    query = torch.tensor([1, 0, 1])
    found = band.gains(spread, rows, query, blocks.places[which])
    assert_close(found, gains[query[:, None], which])


def test_the_table_does_not_grow_with_the_video():
    sizes = {
        clips: CandidateBlocks.find(candidates_of(MapGrid(clips, 8, 3))).ious(F64).values.shape
        for clips in (256, 1024, 4096)
    }
    assert len(set(sizes.values())) == 1


@pytest.mark.parametrize(
    "candidates",
    [
        pytest.param(candidates_of(MapGrid(8, 4, 2)), id="as long as the video"),
        pytest.param(candidates_of(MapGrid(256, 4, 1)) + 0.5, id="no whole numbers"),
        pytest.param(candidates_of(MapGrid(256, 4, 1)).repeat(2, 1), id="twice"),
        pytest.param(
            torch.cat([candidates_of(MapGrid(256, 4, 1)), torch.tensor([[3, 3]])]), id="empty"
        ),
    ],
)
def test_what_cannot_be_put_into_blocks_is_not(candidates):
    assert CandidateBlocks.find(candidates) is None


def ranked(candidates, scores, monkeypatch, largest, **options):
    with monkeypatch.context() as patch:
        patch.setattr(fast, "_LARGEST_KEPT", largest)
        return rank_candidates_by_expected_hits(candidates, scores, **options)


@pytest.mark.parametrize("way", ["host", "device"])
@pytest.mark.parametrize("target", [rescale_iou, lambda iou: iou])
@pytest.mark.parametrize("highest_first", [False, True])
def test_many_candidates_are_ranked_as_few(way, target, highest_first, monkeypatch):
    torch.manual_seed(1)
    grid = MapGrid(96, 4, 3)
    packed = target(torch.rand(5, grid.num_cells, dtype=F64)) ** 4
    num_clips = torch.tensor([96, 60, 96, 33, 4])
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(packed, num_clips)
    shuffled = torch.randperm(len(candidates))
    candidates, scores = candidates[shuffled], scores[:, shuffled]
    options = {"target": target, "durations": num_clips - 0.5, "top_n": 7}
    options["highest_first"] = highest_first
    expected = ranked(candidates, scores, monkeypatch, 2**30, **options)
    calls = []
    spread = CandidateBlocks.spread
    monkeypatch.setattr(CandidateBlocks, "spread", lambda *a: calls.append(1) or spread(*a))
    if way == "device":
        monkeypatch.setattr(fast, "_may_wait", lambda tensor: False)
    found = ranked(candidates, scores, monkeypatch, 0, **options)
    assert calls
    assert torch.equal(found.moments, expected.moments)
    assert torch.equal(found.valid, expected.valid)
    assert_close(found.scores[found.valid], expected.scores[found.valid])


def test_gains_of_a_long_video_are_settled_at_once(monkeypatch):
    # With loose bounds for far moments, nearly all candidates would need exact gains.
    torch.manual_seed(0)
    grid = MapGrid(4096, 4, 2)
    scores = 0.5 + 0.01 * torch.rand(1, grid.num_cells)
    looks = []
    gains = fast.PairBand.gains
    monkeypatch.setattr(fast.PairBand, "gains", lambda *args: looks.append(1) or gains(*args))
    candidates, scores = MultiScaleMapSampler(grid).merge_packed(scores)
    rank_candidates_by_expected_hits(candidates, scores, target=rescale_iou)
    assert 4 <= len(looks) < 100
