"""Second and forward derivatives, and `torch.func`, for operations with a hand-written gradient.

A fast implementation has only a first gradient. For more, torch differentiates the slower plain
definition instead. `torch.func` and forward derivatives are detected before an operation runs
(`is_transformed`), second derivatives in its backward pass, where `create_graph` enables gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed(*tensors: Tensor) -> bool:
    """Whether `torch.func` transforms are active, or a tensor has a forward derivative."""
    if torch.compiler.is_compiling():  # the traced code is transformed as a whole
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    # Skip the check of each tensor outside forward-mode differentiation.
    if getattr(forward_ad, "_current_level", 0) < 0:
        return False
    return any(forward_ad.unpack_dual(one).tangent is not None for one in tensors)


def gradients_of(
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    wanted: Sequence[bool],
    gradient: Tensor,
) -> tuple[Tensor | None, ...]:
    """Compute the `wanted` gradients of a plain definition, differentiable themselves."""
    # Aliases cut the graph between inputs that were computed from each other.
    own = [one.view_as(one) if want else one for one, want in zip(inputs, wanted, strict=True)]
    leaves = [one for one, want in zip(own, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(function(*own), leaves, gradient, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


def with_second_gradient(
    result: Tensor, function: Callable[..., Tensor], *inputs: Tensor | None
) -> Tensor:
    """Add second derivatives to an operation's result, from a `function` that computes the same."""
    if not result.requires_grad or torch.compiler.is_compiling():
        return result
    return _SecondGradient.apply(function, result, *inputs)


class _SecondGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], result: Tensor, *inputs: Tensor | None
    ) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return None, gradient, *[None] * len(ctx.saved_tensors)
        wanted = ctx.needs_input_grad[2:]
        return None, None, *gradients_of(ctx.function, ctx.saved_tensors, wanted, gradient)
