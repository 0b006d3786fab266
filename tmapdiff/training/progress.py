"""Where a training run is."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tmapdiff._core.configs import flatten
from tmapdiff.errors import CheckpointError

# What checkpoints do not say that are older than the setting.
_ADDED = {"negatives": 0.0}


@dataclass
class Progress:
    """Where a training run is; part of each checkpoint.

    Attributes:
        config: What decides the run's result, to refuse a checkpoint of another run.
        epoch: Epochs finished.
        step: Optimizer steps taken.
        batch: Batches done of the epoch that is under way.
        losses: Losses of these batches; those of the last epoch if there are none.
        skipped: Steps in a row that half precision skipped for want of finite gradients.
    """

    config: dict[str, Any]
    epoch: int = 0
    step: int = 0
    batch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    skipped: int = 0

    def state_dict(self) -> dict[str, Any]:
        """State for accelerate's checkpoints."""
        return {**vars(self), "losses": self._losses_on_host()}

    def check(self, state: dict[str, Any]) -> None:
        """Check that `state` is of a run with this configuration, of as many epochs or fewer.

        Raises:
            CheckpointError: If it is not.
        """
        other = {**_ADDED, **dict(flatten(state["config"]))}
        for name, value in flatten(self.config):
            saved = other.get(name)
            extended = name == "epochs" and isinstance(saved, int) and saved <= value
            if saved != value and not extended:
                raise CheckpointError(
                    f"Trainer: expected a checkpoint of the same run, with {name} = {value!r}, "
                    f"got {saved!r}. Use another output folder."
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved `state`.

        Raises:
            CheckpointError: If it is of a run with another configuration.
        """
        self.check(state)
        self.epoch, self.step, self.batch = state["epoch"], state["step"], state["batch"]
        self.losses, self.skipped = list(state["losses"].unbind()), state["skipped"]

    def mean_loss(self) -> float:
        """Mean loss of the last epoch."""
        return float(self._losses_on_host().mean())

    def _losses_on_host(self) -> Tensor:
        if not self.losses:
            return torch.empty(0)
        # Those of a checkpoint are on the host, the others on the device: one wait for all.
        device = self.losses[-1].device
        return torch.stack([loss.to(device) for loss in self.losses]).cpu()
