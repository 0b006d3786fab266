"""How a localizer is trained."""

from dataclasses import dataclass
from typing import Literal, get_args

from tmapdiff._core.checks import check_bool, check_choice, check_int, check_range

MixedPrecision = Literal["no", "fp16", "bf16"]
MAX_SEED = 2**32 - 1  # NumPy's limit
# What may change between the parts of a run without changing its result.
FREE_FIELDS = (
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
    """How a localizer is trained.

    Args:
        epochs: Passes over the training set.
        batch_size: Queries a step, on each process; two at least. Statistics of batch
            normalisation are those of all processes.
        learning_rate: Highest learning rate, after warm-up.
        weight_decay: Of AdamW, on matrices and kernels.
        warmup: Share of the steps in which the learning rate rises; it then falls as a cosine.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Decay of the moving average of the weights, reached after a warm-up.
        mixed_precision: Arithmetic of the forward pass.
        seed: Seed of weights drawn by the trainer's caller, data order and noise.
        num_workers: Processes that read data; 0 reads in the training process.
        heat_map_every: Epochs between heat maps in TensorBoard.
        activation_checkpointing: Keep few activations of the decoders, and compute them anew for
            the gradient: less memory, more time, the same results to the bit.
        compile: Let torch.compile speed up what holds most of the work (`compile_parts`); results
            are rounded differently.
        deterministic: Train with `torch.use_deterministic_algorithms`, and choose no kernel by the
            clock: two runs are equal to the bit, on a GPU too, and slower.
        checkpoint_steps: Steps between checkpoints within an epoch. None, if None.
        checkpoint_minutes: Minutes between checkpoints within an epoch, besides. None, if None.
        keep_checkpoints: Checkpoints that are kept: so many of the newest, and of those at ends of
            epochs the best by validation.
        best_metric: Metric of the validation that decides which is best: `mIoU`, `Rank1@0.5`, ...

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

    def __post_init__(self) -> None:
        who = "TrainingConfig"
        check_int(who, "epochs", self.epochs, at_least=1)
        check_int(who, "batch_size", self.batch_size, at_least=2)
        check_range(who, "learning_rate", self.learning_rate, 0, open_low=True)
        check_range(who, "weight_decay", self.weight_decay, 0)
        check_range(who, "warmup", self.warmup, 0, 1)
        check_range(who, "gradient_clip", self.gradient_clip, 0, open_low=True)
        check_range(who, "ema_decay", self.ema_decay, 0, 1)
        check_choice(who, "mixed_precision", self.mixed_precision, get_args(MixedPrecision))
        check_range(who, "seed", check_int(who, "seed", self.seed, at_least=0), 0, MAX_SEED)
        check_int(who, "num_workers", self.num_workers, at_least=0)
        check_int(who, "heat_map_every", self.heat_map_every, at_least=1)
        for name in ("activation_checkpointing", "compile", "deterministic"):
            check_bool(who, name, getattr(self, name))
        if self.checkpoint_steps is not None:
            check_int(who, "checkpoint_steps", self.checkpoint_steps, at_least=1)
        if self.checkpoint_minutes is not None:
            check_range(who, "checkpoint_minutes", self.checkpoint_minutes, 0, open_low=True)
        check_int(who, "keep_checkpoints", self.keep_checkpoints, at_least=1)
