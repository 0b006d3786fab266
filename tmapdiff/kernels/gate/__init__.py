"""The gate of a gated convolution."""

import torch
from torch import Tensor

from tmapdiff._core.checks import check_int, message
from tmapdiff.errors import ShapeError
from tmapdiff.kernels._dispatch import choose
from tmapdiff.kernels._launch import in_order, why_not_eager, why_not_triton
from tmapdiff.kernels.gate import eager, reference
from tmapdiff.kernels.masking import check_map_features

# Below this many values, the overhead of `eager` exceeds its savings (README.md).
_FEW, _FEW_WITH_GRADIENT = 2**17, 2**16


def gate_features(
    convolved: Tensor,
    mask: Tensor | None = None,
    *,
    channels: int,
    backend: str | None = None,
) -> Tensor:
    """Apply a gate to features: `relu(features) * sigmoid(gate)`.

    Computes in float32 or wider, and rounds once. The result has the memory order of `convolved`.

    Args:
        convolved: Features, then their gate: one channel for all, or one for each.
        mask: Which cells are valid. Defaults to all.
        channels: Channels of the features.
        backend: `triton`, `eager` or `reference`. Defaults to the best for the device.

    Shape:
        - convolved: (B, channels + 1, N_k, A) or (B, 2 * channels, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, channels, N_k, A), 0 in invalid cells

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `channels` is below 1.
        ConfigError: If `backend` cannot run.

    Source: Yu et al., arXiv 1806.03589, Eq. 2; MS-2D-TAN, arXiv 2012.02646, section 3.4.
    """
    who = "gate_features"
    check_int(who, "channels", channels, at_least=1)
    check_map_features(who, convolved, mask, "C")
    given = convolved.shape[1]
    if given not in (channels + 1, 2 * channels):
        expected = f"{channels} channels and a gate of 1 or {channels}"
        raise ShapeError(message(who, expected, f"{given} channels"))
    not_eager = why_not_eager(convolved)
    plain = {"eager": not_eager, "reference": None}
    follows = torch.is_grad_enabled() and convolved.requires_grad
    if not not_eager and convolved.numel() < (_FEW_WITH_GRADIENT if follows else _FEW):
        plain = dict(reversed(plain.items()))
    usable = in_order(convolved.device, why_not_triton(convolved), **plain)
    chosen = choose("gate", usable, backend)
    if chosen == "triton":
        from tmapdiff.kernels.gate import triton

        return triton.gate_features(convolved, mask, channels)
    run = eager.gate_features if chosen == "eager" else reference.gate_features
    return run(convolved, mask, channels)
