"""How long the threads of torch wait busily for each other."""

import os

_BRIEF = {"GOMP_SPINCOUNT": "1000"}
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # whoever has set one has chosen


def brief_spin() -> dict[str, str]:
    """Return the environment of a process whose threads wait busily for a moment only.

    OpenMP's threads wait for the last of them in a loop before they sleep. Where other work
    wants the cores, those that wait keep the last from computing. Empty if the user has chosen
    how they wait.
    """
    return {} if any(name in os.environ for name in _CHOICES) else dict(_BRIEF)


def spin_briefly() -> None:
    """Let the threads of torch wait busily for a moment only; call it before torch is imported.

    Beside other work on the same cores, training is many times faster so (docs/speed.md has
    figures). It sets `GOMP_SPINCOUNT` for this process and those that it starts, unless that or
    `OMP_WAIT_POLICY` is set.
    """
    os.environ.update(brief_spin())
