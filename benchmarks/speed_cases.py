"""What is measured: cases, the candidates that compete in each, and the records that come out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from peaks import peak_bytes
from timing import Clock, Effort, Spread, calls_a_turn, take_turns
from torch import Tensor

MIB = 2**20


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype without its module."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do, measured in the same run."""

    bytes_a_second: float  # read and written by a large copy
    operations_a_second: Mapping[torch.dtype, float]  # of a large matrix product, by dtype

    def seconds(self, operations: float, bytes_moved: float, dtype: torch.dtype) -> float:
        """Shortest time of something that does and moves so much."""
        return max(operations / self.operations_a_second[dtype], bytes_moved / self.bytes_a_second)


@dataclass(frozen=True)
class Work:
    """What a way of computing does."""

    operations: float = 0.0  # floating-point operations; 0 if they do not count, or are not known
    bytes_moved: float = 0.0  # bytes read from memory and written to it; 0 likewise


@dataclass(frozen=True)
class Candidate:
    """One way to do what a case is about."""

    backend: str  # its name
    run: Callable[[Any], Any]  # does it once, on one of the inputs
    inputs: Sequence[Any]  # what calls take in turns
    # Makes the context that it runs in.
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    items: int = 1  # What one call does so many of: queries, pairs. Ratios are of the time an item.
    work: Work | None = None  # what it does in a call, if known
    # The first sample's outputs, to compare with the expected; None if it computes something else.
    outputs: Callable[[Any], Sequence[Tensor]] | None = None
    times_itself: bool = False  # whether `run` gives seconds, for what is done in another process


@dataclass(frozen=True)
class Contest:
    """Candidates that do the same."""

    candidates: Sequence[Candidate]  # in the order in which they are warmed up
    # Computes the outputs of the first sample in float64.
    expected: Callable[[], Sequence[Tensor]] | None = None
    # Ends what was started for them, when the case is over.
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Record:
    """One line of the results; times are of one call, in microseconds."""

    suite: str  # the suite
    case: str  # what was done
    backend: str  # how; empty if the case failed before that
    shape: Mapping[str, Any]  # its sizes
    dtype: str  # the dtype that it computed in
    median_us: float | None = None  # median time
    p20_us: float | None = None  # a fifth of the times was shorter
    p80_us: float | None = None  # a fifth was longer
    samples: int = 0  # times that were taken
    reference: str | None = None  # the backend that ratios are to
    # Median over the rounds of the time per item, divided by the reference's in the same round. In
    # suite `memory`, of the peaks.
    ratio_to_reference: float | None = None
    ratio_p20: float | None = None  # a fifth of these was smaller
    ratio_p80: float | None = None  # a fifth was larger
    items_per_second: float | None = None  # Queries, pairs, ... per second.
    floor_us: float | None = None  # shortest time by the machine's ceilings
    ratio_to_floor: float | None = None  # median time divided by it
    achieved_tflops: float | None = None  # 1e12 operations per second that this backend did
    achieved_tbs: float | None = None  # 1e12 bytes per second that it had to move
    # Root mean square of the error over that of the result in float64; the largest of the outputs'.
    error_vs_float64: float | None = None
    # In suite `memory`.
    peak_mib: float | None = None
    error: str | None = None  # why there is no result


RECORD_FIELDS = tuple(one.name for one in fields(Record))


@dataclass(frozen=True)
class Bench:
    """What cases are measured with."""

    device: torch.device  # where they run
    clock: Clock  # its clock
    effort: Effort  # how much is measured, unless a case says otherwise
    ceilings: Ceilings  # what the device can do


@dataclass(frozen=True)
class Case:
    """What a suite consists of."""

    suite: str  # the suite
    name: str  # what is done
    shape: Mapping[str, Any]  # its sizes
    dtype: torch.dtype  # the dtype that is computed in

    def measure(self, bench: Bench) -> list[Record]:
        """Run it. What fails is recorded with its error, and the others go on."""
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
    """Candidates that do the same, against the clock."""

    build: Callable[[], Contest]  # makes the candidates and their inputs
    reference: str = "reference"  # backend that ratios are to
    # Shortest time of a call, in seconds, by the machine's ceilings.
    floor: Callable[[Ceilings], float] | None = None
    effort: Effort | None = None  # how much is measured, if not the run's

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
        """Run a candidate until it is ready; what it computes and takes, and seconds per call."""
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
    """Make some calls, each on the next of the inputs; seconds per call, and the last result."""
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
    """Add the times that a candidate took, and their ratios to the reference's."""
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
    """Something whose peak of memory is measured."""

    backend: str  # how it is done
    shape: Mapping[str, Any]  # sizes of its own
    call: Callable[[], object]  # does it once


@dataclass(frozen=True)
class MemoryCase(Case):
    """Peaks of memory; ratios are to the first."""

    build: Callable[[], Sequence[Run]]  # makes what is run

    def _measure(self, bench: Bench) -> list[Record]:
        records: list[Record] = []
        first: float | None = None
        for run in self.build():
            shape = {**self.shape, **run.shape}
            try:
                run.call()  # what is made once and kept is no part of the growth
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
    """Root mean square of the error, over that of the expected values; the worst of the tensors."""
    errors = []
    for one, truth in zip(found, expected, strict=True):
        truth = truth.double()
        error = (one.double() - truth).square().mean() / truth.square().mean()
        errors.append(error.sqrt().item())
    return max(errors)
