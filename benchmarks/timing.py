"""Clocks, and timing in turns, so that all candidates meet the same state of the machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


class CpuClock:
    """Time of a call by the clock `now`, in seconds. Defaults to wall time."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now

    def seconds(self, run: Callable[[], object]) -> float:
        """Run once, and return how long it took."""
        began = self.now()
        run()
        return self.now() - began


class CudaClock:
    """Time on a GPU from the first launch until all work is done.

    Work of other streams counts if the current stream waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, run: Callable[[], object]) -> float:
        """Run once, and return how long it took."""
        began = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3


Clock = CpuClock | CudaClock


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int = 7  # fewest rounds; in each, every candidate has a turn
    seconds: float = 2.0  # time per candidate until which rounds continue
    most_rounds: int = 100
    shortest_turn: float = 2e-3  # in seconds; shorter calls are repeated
    warm_up: int = 2  # calls before the first round


QUICK = Effort(rounds=3, seconds=0.05, most_rounds=20, shortest_turn=5e-4)


@dataclass(frozen=True)
class Spread:
    """Median of measurements, and their 20th and 80th percentiles."""

    median: float
    p20: float
    p80: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Compute the spread."""
        p20, median, p80 = np.percentile(np.asarray(values, dtype=float), [20, 50, 80]).tolist()
        return Spread(median, p20, p80)


def calls_a_turn(seconds_a_call: float, effort: Effort) -> int:
    """Return how often to repeat a call in a turn, so that the clock can measure it."""
    if seconds_a_call <= 0:
        return 1
    return max(1, min(1000, round(effort.shortest_turn / seconds_a_call)))


def take_turns(
    turns: Mapping[str, Callable[[int], float]],
    effort: Effort,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Measure candidates in rounds, each starting with another candidate.

    A turn takes the number of the round and returns seconds per call.
    """
    names = list(turns)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    began = now()
    for number in range(effort.most_rounds):
        if number >= effort.rounds and now() - began >= effort.seconds * len(names):
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(turns[name](number))
    return seconds


def seconds_elsewhere(program: str, *arguments: str, folder: Path) -> float:
    """Run Python code in a new process in a folder; return the seconds that it prints last."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {name: one for name, one in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode:
        reason = (run.stderr.strip() or f"exit status {run.returncode}").splitlines()[-1]
        raise RuntimeError(f"{Path(folder).name}: {reason}")
    return float(run.stdout.splitlines()[-1])
