"""The reference against the scheduler, and the kernel against the reference."""

import pytest
import torch
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import draw
from helpers.kernels import DEVICE, Allocations, guard
from torch import Tensor

from tmapdiff import MapScheduler
from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.kernels.ddim_step import ddim_coefficients, ddim_step

STEPS = [1, 2, 3, 7, 10, 30]
SPACINGS = ["trailing", "leading", "linspace"]


def coefficients_of(scheduler: MapScheduler) -> Tensor:
    return ddim_coefficients(
        scheduler.alphas_cumprod[scheduler.timesteps],
        signal_scale=scheduler.config.signal_scale,
        normalize_input=scheduler.config.normalize_input,
    )


# The reference


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("activation", "clip", "normalize"),
    [("identity", True, True), ("sigmoid", True, True), ("identity", False, False)],
)
def test_runs_equal_the_scheduler_s(
    spacing: str, dtype: torch.dtype, activation: str, clip: bool, normalize: bool
) -> None:
    scheduler = MapScheduler(
        timestep_spacing=spacing, clip_sample=clip, normalize_input=normalize, signal_scale=0.3
    )
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        expected = noisy = draw(3, 40, seed=9, dtype=dtype)
        for row, timestep in zip(
            coefficients_of(scheduler), scheduler.timesteps.tolist(), strict=True
        ):
            scores = 2 * draw(3, 40, seed=timestep, dtype=dtype)
            iou = scores.sigmoid() if activation == "sigmoid" else scores
            signal = scheduler.to_signal(iou)
            expected, clean = scheduler.step(signal, timestep, expected, return_dict=False)
            found = ddim_step(scores, noisy, row.tolist(), activation=activation, clip=clip)
            noisy = found.noisy
            assert_close(noisy, expected, what=f"maps of {steps} steps")
            assert_close(found.clean, clean, what=f"clean maps of {steps} steps")
            previous = scheduler.previous_timestep(timestep)
            if previous >= 0:
                assert_close(found.scaled, scheduler.scale_model_input(expected, previous))
            from_tensor = ddim_step(scores, noisy, row, activation=activation, clip=clip)
            from_numbers = ddim_step(scores, noisy, row.tolist(), activation=activation, clip=clip)
            for one, two in zip(from_tensor, from_numbers, strict=True):
                assert_close(one, two)


def test_scaled_maps_have_the_dtype_of_the_scores() -> None:
    found = ddim_step(draw(2, 5).half(), draw(2, 5), [0.5, 0.5, 1.5, 0.1])
    assert [one.dtype for one in found] == [torch.float32, torch.float32, torch.float16]
    assert_same(found.scaled, (found.noisy * 1.5).half())


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"noisy": draw(2)}, ShapeError, "noisy of shape (B, cells), got (2,)."),
        ({"scores": draw(2, 4)}, ShapeError, "scores of shape (B, cells) with B = 2, cells = 5"),
        ({"coefficients": draw(3)}, ShapeError, "coefficients of shape (4), got (3,)."),
        ({"coefficients": [1.0]}, ShapeError, "coefficients to be a list of 4, got 1."),
        ({"activation": "relu"}, ConfigError, "activation to be one of identity, sigmoid"),
    ],
)
def test_refuses(changes: dict[str, object], kind: type[Exception], text: str) -> None:
    good = {"scores": draw(2, 5), "noisy": draw(2, 5), "coefficients": [1.0, 0.0, 1.0, 1.0]}
    with refuses(kind, f"ddim_step: expected {text}"):
        ddim_step(**{**good, **changes})


