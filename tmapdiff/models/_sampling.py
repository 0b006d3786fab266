"""Checks of the arguments that localizers take."""

from typing import Any, get_args

from tmapdiff._core.checks import check_choice, check_int
from tmapdiff.models.map_localizer import Ranking


def check_sampling(who: str, *, ranking: Any, seed: Any, **counts: Any) -> None:
    """Check a ranking, a seed, and counts of at least 1. None, the model's default, is valid."""
    for name, count in counts.items():
        if count is not None:
            check_int(who, name, count, at_least=1)
    if ranking is not None:
        check_choice(who, "ranking", ranking, get_args(Ranking))
    check_int(who, "seed", seed, at_least=0)
