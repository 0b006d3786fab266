"""Gradients with saved spectra, against gradients with recomputed spectra."""

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same
from helpers.contracts import draw
from torch import Tensor

from tmapdiff.kernels import map_conv as package
from tmapdiff.kernels.map_conv import map_conv
from tmapdiff.kernels.map_conv.spectral import spectral_map_conv, spectral_map_conv_keeping

NAMES = ("x", "weight", "bias")


def made() -> dict[str, Tensor]:
    return {"x": draw(2, 3, 10, 6), "weight": draw(13, 3, 5, 5, seed=1), "bias": draw(13, seed=2)}


@pytest.mark.parametrize("wanted", [NAMES, *((name,) for name in NAMES), ("x", "bias")])
@pytest.mark.parametrize("tile", [10, 4])
def test_changes_no_bit(wanted: tuple[str, ...], tile: int, aligned: bool) -> None:
    results = []
    for convolve in (spectral_map_conv, spectral_map_conv_keeping):
        given = {n: one.requires_grad_(n in wanted) for n, one in made().items()}
        result = convolve(*given.values(), tile)
        gradients = torch.autograd.grad(
            result, [given[name] for name in wanted], draw(*result.shape, seed=3)
        )
        results.append([result.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        assert_same(one, other)
    assert results[0][0].stride(3) == 10 * 2 * (16 if aligned else 13)  # durations outermost
    if wanted == NAMES:
        exact = [one.double().requires_grad_() for one in made().values()]
        expected = F.conv2d(*exact, padding=2)
        gradients = torch.autograd.grad(expected, exact, draw(*expected.shape, seed=3).double())
        for one, other in zip(results[0], (expected.detach(), *gradients), strict=True):
            assert_close(one, other)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("aligned")
def test_torch_knows_the_operation() -> None:
    leaves = [one.requires_grad_() for one in made().values()]
    torch.library.opcheck(spectral_map_conv, (*leaves, 4))


def test_keeps_what_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def keeps(**changes: Tensor) -> bool:
        given = {n: one.requires_grad_() for n, one in {**made(), **changes}.items()}
        result = map_conv(*given.values(), backend="spectral")
        return "Keeping" in type(result.grad_fn).__name__

    assert keeps()
    with torch.no_grad():
        assert map_conv(*made().values(), backend="spectral").grad_fn is None
    # At least as many numbers as the maps of 2 x 3 x 10 x 6.
    monkeypatch.setattr(package, "_MOST_KEPT", 3 * 2 * 3 * 10 * 6 // 2)
    assert not keeps()


@pytest.mark.compile
def test_compiled_code_makes_them_again() -> None:
    torch._dynamo.reset()
    given = [one.requires_grad_() for one in made().values()]
    expected = map_conv(*given, backend="spectral")
    compiled = torch.compile(map_conv, backend="aot_eager", fullgraph=True)
    found = compiled(*given, backend="spectral")
    assert_same(found.detach(), expected.detach())
    upper = draw(*expected.shape, seed=3)
    pairs = zip(
        torch.autograd.grad(found, given, upper),
        torch.autograd.grad(expected, given, upper),
        strict=True,
    )
    for one, other in pairs:
        assert_same(one, other)
