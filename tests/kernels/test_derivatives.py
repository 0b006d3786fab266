"""Derivatives beyond hand-written gradients, of every operation and backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw, triangle
from helpers.kernels import DEVICE, OPERATIONS, made
from torch import Tensor
from torch.autograd import forward_ad

from tmapdiff.errors import ConfigError
from tmapdiff.kernels import map_conv as map_conv_package
from tmapdiff.kernels._derivatives import gradients_of, with_second_gradient
from tmapdiff.kernels._launch import why_not_triton
from tmapdiff.kernels.map_conv import KernelSpectra, map_conv, plan_map_conv

F64 = torch.float64
MASK = triangle(7, 5)
MASKS = torch.stack([MASK, MASK.flip(0)])


CASES = [
    pytest.param(
        name, backend, mask, marks=[pytest.mark.interpreter] if backend == "triton" else []
    )
    for name, operation in OPERATIONS.items()
    for backend in operation.backends
    for mask in (("none", "shared", "batched") if operation.masked else ("none",))
    if (backend, mask) != ("eager", "batched") or name != "add_styled"
]


def called(name: str, backend: str | None, mask: str) -> Callable[..., Tensor]:
    """The operation as a function of its inputs."""
    operation = OPERATIONS[name]
    options: dict[str, Any] = {"backend": backend}
    if operation.masked:
        options["mask"] = {"none": None, "shared": MASK, "batched": MASKS}[mask]

    def call(*values: Tensor) -> Tensor:
        own = {
            n: m.to(values[0].device) if isinstance(m, Tensor) else m for n, m in options.items()
        }
        return operation.call(**dict(zip(operation.inputs, values, strict=True)), **own)

    return call


def second_gradients(
    call: Callable[..., Tensor], values: list[Tensor], wanted: list[bool], spoil: Tensor | None
) -> list[Tensor]:
    """Gradients of a penalty on the gradients of the wanted inputs, with respect to these.

    The gradient of the result is constant, with NaN where `spoil`.
    """
    leaves = [one.detach().requires_grad_(want) for one, want in zip(values, wanted, strict=True)]
    chosen = [one for one in leaves if one.requires_grad]
    result = call(*leaves)
    upper = draw(*result.shape, seed=9, dtype=result.dtype).to(result.device)
    if spoil is not None:
        upper = upper.masked_fill(spoil, torch.nan)
    first = torch.autograd.grad(result, chosen, upper, create_graph=True)
    penalty = sum(
        (one * draw(*one.shape, seed=20 + seed, dtype=one.dtype).to(one.device)).sum()
        + one.square().sum()
        for seed, one in enumerate(first)
    )
    if not penalty.requires_grad:  # linear operations
        return [torch.zeros_like(one) for one in chosen]
    return list(torch.autograd.grad(penalty, chosen, materialize_grads=True))


@pytest.mark.parametrize(("name", "backend", "mask"), CASES)
def test_second_gradients_are_those_of_the_definition(name: str, backend: str, mask: str) -> None:
    operation = OPERATIONS[name]
    device = "cpu"
    dtype = F64
    if backend == "triton":
        pytest.importorskip("triton")
        dtype, device = torch.float32, DEVICE
    inputs = [one.to(device, dtype) for one in made(name).values()]
    exact = [one.double().cpu() for one in inputs]
    invalid = None
    if mask != "none":
        invalid = ~(MASK if mask == "shared" else MASKS).unsqueeze(-3)
        # Invalid cells do not matter, even if they hold NaN.
        inputs[0] = inputs[0].detach().masked_fill(invalid.to(device), torch.nan)
    every = [True] * len(inputs)
    for wanted in (
        every,
        *([one == only for one in operation.inputs] for only in operation.inputs),
    ):
        expected = second_gradients(
            called(name, operation.backends[0], mask), exact, wanted, spoil=None
        )
        spoil = None if invalid is None else invalid.to(device)
        found = second_gradients(called(name, backend, mask), inputs, wanted, spoil)
        for one, other in zip(found, expected, strict=True):
            assert_close(one.cpu(), other.to(dtype), what=f"{wanted}")
        if invalid is not None and wanted[0]:
            assert_zero(found[0].cpu(), invalid)


@pytest.mark.parametrize(
    ("name", "backend", "mask"), [case for case in CASES if case.values[1] != "triton"]
)
def test_second_gradients_are_those_of_finite_differences(
    name: str, backend: str, mask: str
) -> None:
    call, values = called(name, backend, mask), list(made(name).values())
    torch.autograd.gradgradcheck(call, values, fast_mode=True)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("tile", [16, 5])
def test_a_spectral_convolution_can_be_differentiated_three_times(kept: bool, tile: int) -> None:
    spectral = map_conv_package.spectral
    convolve = spectral.spectral_map_conv_keeping if kept else spectral.spectral_map_conv
    values = [
        one.requires_grad_() for one in (draw(2, 2, 9, 4, dtype=F64), draw(3, 2, 5, 5, dtype=F64))
    ]

    def slopes(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        result = convolve(x, weight, None, tile)
        return torch.autograd.grad(result.sin().sum(), (x, weight), create_graph=True)

    torch.autograd.gradgradcheck(slopes, values, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_second_gradients_of_half_precision_are_close(dtype: torch.dtype) -> None:
    values = [one.to(dtype) for one in made("map_conv").values()]
    wanted = [True] * len(values)
    found = second_gradients(called("map_conv", "spectral", "none"), values, wanted, None)
    exact = [one.double() for one in values]
    expected = second_gradients(called("map_conv", "direct", "none"), exact, wanted, None)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, dtype)


# torch.func, and forward mode


DEFAULTS = [
    (name, mask)
    for name, operation in OPERATIONS.items()
    for mask in (("none", "shared", "batched") if operation.masked else ("none",))
    if name != "map_conv of long maps"  # direct, like short ones
]


@pytest.fixture
def fast_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use fast implementations wherever they can run, as for large maps."""
    monkeypatch.setattr("tmapdiff.kernels.gate._FEW", 0)
    monkeypatch.setattr("tmapdiff.kernels.gate._FEW_WITH_GRADIENT", 0)
    monkeypatch.setattr(map_conv_package, "_candidates", lambda *_: ["spectral"])


