"""Multistep solvers of the probability-flow ODE, which give DDIM steps better clean maps.

A DDIM step solves the ODE exactly if the predicted clean maps are constant during the step. A
multistep solver instead assumes a curve through several predictions, over lambda, the log of signal
over noise. The exact solution is then a DDIM step with the mean of that curve as its clean maps, so
each solver only has to compute this mean.

diffusers' multistep schedulers are not wrapped: they work in float32, choose their own timesteps,
and do not check the order of steps. The tests compare with them step by step.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Past(NamedTuple):
    """A past step: its starting point, and the clean maps predicted there."""

    timestep: int
    alpha: float
    sample: Tensor
    clean: Tensor


def extrapolated(past: Sequence[Past], alpha_prev: float) -> Tensor:
    """Return the clean maps for the next step: the mean of the line through the last two.

    If there is only one, or if the step is infinitely long in lambda (from pure noise, or to clean
    maps), return the last.

    Args:
        past: Steps up to and including the current one; only the last two are used.
        alpha_prev: Cumulative alpha at the end of the step.

    Source: Lu et al., DPM-Solver++(2M), arXiv 2211.01095, Algorithm 2. The predictor of UniPC-2
        with B(h) = e^h - 1 (arXiv 2302.04867) is the same.
    """
    now = past[-1]
    step = _distance(now.alpha, alpha_prev)
    if len(past) < 2 or not step < math.inf:
        return now.clean
    before = past[-2]
    step_before = _distance(before.alpha, now.alpha)
    return now.clean + step / (2 * step_before) * (now.clean - before.clean)


def interpolated(past: Sequence[Past], alpha: float, clean: Tensor) -> Tensor:
    """Return corrected clean maps for the last step, given the prediction at its end.

    This is the mean of a parabola through three predictions; after the first step, the mean of the
    predictions at its two ends.

    Args:
        past: Steps before the current one; only the last two are used.
        alpha: Cumulative alpha at the end of the last step.
        clean: The model's prediction there.

    Source: Zhao et al., UniPC, arXiv 2302.04867: UniC for models that predict data, of order 2 and,
        after the first step, 1; B(h) = e^h - 1.
    """
    last = past[-1]
    step = _distance(last.alpha, alpha)
    step_before = _distance(past[-2].alpha, last.alpha) if len(past) > 1 else 0.0
    if not step_before > 0:  # also catches NaN, within pure noise
        return (last.clean + clean) / 2
    # 1. The parabola over u, which is 0 at the step's start, 1 at its end, -ratio a step earlier.
    ratio = step_before / step
    rise = clean - last.clean
    curvature = (rise - (last.clean - past[-2].clean) / ratio) / (1 + ratio)
    # 2. Its mean, weighted by e^lambda.
    mean = -1 / math.expm1(-step) - 1 / step  # of u
    mean_square = -1 / math.expm1(-step) - 2 * mean / step  # of u^2
    return last.clean + mean * (rise - curvature) + mean_square * curvature


def _distance(alpha: float, alpha_prev: float) -> float:
    """Return the difference in lambda: infinite from pure noise or to clean maps, NaN in either."""
    return _log_snr(alpha_prev) - _log_snr(alpha)


def _log_snr(alpha: float) -> float:
    if not 0 < alpha < 1:
        return -math.inf if alpha <= 0 else math.inf
    return (math.log(alpha) - math.log1p(-alpha)) / 2
