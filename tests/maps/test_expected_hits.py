from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.host_sync import no_host_sync, on_a_device
from helpers.oracles import candidates_of
from helpers.strategies import grids
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import (
    MapGrid,
    MultiScaleMapSampler,
    deconvolve_map,
    rank_by_expected_hits,
    rank_candidates_by_expected_hits,
    rank_moments,
    soft_hits,
    temporal_iou,
)
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.losses import rescale_iou
from tmapdiff.maps import expected_hits_fast as fast
from tmapdiff.maps.expected_hits import cover, expect_map

quick = settings(max_examples=40, deadline=None)


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """Compute as on a GPU, without synchronizing: all gains, and no sparse matrices."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "_may_wait", lambda tensor: False)
        yield


@contextmanager
def on_the_host() -> Iterator[None]:
    yield


ways = st.sampled_from([on_the_host, as_on_a_device])
MASK = MapGrid(8, 4, 2).dense_mask()


def rank(dense, mask=MASK, **options):
    return rank_by_expected_hits(dense, mask, **{"target": rescale_iou, **options})


def response_of(grid, target):
    moments = candidates_of(grid).double()
    return target(temporal_iou(moments[:, None], moments))


def looped_deconvolution(scores, response, valid, num_iterations):
    """Richardson-Lucy iteration, one moment and cell at a time."""
    cells = [c for c in range(len(scores)) if valid[c]]
    likelihood = {m: 1 / len(cells) for m in cells}
    for _ in range(num_iterations):
        expected = {c: sum(likelihood[m] * response[m][c] for m in cells) for c in cells}
        likelihood = {
            m: likelihood[m]
            * sum(scores[c] / max(expected[c], 1e-6) * response[m][c] for c in cells)
            / sum(response[m][c] for c in cells)
            for m in cells
        }
    total = max(sum(likelihood.values()), 1)
    return [likelihood.get(m, 0) / total for m in range(len(scores))]


def looped_cover(likelihood, hits, valid, top_n, first=None):
    """Greedy coverage, one moment and candidate at a time; the first pick may be fixed."""
    picks, gains = [], []
    for _ in range(min(top_n, sum(valid))):
        covered = [max([0.0, *(hits[m][p] for p in picks)]) for m in range(len(hits))]
        gain = {
            c: sum(likelihood[m] * max(hits[m][c] - covered[m], 0.0) for m in range(len(hits)))
            for c in range(len(hits))
            if valid[c] and c not in picks
        }
        best = max(gain, key=gain.get)
        if first is not None and not picks:
            best = first
        picks.append(best)
        gains.append(gain[best])
    return picks, gains


@quick
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000))
def test_deconvolution_equals_a_plain_loop(count, num_iterations, seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, count, generator=random, dtype=torch.float64)
    response = torch.rand(count, count, generator=random, dtype=torch.float64) + 0.01
    valid = torch.rand(3, count, generator=random) < 0.7
    valid[:, 0] = True
    found = deconvolve_map(
        scores.masked_fill(~valid, torch.nan), response, valid, num_iterations=num_iterations
    )
    for row in range(3):
        expected = looped_deconvolution(
            scores[row].tolist(), response.tolist(), valid[row].tolist(), num_iterations
        )
        assert found[row].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("target", [lambda iou: iou, rescale_iou], ids=["full", "rescaled"])
@pytest.mark.parametrize("grid", [MapGrid(8, 4, 2), MapGrid(12, 6, 2)], ids=str)
def test_the_map_of_one_moment_is_that_moment(grid, target):
    response = response_of(grid, target)
    likelihood = deconvolve_map(response, response, num_iterations=1000)
    assert likelihood.argmax(dim=1).tolist() == list(range(len(response)))


def test_soft_hits_are_steps():
    iou = torch.linspace(0, 1, 101, dtype=torch.float64)
    hits = soft_hits(iou, (0.5, 0.7), width=1e-4)
    plain = ((iou > 0.5).double() + (iou > 0.7).double()) / 2
    off_edge = (iou - 0.5).abs().minimum((iou - 0.7).abs()) > 1e-3
    assert torch.allclose(hits[off_edge], plain[off_edge])
    assert bool((soft_hits(iou).diff() > 0).all())


@quick
@given(
    grids(),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([(0.5, 0.7), (0.3,), [0.3, 0.6, 0.9]]),
    ways,
)
def test_ranking_equals_plain_loops(grid, top_n, seed, batched, thresholds, way):
    mask, random = grid.dense_mask(), torch.Generator().manual_seed(seed)
    dense = torch.rand(2, *mask.shape, generator=random, dtype=torch.float64)
    if batched:
        drop = torch.rand(2, *mask.shape, generator=random) < 0.3
        mask = mask & ~drop
    dense = dense.masked_fill(~mask, torch.nan)
    seconds = torch.tensor([0.5, 1.25])
    with way():
        options = {"top_n": top_n, "thresholds": thresholds, "num_iterations": 3}
        ranked = rank(dense, mask, clip_seconds=seconds, **options)
    moments, response = candidates_of(grid).double(), response_of(grid, rescale_iou)
    hits = soft_hits(temporal_iou(moments[:, None], moments), thresholds).tolist()
    for row in range(2):
        scores = dense[row][grid.dense_mask()]
        valid = scores.isfinite().tolist()
        if not any(valid):
            assert not bool(ranked.valid[row].any())
            continue
        likelihood = looped_deconvolution(scores.tolist(), response.tolist(), valid, 3)
        picks, gains = looped_cover(likelihood, hits, valid, top_n)
        count = len(picks)
        assert ranked.valid[row].tolist() == [True] * count + [False] * (top_n - count)
        # Equal gains may be picked in any order.
        assert ranked.scores[row, :count].tolist() == pytest.approx(gains, abs=1e-9)
        assert bool((ranked.scores[row, count:] == -torch.inf).all())
        assert bool((ranked.moments[row, count:] == 0).all())
        if len({round(gain, 9) for gain in gains}) == count:
            expected = moments[picks] * float(seconds[row])
            assert torch.allclose(ranked.moments[row, :count].double(), expected)


@quick
@given(grids(), st.integers(0, 1000), st.integers(1, 6), ways)
def test_the_highest_cell_first_and_then_what_hits_where_it_fails(grid, seed, top_n, way):
    random = torch.Generator().manual_seed(seed)
    mask = grid.dense_mask()
    dense = 0.01 + torch.rand(2, *mask.shape, generator=random, dtype=torch.float64) ** 3
    dense[:, torch.rand(mask.shape, generator=random) < 0.2] = torch.nan
    dense[:, 0, 0] = 0.5
    with way():
        found = rank(dense, mask, top_n=top_n, highest_first=True)
    highest = rank_moments(dense, mask, top_n=1)
    assert torch.equal(found.moments[:, 0], highest.moments[:, 0])
    moments = candidates_of(grid).double()
    hits = soft_hits(temporal_iou(moments[:, None], moments)).tolist()
    for row in range(2):
        scores = dense[row][mask]
        valid = ~scores.isnan()
        response = response_of(grid, rescale_iou)
        likelihood = deconvolve_map(scores[None], response, valid[None])[0].tolist()
        first = int(scores.nan_to_num(-1).argmax())
        picks, gains = looped_cover(likelihood, hits, valid.tolist(), top_n, first)
        capped = [min(one, gains[0]) for one in gains]
        assert found.scores[row, : len(picks)].tolist() == pytest.approx(capped, abs=1e-9)
        assert int(found.valid[row].sum()) == len(picks)
        if all(abs(a - b) > 1e-9 for a, b in pairwise(gains[1:])):
            assert torch.equal(found.clips[row, : len(picks)], moments[picks].long())


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_likelihoods_are_tempered(temperature):
    grid = MapGrid(8, 4, 2)
    random = torch.Generator().manual_seed(0)
    moments, response = candidates_of(grid), response_of(grid, rescale_iou)
    scores = torch.rand(3, len(moments), generator=random, dtype=torch.float64) ** 3
    scores[0] *= 1e-3
    found = rank_candidates_by_expected_hits(
        moments, scores, target=rescale_iou, top_n=3, temperature=temperature
    )
    hits = soft_hits(response_of(grid, torch.Tensor.double)).tolist()
    for row, likelihood in enumerate(deconvolve_map(scores, response).tolist()):
        powers = [one ** (1 / temperature) for one in likelihood]
        tempered = [one * sum(likelihood) / sum(powers) for one in powers]
        picks, gains = looped_cover(tempered, hits, [True] * len(hits), 3)
        assert torch.equal(found.clips[row], moments[picks])
        assert found.scores[row].tolist() == pytest.approx(gains, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.01, 1e6])
def test_no_temperature_is_too_extreme(temperature):
    dense = torch.rand(3, 8, 8) ** 3
    dense[0] = 0
    found = rank(dense, temperature=temperature)
    assert bool(found.valid.all() & found.scores.isfinite().all())


@pytest.mark.parametrize("refreshed", [1, 3])
def test_gains_computed_late_change_no_pick(monkeypatch, refreshed):
    dense, mask = torch.rand(6, 16, 16, dtype=torch.float64), MapGrid(16, 8, 2).dense_mask()
    everything = rank(dense, mask, top_n=9)
    monkeypatch.setattr(fast, "_REFRESHED", refreshed)
    lazily = rank(dense, mask, top_n=9)
    assert torch.equal(lazily.moments, everything.moments)
    assert torch.allclose(lazily.scores, everything.scores)


@pytest.mark.parametrize("way", [on_the_host, as_on_a_device])
def test_large_batches_are_ranked_as_small_ones(monkeypatch, way):
    dense = torch.rand(7, 8, 8)
    with way():
        together = rank(dense)
        monkeypatch.setattr(fast, "_LARGEST_TABLE", 1)
        monkeypatch.setattr(fast, "_CACHED_ROWS", 1)
        alone = rank(dense)
    assert torch.allclose(together.scores, alone.scores)
    assert torch.equal(together.moments, alone.moments)


@quick
@given(
    grids(),
    st.integers(0, 1000),
    st.integers(1, 7),
    st.sampled_from([(0.5, 0.7), (0.3,), (0.3, 0.5, 0.7, 0.9)]),
    ways,
)
def test_the_fast_form_covers_as_the_definition(grid, seed, top_n, thresholds, way):
    moments, random = candidates_of(grid).double(), torch.Generator().manual_seed(seed)
    likelihood = torch.rand(3, len(moments), generator=random, dtype=torch.float64)
    valid = torch.rand(3, len(moments), generator=random) < 0.7
    likelihood = (likelihood * valid).softmax(dim=1)
    with way():
        tables = fast.tables_of("", moments, rescale_iou, torch.float64, thresholds)
        assert bool(tables.layers) is (way is on_the_host)
        picks, gains = tables.cover(likelihood, valid, top_n)
    hits = soft_hits(temporal_iou(moments[:, None], moments), thresholds)
    expected_picks, expected_gains = cover(likelihood, hits, valid, top_n)
    assert_close(gains[picks >= 0], expected_gains[picks >= 0])
    assert torch.equal(picks < 0, expected_picks < 0)
    # Equal gains may be picked in any order.
    apart = (expected_gains.diff(dim=1).abs() > 1e-9).all(dim=1)
    assert torch.equal(picks[apart], expected_picks[apart])


def test_deconvolution_is_differentiable_and_reads_no_invalid_cell():
    response = response_of(MapGrid(5, 3, 1), rescale_iou)
    valid = torch.rand(2, len(response)) < 0.7
    valid[:, 0] = True
    scores = (0.1 + torch.rand(2, len(response), dtype=torch.float64)).requires_grad_()

    def deconvolved(scores):
        poisoned = scores.where(valid, torch.nan)
        return deconvolve_map(poisoned, response, valid, num_iterations=3)

    torch.autograd.gradcheck(deconvolved, scores)
    (gradient,) = torch.autograd.grad(deconvolved(scores)[:, 0].sum(), scores)
    assert not bool(gradient[~valid].any())


@pytest.mark.parametrize("share", [0, 1])
def test_skipping_zeros_changes_no_answer(monkeypatch, share):
    grid = MapGrid(16, 8, 2)
    # Random cells, as events give equal gains, which rounding would decide.
    packed = torch.rand(20, grid.num_cells, generator=torch.Generator().manual_seed(0))
    given = MultiScaleMapSampler(grid).merge_packed(packed)
    expected = rank_candidates_by_expected_hits(*given, target=rescale_iou)
    monkeypatch.setattr(fast, "_SPARSE", share)
    fast._kept_tables.cache_clear()
    found = rank_candidates_by_expected_hits(*given, target=rescale_iou)
    fast._kept_tables.cache_clear()
    assert torch.equal(found.moments, expected.moments)
    assert torch.allclose(found.scores, expected.scores, atol=1e-6)


def test_tables_are_kept_by_what_determines_them():
    class Target:
        power = 1

        def __call__(self, iou):
            return iou**self.power

    target, dense = Target(), torch.rand(4, 8, 8)
    first, again = (rank(dense, target=target) for _ in range(2))
    target.power = 3
    other, fresh = rank(dense, target=target), rank(dense, target=lambda iou: iou**3)
    assert torch.equal(first.scores, again.scores)
    assert torch.equal(other.scores, fresh.scores)
    assert not torch.allclose(first.scores, other.scores)
    for changed in (
        {"thresholds": (0.3,)},
        {"mask": MASK & (torch.arange(8)[:, None] > 1)},
        {"dense": dense.double()},
    ):
        given = {"dense": dense, **changed}
        found = rank(**given)
        fast._kept_tables.cache_clear()
        fast._distinct_ious.cache_clear()
        assert torch.equal(found.scores, rank(**given).scores)


def test_few_tables_are_kept_and_no_large_ones(monkeypatch):
    assert fast._kept_tables.cache_parameters()["maxsize"] < 10
    dense = torch.rand(1, 8, 8)
    kept = rank(dense)
    monkeypatch.setattr(fast, "_LARGEST_KEPT", 1)
    fast._kept_tables.cache_clear()
    large = rank(dense)
    assert fast._kept_tables.cache_info().currsize == 0
    assert torch.equal(large.moments, kept.moments)
    torch.testing.assert_close(large.scores, kept.scores)


def test_tables_made_in_inference_mode_serve_elsewhere():
    fast._kept_tables.cache_clear()
    fast._distinct_ious.cache_clear()
    dense = torch.rand(2, 8, 8, requires_grad=True)
    with torch.inference_mode():
        inside = rank(dense)
    outside = rank(dense)
    assert torch.equal(inside.scores, outside.scores)
    assert not outside.scores.requires_grad


def test_a_device_is_never_waited_for():
    candidates = candidates_of(MapGrid(8, 4, 2))
    inputs = candidates, torch.rand(3, len(candidates)), torch.ones(3)
    with on_a_device() as put:
        given, durations = put(inputs), put(torch.ones(3))
        with no_host_sync():
            ranked = rank_candidates_by_expected_hits(
                *given, target=rescale_iou, durations=durations
            )
    assert ranked.moments.device.type == "cuda"
    assert ranked.moments.shape == (3, 5, 2)


@quick
@given(grids(), st.integers(0, 1000), st.booleans())
def test_candidates_are_ranked_as_dense_maps(grid, seed, batched):
    random, sampler = torch.Generator().manual_seed(seed), MultiScaleMapSampler(grid)
    packed = torch.rand(3, grid.num_cells, generator=random)
    packed[torch.rand(packed.shape, generator=random) < 0.1] = torch.nan
    num_clips = torch.randint(1, grid.num_clips + 1, (3,), generator=random) if batched else None
    seconds = 1 + torch.rand(3, generator=random)
    options = {"target": rescale_iou, "durations": 0.9 * grid.num_clips * seconds}
    found = rank_candidates_by_expected_hits(
        *sampler.merge_packed(packed, num_clips), seconds, **options
    )
    dense = sampler.merge(grid.unpack(packed), num_clips)
    expected = rank_by_expected_hits(*dense, seconds, **options)
    assert bool((found.moments <= options["durations"][:, None, None]).all())
    assert torch.equal(found.valid, expected.valid)
    assert torch.allclose(found.scores, expected.scores, atol=1e-6)
    # Gains may be equal up to rounding.
    apart = (expected.scores[:, :-1] - expected.scores[:, 1:]).amin(dim=1) > 1e-5
    assert torch.equal(found.moments[apart], expected.moments[apart])


def test_no_queries_no_candidates_and_empty_maps():
    assert rank(torch.rand(0, 8, 8)).moments.shape == (0, 5, 2)
    nowhere = rank(torch.rand(2, 8, 8), MASK & False, clip_seconds=torch.ones(2))
    assert not bool(nowhere.valid.any() | nowhere.moments.any() | nowhere.clips.any())
    assert bool((nowhere.scores == -torch.inf).all())


@pytest.mark.parametrize("value", [0.0, -0.1, -2.0])
def test_maps_without_a_positive_cell_are_answered_with_the_highest(value):
    # A model trained by squared error may predict values below 0.
    dense = torch.full((2, 8, 8), value - 0.05)
    dense[0, 5, 1] = dense[1, 2, 3] = value
    found = rank(dense)
    assert bool(found.valid.all())
    assert found.moments[:, 0].tolist() == [[5, 7], [2, 6]]
    assert bool((found.scores.abs() < 1e-4).all())


def test_cells_that_are_no_numbers_are_no_candidates():
    dense = torch.rand(1, 8, 8)
    dense[0, 5, 1] = torch.nan
    found, expected = (rank(dense, one, top_n=30) for one in (MASK, MASK & ~dense[0].isnan()))
    assert torch.equal(found.moments, expected.moments)
    scores = torch.tensor([[0.3, torch.nan, 0.2]])
    filled = deconvolve_map(scores.nan_to_num(), torch.eye(3) + 0.1)
    assert torch.equal(deconvolve_map(scores, torch.eye(3) + 0.1), filled)


def test_autocast_changes_no_answer():
    dense, mask = torch.rand(40, 32, 32), MapGrid(32, 8, 3).dense_mask()
    plain = rank(dense, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = rank(dense, mask)
    assert torch.equal(found.moments, plain.moments)
    assert torch.equal(found.scores, plain.scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_ranked_in_single(dtype):
    dense = torch.rand(3, 8, 8).to(dtype)
    half, single = rank(dense), rank(dense.float())
    assert torch.equal(half.moments, single.moments)
    assert half.moments.dtype == torch.float32


def test_errors_say_what_is_wrong():
    scores, response = torch.rand(2, 3), torch.rand(3, 3)
    for changes, kind, text in (
        ({"response": scores}, ShapeError, "response of shape (M, M) with M = 3, got (2, 3)."),
        ({"valid": torch.ones(3).bool()}, ShapeError, "valid of shape (B, M) with B = 2, M = 3"),
        ({"valid": torch.ones(2, 3)}, ArgumentError, "bool valid, got torch.float32."),
        ({"num_iterations": 0}, ArgumentError, "num_iterations to be an integer >= 1"),
    ):
        with refuses(kind, f"deconvolve_map: expected {text}"):
            deconvolve_map(scores, **{"response": response, **changes})
    for changes, text in (
        ({"thresholds": ()}, "at least one threshold, got none."),
        ({"thresholds": (1.5,)}, "threshold in [0, 1], got 1.5."),
        ({"thresholds": 0.5}, "thresholds to be a list or tuple, got float"),
        ({"width": 0}, "width in (0, inf), got 0"),
    ):
        with refuses(ArgumentError, f"soft_hits: expected {text}"):
            soft_hits(scores, **changes)
    for changes, kind, text in (
        ({"clip_seconds": torch.ones(3)}, ShapeError, "clip_seconds of shape (B) with B = 2"),
        ({"top_n": 0}, ArgumentError, "top_n to be an integer >= 1"),
        ({"mask": MASK.float()}, ArgumentError, "a bool mask, got torch.float32."),
        ({"target": "mse"}, ArgumentError, "target to be a function, got 'mse'. Pass a"),
        ({"target": lambda iou: iou[:1]}, ShapeError, "target(iou) of shape ("),
        ({"highest_first": "yes"}, ArgumentError, "highest_first to be True or False, got 'yes'."),
        ({"temperature": 0}, ArgumentError, "temperature in (0, inf), got 0."),
    ):
        with refuses(kind, f"expected_hits: expected {text}"):
            rank(**{"dense": torch.rand(2, 8, 8), **changes})
    candidates = torch.tensor([[0, 1], [1, 2]])
    for changes, kind, text in (
        ({"scores": scores}, ShapeError, "candidates of shape (M, 2) with M = 3, got (2, 2)."),
        ({"num_iterations": 0}, ArgumentError, "num_iterations to be an integer >= 1, got 0."),
    ):
        ranked = {"scores": scores[:, :2], "target": rescale_iou, **changes}
        with refuses(kind, f"rank_candidates_by_expected_hits: expected {text}"):
            rank_candidates_by_expected_hits(candidates, **ranked)


@pytest.mark.parametrize(
    ("grid", "kept"), [(MapGrid(6, 6, 1), 2**30), (MapGrid(60, 4, 1), 0), (MapGrid(12, 11, 1), 0)]
)
def test_expect_map_is_the_mean_over_the_likely_moments(grid, kept, monkeypatch):
    monkeypatch.setattr(fast, "_LARGEST_KEPT", kept)
    candidates = grid.packed_moments()[grid.packed_mask()]
    likelihood = torch.rand(2, len(candidates)).double()
    likelihood /= likelihood.sum(1, keepdim=True)
    found = expect_map(candidates, likelihood, rescale_iou)
    iou = temporal_iou(candidates[:, None].double(), candidates.double())
    assert_close(found, likelihood @ rescale_iou(iou))
    with refuses(ShapeError, f"likelihood of shape (B, M) with M = {len(candidates)}"):
        expect_map(candidates, likelihood[:, 1:], rescale_iou)
    with refuses(ArgumentError, "expect_map: expected target to be a function, got 'iou'."):
        expect_map(candidates, likelihood, "iou")
