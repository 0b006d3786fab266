import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same
from helpers.contracts import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff.kernels.map_conv.transforms import MapTransform, _forward_tables

F64 = torch.float64


@st.composite
def transforms(generate: st.DrawFn) -> MapTransform:
    rows = generate(st.integers(1, 14))
    tile = generate(st.integers(1, rows))
    return MapTransform(
        rows, generate(st.integers(1, 6)), generate(st.sampled_from([1, 3, 5, 9, 17])), tile
    )


def frequencies(transform: MapTransform) -> list[tuple[int, int]]:
    """Frequency along starts and durations, in the order of the spectra."""
    starts, durations = transform.period
    edge = [(one, two) for two in (0, durations // 2) for one in range(starts // 2 + 1)]
    middle = [(one, two) for two in range(1, durations // 2) for one in range(starts)]
    return edge + middle


@settings(deadline=None, max_examples=30)
@given(transforms())
def test_forward_is_numpys(transform: MapTransform) -> None:
    maps = draw(transform.columns, transform.rows, 2, 1, dtype=F64)
    found = transform.forward(maps)
    assert found.shape == (transform.num_frequencies, 2, transform.num_tiles, 2, 1)
    starts, durations = transform.period
    reach = transform.kernel_size // 2
    for tile in range(transform.num_tiles):
        circular = np.zeros((starts, durations, 2))
        for row in range(transform.rows):
            position = row - tile * transform.tile
            if -reach <= position < transform.tile + reach:
                circular[position % starts, : transform.columns] = maps[:, row, :, 0].numpy()
        spectrum = np.fft.fft2(circular, axes=(0, 1)) / np.sqrt(starts * durations)
        expected = np.stack([spectrum[one] for one in frequencies(transform)])
        parts = torch.stack([torch.tensor(expected.real), torch.tensor(expected.imag)], dim=1)
        assert_close(found[:, :, tile, :, 0], parts)


@settings(deadline=None, max_examples=50)
@given(transforms(), st.integers(0, 3))
def test_products_are_convolutions(transform: MapTransform, batch: int) -> None:
    x = draw(batch, 2, transform.rows, transform.columns, dtype=F64)
    weight = draw(3, 2, transform.kernel_size, transform.kernel_size, seed=1, dtype=F64)
    spectra, kernel = transform.forward(x.permute(3, 2, 0, 1)), transform.kernel(weight)
    spectra, kernel = torch.complex(*spectra.unbind(1)), torch.complex(*kernel.unbind(1))
    product = torch.einsum("ftbc,fcd->ftbd", spectra, kernel)
    found = transform.inverse(torch.stack([product.real, product.imag], dim=1))
    expected = F.conv2d(x, weight, padding=transform.kernel_size // 2)
    assert_close(found.permute(2, 3, 1, 0), expected)


@settings(deadline=None, max_examples=30)
@given(transforms())
def test_adjoints_are_adjoint(transform: MapTransform) -> None:
    maps = draw(transform.columns, transform.rows, 2, 3, dtype=F64)
    weight = draw(3, 2, transform.kernel_size, transform.kernel_size, seed=1, dtype=F64)
    spectra, kernel = transform.forward(maps), transform.kernel(weight)
    other, kernels = draw(*spectra.shape, seed=2, dtype=F64), draw(*kernel.shape, seed=3, dtype=F64)
    for forth, back in (
        (spectra * other, maps * transform.forward_adjoint(other)),
        (kernel * kernels, weight * transform.kernel_adjoint(*kernels.unbind(1))),
        (transform.inverse(other) * maps, other * transform.inverse_adjoint(maps)),
    ):
        assert float(forth.sum()) == pytest.approx(float(back.sum()), rel=1e-9, abs=1e-9)


def test_rotated_planes_are_the_spectra_times_i_and_over_i() -> None:
    transform = MapTransform(7, 3, 5, 3)
    maps = draw(3, 7, 2, 4)
    plain, rotated = transform.forward(maps), transform.forward(maps, rotated=True)
    assert_same(rotated[:, 1:], plain)
    assert_same(rotated[:, 0], -plain[:, 1])
    plain = transform.inverse_adjoint(maps)
    rotated = transform.inverse_adjoint(maps, rotated=True)
    assert_same(rotated[:, :2], plain)
    assert_same(rotated[:, 2], -plain[:, 0])


def test_the_scale_is_that_of_constant_maps() -> None:
    transform = MapTransform(7, 3, 5, 3)
    spectra = torch.zeros(transform.num_frequencies, 2, transform.num_tiles, 1, 1, dtype=F64)
    spectra[0, 0] = 1
    assert_close(transform.inverse(spectra), torch.full((3, 7, 1, 1), transform.scale, dtype=F64))


def test_tables_stay_where_they_are() -> None:
    """CUDA graphs keep reading them, however many other maps come in between."""

    def tables(columns: int) -> int:
        found = _forward_tables(MapTransform(2, columns, 3, 2), False, F64, torch.device("cpu"))
        return found.middle.data_ptr()

    places = [tables(columns) for columns in range(1, 201)]
    assert [tables(columns) for columns in range(1, 201)] == places
