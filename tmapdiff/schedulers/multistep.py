"""Multistep solvers of the probability-flow ODE, as better clean maps for a DDIM step to head for.

A DDIM step solves the ODE exactly if the predicted clean maps stay as they are during the step. The
multistep solvers let them move on a curve through several predictions, over lambda, the log of
signal over noise. The exact solution is then a DDIM step again, towards the curve's mean. So all
that a solver adds to DDIM is that mean.

diffusers' multistep schedulers are not wrapped: they hold noise levels, and compute steps, in
float32, choose timesteps of their own, and take whatever step comes next for the right one. The
tests compare with them, step by step.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Past(NamedTuple):
    """A step that was taken: from where, and the clean maps that the model predicted there."""

    timestep: int
    alpha: float
    sample: Tensor
    clean: Tensor


def extrapolated(past: Sequence[Past], alpha_prev: float) -> Tensor:
    """Clean maps that the next step heads for: the line through the last two, half-way.

    The last, if there is only one, or if the step is infinitely long in lambda: from pure noise, or
    to clean maps.

    Args:
        past: Steps up to the current one, which is the last; two at most are read.
        alpha_prev: Where the step arrives.

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
    """Clean maps that the last step should have headed for, now that its end has a prediction too.

    The mean of a parabola through three predictions; of the step's two ends, after the first step.

    Args:
        past: Steps up to the last one, without the current one; two at most are read.
        alpha: Where the last step arrived.
        clean: What the model predicts there.

    Source: Zhao et al., UniPC, arXiv 2302.04867: UniC for models that predict data, of order 2 and,
        after the first step, 1; B(h) = e^h - 1.
    """
    last = past[-1]
    step = _distance(last.alpha, alpha)
    step_before = _distance(past[-2].alpha, last.alpha) if len(past) > 1 else 0.0
    if not step_before > 0:  # nor within pure noise, where it is NaN
        return (last.clean + clean) / 2
    # 1. The parabola, over u = 0 at the step's start, 1 at its end, -ratio a step earlier.
    ratio = step_before / step
    rise = clean - last.clean
    curvature = (rise - (last.clean - past[-2].clean) / ratio) / (1 + ratio)
    # 2. Its mean: what is predicted late in the step counts for more, by e^lambda.
    mean = -1 / math.expm1(-step) - 1 / step  # of u
    mean_square = -1 / math.expm1(-step) - 2 * mean / step  # of u^2
    return last.clean + mean * (rise - curvature) + mean_square * curvature


def _distance(alpha: float, alpha_prev: float) -> float:
    """Difference in lambda; infinite from pure noise or to clean maps, NaN within either."""
    return _log_snr(alpha_prev) - _log_snr(alpha)


def _log_snr(alpha: float) -> float:
    if not 0 < alpha < 1:
        return -math.inf if alpha <= 0 else math.inf
    return (math.log(alpha) - math.log1p(-alpha)) / 2
