import math
import statistics
from collections.abc import Iterator

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw
from torch import Tensor

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.maps import MapGrid
from tmapdiff.maps.contrasts import (
    CHANGES,
    CONTRASTS,
    GEOMETRY,
    REACHES,
    cell_context,
    cell_means,
    change_features,
    change_of,
    contrast_features,
)

# The definition, in loops over rows and candidates.


def smoothed(similarity: list[float], size: int) -> list[float]:
    last = len(similarity) - 1
    smooth = []
    for row in range(len(similarity)):
        near = range(row - size // 2, row + size // 2 + 1)
        smooth.append(statistics.fmean(similarity[min(max(one, 0), last)] for one in near))
    mean, variance = statistics.fmean(smooth), statistics.pvariance(smooth)
    return [(one - mean) / math.sqrt(variance + 1e-12) for one in smooth]


def mean_of(rows: list[float], start: int, end: int) -> float:
    inside = rows[max(start, 0) : end]
    return statistics.fmean(inside) if inside else -0.8


def contrasts_of(
    similarity: list[float], start: int, end: int, sizes: tuple[int, ...]
) -> dict[str, float]:
    rows, length, found = len(similarity), end - start, {}
    fine, middle, coarse = (smoothed(similarity, size) for size in sizes)
    for name, values in (("fine", fine), ("middle", middle)):
        mean = mean_of(values, start, end)
        found[f"{name} mean"] = mean
        for share, reach in (("half", max(1, round(length / 2))), ("full", length)):
            before = mean_of(values, start - reach, start)
            after = mean_of(values, end, end + reach)
            found[f"{name} over {share} before"] = min(mean - before, 3)
            found[f"{name} over {share} after"] = min(mean - after, 3)
    found["fine before"] = mean_of(fine, start - 2, start)
    found["fine after"] = mean_of(fine, end, end + 2)
    found["fine first"] = mean_of(fine, start, min(start + 2, end))
    found["fine last"] = mean_of(fine, max(end - 2, start), end)
    for threshold in (0, 0.25, 0.5, 0.75, 1):
        above = sum(one - threshold for one in middle[start:end])
        found[f"middle above {threshold:g}"] = above / length**0.3
    found["coarse mean"] = mean_of(coarse, start, end)
    found["log length"] = math.log(length)
    found["log length squared"] = math.log(length) ** 2
    found["share of the video"] = length / rows
    found["at start"], found["at end"] = float(start == 0), float(end == rows)
    return found


def expected(
    similarity: Tensor, grid: MapGrid, num_clips: list[int], sizes: tuple[int, ...] = (1, 5, 9)
) -> Tensor:
    batch, count, rows = similarity.shape
    each = rows // grid.num_clips
    table = torch.zeros(batch, count * len(CONTRASTS) + len(GEOMETRY), grid.num_cells).double()
    for sample, clips in enumerate(num_clips):
        own = similarity[sample, :, : clips * each].tolist()
        cell = 0
        for scale, (starts, durations) in enumerate(grid.shapes):
            step = 2**scale
            for i in range(starts):
                for j in range(durations):
                    start, end = i * step * each, (i + j + 1) * step * each
                    if (i + j + 1) * step <= clips // step * step:
                        parts = [contrasts_of(one, start, end, sizes) for one in own]
                        values = [part[name] for name in CONTRASTS for part in parts]
                        values += [parts[0][name] for name in GEOMETRY]
                        table[sample, :, cell] = torch.tensor(values, dtype=torch.float64)
                    cell += 1
    return table


GRIDS = [
    (MapGrid(7, 7, 1), 1, [7, 1, 4]),
    (MapGrid(12, 3, 3), 1, [12, 7, 3]),
    (MapGrid(6, 3, 2), 3, [6, 5, 2]),
]


@pytest.mark.parametrize(("grid", "each", "num_clips"), GRIDS)
def test_contrasts_are_what_loops_find(grid: MapGrid, each: int, num_clips: list[int]) -> None:
    similarity = draw(3, 2, grid.num_clips * each, dtype=torch.float64)
    whole = contrast_features(similarity, grid)
    assert_close(whole, expected(similarity, grid, [grid.num_clips] * 3))
    counts = torch.tensor(num_clips)
    rows = torch.arange(grid.num_clips * each)
    poisoned = similarity.masked_fill((rows >= counts[:, None] * each)[:, None], torch.nan)
    found = contrast_features(poisoned, grid, counts)
    assert_close(found, expected(similarity, grid, num_clips))
    assert_zero(found, ~grid.packed_mask(num_clips=counts)[:, None])


def test_smoothings_are_a_choice() -> None:
    grid, similarity = MapGrid(8, 4, 1), draw(1, 1, 8, dtype=torch.float64)
    found = contrast_features(similarity, grid, smoothings=(3, 7, 1))
    assert_close(found, expected(similarity, grid, [8], (3, 7, 1)))
    assert_close(found[:, CONTRASTS.index("coarse mean")], expected(similarity, grid, [8])[:, 0])


def test_gradients_are_those_of_finite_differences() -> None:
    grid, counts = MapGrid(8, 3, 2), torch.tensor([8, 5])
    similarity = draw(2, 2, 16, dtype=torch.float64).requires_grad_()
    for num_clips in (None, counts):
        call = lambda x, n=num_clips: contrast_features(x, grid, n)  # noqa: E731
        torch.autograd.gradcheck(call, similarity, fast_mode=True)
        torch.autograd.gradgradcheck(call, similarity, fast_mode=True)
    poisoned = similarity.detach().clone()
    poisoned[1, :, 10:] = torch.nan
    poisoned.requires_grad_()
    contrast_features(poisoned, grid, counts).square().sum().backward()
    assert bool(poisoned.grad.isfinite().all())
    assert_zero(poisoned.grad[1, :, 10:], torch.tensor(True))


def test_a_similarity_that_is_the_same_everywhere_contrasts_nowhere() -> None:
    grid = MapGrid(4, 2, 1)
    similarity = torch.full((1, 1, 4), 0.3, requires_grad=True)
    found = contrast_features(similarity, grid)
    assert_close(found[0, CONTRASTS.index("fine mean")], torch.zeros(8))
    found.sum().backward()
    assert bool(similarity.grad.isfinite().all())


def cells_of(grid: MapGrid, counts: Tensor, each: int) -> Iterator[tuple[int, ...]]:
    """Each sample with its rows, and its valid cells with their first row and that after."""
    for sample, mask in enumerate(grid.packed_mask(num_clips=counts)):
        for cell in mask.nonzero()[:, 0].tolist():
            start, end = (grid.packed_moments()[cell] * each).tolist()
            yield sample, int(counts[sample]) * each, cell, start, end


def poisoned_rows(grid: MapGrid, counts: Tensor, each: int) -> Tensor:
    """Rows of videos, with NaN after their ends."""
    rows = draw(len(counts), grid.num_clips * each, 3, dtype=torch.float64)
    after = torch.arange(rows.shape[1]) >= counts[:, None] * each
    return rows.masked_fill(after[..., None], torch.nan)


@pytest.mark.parametrize(("grid", "each", "num_clips"), GRIDS)
def test_cell_means_are_means_of_slices(grid: MapGrid, each: int, num_clips: list[int]) -> None:
    whole = torch.full((3,), grid.num_clips)
    for counts, given in ((whole, None), (torch.tensor(num_clips),) * 2):
        rows = poisoned_rows(grid, counts, each)
        found = cell_means(rows, grid, given)
        for sample, _, cell, start, end in cells_of(grid, counts, each):
            assert_close(found[sample, :, cell], rows[sample, start:end].mean(0))
        assert_zero(found, ~grid.packed_mask(num_clips=counts)[:, None])


def test_half_precision_is_computed_in_more() -> None:
    grid, similarity = MapGrid(8, 4, 2), draw(2, 1, 8, dtype=torch.float16)
    found = contrast_features(similarity, grid)
    assert found.dtype == torch.float16
    assert_same(found, contrast_features(similarity.float(), grid).half())


def test_what_does_not_fit_is_refused() -> None:
    similarity = draw(1, 1, 8)
    for changes, kind, text in (
        ({"similarity": draw(8, 3)}, ShapeError, "similarity of shape (B, S, T), got (8, 3)."),
        ({"similarity": draw(1, 1, 12)}, ShapeError, "a multiple of the grid's 8 clips, got 12."),
        ({"similarity": similarity.long()}, ArgumentError, "similarity of a floating dtype"),
        ({"smoothings": (1, 4, 9)}, ConfigError, "odd smoothings, got 4."),
        ({"smoothings": (1, 5)}, ShapeError, "smoothings to be a list of 3, got 2."),
        ({"num_clips": torch.tensor([8, 8])}, ShapeError, "num_clips of shape (B) with B = 1"),
    ):
        with refuses(kind, text):
            contrast_features(**{"similarity": similarity, "grid": MapGrid(8, 4, 2), **changes})
    with refuses(ShapeError, "cell_means: expected rows of shape (B, T, D), got (8, 3)."):
        cell_means(draw(8, 3), MapGrid(8, 4, 2))


@pytest.mark.parametrize("each", [1, 2])
def test_context_is_means_inside_at_the_ends_and_around(each: int) -> None:
    grid, counts = MapGrid(8, 3, 2), torch.tensor([8, 5])
    rows = poisoned_rows(grid, counts, each)
    found = cell_context(rows, grid, counts)
    assert found.shape == (2, 15, grid.num_cells)
    assert_zero(found, ~grid.packed_mask(num_clips=counts)[:, None])
    for sample, count, cell, start, end in cells_of(grid, counts, each):
        length = end - start
        ranges = [(start, end), (start, min(start + 2, end)), (max(end - 2, start), end)]
        ranges += [(max(start - length, 0), start), (end, min(end + length, count))]
        parts = [
            rows[sample, one:other].mean(0) if other > one else torch.zeros(3).double()
            for one, other in ranges
        ]
        assert_close(found[sample, :, cell], torch.cat(parts))


@pytest.mark.parametrize("each", [1, 2])
def test_changes_at_the_ends_and_inside(each: int) -> None:
    grid, counts = MapGrid(8, 3, 2), torch.tensor([8, 5])
    rows = poisoned_rows(grid, counts, each)
    found = change_features(rows, grid, counts)
    assert found.shape == (2, len(CHANGES), grid.num_cells)
    assert_zero(found, ~grid.packed_mask(num_clips=counts)[:, None])
    for sample, count, cell, start, end in cells_of(grid, counts, each):
        for place, reach in enumerate(REACHES):
            own, inside = rows[sample : sample + 1, :count], torch.ones(1, 1, count).bool()
            change = change_of(own, reach, inside)[0, 0]
            change = (change - change.mean()) / (change.var(correction=0) + 1e-12).sqrt()
            expected = [
                float(change[start]) if start else 0.0,
                float(change[end]) if end < count else 0.0,
                float(change[start + 1 : end].sum()) / (end - start),
            ]
            own_changes = found[sample, place :: len(REACHES), cell]
            assert_close(own_changes, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reach", [1, 3, 20])
def test_a_change_compares_the_rows_before_with_those_from_here_on(reach: int) -> None:
    counts = torch.tensor([9, 6])
    inside = torch.arange(9) < counts[:, None]
    rows = draw(2, 9, 4, dtype=torch.float64) * inside[..., None]
    found = change_of(rows, reach, inside[:, None])
    for sample, count in enumerate(counts.tolist()):
        own = rows[sample, :count]
        expected = [0.0]
        for row in range(1, count):
            before, after = own[max(0, row - reach) : row].mean(0), own[row : row + reach].mean(0)
            expected.append(1 - float(before @ after / before.norm() / after.norm()))
        assert_close(found[sample, 0, :count], torch.tensor(expected, dtype=torch.float64))
        assert not found[sample, 0, count:].any()
