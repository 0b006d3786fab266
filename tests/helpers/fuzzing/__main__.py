"""Fuzz all formats and print what became of the cases.

PYTHONPATH=tests python -m helpers.fuzzing --cases 10000 --seed 0
"""

import argparse
import sys
import time

from helpers.fuzzing.runner import divide, fuzz
from helpers.fuzzing.targets import TARGETS


def main() -> int:
    """Return 1 if a case ended otherwise than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    arguments = parser.parse_args()
    cases = divide(arguments.cases, arguments.targets)
    began = time.monotonic()
    findings = fuzz(cases, first=arguments.first, seed=arguments.seed)
    print(f"{'target':16}{'cases':>8}{'result':>8}{'refused':>9}{'bug':>5}  refused with")
    for name, found in findings.items():
        counts = [found.outcomes[one] for one in ("result", "refused", "bug")]
        kinds = ", ".join(f"{kind} {number}" for kind, number in found.refusals.most_common())
        print(f"{name:16}{sum(counts):8}{counts[0]:8}{counts[1]:9}{counts[2]:5}  {kinds}")
    bugs = [bug for found in findings.values() for bug in found.bugs]
    number = sum(sum(found.outcomes.values()) for found in findings.values())
    print(f"{number:,} cases, {len(bugs)} bugs, {time.monotonic() - began:.0f} s")
    for bug in bugs:
        print(f"\n{bug}")
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
