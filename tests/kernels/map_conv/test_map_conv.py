import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import draw
from helpers.kernels import DEVICE
from helpers.threads import at_once
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tmapdiff.errors import ConfigError, ShapeError
from tmapdiff.kernels import _alignment
from tmapdiff.kernels.map_conv import KernelSpectra, MapConvPlan, map_conv, plan_map_conv
from tmapdiff.kernels.map_conv import spectral as spectral_module
from tmapdiff.kernels.map_conv.costs import ConvSizes, best_transform
from tmapdiff.kernels.map_conv.spectral import spectral_map_conv
from tmapdiff.kernels.map_conv.transforms import MapTransform

F64 = torch.float64
BACKENDS = ["direct", "spectral"]
FUSED = pytest.param("fused", marks=pytest.mark.interpreter)


def inputs(
    batch: int = 2,
    rows: int = 9,
    columns: int = 4,
    size: int = 5,
    dtype: torch.dtype = F64,
    out_channels: int = 5,
) -> list[Tensor]:
    x = draw(batch, 3, rows, columns, dtype=dtype)
    weight = draw(out_channels, 3, size, size, seed=1) / size
    return [x, weight.to(dtype), draw(out_channels, seed=2, dtype=dtype)]


def with_gradients(function, values: list[Tensor], gradient: Tensor) -> dict[str, Tensor]:
    leaves = [value.detach().clone().requires_grad_() for value in values]
    result = function(*leaves)
    names = [f"gradient of {name}" for name in ("x", "weight", "bias")[: len(leaves)]]
    gradients = torch.autograd.grad(result, leaves, gradient.to(result.dtype))
    return {"result": result.detach(), **dict(zip(names, gradients, strict=True))}


def assert_all_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype or value.dtype == F64
        assert_close(found[name], value, found[name].dtype, name)


