import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.host_sync import host_syncs, no_host_sync, on_a_device
from helpers.oracles import cell_moment, cells, interval_iou
from helpers.strategies import grids, moments_in
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import IoUMapBuilder, MapGrid, temporal_iou
from tmapdiff.errors import ArgumentError, ShapeError

quick = settings(max_examples=40, deadline=None)
GRID = MapGrid(8, 4, 2)


def brute_force(grid, moments, clip_seconds):
    """IoU maps of one sample, by a loop over cells and moments."""
    return [
        max(interval_iou([t * clip_seconds for t in cell_moment(*cell[:3])], m) for m in moments)
        if cell[3] and moments
        else 0.0
        for cell in cells(grid.num_clips, grid.num_anchors, grid.num_scales)
    ]


@quick
@given(grids(), st.integers(1, 3), st.integers(1, 3), st.data())
def test_maps_equal_a_brute_force_double_loop(grid, batch, most, data):
    clip_seconds = [data.draw(st.floats(0.1, 3)) for _ in range(batch)]
    moments = [
        [data.draw(moments_in(grid.num_clips * seconds)) for _ in range(most)]
        for seconds in clip_seconds
    ]
    counts = [data.draw(st.integers(0, most)) for _ in range(batch)]
    build = IoUMapBuilder(grid)
    packed = build.packed(
        torch.tensor(moments, dtype=torch.float64),
        torch.tensor(clip_seconds, dtype=torch.float64),
        torch.tensor(counts),
    )
    for row in range(batch):
        expected = brute_force(grid, moments[row][: counts[row]], clip_seconds[row])
        assert packed[row].tolist() == pytest.approx(expected, abs=1e-12)


def test_samples_without_any_moment_have_empty_maps():
    build, seconds = IoUMapBuilder(GRID), torch.ones(2)
    moments = torch.tensor([[1.0, 3.0], [4.0, 8.0], [0.0, 1.0]])
    pair = torch.stack([moments, torch.full_like(moments, torch.nan)])
    maps = build.packed(pair, seconds, torch.tensor([3, 0]))
    assert torch.equal(maps[:1], build.packed(pair[:1], seconds[:1]))
    assert not bool(maps[1].any())
    for counts in (None, torch.tensor([0, 0])):
        none = build.packed(torch.zeros(2, 0, 2), seconds, counts)
        assert none.shape == maps.shape
        assert not bool(none.any())


def test_inputs_are_not_modified_and_map_stays_on_the_device():
    moments, seconds = torch.tensor([[1.0, 3.0]]), torch.ones(1)
    before = moments.clone(), seconds.clone()
    IoUMapBuilder(GRID)(moments, seconds)
    assert torch.equal(moments, before[0])
    assert torch.equal(seconds, before[1])
    meta = IoUMapBuilder(GRID, validate=False).packed(moments.to("meta"), seconds.to("meta"))
    assert meta.device.type == "meta"
    assert meta.shape == (1, GRID.num_cells)


@pytest.mark.parametrize(
    ("moment", "got"),
    [
        ((3.0, 3.0), "start 3, end 3"),
        ((3.0, 1.0), "start 3, end 1"),
        ((-1.0, 2.0), "start -1, end 2"),
        ((float("nan"), 2.0), "start nan, end 2"),
        ((1.0, float("inf")), "start 1, end inf"),
        ((16.0, 20.0), "start 16, end 20"),
    ],
)
def test_bad_moments_show_the_row(moment, got):
    moments = torch.tensor([[1.0, 2.0], moment])
    text = (
        "IoUMapBuilder: expected 0 <= start < end and start < 16 s, the video's length, "
        f"got {got} in row 1 of moments."
    )
    with refuses(ArgumentError, text):
        IoUMapBuilder(GRID)(moments, torch.tensor([2.0, 2.0]))
    IoUMapBuilder(GRID, validate=False)(moments, torch.tensor([2.0, 2.0]))


def test_moments_are_in_clips_without_clip_seconds():
    build, moments, counts = IoUMapBuilder(GRID), torch.rand(2, 3, 2).cumsum(-1), [3, 1]
    unit, counts = torch.ones(2), torch.tensor(counts)
    assert torch.equal(build.packed(moments), build.packed(moments, unit))
    for one, expected in zip(
        build(moments, num_moments=counts), build(moments, unit, counts), strict=True
    ):
        assert torch.equal(one, expected)
    with refuses(ArgumentError, "start < 8 clips, the video's length, got start 8, end 9 in row 0"):
        build(torch.tensor([[8.0, 9.0]]))


@pytest.mark.parametrize(
    "moments",
    [
        [[2.0, 7.0], [1.0, 3.0]],
        [[[2, 7]], [[1, 3]]],
        torch.tensor([[2, 7], [1, 3]]),
        np.array([[2.0, 7.0], [1.0, 3.0]], dtype=np.float32),
    ],
    ids=["list", "of several", "integers", "numpy"],
)
def test_moments_and_seconds_may_be_lists_and_numbers(moments):
    build = IoUMapBuilder(GRID)
    usual = torch.tensor([[2.0, 7.0], [1.0, 3.0]])
    expected = build.packed(usual, torch.full((2,), 1.5), torch.tensor([1, 1]))
    for seconds, counts in ((1.5, 1), ([1.5, 1.5], [1, 1]), (torch.tensor(1.5), torch.tensor(1))):
        found = build.packed(moments, seconds, counts)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    build.check(moments, 1.5)


