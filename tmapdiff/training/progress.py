"""Progress of a training run."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tmapdiff._core.configs import flatten
from tmapdiff.errors import CheckpointError

# Values of settings that older checkpoints lack.
_ADDED = {"negatives": 0.0}


@dataclass
class Progress:
    """Progress of a training run; part of each checkpoint.

    Attributes:
        config: Settings that determine the result, to reject a checkpoint of another run.
        epoch: Epochs finished.
        step: Optimizer steps taken.
        batch: Batches done in the current epoch.
        losses: Losses of these batches; between epochs, those of the last epoch.
        skipped: Consecutive steps skipped in half precision because gradients were not finite.
    """

    config: dict[str, Any]
    epoch: int = 0
    step: int = 0
    batch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    skipped: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state for accelerate's checkpoints."""
        return {**vars(self), "losses": self._losses_on_host()}

    def check(self, state: dict[str, Any]) -> None:
        """Check that `state` has this configuration, with as many epochs or fewer.

        Raises:
            CheckpointError: If it does not.
        """
        queries = self.config.get("queries_sha256")  # older checkpoints lack it, too
        other = {**_ADDED, "queries_sha256": queries, **dict(flatten(state["config"]))}
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
            CheckpointError: If `check` rejects it.
        """
        self.check(state)
        self.epoch, self.step, self.batch = state["epoch"], state["step"], state["batch"]
        self.losses, self.skipped = list(state["losses"].unbind()), state["skipped"]

    def mean_loss(self) -> float:
        """Return the mean loss of the last epoch."""
        return float(self._losses_on_host().mean())

    def _losses_on_host(self) -> Tensor:
        if not self.losses:
            return torch.empty(0)
        # Losses of a checkpoint are on the host, others on the device: copy them together.
        device = self.losses[-1].device
        return torch.stack([loss.to(device) for loss in self.losses]).cpu()
