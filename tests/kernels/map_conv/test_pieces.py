from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close
from helpers.contracts import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff.kernels.map_conv import map_conv, pieces, plan_map_conv
from tmapdiff.kernels.map_conv.costs import ConvSizes

reference = partial(F.conv2d, padding="same")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 3),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(1, 50),
)
def test_joined_pieces_are_the_map(batch, rows, columns, piece, reach, at_once):
    given = []

    def conv(pieces):
        given.append(pieces)
        return pieces

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", piece)
        x = draw(batch, 2, rows, columns)
        assert torch.equal(pieces.convolve(x, reach, at_once, conv), x)
        count = pieces.count(rows)
    assert len(given) == -(-count // at_once)
    assert sum(len(one) for one in given) == batch * count
    assert all(one.shape[1:] == (2, piece + 2 * reach, columns) for one in given)
    # A piece is surrounded by its neighbors' starts, and by zeros beyond the map.
    padded = F.pad(x, (0, 0, reach, reach + piece * count - rows))
    for place, one in enumerate(torch.cat(given).unflatten(0, (count, batch)) if batch else ()):
        assert torch.equal(one, padded[:, :, place * piece : (place + 1) * piece + 2 * reach])


def test_on_a_cpu_the_pieces_at_once_do_not_grow_with_the_map():
    def at_once(batch, channels, rows, columns, device="cpu", planned=True):
        sizes = ConvSizes(batch, channels, 8, rows, columns, 5, torch.float32, device)
        return pieces.at_once(sizes, planned=planned)

    counts = [at_once(2, 64, rows, 8) for rows in (2**12, 2**14, 2**16)]
    assert counts[0] == counts[1] == counts[2] > 1
    assert at_once(1, 1, 300, 1) == at_once(64, 1024, 300, 64, planned=False) == pieces.count(300)
    assert at_once(64, 1024, 300, 64) == 1
    assert at_once(2, 64, 2**14, 8, "cuda") == pieces.count(2**14)
    assert at_once(2, 64, 256, 8) == 0


@pytest.mark.parametrize("backend", ["direct", "spectral"])
@pytest.mark.parametrize("size", [1, 17])
@pytest.mark.parametrize("rows", [9, 31])
@pytest.mark.parametrize("at_once", [{}, {"cpu": 240}], ids=["all at once", "some at once"])
def test_long_maps_are_convolved_as_whole_ones(backend, size, rows, at_once, monkeypatch):
    monkeypatch.setattr(pieces, "LONGEST", 8)
    monkeypatch.setattr(pieces, "PIECE", 5)
    monkeypatch.setattr(pieces, "_AT_ONCE", at_once)
    x, weight, bias = draw(2, 3, rows, 4), draw(5, 3, size, size, seed=1) / size, draw(5, seed=2)
    leaves = [one.requires_grad_() for one in (x, weight, bias)]
    found, expected = map_conv(*leaves, backend=backend), reference(*leaves)
    assert_close(found, expected)
    gradient = draw(*expected.shape, seed=3)
    gradients = [torch.autograd.grad(one, leaves, gradient) for one in (found, expected)]
    for name, got, wanted in zip("xwb", *gradients, strict=True):
        assert_close(got, wanted, what=name)
    plan = plan_map_conv(weight, x.shape, x.dtype, backend=backend)
    with torch.no_grad():
        assert_close(map_conv(*leaves, plan=plan), expected)
        for batch in (0, 1):
            assert_close(map_conv(x[:batch], weight, bias, plan=plan), expected[:batch])


def test_results_of_pieces_keep_the_layout_that_the_next_convolution_reads():
    x, weight = draw(1, 2, 384, 4), draw(2, 2, 3, 3, seed=1)
    found = map_conv(x, weight, backend="spectral")
    assert found.permute(3, 2, 0, 1).is_contiguous()
    assert_close(found, reference(x, weight, None))


@pytest.mark.parametrize("training", [False, True])
def test_the_spectra_of_a_map_twice_as_long_are_twice_as_large(training):
    from peaks import peak_bytes

    weight = draw(4, 4, 17, 17).requires_grad_(training)
    peaks = []
    for rows in (512, 1024):
        x = draw(1, 4, rows, 8)
        run = lambda x=x: map_conv(x, weight, backend="spectral").sum()  # noqa: E731
        run()  # which makes the tables
        peaks.append(peak_bytes(run, torch.device("cpu")))
    assert peaks[1] <= 2.05 * peaks[0]
