"""Configuration of training."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tmapdiff._core.checks import check_bool, check_choice, check_int, check_range
from tmapdiff._core.numbers import plain
from tmapdiff.data.negatives import MOST_NEGATIVES

MixedPrecision = Literal["no", "fp16", "bf16"]
_MAX_SEED = 2**32 - 1  # NumPy's limit
# Fields that do not affect the result, so that a resumed run may change them.
RESUME_MAY_CHANGE = (
    "num_workers",
    "heat_map_every",
    "activation_checkpointing",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "best_metric",
)


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of training.

    Args:
        epochs: Passes over the training set.
        batch_size: Queries per step on each process, at least two. Batch normalization uses the
            statistics of all processes.
        learning_rate: Peak learning rate, reached after warm-up.
        weight_decay: Weight decay of AdamW, on matrices and kernels.
        warmup: Share of the steps in which the learning rate rises; it then falls as a cosine.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Decay of the moving average of the weights, reached after a warm-up.
        mixed_precision: Precision of the forward pass.
        seed: Seed of the data order and noise, and of initial weights if the caller uses it.
        num_workers: Processes that read data; 0 reads in the training process.
        heat_map_every: Epochs between heat maps in TensorBoard.
        activation_checkpointing: Recompute most activations of the decoders in the backward pass.
            This saves memory and takes time; results are the same bit for bit.
        compile: Compile the most expensive parts (`MapLocalizer.compile_parts`); results are
            rounded differently.
        deterministic: Train with `torch.use_deterministic_algorithms` and without cuDNN's
            benchmark. Two runs are then equal bit for bit, on a GPU too, but slower.
        checkpoint_steps: Steps between checkpoints within an epoch. Defaults to none.
        checkpoint_minutes: Minutes between further checkpoints within an epoch, or None.
        keep_checkpoints: Number of newest checkpoints to keep, besides the best one.
        best_metric: Validation metric that selects the best checkpoint: `mIoU`, `Rank1@0.5`, ...
        negatives: Share of the sentences that are paired with another video and no moment, drawn
            anew in each epoch (`MomentDataset.with_negatives`), so that the model learns to predict
            "not in this video".

    Raises:
        ArgumentError: If a number is out of range, or a switch is not True or False.
        ConfigError: If `mixed_precision` is unknown.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: MixedPrecision = "no"
    seed: int = 0
    num_workers: int = 0
    heat_map_every: int = 2
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = 10.0
    keep_checkpoints: int = 2
    best_metric: str = "mIoU"
    negatives: float = 0.0

    def __post_init__(self) -> None:
        who = "TrainingConfig"
        least = {"batch_size": 2, "seed": 0, "num_workers": 0}
        whole = ("epochs", *least, "heat_map_every", "checkpoint_steps", "keep_checkpoints")
        positive = ("learning_rate", "gradient_clip", "checkpoint_minutes")
        most = {"weight_decay": math.inf, "negatives": MOST_NEGATIVES, "warmup": 1, "ema_decay": 1}
        for name, value in vars(self).items():
            if value is None and name in ("checkpoint_steps", "checkpoint_minutes"):
                continue
            if name in whole:
                check_int(who, name, value, at_least=least.get(name, 1))
            elif name in positive:
                check_range(who, name, value, 0, open_low=True)
            elif name in most:
                check_range(who, name, value, 0, most[name])
            elif name in ("activation_checkpointing", "compile", "deterministic"):
                check_bool(who, name, value)
        check_range(who, "seed", self.seed, 0, _MAX_SEED)
        check_choice(who, "mixed_precision", self.mixed_precision, get_args(MixedPrecision))
        for name, value in list(vars(self).items()):  # checkpoints and JSON hold Python's numbers
            object.__setattr__(self, name, plain(value))
