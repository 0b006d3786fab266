"""Newton's method for convex functions of a few variables."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_MOST_STEPS = 100
_LEAST_SHARE = 1e-4  # of the predicted gain: a step that gains less is halved
_SHORTEST_STEP = 1e-9


class Derivatives(NamedTuple):
    """A function's value, its gradient, (n,), and its positive definite Hessian, (n, n)."""

    value: Tensor
    gradient: Tensor
    hessian: Tensor


def minimize(
    function: Callable[[Tensor], Derivatives], start: Tensor, smallest_gain: float
) -> tuple[Tensor, Tensor]:
    """Return where a function is smallest, and its value, once a step would gain too little."""
    place, found = start, function(start)
    for _ in range(_MOST_STEPS):
        step = torch.linalg.solve(found.hessian, found.gradient)
        gain = float(step @ found.gradient)
        if gain < smallest_gain:
            break
        share, before = 1.0, found.value
        found = function(place - step)
        while found.value > before - _LEAST_SHARE * share * gain and share > _SHORTEST_STEP:
            share /= 2
            found = function(place - share * step)
        place = place - share * step
    return place, found.value
