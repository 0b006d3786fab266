"""Training with accelerate: mixed precision, EMA, and checkpoints that resume bit for bit."""

from tmapdiff.training.config import RESUME_MAY_CHANGE, TrainingConfig
from tmapdiff.training.progress import Progress
from tmapdiff.training.trainer import Trainer

__all__ = [
    "RESUME_MAY_CHANGE",
    "Progress",
    "Trainer",
    "TrainingConfig",
]