def weighted(call: Callable[..., Tensor], *values: Tensor) -> Callable[..., Tensor]:
    """The weighted sum of an operation's result."""
    with torch.no_grad():
        result = call(*values)
    upper = draw(*result.shape, seed=9, dtype=result.dtype)
    return lambda *values: (call(*values) * upper).sum()


@pytest.mark.usefixtures("fast_forms")
@pytest.mark.parametrize(("name", "mask"), DEFAULTS)
def test_torch_func_equals_autograd(name: str, mask: str) -> None:
    values = list(made(name).values())
    plain = [one.detach() for one in values]
    call, places = called(name, None, mask), tuple(range(len(values)))
    along = tuple(draw(*one.shape, seed=30, dtype=one.dtype) for one in plain)
    # First, so that no cached table belongs to the transform.
    jacobian = torch.func.jacrev(call)(*plain)
    total = weighted(call, *plain)
    found = torch.func.grad(total, argnums=places)(*plain)
    _, forward = torch.func.jvp(total, tuple(plain), along)
    expected = torch.autograd.grad(total(*values), values)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    slope = torch.stack([(one * way).sum() for one, way in zip(expected, along, strict=True)]).sum()
    assert_close(forward, slope)
    upper = draw(*call(*plain).shape, seed=9, dtype=F64)
    assert_close(torch.tensordot(upper, jacobian, dims=upper.dim()), expected[0])
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(one, way) for one, way in zip(plain, along, strict=True)]
        assert_close(forward_ad.unpack_dual(total(*duals)).tangent, slope)


