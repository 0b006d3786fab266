"""Stylization: normalize map features, scale and shift their channels, apply SiLU."""

from torch import Tensor

from tmapdiff.kernels._dispatch import choose
from tmapdiff.kernels._launch import in_order, why_not_eager, why_not_triton
from tmapdiff.kernels.masking import check_styles
from tmapdiff.kernels.stylization import eager, reference


def stylize(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    *,
    num_groups: int | None,
    backend: str | None = None,
) -> Tensor:
    """Normalize, scale and shift map features: `silu(norm(x) * (1 + scale) + shift)`.

    Computes in float32 or wider, and rounds once. The result has the memory order of `x`.

    Args:
        x: Map features.
        scale: Scale of each channel, minus 1.
        shift: Shift of each channel.
        mask: Which cells are valid. Defaults to all.
        num_groups: Groups of channels, each normalized by the mean and variance of its valid cells
            (`masked_group_norm`); must divide the channels. None normalizes the channels of each
            cell (layer norm), always by the reference.
        backend: `triton`, `eager` or `reference`. Defaults to the best for the device.

    Shape:
        - x: (B, C, N_k, A)
        - scale, shift: (B, C)
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, C, N_k, A), 0 in invalid cells

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If `num_groups` is below 1.
        ConfigError: If `num_groups` does not divide the channels, or `backend` cannot run.

    Source: Zhang et al., arXiv 2401.08232, Eq. 6, without its MLP.
    """
    check_styles("stylize", x, scale, shift, mask, num_groups)
    inputs = (x, scale, shift)
    not_triton, not_eager = why_not_triton(*inputs), why_not_eager(*inputs)
    if num_groups is None:
        not_triton = not_eager = "there are no groups"
    usable = in_order(x.device, not_triton, eager=not_eager, reference=None)
    chosen = choose("stylization", usable, backend)
    if chosen == "triton":
        from tmapdiff.kernels.stylization import triton

        return triton.stylize(*inputs, mask, num_groups)
    run = eager.stylize if chosen == "eager" else reference.stylize
    return run(*inputs, mask, num_groups)
