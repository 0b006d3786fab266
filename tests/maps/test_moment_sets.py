"""Sets of moments, against an enumeration of all possible truths."""

from functools import cache
from itertools import combinations, permutations

import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.oracles import candidates_of, interval_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import MapGrid, MultiScaleMapSampler, soft_hits, temporal_iou
from tmapdiff.errors import ArgumentError, ShapeError
from tmapdiff.losses import rescale_iou
from tmapdiff.maps import IoUMapBuilder, expect_map, read_moment_sets
from tmapdiff.maps import expected_hits_fast as fast
from tmapdiff.maps.expected_hits import cover
from tmapdiff.maps.moment_sets import expected_pair_f1, expected_set_f1

quick = settings(max_examples=10, deadline=None)
GRID = MapGrid(16, 16, 1)
CANDIDATES = candidates_of(GRID)
PLACES = {tuple(one): place for place, one in enumerate(CANDIDATES.tolist())}
EVENTS = [(0, 3), (4, 7), (8, 10), (11, 16)]  # disjoint
LONG = (0, 7)


def intensity(shares):
    """Likelihoods of candidates, (1, M), from moments and their shares."""
    found = torch.zeros(1, len(CANDIDATES))
    for moment, share in shares.items():
        found[0, PLACES[moment]] = share
    return found


def maps_of(*worlds):
    """The training map of each set of moments: (worlds, M)."""
    maps = []
    for world in worlds:
        moments = torch.tensor([world], dtype=torch.float32).reshape(1, -1, 2)
        packed = IoUMapBuilder(GRID).packed(moments, torch.ones(1), torch.tensor([len(world)]))
        maps.append(rescale_iou(packed))
    return MultiScaleMapSampler(GRID).merge_packed(torch.cat(maps))[1]


def read(scores, **options):
    return read_moment_sets(CANDIDATES, scores, target=rescale_iou, **options)


def sets_of(found):
    return [
        [tuple(int(x) for x in one) for one in row[valid].tolist()]
        for row, valid in zip(found.moments, found.valid, strict=True)
    ]


@cache
def hit(one, other):
    return float(soft_hits(torch.tensor(interval_iou(one, other))))


def looped_f1(given, truth):
    """F1 by the best of all one-to-one matchings."""
    if not given and not truth:
        return 1.0
    few, many = sorted((given, truth), key=len)
    best = max(
        sum(hit(a, b) for a, b in zip(few, some, strict=True))
        for some in permutations(many, len(few))
    )
    return 2 * best / (len(given) + len(truth))


@pytest.mark.parametrize("count", range(5))
def test_what_is_there_is_the_set(count):
    worlds = list(combinations(EVENTS, count))
    found = read(maps_of(*worlds))
    assert [sorted(one) for one in sets_of(found)] == [sorted(one) for one in worlds]
    assert found.num_moments.tolist() == [count] * len(worlds)
    assert found.presence.tolist() == pytest.approx([float(count > 0)] * len(worlds), abs=1e-3)
    assert bool((found.scores[found.valid] > 0.9).all())
    assert bool((found.scores[~found.valid] == -torch.inf).all())


@pytest.mark.parametrize("samples", [(), (2,)])
def test_no_moment_is_the_answer_where_one_is_as_good(samples):
    options = {"target": rescale_iou, "thresholds": [0.0]}  # so that its F1 is 1
    scores = torch.ones(2, *samples, 1)
    found = read_moment_sets(
        torch.tensor([[0, 4]]), scores, presence=torch.tensor([0.5, 0.501]), **options
    )
    assert found.num_moments.tolist() == [0, 1]


def test_scores_are_probabilities_of_a_hit():
    # A moment that is there or not, and two that one answer hits.
    shares = {(0, 7): 0.6}, {(0, 7): 1.0, (0, 8): 1.0}
    maps = [expect_map(CANDIDATES, intensity(one), rescale_iou) for one in shares]
    found = read(torch.cat(maps), num_iterations=300)
    assert found.presence.tolist() == pytest.approx([0.6, 1], abs=0.01)
    assert found.scores[:, 0].tolist() == pytest.approx([0.6, 1], abs=0.02)


def test_a_given_presence_does_not_fill_empty_samples():
    samples = maps_of((), (), (), EVENTS[:1])[None]
    assert sets_of(read(samples, presence=torch.tensor([0.9]))) == [EVENTS[:1]]


