"""What may be asked of modules: whether their weights may be read, and in which dtype they work."""

from collections.abc import Iterable, Sequence
from typing import TypeGuard, TypeVar, cast

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(layer: nn.Module, *kinds: type[Module]) -> TypeGuard[Module]:
    """Tell whether a call of a layer does nothing but what its class does with its own weights.

    Only then may an operation that does the work of several layers read the weights instead. A
    layer with hooks, a parametrization, another `forward` (layerwise casting), a wrapper (LoRA),
    compiled, or with weights of their own kind (quantised, in shards) has to be called.
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
    """Dtype that a layer computes in: its weight's, unless layerwise casting names another."""
    dtype: torch.dtype = get_parameter_dtype(layer)
    return dtype


def module_list(modules: Iterable[Module]) -> Sequence[Module]:
    """Make an `nn.ModuleList` whose entries have a type."""
    return cast(Sequence[Module], nn.ModuleList(modules))
