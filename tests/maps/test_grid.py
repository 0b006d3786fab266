import copy
import pickle

import pytest
import torch
from helpers.assertions import refuses
from helpers.host_sync import no_host_sync, on_a_device
from helpers.oracles import cell_moment, cells, interval_iou
from helpers.strategies import grids, moments_in
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import MapGrid, MultiScaleMapSampler
from tmapdiff.errors import ArgumentError, ConfigError, ShapeError

quick = settings(max_examples=40, deadline=None)


@quick
@given(grids())
def test_cells_equal_a_double_loop(grid):
    expected = cells(grid.num_clips, grid.num_anchors, grid.num_scales)
    assert grid.num_cells == len(expected) == sum(grid.cells_per_scale)
    assert grid.packed_mask().tolist() == [valid for *_, valid in expected]
    assert grid.packed_moments().tolist() == [list(cell_moment(*cell[:3])) for cell in expected]
    for scale in range(grid.num_scales):
        assert grid.mask(scale).shape == grid.shape(scale) == grid.shapes[scale]
        assert grid.moments(scale).shape == (*grid.shape(scale), 2)


@quick
@given(grids(), st.integers(0, 3))
def test_unpack_undoes_pack(grid, batch):
    maps = [torch.randn(batch, *shape) for shape in grid.shapes]
    packed = grid.pack(maps)
    assert packed.shape == (batch, grid.num_cells)
    for one, again in zip(maps, grid.unpack(packed), strict=True):
        assert torch.equal(one, again)


def test_unpacked_maps_are_views():
    grid = MapGrid(8, 4, 2)
    packed = torch.zeros(2, grid.num_cells)
    grid.unpack(packed)[1][:] = 1
    assert packed.sum() == 2 * 4 * 4
    transposed = torch.randn(grid.num_cells, 2).T
    assert torch.equal(grid.pack(grid.unpack(transposed)), transposed)


@quick
@given(grids(), st.data())
def test_best_iou_equals_brute_force(grid, data):
    clip_seconds = data.draw(st.floats(0.1, 3))
    moment = data.draw(moments_in(grid.num_clips * clip_seconds))
    ious = {
        cell[:3]: interval_iou([clip_seconds * t for t in cell_moment(*cell[:3])], moment)
        for cell in cells(grid.num_clips, grid.num_anchors, grid.num_scales)
        if cell[3]
    }
    assert grid.best_iou(moment, clip_seconds) == pytest.approx(max(ious.values()))


def test_grid_is_a_value():
    grid = MapGrid(8, 4, 2)
    assert grid == MapGrid(8, 4, 2) != MapGrid(8, 4, 1)
    assert hash(grid) == hash(copy.deepcopy(grid))
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert repr(grid) == "MapGrid(num_clips=8, num_anchors=4, num_scales=2)"
    with pytest.raises(AttributeError):
        grid.num_clips = 16


def test_masks_and_moments_go_to_the_device():
    grid = MapGrid(8, 4, 2)
    for tensor in (grid.packed_mask("meta"), grid.packed_moments("meta"), grid.dense_mask("meta")):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize(
    ("clips", "nearest"), [(65, 64), (63, 64), (66, 64), (67, 68), (2, 4), (1, 4)]
)
def test_clips_that_do_not_divide_name_the_nearest_that_do(clips, nearest):
    expected = f"num_clips divisible by 2**(num_scales - 1) = 4, got {clips}."
    with refuses(ConfigError, f"expected {expected} The nearest valid value is {nearest}."):
        MapGrid(clips, 1, 3)


@pytest.mark.parametrize(
    ("sizes", "kind", "text"),
    [
        ((0, 2, 2), ArgumentError, "num_clips to be an integer >= 1, got 0."),
        ((8, 0, 2), ArgumentError, "num_anchors to be an integer >= 1, got 0."),
        ((8, 2, 0), ArgumentError, "num_scales to be an integer >= 1, got 0."),
        ((8, 3, 3), ConfigError, "num_anchors <= 2, the clips of the coarsest scale, got 3."),
        ((10**9, 16, 1), ConfigError, "at most 33,554,432 cells, got 16,000,000,000"),
        ((4, 1, 10**12), ConfigError, "num_scales <= 32, got 1000000000000."),
    ],
)
def test_sizes_that_make_no_grid_are_refused(sizes, kind, text):
    with refuses(kind, f"MapGrid: expected {text}"):
        MapGrid(*sizes)