def test_one_moment_is_a_batch_of_one():
    build = IoUMapBuilder(GRID)
    expected = build.packed(torch.tensor([[2.0, 7.0]]))
    for one in ([2, 7], (2.0, 7.0), torch.tensor([2.0, 7.0])):
        assert torch.equal(build.packed(one), expected)
    assert [one.shape for one in build([2, 7], 1.5)] == [(1, 8, 4), (1, 4, 4)]


def test_a_number_of_seconds_is_as_exact_as_the_moments():
    build, moments = IoUMapBuilder(GRID), torch.tensor([[0.25, 0.6]], dtype=torch.float64)
    exact = torch.tensor([0.1], dtype=torch.float64)
    assert torch.equal(build.packed(moments, 0.1), build.packed(moments, exact))


def test_other_bad_input_is_refused():
    good = {"moments": torch.tensor([[1.0, 2.0]]), "clip_seconds": torch.ones(1)}
    shape, per_sample = "of shape (B, M, 2), got", "of shape (B) with B = 1, got"
    for name, value, kind, text in (
        ("moments", torch.ones(1, 3), ShapeError, f"{shape} (1, 1, 3). Pass start"),
        ("moments", torch.ones(1, 1), ShapeError, f"{shape} (1, 1, 1)."),
        ("moments", None, ShapeError, f"{shape} NoneType."),
        ("moments", "1, 2", ShapeError, f"{shape} str."),
        ("moments", [[1.0], [2.0, 3.0]], ShapeError, f"{shape} list."),
        ("moments", torch.ones(1, 2).bool(), ArgumentError, "of a floating dtype, got torch.bool."),
        ("clip_seconds", torch.ones(2), ShapeError, f"{per_sample} (2,)."),
        ("clip_seconds", True, ShapeError, f"{per_sample} bool."),
        ("clip_seconds", 0.0, ArgumentError, "[0] > 0 and finite, got 0."),
        ("clip_seconds", torch.nan, ArgumentError, "[0] > 0 and finite, got nan."),
        ("clip_seconds", torch.inf, ArgumentError, "[0] > 0 and finite, got inf."),
        ("num_moments", [1, 1], ShapeError, f"{per_sample} (2,)."),
        ("num_moments", -1, ArgumentError, "[0] in 0 to 1, got -1."),
        ("num_moments", 2, ArgumentError, "[0] in 0 to 1, got 2."),
    ):
        with refuses(kind, f"IoUMapBuilder: expected {name}", text):
            IoUMapBuilder(GRID)(**{**good, name: value})


@quick
@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 4), min_size=1, max_size=8))
def test_temporal_iou_equals_a_plain_formula(rows):
    first = [sorted(row[:2]) for row in rows]
    second = [sorted(row[2:]) for row in rows]
    found = temporal_iou(*(torch.tensor(m, dtype=torch.float64) for m in (first, second)))
    expected = [interval_iou(a, b) for a, b in zip(first, second, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_temporal_iou_broadcasts_and_has_no_nan_for_empty_moments():
    empty = torch.tensor([1.0, 1.0], requires_grad=True)
    assert temporal_iou(empty, empty) == 0
    (gradient,) = torch.autograd.grad(temporal_iou(empty, empty.detach()).sum(), empty)
    assert gradient.isfinite().all()
    assert temporal_iou(torch.rand(3, 1, 2), torch.rand(4, 2)).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_moments_in_small_integers_do_not_overflow(dtype):
    first, others = torch.tensor([0, 100]), torch.tensor([[20, 120], [110, 127]])
    expected = temporal_iou(first, others)
    assert torch.equal(temporal_iou(first.to(dtype), others.to(dtype)), expected)
    counts = torch.tensor([100], dtype=dtype)
    assert int(MapGrid(300, 1, 1).mask(0, num_clips=counts).sum()) == 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_iou_only(dtype):
    seconds, moments = torch.tensor([33.25]).to(dtype), torch.tensor([[4000.0, 4032.0]]).to(dtype)
    found = IoUMapBuilder(MapGrid(128, 16, 1)).packed(moments, seconds)
    exact = IoUMapBuilder(MapGrid(128, 16, 1)).packed(moments.double(), seconds.double())
    assert torch.equal(found, exact.to(dtype))
    long = torch.tensor([[0, 60_000], [10_000, 60_000]]).to(dtype)  # their sum overflows float16
    assert torch.equal(temporal_iou(*long), temporal_iou(*long.double()).to(dtype))


@pytest.mark.parametrize("counted", [False, True])
def test_all_values_are_checked_in_one_wait(counted):
    moments = torch.tensor([[[0.0, 2.0], [1.0, 3.0]]]).expand(3, -1, -1)
    inputs = moments, torch.ones(3), torch.tensor([1, 2, 1]) if counted else None
    with host_syncs() as found:
        expected = IoUMapBuilder(GRID).packed(*inputs)
    assert found == ["_local_scalar_dense"]
    unchecked = IoUMapBuilder(GRID, validate=False)
    with no_host_sync():
        assert unchecked.packed(*inputs).shape == expected.shape
    with on_a_device() as put:
        there = put(inputs)
        with no_host_sync():
            maps = unchecked(*there)
    assert [one.device.type for one in maps] == ["cuda"] * 2
