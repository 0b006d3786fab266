"""How close results must come to what is expected, by dtype: one table for all tests."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """Errors relative to the expected values.

    Attributes:
        typical: Highest root mean square of the error, over that of the expected values.
        worst: Highest error of one value, over the largest expected value.
    """

    typical: float
    worst: float


# Far below 5 %: a result that is scaled by 1.05 has to fail in every dtype (test_helpers.py).
TOLERANCES = {
    torch.float64: Tolerance(typical=1e-12, worst=1e-11),
    torch.float32: Tolerance(typical=1e-5, worst=3e-5),
    torch.float16: Tolerance(typical=5e-3, worst=1e-2),
    torch.bfloat16: Tolerance(typical=3e-2, worst=4e-2),
}
