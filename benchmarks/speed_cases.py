"""Cases to measure, their candidates, and the records of results."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from peaks import peak_bytes
from timing import Clock, Effort, Spread, calls_a_turn, take_turns
from torch import Tensor

MIB = 2**20


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Ceilings:
    """Highest rates of the machine, measured in the same run."""

    bytes_a_second: float  # read and written by a large copy
    operations_a_second: Mapping[torch.dtype, float]  # of a large matrix product, by dtype

    def seconds(self, operations: float, bytes_moved: float, dtype: torch.dtype) -> float:
        """Return the shortest time for so many operations and bytes."""
        return max(operations / self.operations_a_second[dtype], bytes_moved / self.bytes_a_second)


@dataclass(frozen=True)
class Work:
    """Floating-point operations and memory traffic of a computation; 0 if unknown or ignored."""

    operations: float = 0.0
    bytes_moved: float = 0.0  # read and written


@dataclass(frozen=True)
class Candidate:
    """One way to do the work of a case."""

    backend: str  # its name
    run: Callable[[Any], Any]  # does it once, on one of the inputs
    inputs: Sequence[Any]  # used by calls in turn
    # Makes the context to run in.
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    items: int = 1  # queries or pairs per call; ratios are of the time per item
    work: Work | None = None  # per call, if known
    # The first sample's outputs, to compare with the expected; None to skip the comparison.
    outputs: Callable[[Any], Sequence[Tensor]] | None = None
    times_itself: bool = False  # whether `run` returns seconds, measured in another process


@dataclass(frozen=True)
class Contest:
    """Candidates that do the same work."""

    candidates: Sequence[Candidate]  # in the order of their warm-up
    # Computes the outputs of the first sample in float64.
    expected: Callable[[], Sequence[Tensor]] | None = None
    # Cleans up after the case.
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Record:
    """One line of the results; times are of one call, in microseconds."""

    suite: str
    case: str
    backend: str  # empty if the case failed before its candidates
    shape: Mapping[str, Any]  # sizes
    dtype: str  # of the computation
    median_us: float | None = None
    p20_us: float | None = None  # 20th percentile
    p80_us: float | None = None  # 80th percentile
    samples: int = 0  # number of times measured
    reference: str | None = None  # backend that ratios refer to
    # Median over the rounds of the time per item, divided by the reference's in the same round. In
    # suite `memory`, ratio of the peaks.
    ratio_to_reference: float | None = None
    ratio_p20: float | None = None  # 20th percentile
    ratio_p80: float | None = None  # 80th percentile
    items_per_second: float | None = None  # queries, pairs, ...
    floor_us: float | None = None  # shortest time by the machine's ceilings
    ratio_to_floor: float | None = None  # median time divided by it
    achieved_tflops: float | None = None  # 1e12 operations per second
    achieved_tbs: float | None = None  # 1e12 bytes per second
    # Relative root mean square error against float64; the largest over the outputs.
    error_vs_float64: float | None = None
    # In suite `memory`.
    peak_mib: float | None = None
    error: str | None = None  # why there is no result


@dataclass(frozen=True)
class Bench:
    """Device and tools of measurements."""

    device: torch.device
    clock: Clock
    effort: Effort  # default of cases
    ceilings: Ceilings  # of the device


@dataclass(frozen=True)
class Case:
    """A measurement of a suite."""

    suite: str
    name: str
    shape: Mapping[str, Any]  # sizes
    dtype: torch.dtype  # of the computation

    def measure(self, bench: Bench) -> list[Record]:
        """Run the case; record a failure with its error, so that others still run."""
        try:
            return self._measure(bench)
        except Exception as error:
            return [self._failed("", error)]

    def _measure(self, bench: Bench) -> list[Record]:
        raise NotImplementedError

    def _record(self, backend: str, **fields: Any) -> Record:
        fields = {"shape": self.shape, "dtype": dtype_name(self.dtype), **fields}
        return Record(self.suite, self.name, backend, **fields)

    def _failed(self, backend: str, error: Exception, **fields: Any) -> Record:
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return self._record(backend, error=f"{type(error).__name__}: {first_line}", **fields)


@dataclass(frozen=True)
class TimedCase(Case):
    """A comparison of times."""

    build: Callable[[], Contest]  # makes the candidates and their inputs
    reference: str = "reference"  # backend that ratios refer to
    # Shortest time of a call, in seconds, by the machine's ceilings.
    floor: Callable[[Ceilings], float] | None = None
    effort: Effort | None = None  # defaults to the run's

    def _measure(self, bench: Bench) -> list[Record]:
        contest = self.build()
        try:
            return self._measure_contest(contest, bench)
        finally:
            contest.close()

    def _measure_contest(self, contest: Contest, bench: Bench) -> list[Record]:
        effort = self.effort or bench.effort
        expected = None if contest.expected is None else contest.expected()
        floor = None if self.floor is None else self.floor(bench.ceilings)
        records: dict[str, Record] = {}
        running: dict[str, Candidate] = {}
        turns: dict[str, Callable[[int], float]] = {}
        for one in contest.candidates:
            try:
                records[one.backend], seconds = self._warm_up(one, bench, effort, expected)
            except Exception as error:
                records[one.backend] = self._failed(one.backend, error)
                continue
            running[one.backend] = one
            calls = 1 if one.times_itself else calls_a_turn(seconds, effort)
            turns[one.backend] = partial(_turn, one, calls, bench.clock)
        try:
            seconds_of = take_turns(turns, effort) if turns else {}
        except Exception as error:
            return [*records.values(), self._failed("", error)]
        reference = running.get(self.reference)
        for backend, one in running.items():
            records[backend] = with_times(records[backend], one, seconds_of, reference, floor)
        return list(records.values())

    def _warm_up(
        self,
        candidate: Candidate,
        bench: Bench,
        effort: Effort,
        expected: Sequence[Tensor] | None,
    ) -> tuple[Record, float]:
        """Warm up a candidate; return a record with its error, and seconds per call."""
        record = self._record(candidate.backend)
        shortest = float("inf")
        for number in range(effort.warm_up):
            seconds, result = _run(candidate, number, 1, bench.clock)
            shortest = min(shortest, seconds)
            if number == 0 and expected is not None and candidate.outputs is not None:
                error = relative_error(candidate.outputs(result), expected)
                record = replace(record, error_vs_float64=error)
        return record, shortest


def _run(candidate: Candidate, first: int, calls: int, clock: Clock) -> tuple[float, Any]:
    """Make several calls on successive inputs; return seconds per call and the last result."""
    inputs = candidate.inputs
    *others, last = (inputs[(first + call) % len(inputs)] for call in range(calls))
    results: list[Any] = []

    def run() -> None:
        for one in others:
            candidate.run(one)
        results.append(candidate.run(last))

    with candidate.scope():
        seconds = clock.seconds(run) / calls
    return (results[0] if candidate.times_itself else seconds), results[0]


def _turn(candidate: Candidate, calls: int, clock: Clock, number: int) -> float:
    return _run(candidate, number * calls, calls, clock)[0]


def with_times(
    record: Record,
    candidate: Candidate,
    seconds_of: Mapping[str, Sequence[float]],
    reference: Candidate | None,
    floor: float | None,
) -> Record:
    """Add a candidate's times and their ratios to the reference's."""
    own = seconds_of[candidate.backend]
    spread = Spread.of(own)
    record = replace(
        record,
        median_us=spread.median * 1e6,
        p20_us=spread.p20 * 1e6,
        p80_us=spread.p80 * 1e6,
        samples=len(own),
        items_per_second=candidate.items / spread.median,
    )
    if reference is not None:
        pairs = zip(own, seconds_of[reference.backend], strict=True)
        ratio = Spread.of([(a / candidate.items) / (b / reference.items) for a, b in pairs])
        record = replace(
            record,
            reference=reference.backend,
            ratio_to_reference=ratio.median,
            ratio_p20=ratio.p20,
            ratio_p80=ratio.p80,
        )
    if floor is not None:
        record = replace(record, floor_us=floor * 1e6, ratio_to_floor=spread.median / floor)
    work = candidate.work or Work()
    if work.operations:
        record = replace(record, achieved_tflops=work.operations / spread.median / 1e12)
    if work.bytes_moved:
        record = replace(record, achieved_tbs=work.bytes_moved / spread.median / 1e12)
    return record


@dataclass(frozen=True)
class Run:
    """A call whose peak memory is measured."""

    backend: str
    shape: Mapping[str, Any]  # its sizes
    call: Callable[[], object]


@dataclass(frozen=True)
class MemoryCase(Case):
    """A comparison of peak memory; ratios refer to the first run."""

    build: Callable[[], Sequence[Run]]

    def _measure(self, bench: Bench) -> list[Record]:
        records: list[Record] = []
        first: float | None = None
        for run in self.build():
            shape = {**self.shape, **run.shape}
            try:
                run.call()  # fill caches, which do not count
                peak = peak_bytes(run.call, bench.device) / MIB
            except Exception as error:
                records.append(self._failed(run.backend, error, shape=shape))
                continue
            first = first or peak
            ratio = peak / first
            records.append(
                self._record(run.backend, shape=shape, peak_mib=peak, ratio_to_reference=ratio)
            )
        return records


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the relative root mean square error, the largest over the tensors."""
    errors = []
    for one, truth in zip(found, expected, strict=True):
        truth = truth.double()
        error = (one.double() - truth).square().mean() / truth.square().mean()
        errors.append(error.sqrt().item())
    return max(errors)
