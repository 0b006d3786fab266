"""Training with weights sharded over processes, by accelerate's FSDP2."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tmapdiff._core.checks import message
from tmapdiff.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepare_sharding(accelerator: "Accelerator") -> bool:
    """Return whether accelerate shards weights; raise ConfigError unless it does so by FSDP2."""
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        raise ConfigError(message("Trainer", "accelerate with DDP or FSDP2", kind))
    if kind != "FSDP":
        return False
    plugin = accelerator.state.fsdp_plugin
    for name, wanted, got in (
        ("fsdp_version", "2", str(getattr(plugin, "fsdp_version", 1))),
        ("fsdp_state_dict_type", "FULL_STATE_DICT", plugin.state_dict_type.name),
        ("fsdp_cpu_ram_efficient_loading", "false", str(plugin.cpu_ram_efficient_loading).lower()),
    ):
        if got and got != wanted:
            hint = "See examples/accelerate/fsdp2.yaml."
            raise ConfigError(message("Trainer", f"{name} {wanted}", got, hint))
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # Leave precision to autocast, as without sharding. FSDP's own policy would round all inputs of
    # the model, including times in seconds.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    return True


def register_forward_methods(model: nn.Module) -> None:
    """Make FSDP2 gather weights for `prepare`, too."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    for layer in model.modules():
        if hasattr(layer, "prepare"):
            register_fsdp_forward_method(layer, "prepare")


@dataclass
class GatheredWeights:
    """The full weights of a sharded model; all processes must request them together."""

    model: nn.Module

    def state_dict(self) -> dict[str, Tensor]:
        return {name: gathered(value) for name, value in self.model.state_dict().items()}


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded; all processes must call this together."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
