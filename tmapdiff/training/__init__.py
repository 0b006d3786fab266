"""Training with accelerate: mixed precision, EMA, and checkpoints that resume bit for bit."""

from tmapdiff.training.config import MAX_SEED, RESUME_MAY_CHANGE, MixedPrecision, TrainingConfig
from tmapdiff.training.progress import Progress
from tmapdiff.training.trainer import Trainer

__all__ = [
    "MAX_SEED",
    "RESUME_MAY_CHANGE",
    "MixedPrecision",
    "Progress",
    "Trainer",
    "TrainingConfig",
]
