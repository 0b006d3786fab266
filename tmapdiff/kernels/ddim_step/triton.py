"""A DDIM step in Triton: two reads, three writes, one launch."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tmapdiff.kernels._launch import ceil_div

# Few elements, as maps are small: with 128 threads, 16 bytes per thread in float32.
_ELEMENTS, _WARPS = 512, 4


@triton.jit
def _step(
    scores, noisy, coefficients, less_noisy, clean, scaled,
    size, clean_weight, noisy_weight, input_scale, signal_scale,
    ON_DEVICE: tl.constexpr, SIGMOID: tl.constexpr, CLIP: tl.constexpr,
    ELEMENTS: tl.constexpr,
):  # fmt: skip
    if ON_DEVICE:
        clean_weight = tl.load(coefficients).to(tl.float32)
        noisy_weight = tl.load(coefficients + 1).to(tl.float32)
        input_scale = tl.load(coefficients + 2).to(tl.float32)
        signal_scale = tl.load(coefficients + 3).to(tl.float32)
    place = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = place < size
    iou = tl.load(scores + place, mask=inside, other=0.0).to(tl.float32)
    if SIGMOID:
        iou = tl.sigmoid(iou)
    signal = (2.0 * iou - 1.0) * signal_scale
    if CLIP:
        # Not minimum and maximum, which would drop NaN.
        signal = tl.where(signal > signal_scale, signal_scale, signal)
        signal = tl.where(signal < -signal_scale, -signal_scale, signal)
    before = tl.load(noisy + place, mask=inside, other=0.0).to(tl.float32)
    after = clean_weight * signal + noisy_weight * before
    tl.store(less_noisy + place, after, mask=inside)
    tl.store(clean + place, signal, mask=inside)
    tl.store(scaled + place, after * input_scale, mask=inside)


@torch.library.custom_op(
    "tmapdiff::ddim_step",
    mutates_args=(),
    # Explicit, as torch before 2.7 only infers `typing.Sequence`.
    schema="(Tensor scores, Tensor noisy, Tensor? coefficients, float[] numbers, bool sigmoid, "
    "bool clip) -> (Tensor, Tensor, Tensor)",
)
def _step_op(
    scores: Tensor,
    noisy: Tensor,
    coefficients: Tensor | None,
    numbers: Sequence[float],
    sigmoid: bool,
    clip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scores, noisy = scores.contiguous(), noisy.contiguous()
    results = _empty(scores, noisy)
    if noisy.numel():
        on_device = coefficients is not None
        with torch.cuda.device_of(noisy):
            _step[(ceil_div(noisy.numel(), _ELEMENTS),)](
                scores, noisy, coefficients, *results, noisy.numel(), *numbers,
                ON_DEVICE=on_device, SIGMOID=sigmoid, CLIP=clip,
                ELEMENTS=_ELEMENTS, num_warps=_WARPS,
            )  # fmt: skip
    return results


@_step_op.register_fake
def _empty(scores: Tensor, noisy: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    less_noisy, clean = noisy.new_empty(noisy.shape), noisy.new_empty(noisy.shape)
    return less_noisy, clean, scores.new_empty(scores.shape)


def ddim_step(
    scores: Tensor,
    noisy: Tensor,
    coefficients: Tensor | Sequence[float],
    sigmoid: bool,
    clip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the operation in Triton."""
    if isinstance(coefficients, Tensor):
        row = coefficients.contiguous()
        return _step_op(scores, noisy, row, [0.0] * 4, sigmoid, clip)
    return _step_op(scores, noisy, None, [float(one) for one in coefficients], sigmoid, clip)