reference = partial(F.conv2d, padding="same")


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 3),
    st.integers(1, 13),
    st.integers(1, 6),
    st.sampled_from([1, 3, 7, 17]),
    st.data(),
)
def test_spectral_is_direct_forward_and_backward(batch, rows, columns, size, data) -> None:
    tile, given, multiple = (
        data.draw(one)
        for one in (st.integers(1, rows), st.integers(2, 3), st.sampled_from([1, 16]))
    )
    values = inputs(batch, rows, columns, size, out_channels=13)[:given]
    gradient = draw(batch, 13, rows, columns, seed=3, dtype=F64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_alignment, "_ALIGNED", {"cpu": multiple})
        found = with_gradients(
            lambda x, weight, bias=None: spectral_map_conv(x, weight, bias, tile), values, gradient
        )
    assert_all_close(found, with_gradients(reference, values, gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_every_dtype_is_within_the_table(backend, dtype, mean) -> None:
    values = [value.to(dtype) for value in inputs(2, 16, 8, 9)]
    values[0] = values[0] + mean
    gradient = draw(2, 5, 16, 8, seed=3, dtype=dtype)
    found = with_gradients(lambda *args: map_conv(*args, backend=backend), values, gradient)
    exact = with_gradients(reference, [value.double() for value in values], gradient)
    assert_all_close(found, exact)
    assert all(value.dtype == dtype for value in found.values())


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last", "expanded"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layout_does_not_matter(backend, layout) -> None:
    x, weight, bias = inputs()
    laid = {
        "strided": torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0],
        "transposed": x.mT.contiguous().mT,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "expanded": x[:1].expand_as(x),
    }[layout]
    found = map_conv(laid, weight.mT.contiguous().mT, bias, backend=backend)
    assert_close(found, reference(laid.contiguous(), weight, bias))


def test_inputs_are_not_modified() -> None:
    values = inputs()
    before = [value.clone() for value in values]
    for backend in BACKENDS:
        map_conv(*values, backend=backend)
    for value, old in zip(values, before, strict=True):
        assert_same(value, old)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_decides_the_dtype(backend) -> None:
    values = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = map_conv(*values, backend=backend)
        planned = map_conv(
            *values, plan=plan_map_conv(values[1], values[0].shape, torch.float32, backend=backend)
        )
        exact = map_conv(*(value.double() for value in values), backend=backend)
    assert found.dtype == planned.dtype == torch.bfloat16
    assert_close(found, reference(*values))
    assert_close(planned, reference(*values), torch.bfloat16)
    assert exact.dtype == F64


def test_refuses() -> None:
    x, weight, bias = inputs()
    with refuses(ShapeError, "kernels.map_conv: expected weight of shape (D, C, S, S) with C = 3"):
        map_conv(x, weight[:, :2])
    with refuses(ShapeError, "kernels.map_conv: expected x of shape (B, C, N_k, A), got (3, 9, 4)"):
        map_conv(x[0], weight)
    with refuses(ShapeError, "expected bias of shape (D) with", "got (4,)."):
        map_conv(x, weight, bias[:4])
    with refuses(ShapeError, "kernels.map_conv: expected an odd kernel, got one of 4 cells."):
        map_conv(x, weight[..., :4, :4])
    text = "kernels.map_conv: expected backend to be one of direct, spectral, got 'winograd'."
    with refuses(ConfigError, text):
        map_conv(x, weight, backend="winograd")


# Plans


@pytest.mark.parametrize("backend", [*BACKENDS, FUSED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("batch", "rows", "columns", "size"), [(2, 9, 4, 5), (1, 7, 3, 17)])
def test_plans_compute_the_same(backend, dtype, batch, rows, columns, size, aligned) -> None:
    if backend == "fused":
        pytest.importorskip("triton")
    values = inputs(batch, rows, columns, size, dtype, out_channels=13)
    expected = reference(*(value.double() for value in values))
    values = [value.to(DEVICE) for value in values]
    plan = plan_map_conv(values[1], values[0].shape, dtype, backend=backend)
    assert plan.backend == backend
    if plan.spectrum is not None:
        assert plan.spectrum.shape[-1] == (16 if aligned else 13)
    assert_close(map_conv(*values, plan=plan).cpu(), expected, dtype)


@pytest.mark.interpreter
def test_the_fused_product_is_the_plain_one_in_all_blocks() -> None:
    triton = pytest.importorskip("tmapdiff.kernels.map_conv.triton")
    # More rows, channels and output channels than a block, and no multiples of it.
    transform = MapTransform(3, 2, 3, 2)
    spectra = transform.forward(draw(2, 3, 70, 70).to(DEVICE), rotated=True)
    kernel = draw(transform.num_frequencies, 2, 70, 67, seed=1).to(DEVICE)
    torch.use_deterministic_algorithms(True)  # fills unwritten memory with NaN
    try:
        found = triton.multiply_spectra(spectra[:, 1:], kernel)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(found, spectral_module.multiply_spectra(spectra, kernel))


def test_a_plan_for_any_batch_gives_what_it_should() -> None:
    _, weight, bias = inputs(dtype=torch.float32)
    plan = plan_map_conv(weight, (2, 3, 9, 4), torch.float32, backend="spectral")
    for batch in (0, 1, 5):
        x = draw(batch, 3, 9, 4, seed=batch)
        assert_close(map_conv(x, weight, bias, plan=plan), reference(x, weight, bias))


def test_fused_needs_its_dtype() -> None:
    pytest.importorskip("triton")
    _, weight, _ = inputs()
    with refuses(ConfigError, "kernels.map_conv: expected inputs that backend 'fused' supports"):
        plan_map_conv(weight, (2, 3, 9, 4), F64, backend="fused")


def optimizer_step(weight: torch.nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()


CHANGES = {
    "in place": lambda weight: weight.mul_(1.5),
    "one value": lambda weight: weight[1, 2, 0, 1].add_(1e-3),
    "data": lambda weight: weight.data.copy_(weight.data.flip(0)),
    "new data": lambda weight: setattr(weight, "data", weight.data + 1),
    "optimizer": lambda weight: optimizer_step(weight),
    "smallest": lambda weight: weight.data.copy_(torch.nextafter(weight.data, weight.data + 1)),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spectra_are_kept_until_the_weight_changes(change, dtype) -> None:
    if change == "smallest" and dtype == torch.bfloat16:
        pytest.skip("nextafter knows no bfloat16 in all releases")
    weight = torch.nn.Parameter(inputs(dtype=dtype)[1])
    spectra, transform = KernelSpectra(), MapTransform(9, 4, 5, 9)
    first = spectra.get(weight, transform, dtype)
    assert spectra.get(weight, transform, dtype) is first
    with torch.no_grad():
        CHANGES[change](weight)
    second = spectra.get(weight, transform, dtype)
    assert second is not first
    assert_same(second, transform.kernel(weight.detach()))


def test_gradients_of_large_batches_do_not_overflow_in_half_precision() -> None:
    x = torch.full((1024, 1, 16, 16), 0.75, dtype=torch.float16)
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float16, requires_grad=True)
    result = map_conv(x, weight, backend="spectral")
    (found,) = torch.autograd.grad(result, weight, torch.full_like(result, 0.75 * 2**-16))
    assert float(found[0, 0, 1, 1]) == pytest.approx(x.numel() * 0.75**2 * 2**-16, rel=1e-2)


def test_spectra_are_those_of_what_is_asked_for() -> None:
    _, weight, _ = inputs(dtype=torch.float32)
    spectra = KernelSpectra()
    for dtype in (torch.float32, torch.float16):
        for tile in (9, 3):
            transform = MapTransform(9, 4, 5, tile)
            found = spectra.get(weight, transform, dtype)
            assert_same(found, transform.kernel(weight.to(dtype)))
    spectra.clear()
    assert spectra.get(weight, transform, dtype) is not found


@pytest.mark.parametrize("inference", [False, True])
def test_copies_start_without_spectra(inference) -> None:
    with torch.inference_mode(inference):
        _, weight, _ = inputs()
    spectra, transform = KernelSpectra(), MapTransform(9, 4, 5, 9)
    first = spectra.get(weight, transform, F64)
    for copied in (copy.deepcopy(spectra), pickle.loads(pickle.dumps(spectra))):
        assert copied.get(weight, transform, F64) is not first
    assert spectra.get(weight, transform, F64) is first


def test_threads_get_the_spectrum_that_they_ask_for() -> None:
    _, weight, _ = inputs()
    spectra = KernelSpectra()
    transforms = [MapTransform(rows, 4, 5, rows) for rows in (5, 6, 7, 9)]
    expected = [one.kernel(weight) for one in transforms]

    def ask(first: int) -> None:
        for turn in range(200):
            which = (first + turn) % len(transforms)
            assert_close(spectra.get(weight, transforms[which], weight.dtype), expected[which])

    at_once([partial(ask, first) for first in range(8)])


# Choice


def test_arithmetic_decides_where_it_can(monkeypatch) -> None:
    def never(*args, **kwargs):
        raise AssertionError("measured")

    monkeypatch.setattr("tmapdiff.kernels._dispatch._measure", never)
    small = plan_map_conv(torch.zeros(4, 4, 3, 3), (2, 4, 8, 4), torch.float32)
    assert small == MapConvPlan("direct")
    large = plan_map_conv(torch.zeros(64, 128, 17, 17), (32, 128, 64, 16), torch.float32)
    assert large.backend == "spectral"
    assert large.transform == best_transform(
        ConvSizes(32, 128, 64, 64, 16, 17, torch.float32, "cpu"), with_kernel=False
    )


@pytest.mark.parametrize(("channels", "rows"), [(128, 32), (64, 32), (128, 16), (64, 16)])
def test_large_layers_of_training_do_not_hang_on_a_clock_that_others_disturb(
    channels, rows, monkeypatch
) -> None:
    monkeypatch.setattr(
        "tmapdiff.kernels._dispatch._measure", lambda *_: pytest.fail("asked the clock")
    )
    called = []
    monkeypatch.setattr(
        "tmapdiff.kernels.map_conv.spectral_map_conv_keeping",
        lambda x, weight, bias, tile: called.append(tile) or x[:, :1] * weight.sum(),
    )
    weight = torch.zeros(65, channels, 5, 5, requires_grad=True)
    map_conv(torch.zeros(32, channels, rows, 8), weight)
    assert len(called) == 1


@pytest.mark.parametrize("fastest", BACKENDS)
def test_the_clock_decides_the_rest(fastest, monkeypatch) -> None:
    asked = []

    def measure(names, run, device):
        asked.append(sorted(names))
        for name in names:
            run(name)
        return {name: float(name != fastest) for name in names}

    monkeypatch.setattr("tmapdiff.kernels._dispatch._measured", {})
    monkeypatch.setattr("tmapdiff.kernels._dispatch._measure", measure)
    monkeypatch.setattr("tmapdiff.kernels._dispatch._read_choices", dict)
    monkeypatch.setattr("tmapdiff.kernels._dispatch._write_choices", lambda: None)
    called = []
    real = spectral_module.spectral_map_conv_keeping
    monkeypatch.setattr(
        "tmapdiff.kernels.map_conv.spectral_map_conv_keeping",
        lambda *args: called.append(1) or real(*args),
    )
    x, weight = draw(8, 64, 32, 8), draw(64, 64, 3, 3, seed=1).requires_grad_()
    map_conv(x, weight)
    assert asked == [["direct", "spectral"]]
    assert len(called) == (2 if fastest == "spectral" else 1)
    plan = plan_map_conv(weight, x.shape, x.dtype)
    assert asked == [["direct", "spectral"]] * 2
    assert plan.backend == fastest


def test_meta_tensors_are_convolved_directly() -> None:
    x, weight = torch.empty(8, 64, 64, 16, device="meta"), torch.empty(8, 64, 17, 17, device="meta")
    assert map_conv(x, weight).shape == (8, 8, 64, 16)
    assert plan_map_conv(weight, x.shape, x.dtype).backend == "direct"
