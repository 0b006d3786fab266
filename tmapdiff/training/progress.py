"""Where a training run is."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tmapdiff.errors import CheckpointError


@dataclass
class Progress:
    """Where a training run is; part of each checkpoint.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps taken.
        config: What decides the run's result, to refuse a checkpoint of another run.
        batch: Batches done of the epoch that is under way.
        losses: Of these batches; of the last epoch's, if none is done.
        skipped: Steps without finite gradients, in a row, that half precision skipped.
    """

    epoch: int
    step: int
    config: dict[str, Any]
    batch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    skipped: int = 0

    def state_dict(self) -> dict[str, Any]:
        """State for accelerate's checkpoints."""
        return {**vars(self), "losses": self._losses_on_host()}

    def check(self, state: dict[str, Any]) -> None:
        """Check that `state` was saved by a run with the same configuration, or of fewer epochs.

        Raises:
            CheckpointError: If it was not.
        """
        for name, value in _flat(self.config).items():
            saved = _flat(state["config"]).get(name)
            if name == "epochs" and isinstance(saved, int) and saved <= value:
                continue
            if saved != value:
                raise CheckpointError(
                    f"Trainer: expected a checkpoint of the same run, with {name} = {value!r}, "
                    f"got {saved!r}. Use another output folder."
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over `state`, which was saved.

        Raises:
            CheckpointError: If it was saved by a run with another configuration.
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
        # Some may come from a checkpoint, the others are on the device: it is waited for once.
        device = self.losses[-1].device
        return torch.stack([loss.to(device) for loss in self.losses]).cpu()


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
