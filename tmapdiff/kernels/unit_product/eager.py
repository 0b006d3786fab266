"""The unit product with few passes over memory, and its own gradient."""

from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels._derivatives import gradients_of
from tmapdiff.kernels.masking import fill_invalid_
from tmapdiff.kernels.unit_product import reference
from tmapdiff.kernels.unit_product.reference import SMALLEST_NORM


def unit_product(*given: Any) -> Tensor:
    """Compute `normalize(maps * vector)`; see the operation. Derivation: README.md."""
    result: Tensor = _UnitProduct.apply(*given)
    return result


class _UnitProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, vector: Tensor, mask: Tensor | None) -> Tensor:
        product = maps * vector[..., None, None]
        norm = (product * product).sum(1, keepdim=True).sqrt_()
        is_long = norm >= SMALLEST_NORM
        norm = norm.clamp(min=SMALLEST_NORM).add_(norm, alpha=0)  # NaN if it is infinite
        result = fill_invalid_(product.div_(norm), mask)
        ctx.save_for_backward(maps, vector, mask, norm, is_long, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, vector, mask, norm, is_long, result = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = maps, vector, mask
            return gradients_of(reference.unit_product, inputs, ctx.needs_input_grad, gradient)
        # In the memory order of the maps.
        scratch = result * gradient
        along = scratch.sum(1, keepdim=True).mul_(is_long)
        of_product = torch.addcmul(gradient, result, along, value=-1, out=scratch).div_(norm)
        fill_invalid_(of_product, mask)
        of_vector = fill_invalid_(of_product * maps, mask).sum((2, 3))
        return of_product.mul_(vector[..., None, None]), of_vector, None
