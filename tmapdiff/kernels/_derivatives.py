"""Derivatives that formulas written by hand do not have: second ones, forward ones, `torch.func`'s.

A fast form has one gradient, written by hand. Where more is asked for, torch derives the plain
definition instead: it is slower, but has every derivative. `torch.func` and forward derivatives are
noticed before an operation runs (`is_transformed`), second derivatives in its backward pass: under
`create_graph`, gradients are enabled there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed(*tensors: Tensor) -> bool:
    """Tell whether `torch.func` transforms what is computed, or a tensor has a forward derivative.

    While torch's compiler traces, it does not matter: what it traces is transformed as a whole.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    # Asked tensor by tensor only where forward derivatives are computed at all.
    if getattr(forward_ad, "_current_level", 0) < 0:
        return False
    return any(forward_ad.unpack_dual(one).tangent is not None for one in tensors)


def gradients_of(
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    wanted: Sequence[bool],
    gradient: Tensor,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of a function so that they can be differentiated again.

    For a backward pass in which gradients are enabled.

    Args:
        function: The plain definition.
        inputs: What it was given, tensors as they were saved.
        wanted: Of which inputs the gradient is wanted (`ctx.needs_input_grad`).
        gradient: Of the function's result.
    """
    # Aliases: where one input was made of another, its own gradient must not go through that.
    own = [one.view_as(one) if want else one for one, want in zip(inputs, wanted, strict=True)]
    leaves = [one for one, want in zip(own, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(function(*own), leaves, gradient, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


def with_second_gradient(
    result: Tensor, function: Callable[..., Tensor], *inputs: Tensor | None
) -> Tensor:
    """Return the result of a torch operation that has no second derivatives, as if it had them.

    Args:
        result: What the operation made of the inputs.
        function: Does the same, by operations that have them.
        *inputs: The inputs.
    """
    if not result.requires_grad or torch.compiler.is_compiling():
        return result
    passed: Tensor = _SecondGradient.apply(function, result, *inputs)
    return passed


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
