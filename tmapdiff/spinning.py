"""Limiting the busy waiting (spinning) of torch's threads."""

import os

_BRIEF = {"GOMP_SPINCOUNT": "1000"}
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # settings that the user may have made


def brief_spin() -> dict[str, str]:
    """Return environment variables that limit the spinning of a process's threads.

    OpenMP threads spin while they wait for the slowest, before they sleep. On a busy machine, they
    then take cores from the threads that still compute. Empty if the user has set how they wait.
    """
    return {} if any(name in os.environ for name in _CHOICES) else dict(_BRIEF)


def spin_briefly() -> None:
    """Limit the spinning of torch's threads; call it before torch is imported.

    Training is then about twice as fast if other programs use the same cores (see
    docs/speed.md). Sets `GOMP_SPINCOUNT` for this process and its children, unless that or
    `OMP_WAIT_POLICY` is set.
    """
    os.environ.update(brief_spin())