def test_f1_of_pairs_is_that_of_the_best_matching():
    # Neighbors hit the same moment, which counts once, whichever set is the truth.
    sets = [[(0, 10), (0, 9)], [(0, 10)], [(0, 10), (11, 16)], [(4, 7), (8, 10)], []]
    moments = torch.tensor([one + [(0, 0)] * (2 - len(one)) for one in sets]).float()
    counted = torch.arange(2) < torch.tensor([len(one) for one in sets])[:, None]
    f1, _ = expected_pair_f1(moments, counted, soft_hits)
    # The F1 of two empty sets is left to the caller.
    expected = [[looped_f1(a, b) if a or b else 0.0 for b in sets] for a in sets]
    assert_close(f1, torch.tensor(expected))


@quick
@given(st.lists(st.floats(0.02, 1), min_size=2, max_size=4), st.floats(0, 1))
def test_f1_is_exact_where_the_number_of_moments_is_known(weights, present):
    # A single unknown moment.
    shares = [one / sum(weights) for one in weights]
    found = expected_set_f1(torch.tensor([shares]), torch.ones(1))[0]
    for count in range(1, len(shares) + 1):
        true = sum(2 / (count + 1) * share for share in shares[:count])
        assert float(found[count - 1]) == pytest.approx(true, rel=1e-5)
    best = max((float(one), place + 1) for place, one in enumerate(found))
    shares.sort(reverse=True)
    scores = expect_map(CANDIDATES, intensity(dict(zip(EVENTS, shares, strict=False))), rescale_iou)
    answer = read(scores, presence=torch.tensor([present]), num_iterations=300)
    options = {k: 2 * sum(shares[:k]) / (k + 1) * present for k in range(1, len(shares) + 1)}
    options[0] = 1 - present
    best = max(options.values())
    assert options[int(answer.num_moments)] == pytest.approx(best, abs=0.02)


@quick
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_no_other_set_is_much_better_where_moments_are_independent(shares):
    # The definition, over all worlds and all sets of these moments.
    def chance(world):
        there = [share if one in world else 1 - share
                 for one, share in zip(EVENTS, shares, strict=True)]  # fmt: skip
        return float(torch.tensor(there).prod())

    worlds = [one for count in range(5) for one in combinations(EVENTS, count)]

    def expected(answer):
        return sum(
            chance(world) * (2 * len({*answer} & {*world}) / max(len(answer) + len(world), 1)
                             if answer or world else 1)
            for world in worlds
        )  # fmt: skip

    scores = expect_map(CANDIDATES, intensity(dict(zip(EVENTS, shares, strict=True))), rescale_iou)
    none = torch.tensor([1 - chance(())])
    (answer,) = sets_of(read(scores, presence=none, num_iterations=300))
    assert {*answer} <= {*EVENTS}
    assert expected(answer) >= max(map(expected, worlds)) - 0.08


def test_how_likely_it_is_there_decides_about_no_answer():
    scores = maps_of([EVENTS[0], EVENTS[2]]).repeat(3, 1)
    found = read(scores, presence=torch.tensor([0.0, 0.45, 0.9]))
    assert found.num_moments.tolist() == [0, 0, 2]
    assert_close(found.presence, torch.tensor([0.0, 0.45, 0.9]))
    assert float(found.scores[2, 0]) == pytest.approx(0.9, abs=0.05)
    by_itself = read(scores * torch.tensor([[0.2], [0.6], [1.0]]))  # chances that it is there
    assert by_itself.num_moments.tolist() == [0, 2, 2]


@pytest.mark.parametrize("nms_threshold", [0.0, 0.3, 1.0])
def test_many_candidates_are_read_as_few(monkeypatch, nms_threshold):
    grid = MapGrid(96, 4, 3)
    packed = torch.rand(5, grid.num_cells, generator=torch.Generator().manual_seed(1)) ** 6
    given = MultiScaleMapSampler(grid).merge_packed(packed, torch.tensor([96, 60, 96, 33, 4]))
    options = {"target": rescale_iou, "top_n": 9, "nms_threshold": nms_threshold}
    found = []
    for largest in (2**30, 0):
        monkeypatch.setattr(fast, "_LARGEST_KEPT", largest)
        found.append(read_moment_sets(*given, **options))
    assert torch.equal(found[0].moments, found[1].moments)
    assert torch.equal(found[0].valid, found[1].valid)
    valid = found[0].valid
    assert_close(found[0].scores[valid], found[1].scores[valid])
    for moments, valid in zip(found[0].moments, found[0].valid, strict=True):
        ious = temporal_iou(moments[valid][:, None], moments[valid]).fill_diagonal_(0)
        assert float(ious.max()) <= nms_threshold