def test_bad_arguments_are_refused():
    grid, uneven = MapGrid(8, 4, 2), [torch.zeros(1, 8, 4), torch.zeros(2, 4, 4)]
    for call, kind, text in (
        (lambda: grid.mask(2), ArgumentError, ": expected scale in 0 to 1, got 2."),
        (lambda: grid.pack(uneven[:1]), ShapeError, ".pack: expected maps to be a list of 2"),
        (lambda: grid.pack(uneven), ShapeError, ".pack: expected maps[1] of shape (B, 4, 4)"),
        (lambda: grid.unpack(uneven[0]), ShapeError, ".unpack: expected packed of shape (B, 48)"),
        (lambda: grid.best_iou((1, 2, 3)), ShapeError, ".best_iou: expected moment of shape (2)"),
        (lambda: grid.best_iou((1, 2), 0), ArgumentError, ".best_iou: expected clip_seconds"),
        (lambda: grid.mask(0, num_clips=uneven[0]), ShapeError, ".mask: expected num_clips"),
        (lambda: grid.resized(9), ConfigError, ": expected num_clips divisible by"),
    ):
        with refuses(kind, f"MapGrid{text}"):
            call()
    for moment in ((2, 2), (3, 1), (0, float("nan")), (0, float("inf"))):
        with refuses(ArgumentError, "MapGrid.best_iou: expected a finite moment with end > start"):
            grid.best_iou(moment)


@quick
@given(grids(), st.data())
def test_cells_of_shorter_videos_end_inside_them(grid, data):
    counts = data.draw(st.lists(st.integers(1, grid.num_clips), min_size=1, max_size=4))
    num_clips = torch.tensor(counts)
    packed = grid.packed_mask(num_clips=num_clips)
    ends = grid.packed_moments()[:, 1]
    assert packed.shape == (len(counts), grid.num_cells)
    for row, count in enumerate(counts):
        assert torch.equal(packed[row], ends <= count)
        dense = torch.zeros(grid.num_clips, grid.num_clips, dtype=torch.bool)
        for (start, end), valid in zip(grid.packed_moments().tolist(), packed[row], strict=True):
            if valid:
                dense[start, end - start - 1] = True
        assert torch.equal(grid.dense_mask(num_clips=num_clips)[row], dense)
    whole = torch.full((2,), grid.num_clips)
    assert torch.equal(grid.packed_mask(num_clips=whole)[1], grid.packed_mask())


@quick
@given(grids())
def test_valid_cells_are_those_of_the_mask(grid):
    assert grid.valid_cells() == grid.packed_mask().nonzero()[:, 0].tolist()
    parts = [grid.valid_cells([scale]) for scale in range(grid.num_scales)]
    assert [cell for part in parts for cell in part] == grid.valid_cells()


def test_resized_keeps_durations_and_scales():
    grid = MapGrid(8, 2, 3)
    assert grid.resized(8) is grid
    assert grid.resized(16) == MapGrid(16, 2, 3)


USES_OF_CLIPS = {
    "mask": lambda grid, clips: grid.mask(1, num_clips=clips),
    "packed_mask": lambda grid, clips: grid.packed_mask(num_clips=clips),
    "dense_mask": lambda grid, clips: grid.dense_mask(num_clips=clips),
    "merge": lambda grid, clips: MultiScaleMapSampler(grid).merge(
        grid.unpack(torch.zeros(len(clips), grid.num_cells)), clips
    ),
    "merge_packed": lambda grid, clips: MultiScaleMapSampler(grid).merge_packed(
        torch.zeros(len(clips), grid.num_cells), clips
    ),
}


@pytest.mark.parametrize("use", USES_OF_CLIPS)
def test_videos_have_a_clip_and_not_more_than_the_grid(use):
    grid = MapGrid(20, 4, 2)
    for fine in ([20, 1], [7, 20], []):
        USES_OF_CLIPS[use](grid, torch.tensor(fine, dtype=torch.int64))
    for wrong, got in ((0, "0"), (40, "40"), (21, "21"), (-1, "-1")):
        with refuses(ArgumentError, f"expected num_clips[1] in 1 to 20, got {got}."):
            USES_OF_CLIPS[use](grid, torch.tensor([20, wrong]))
    for dtype in (torch.float32, torch.bool):
        with refuses(ArgumentError, f"expected integer num_clips, got {dtype}."):
            USES_OF_CLIPS[use](grid, torch.ones(2, dtype=dtype))


def test_clips_on_a_device_are_read_on_request_only():
    grid = MapGrid(20, 4, 2)
    with on_a_device() as put:
        clips = put(torch.tensor([20, 40]))
        with no_host_sync():
            grid.packed_mask(num_clips=clips)
            grid.check_num_clips(clips)
        with pytest.raises(pytest.fail.Exception, match="waits for the device"), no_host_sync():
            grid.check_num_clips(clips, wait=True)
