"""The definition of a DDIM step."""

from collections.abc import Iterable

import torch
from torch import Tensor


def ddim_step(
    scores: Tensor,
    noisy: Tensor,
    coefficients: Iterable[Tensor | float],
    sigmoid: bool,
    clip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the less noisy maps, the clean maps, and the decoder's next input."""
    clean_weight, noisy_weight, input_scale, signal_scale = coefficients
    iou = scores.to(torch.promote_types(noisy.dtype, torch.float32))
    if sigmoid:
        iou = iou.sigmoid()
    clean = (2 * iou - 1) * signal_scale
    if clip:
        clean = clean.clamp(-signal_scale, signal_scale)  # type: ignore[arg-type]
    less_noisy = clean_weight * clean + noisy_weight * noisy
    scaled = less_noisy * input_scale
    return less_noisy.to(noisy.dtype), clean.to(noisy.dtype), scaled.to(scores.dtype)
