"""Training on accelerate: mixed precision, EMA, checkpoints that resume exactly."""

from tmapdiff.training.config import FREE_FIELDS, MAX_SEED, MixedPrecision, TrainingConfig
from tmapdiff.training.progress import Progress
from tmapdiff.training.trainer import Trainer

__all__ = [
    "FREE_FIELDS",
    "MAX_SEED",
    "MixedPrecision",
    "Progress",
    "Trainer",
    "TrainingConfig",
]
