"""Queries about modules: whether their weights may be read directly, their dtype and version."""

from collections.abc import Iterable, Sequence
from typing import TypeGuard, TypeVar, cast

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(layer: nn.Module, *kinds: type[Module]) -> TypeGuard[Module]:
    """Return whether calling a layer only applies its class's `forward` to ordinary weights.

    Only then may a fused operation read the weights instead of calling the layer. Layers with
    hooks, parametrizations, a replaced `forward` (layerwise casting), a wrapper (LoRA), compiled
    calls, or special weights (quantized, sharded) must be called.
    """
    own = vars(layer)
    weights = (*layer._parameters.values(), *layer._buffers.values(), *own.values())
    return (
        type(layer) in kinds
        and "forward" not in own
        and layer._compiled_call_impl is None
        and not any(getattr(layer, hooks) for hooks in _HOOKS)
        and not any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)
        and all(type(one) in (nn.Parameter, Tensor) for one in weights if isinstance(one, Tensor))
    )


def dtype_of(layer: nn.Module) -> torch.dtype:
    """Return the dtype that a layer computes in: its weight's, unless layerwise casting differs."""
    dtype: torch.dtype = get_parameter_dtype(layer)
    return dtype


def weights_version(model: nn.Module) -> tuple[object, ...]:
    """Return a key for cached results, which changes when weights are trained, loaded or moved."""
    return tuple(
        (id(one), 0 if one.is_inference() else one._version, one.dtype, one.device)
        for one in (*model.parameters(), *model.buffers())
    )


def module_list(modules: Iterable[Module]) -> Sequence[Module]:
    """Return an `nn.ModuleList` with typed entries."""
    return cast(Sequence[Module], nn.ModuleList(modules))