@pytest.mark.parametrize(
    ("alphas", "signal_scale", "kind", "text"),
    [
        ([0.1, 1.0], 0.1, ArgumentError, "alphas in [0, 1), got 1.0."),
        ([0.1, float("nan")], 0.1, ArgumentError, "alphas in [0, 1), got nan."),
        ([0.1], 0.0, ArgumentError, "signal_scale in (0, inf), got 0.0."),
        ([[0.1]], 0.1, ShapeError, "alphas of shape (steps), got (1, 1)."),
    ],
)
def test_refuses_schedules(
    alphas: list[float], signal_scale: float, kind: type[Exception], text: str
) -> None:
    with refuses(kind, f"ddim_coefficients: expected {text}"):
        ddim_coefficients(alphas, signal_scale=signal_scale)


# The kernel, in triton's interpreter without a GPU


@pytest.fixture
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from tmapdiff.kernels.ddim_step import triton

    monkeypatch.setattr(triton, "_ELEMENTS", 16)


ROW = [0.7, 0.4, 1.3, 0.2]


@pytest.mark.interpreter
@pytest.mark.usefixtures("small_programs")
@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernel_equals_reference(
    dtype: torch.dtype, clip: bool, activation: str, on_device: bool, allocations: Allocations
) -> None:
    scores, noisy = 2 * draw(3, 13, dtype=dtype), draw(3, 13, seed=1)
    options = {"activation": activation, "clip": clip}
    expected = ddim_step(scores.double(), noisy.double(), ROW, **options)
    row = torch.tensor(ROW, device=DEVICE) if on_device else ROW
    found = ddim_step(guard(scores), guard(noisy), row, **options, backend="triton")
    allocations.check()
    for name, value in expected._asdict().items():
        one = getattr(found, name)
        assert one.dtype == (dtype if name == "scaled" else torch.float32)
        assert_close(one.cpu(), value, what=name)


@pytest.mark.interpreter
@pytest.mark.usefixtures("small_programs")
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1), (4, 16)])
def test_kernel_on_any_size_and_strides(shape: tuple[int, int]) -> None:
    scores, noisy = draw(*shape[::-1]).mT, draw(*shape, 2, seed=1)[..., 0]
    expected = ddim_step(scores, noisy, ROW)
    row = torch.tensor([[one, 0.0] for one in ROW], device=DEVICE)[:, 0]
    found = ddim_step(scores.to(DEVICE), noisy.to(DEVICE), row, backend="triton")
    for one, two in zip(found, expected, strict=True):
        assert_close(one.cpu(), two)


@pytest.mark.interpreter
@pytest.mark.usefixtures("small_programs")
def test_kernel_keeps_nan() -> None:
    scores = draw(2, 5).to(DEVICE)
    scores[1, 2] = torch.nan
    found = ddim_step(scores, draw(2, 5).to(DEVICE), ROW, backend="triton")
    for one in found:
        assert one.isnan().nonzero().tolist() == [[1, 2]]


@pytest.mark.interpreter
@pytest.mark.usefixtures("small_programs")
def test_kernel_refuses_to_forget_gradients() -> None:
    scores = draw(2, 5).to(DEVICE).requires_grad_()
    with refuses(ConfigError, "others: they require gradients"):
        ddim_step(scores, draw(2, 5).to(DEVICE), ROW, backend="triton")
    assert ddim_step(scores, draw(2, 5).to(DEVICE), ROW).noisy.requires_grad
    with torch.no_grad():
        ddim_step(scores, draw(2, 5).to(DEVICE), ROW, backend="triton")


@pytest.mark.compile
@pytest.mark.interpreter
@pytest.mark.usefixtures("small_programs")
def test_kernel_compiles_in_one_graph() -> None:
    from tmapdiff.kernels.ddim_step import triton

    scores, noisy, row = draw(2, 5).to(DEVICE), draw(2, 5).to(DEVICE), torch.tensor(ROW).to(DEVICE)
    torch.library.opcheck(triton._step_op, (scores, noisy, row, [0.0] * 4, True, True))
    torch._dynamo.reset()
    compiled = torch.compile(ddim_step, backend="aot_eager", fullgraph=True)
    results = (one(scores, noisy, row, backend="triton") for one in (compiled, ddim_step))
    for one, two in zip(*results, strict=True):
        assert_same(one, two)
