"""A DDIM step: all computation on packed maps between two passes of the decoder."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tmapdiff._core.checks import check_choice, check_length, check_range, check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.kernels._dispatch import choose
from tmapdiff.kernels._launch import in_order, why_not_triton
from tmapdiff.kernels.ddim_step import reference

Activation = Literal["identity", "sigmoid"]


class DDIMStep(NamedTuple):
    """Result of a step.

    Shape:
        - noisy: (B, cells), the less noisy maps
        - clean: (B, cells), the predicted clean maps, as a signal
        - scaled: (B, cells), `noisy` scaled for the decoder, in the dtype of the scores
    """

    noisy: Tensor
    clean: Tensor
    scaled: Tensor


def ddim_coefficients(
    alphas: Tensor | Sequence[float], *, signal_scale: float, normalize_input: bool = True
) -> Tensor:
    """Compute the coefficients of all steps, in float64 on the CPU; `ddim_step` takes one row.

    Args:
        alphas: Cumulative alphas at which the steps start, from noise to clean. Each step ends at
            the next, the last at clean maps.
        signal_scale: Largest absolute value of the signal.
        normalize_input: Whether to scale the decoder's input to about unit variance.

    Shape:
        - alphas: (steps,)
        - returns: (steps, 4): weights of clean and of noisy maps in the result of a step, scale of
          the decoder's next input, `signal_scale`

    Raises:
        ShapeError: If `alphas` is not (steps,).
        ArgumentError: If an alpha is outside [0, 1), or `signal_scale` is not positive.

    Source: Song et al., DDIM, arXiv 2010.02502, Eq. 12 with sigma = 0, for x0-prediction.
    """
    who = "ddim_coefficients"
    alpha = torch.as_tensor(alphas, dtype=torch.float64).cpu()
    check_shape(who, "alphas", alpha, "steps")
    check_range(who, "signal_scale", signal_scale, 0, open_low=True)
    wrong = alpha[~((alpha >= 0) & (alpha < 1))]
    if len(wrong):
        raise ArgumentError(message(who, "alphas in [0, 1)", float(wrong[0])))
    alpha_prev = torch.cat([alpha[1:], alpha.new_ones(1)])[: len(alpha)]
    noisy_weight = ((1 - alpha_prev) / (1 - alpha)).sqrt()
    clean_weight = alpha_prev.sqrt() - noisy_weight * alpha.sqrt()
    input_scale = torch.ones_like(alpha)
    if normalize_input:
        input_scale = (alpha_prev * signal_scale**2 + 1 - alpha_prev).rsqrt()
    scales = torch.full_like(alpha, signal_scale)
    return torch.stack([clean_weight, noisy_weight, input_scale, scales], dim=1)


def ddim_step(
    scores: Tensor,
    noisy: Tensor,
    coefficients: Tensor | Sequence[float],
    *,
    activation: Activation = "identity",
    clip: bool = True,
    backend: str | None = None,
) -> DDIMStep:
    """Take one DDIM step without fresh noise, from the decoder's scores to its next input.

    Fuses the activation of the scores, `MapScheduler.to_signal`, clipping, `MapScheduler.step` at
    `eta` = 0, and `MapScheduler.scale_model_input` of the result. Computes in float32 or wider.
    Never synchronizes with the device.

    Args:
        scores: Predictions of the decoder.
        noisy: Current noisy maps, before scaling.
        coefficients: A row of `ddim_coefficients`, as numbers or as a tensor on the device.
        activation: Turns scores into IoU.
        clip: Whether to clip the clean maps to the range of the signal.
        backend: `triton` or `reference`. Defaults to the best for the device.

    Shape:
        - scores, noisy: (B, cells)
        - coefficients: (4,)

    Raises:
        ShapeError: If a shape does not fit.
        ConfigError: If `activation` is unknown, or `backend` cannot run.
    """
    who = "ddim_step"
    sizes = check_shape(who, "noisy", noisy, "B cells")
    check_shape(who, "scores", scores, "B cells", sizes)
    tensors = [scores, noisy]
    if isinstance(coefficients, Tensor):
        check_shape(who, "coefficients", coefficients, "4")
    else:
        check_length(who, "coefficients", coefficients, 4)
    check_choice(who, "activation", activation, get_args(Activation))

    reason = why_not_triton(*tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        reason = "they require gradients"
    usable = in_order(noisy.device, reason, reference=None)
    arguments = scores, noisy, coefficients, activation == "sigmoid", clip
    if choose("ddim_step", usable, backend) == "triton":
        from tmapdiff.kernels.ddim_step import triton

        return DDIMStep(*triton.ddim_step(*arguments))
    return DDIMStep(*reference.ddim_step(*arguments))
