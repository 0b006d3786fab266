"""What the machine can do at most: a large copy and a large matrix product."""

import torch
from speed_cases import Ceilings
from speed_suites.setting import Setting
from timing import Clock

_REPEATS = 10


def measure_ceilings(setting: Setting, clock: Clock) -> Ceilings:
    """Measure both, the product in each dtype; of several times the shortest counts."""
    numbers, size = (2**30, 8192) if setting.on_gpu else (2**26, 2048)
    if setting.quick:
        numbers, size = 2**22, 512
    dtypes = dict.fromkeys([*setting.dtypes, torch.float32])
    return Ceilings(
        _bytes_a_second(setting, clock, numbers),
        {dtype: _operations_a_second(setting, clock, size, dtype) for dtype in dtypes},
    )


def _bytes_a_second(setting: Setting, clock: Clock, numbers: int) -> float:
    source = torch.rand(numbers, device=setting.device)
    target = torch.zeros_like(source)
    seconds = min(clock.seconds(lambda: target.copy_(source)) for _ in range(_REPEATS))
    return 2 * source.nbytes / seconds


def _operations_a_second(setting: Setting, clock: Clock, size: int, dtype: torch.dtype) -> float:
    a, b = (setting.random(size, size, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    seconds = min(clock.seconds(lambda: torch.mm(a, b)) for _ in range(_REPEATS))
    return 2 * size**3 / seconds