@pytest.mark.usefixtures("fast_forms")
@pytest.mark.parametrize(("name", "mask"), DEFAULTS)
def test_vmap_equals_a_loop(name: str, mask: str) -> None:
    plain = [one.detach() for one in made(name).values()]
    stacked = [torch.stack([one, one.flip(0)]) for one in plain]
    call, places = called(name, None, mask), tuple(range(len(plain)))
    found = torch.func.vmap(call)(*stacked)
    total = weighted(call, *plain)
    gradients = torch.func.vmap(torch.func.grad(total, argnums=places))(*stacked)
    for row in range(2):
        own = [one[row].clone().requires_grad_() for one in stacked]
        assert_close(found[row], call(*own).detach())
        expected = torch.autograd.grad(total(*own), own)
        for one, other in zip(gradients, expected, strict=True):
            assert_close(one[row], other)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for name, operation in OPERATIONS.items()
        for backend in operation.backends[1:]
        if backend != "triton" or why_not_triton(torch.zeros(1, device=DEVICE)) is None
    ],
)
def test_fast_forms_refuse_what_torch_func_transforms(name: str, backend: str) -> None:
    plain = [one.detach().float() for one in made(name).values()]
    text = f"inputs that backend {backend!r} supports, got others: torch.func or forward-mode"
    with refuses(ConfigError, text):
        torch.func.vmap(called(name, backend, "none"))(*(one[None] for one in plain))
    with forward_ad.dual_level():
        plain[-1] = forward_ad.make_dual(plain[-1], plain[-1])
        with refuses(ConfigError, text):
            called(name, backend, "none")(*plain)
    assert called(name, backend, "none")(*plain).isfinite().all()


def test_plans_give_way_to_derivatives() -> None:
    leaves = tuple(made("map_conv").values())
    plain = tuple(one.detach() for one in leaves)
    plan = plan_map_conv(plain[1], plain[0].shape, F64, backend="spectral")
    total = weighted(lambda *values: map_conv(*values, plan=plan), *plain)
    unplanned = weighted(map_conv, *plain)
    for one, other in zip(
        torch.autograd.grad(total(*leaves), leaves),
        torch.autograd.grad(unplanned(*leaves), leaves),
        strict=True,
    ):
        assert_close(one, other)
    with torch.no_grad():  # which forward mode ignores
        found = torch.func.jvp(total, plain, plain)[1]
        assert_close(found, torch.func.jvp(unplanned, plain, plain)[1])


def test_spectra_are_not_kept_from_within_a_transform() -> None:
    x, weight, _ = (one.detach() for one in made("map_conv").values())
    spectra = KernelSpectra()

    def planned(weight: Tensor) -> Tensor:
        plan = plan_map_conv(weight, x.shape, x.dtype, spectra=spectra)
        return map_conv(x, weight, plan=plan)

    with torch.no_grad():
        found = torch.func.vmap(planned)(torch.stack([weight, 2 * weight]))
    for one, factor in zip(found, (1, 2), strict=True):
        assert_close(one, map_conv(x, factor * weight))
    assert_close(planned(weight), map_conv(x, weight).detach())


# Helpers


def test_inputs_may_depend_on_each_other() -> None:
    x = draw(3, dtype=F64).requires_grad_()
    y = x.sin()
    found = gradients_of(
        lambda x, y, _: x * y, (x, y, None), (True, True, False), torch.ones_like(x)
    )
    assert_same(found[0].detach(), y.detach())
    assert_same(found[1].detach(), x.detach())
    assert found[2] is None
    (second,) = torch.autograd.grad(found[0].sum(), x)
    assert_close(second, x.detach().cos())


def test_a_gradient_that_is_enough_once_is_torchs_own() -> None:
    x = draw(3, dtype=F64).requires_grad_()
    calls = []

    def definition(x: Tensor) -> Tensor:
        calls.append(x)
        return x.sin()

    result = with_second_gradient(x.sin(), definition, x)
    torch.autograd.grad(result.sum(), x, retain_graph=True)
    assert not calls
    (slope,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    assert len(calls) == 1
    assert_close(torch.autograd.grad(slope.sum(), x)[0], -x.detach().sin())
    assert with_second_gradient(x.detach(), definition, x).grad_fn is None
