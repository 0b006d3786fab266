"""Half precision at the limits of its range, against float64: right or NaN, never silently 0."""

import math

import pytest
import torch
from torch import Tensor

from tmapdiff.kernels.map_conv import map_conv, plan_map_conv
from tmapdiff.kernels.masking import masked_group_norm
from tmapdiff.kernels.stylization import stylize
from tmapdiff.layers import MapTransformerLayer
from tmapdiff.maps import MapGrid
from tmapdiff.models import MultimodalEncoder

HALF, BFLOAT = torch.float16, torch.bfloat16
# Relative to the largest value, for a few roundings.
LARGEST_ERROR = {HALF: 2e-3, BFLOAT: 2e-2}
RANGE = [(HALF, 6e4), (HALF, 1e-3), (HALF, 1e-7), (BFLOAT, 1e18), (BFLOAT, 6e4), (BFLOAT, 1e-30)]
by_range = pytest.mark.parametrize(
    ("dtype", "size"), RANGE, ids=lambda value: str(value).removeprefix("torch.")
)
TRITON, FUSED = (pytest.param(one, marks=pytest.mark.interpreter) for one in ("triton", "fused"))
MASK = torch.ones(16, 8, dtype=torch.bool).tril(4)


def draw(*shape: int, dtype: torch.dtype, size: float) -> Tensor:
    """Values up to a size, of both signs, with a nonzero mean."""
    return ((2 * torch.rand(shape, dtype=torch.float64) - 0.8) / 1.2 * size).to(dtype)


