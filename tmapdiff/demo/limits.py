"""Limits of the demo."""

from dataclasses import dataclass

from tmapdiff._core.checks import check_int, check_range


@dataclass(frozen=True)
class DemoLimits:
    """Limits of the demo, so that one visitor cannot block the others.

    Args:
        max_megabytes: Largest upload, in MB.
        max_seconds: Longest video, in seconds.
        max_steps: Largest number of denoising steps.
        max_samples: Largest number of samples.

    Raises:
        ArgumentError: If a number is not positive.
    """

    max_megabytes: float = 200.0
    max_seconds: float = 600.0
    max_steps: int = 20
    max_samples: int = 16

    def __post_init__(self) -> None:
        for name in ("max_megabytes", "max_seconds"):
            check_range("DemoLimits", name, getattr(self, name), 0, open_low=True)
        for name in ("max_steps", "max_samples"):
            check_int("DemoLimits", name, getattr(self, name), at_least=1)