def test_the_fast_form_excludes_as_the_definition():
    likelihood = torch.rand(3, len(CANDIDATES), dtype=torch.float64).softmax(dim=1)
    moments, valid = CANDIDATES.double(), torch.rand(3, len(CANDIDATES)) < 0.8
    hits = soft_hits(temporal_iou(moments[:, None], moments))

    def excludes(index):
        return temporal_iou(moments, moments[index][:, None]) > 0.2

    tables = fast.tables_of("", CANDIDATES, rescale_iou, torch.float64)
    found = tables.cover(likelihood, valid, 6, excludes=excludes)
    expected = cover(likelihood, hits, valid, 6, excludes=excludes)
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1])


@quick
@given(st.lists(st.sets(st.sampled_from([*EVENTS, LONG, (9, 13)])), min_size=2, max_size=7),
       st.none() | st.floats(0, 1))  # fmt: skip
def test_the_set_of_least_risk_is_that_of_plain_loops(worlds, presence):
    samples = maps_of(*(sorted(one) for one in worlds))
    sets = sets_of(read(samples))
    given = None if presence is None else torch.tensor([presence])
    (found,) = sets_of(answer := read_moment_sets(
        CANDIDATES, samples[None], target=rescale_iou, presence=given))  # fmt: skip
    full = [one for one in sets if one]
    present = len(full) / len(sets) if presence is None else presence
    assert float(answer.presence) == pytest.approx(present, abs=1e-6)

    def expected(answer):
        if not answer:
            return 1 - present
        return present * sum(looped_f1(answer, one) for one in full) / len(full)

    best = max(map(expected, [[], *full]))
    assert expected(found) == pytest.approx(best, abs=0.02)  # matchings are bounded, not computed
    for moment, score in zip(found, answer.scores[0].tolist(), strict=False):
        share = sum(max(hit(moment, other) for other in one) for one in full) / len(full)
        assert score == pytest.approx(present * share, abs=1e-4)


def test_samples_say_what_comes_together():
    # Two moments or a long one: the mean of the maps is ambiguous.
    several, one = maps_of(EVENTS[:2], [LONG])
    samples = torch.stack([several] * 3 + [one] * 2)[None]
    options = {"target": rescale_iou, "clip_seconds": torch.tensor([2.0])}
    found = read_moment_sets(CANDIDATES, samples, **options)
    assert sorted(sets_of(found)[0]) == [(0, 6), (8, 14)]
    swapped = read_moment_sets(CANDIDATES, samples[:, [0, 1, 3, 4, 4]], **options)
    assert sets_of(swapped) == [[(0, 14)]]
    alone = read_moment_sets(CANDIDATES, samples[:, :1], **options)
    assert_close(alone.moments, read(several[None], clip_seconds=torch.tensor([2.0])).moments)


def test_nothing_is_read_off_nothing():
    none = torch.zeros(0, 2, dtype=torch.int64)
    for scores in (torch.zeros(3, 0), torch.zeros(0, 0)):
        found = read_moment_sets(none, scores, target=rescale_iou)
        assert (found.moments.shape, bool(found.valid.any())) == ((len(scores), 5, 2), False)
        found = read_moment_sets(none, scores[:, None], target=rescale_iou)
        assert (found.num_moments.tolist(), found.presence.tolist()) == ([0] * len(scores),) * 2
    missing = read(torch.full((1, len(CANDIDATES)), -torch.inf), presence=torch.ones(1))
    assert int(missing.num_moments) == 0


def test_scores_of_half_precision_have_no_gradient():
    scores = maps_of([EVENTS[1]]).half().requires_grad_()
    assert sets_of(read(scores)) == [[EVENTS[1]]]
    assert not read(scores).scores.requires_grad


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"presence": torch.tensor([1.5])}, ArgumentError, "expected presence in"),
        ({"presence": torch.ones(2)}, ShapeError, "presence"),
        ({"nms_threshold": 1.1}, ArgumentError, "nms_threshold"),
        ({"thresholds": ()}, ArgumentError, "threshold"),
        ({"top_n": 0}, ArgumentError, "top_n"),
        ({"target": "mse"}, ArgumentError, "target"),
    ],
)
def test_what_is_wrong_is_told(changes, error, words):
    scores = maps_of([EVENTS[0]])
    for maps in (scores, scores[:, None].expand(-1, 2, -1)):
        with refuses(error, words):
            read_moment_sets(CANDIDATES, maps, **{"target": rescale_iou, **changes})
    with refuses(ArgumentError, "number of samples"):
        read_moment_sets(CANDIDATES, scores[:, None][:, :0], target=rescale_iou)