def assert_right(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.isfinite().all()
    assert expected.isfinite().all()
    error = float((found.double() - expected).abs().max())
    # No dtype can represent errors below its smallest number.
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert error < LARGEST_ERROR[dtype] * float(expected.abs().max()) + least


@by_range
def test_group_norm(dtype, size):
    x = draw(2, 32, 16, 8, dtype=dtype, size=size)
    assert_right(masked_group_norm(x, MASK, 8), masked_group_norm(x.double(), MASK, 8), dtype)


@by_range
@pytest.mark.parametrize(
    ("num_groups", "backend"),
    [
        (8, "reference"),
        (None, "reference"),
        pytest.param(8, "triton", marks=pytest.mark.interpreter),
    ],
)
def test_stylization(dtype, size, num_groups, backend):
    if backend == "triton" and 1e-7 < size < 6e4:
        pytest.skip("slow in the interpreter")
    x = draw(2, 16, 16, 8, dtype=dtype, size=size)
    scale, shift = (draw(2, 16, dtype=dtype, size=2.0) for _ in range(2))
    options = {"mask": MASK, "num_groups": num_groups}
    found = stylize(x, scale, shift, backend=backend, **options)
    exact = (one.double() for one in (x, scale, shift))
    assert_right(found, stylize(*exact, backend="reference", **options), dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy in the interpreter
@pytest.mark.parametrize("backend", ["reference", "eager", TRITON])
@pytest.mark.parametrize("num_groups", [4, None])
def test_a_variance_beyond_float32_is_seen(backend, num_groups):
    dtype = torch.float32 if backend == "eager" else BFLOAT
    if backend != "reference" and num_groups is None:
        pytest.skip("no such backend")
    x = draw(2, 16, 16, 8, dtype=dtype, size=1e30)
    style = torch.zeros(2, 16, dtype=dtype)
    found = stylize(x, style, style, MASK, num_groups=num_groups, backend=backend)
    assert found[..., MASK].isnan().all()
    assert (found[..., ~MASK] == 0).all()
    assert masked_group_norm(x, MASK, 4)[..., MASK].isnan().all()


@by_range
def test_fusion_of_video_and_sentence(dtype, size):
    encoder = MultimodalEncoder(
        vocabulary_size=5, clip_channels=4, channels=8, num_clips=8, num_anchors=4, num_scales=2
    )
    maps = [draw(2, 8, *shape, dtype=dtype, size=size) for shape in MapGrid(8, 4, 2).shapes]
    if size < 1e-12:
        pytest.skip("counts as zero, in any precision")
    for text_size in (1.0, math.sqrt(size) if dtype == HALF else 1.0):
        sentence = draw(2, 8, dtype=dtype, size=text_size)
        found = encoder.fuse(maps, sentence)
        expected = encoder.fuse([one.double() for one in maps], sentence.double())
        for one, exact in zip(found, expected, strict=True):
            assert one.dtype == dtype
            assert_right(one, exact, dtype)
            norms = exact.norm(dim=1)
            assert ((norms == 0) | (norms - 1).abs().lt(1e-3)).all()


def test_a_norm_beyond_float32_is_seen():
    sizes = {"num_clips": 8, "num_anchors": 4, "num_scales": 1, "channels": 8}
    encoder = MultimodalEncoder(vocabulary_size=5, clip_channels=4, **sizes)
    (found,) = encoder.fuse(
        [draw(2, 8, 8, 4, dtype=BFLOAT, size=1e30)], torch.ones(2, 8).bfloat16()
    )
    valid = MapGrid(8, 4, 1).mask(0)
    assert found[..., valid].isnan().all()
    assert (found[..., ~valid] == 0).all()


@by_range
@pytest.mark.parametrize("with_context", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention(dtype, size, with_context, autocast):
    size = min(size, 2e4)  # above, outputs of linear layers overflow float16
    layer = MapTransformerLayer(16, 8, num_heads=4, stylized=False).to(dtype).eval()
    exact = MapTransformerLayer(16, 8, num_heads=4, stylized=False).double().eval()
    exact.load_state_dict({name: one.double() for name, one in layer.state_dict().items()})
    if autocast:
        layer.float()
    mask = torch.rand(2, 20, 1) > 0.3
    x, context = (draw(2, 16, 20, 1, dtype=dtype, size=size) for _ in range(2))
    expected = exact(x.double(), context=context.double() if with_context else None, mask=mask)
    if autocast:
        x, context = x.float(), context.float()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
        found = layer(x, context=context if with_context else None, mask=mask)
    assert_right(found, expected.detach(), dtype)


# Convolution


def convolution(size: float, dtype: torch.dtype, weight_size: float) -> tuple[Tensor, ...]:
    """Maps, kernel, bias, and a gradient."""
    x = draw(2, 16, 16, 8, dtype=dtype, size=size)
    weight = draw(6, 16, 9, 9, dtype=dtype, size=weight_size)
    return x, weight, draw(6, dtype=dtype, size=size), draw(2, 6, 16, 8, dtype=dtype, size=1.0)


@pytest.mark.parametrize(
    ("dtype", "size", "weight_size"),
    [
        (HALF, 6e4, 1e-3),  # products of sums of 16 * 9 * 9
        (HALF, 6e4, 1e-6),
        (HALF, 3e3, 1e-2),
        (HALF, 1.0, 40.0),
        (HALF, 1e-6, 60.0),
        (HALF, 1e-4, 1.0),
        (BFLOAT, 1e16, 1e16),
        (BFLOAT, 1e30, 1e-3),
        (BFLOAT, 1e-30, 1e-3),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["direct", "spectral", "plan", FUSED])
def test_map_convolution(dtype, size, weight_size, backend):
    x, weight, bias, _ = convolution(size, dtype, weight_size)
    exact = map_conv(x.double(), weight.double(), bias.double(), backend="direct")
    assert exact.abs().max() < torch.finfo(dtype).max
    if backend == "fused" and (dtype, weight_size) != (HALF, 1e-6):
        pytest.skip("slow in the interpreter, whose products in bfloat16 are wrong")
    if backend in ("plan", "fused"):
        kind = {"plan": "spectral"}.get(backend, backend)
        plan = plan_map_conv(weight, x.shape, dtype, backend=kind)
        found = map_conv(x, weight, bias, plan=plan)
    else:
        found = map_conv(x, weight, bias, backend=backend)
    assert_right(found, exact, dtype)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (HALF, (1.0, 0.1, 1.0)),
        (HALF, (6e4, 1e-3, 1e-3)),  # maps, weights, gradient
        (HALF, (1.0, 0.01, 300.0)),  # as from gradient scalers
        (HALF, (1.0, 0.01, 1e-5)),
        (HALF, (1e-5, 50.0, 1.0)),
        (BFLOAT, (1e15, 1e-3, 1e15)),
    ],
    ids=str,
)
def test_gradients_of_the_map_convolution(dtype, sizes):
    x, weight, bias, gradient = convolution(sizes[0], dtype, sizes[1])
    gradient = gradient * sizes[2]
    values = [one.requires_grad_() for one in (x, weight, bias)]
    result = map_conv(*values, backend="spectral")
    found = torch.autograd.grad(result, values, gradient)
    wide = [one.detach().double().requires_grad_() for one in values]
    exact = torch.autograd.grad(map_conv(*wide, backend="direct"), wide, gradient.double())
    for one, expected in zip(found, exact, strict=True):
        assert_right(one, expected, dtype)


def test_samples_do_not_share_a_scale():
    x, weight, bias, _ = convolution(1e-3, HALF, 0.1)
    alone = map_conv(x[:1], weight, bias, backend="spectral")
    x[1] = 6e4
    assert torch.equal(map_conv(x, weight, bias, backend="spectral")[:1], alone)


@pytest.mark.parametrize("backend", ["direct", "spectral"])
def test_a_result_beyond_float16_is_infinite(backend):
    x, weight, bias, _ = convolution(6e4, HALF, 1.0)
    found = map_conv(x.abs(), weight.abs(), bias, backend=backend)
    assert not found.isfinite().any()
