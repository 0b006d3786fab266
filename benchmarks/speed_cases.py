"""What is measured: cases, the candidates that compete in each, and the records that come out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from peaks import peak_bytes, peak_since, reset_peak
from timing import Clock, Effort, Spread, calls_a_turn, take_turns
from torch import Tensor

MIB = 2**20


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype without its module."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do, measured in the same run.

    Args:
        bytes_a_second: Read and written by a large copy.
        operations_a_second: Of a large matrix product, by dtype.
    """

    bytes_a_second: float
    operations_a_second: Mapping[torch.dtype, float]

    def seconds(self, operations: float, bytes_moved: float, dtype: torch.dtype) -> float:
        """Shortest time of something that does and moves so much."""
        return max(operations / self.operations_a_second[dtype], bytes_moved / self.bytes_a_second)


@dataclass(frozen=True)
class Work:
    """What a way of computing does.

    Args:
        operations: Floating-point operations; 0 if they do not count, or are not known.
        bytes_moved: Bytes read from memory and written to it; 0 likewise.
    """

    operations: float = 0.0
    bytes_moved: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """One way to do what a case is about.

    Args:
        backend: Its name.
        run: Does it once, on one of the inputs.
        inputs: What calls take in turns.
        scope: Makes the context that it runs in.
        items: What one call does so many of: queries, pairs. Ratios are of the time an item.
        work: What it does in a call, if known.
        outputs: Tensors of the first sample in what `run` gives, to hold against the expected ones.
            None if it computes something else.
        times_itself: Whether `run` gives seconds, for what is done in another process.
        dtype: The dtype that it computes in, if not the case's.
    """

    backend: str
    run: Callable[[Any], Any]
    inputs: Sequence[Any]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    items: int = 1
    work: Work | None = None
    outputs: Callable[[Any], Sequence[Tensor]] | None = None
    times_itself: bool = False
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Contest:
    """Candidates that do the same.

    Args:
        candidates: In the order in which they are warmed up.
        expected: Computes the outputs of the first sample in float64.
        close: Ends what was started for them, when the case is over.
    """

    candidates: Sequence[Candidate]
    expected: Callable[[], Sequence[Tensor]] | None = None
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Record:
    """One line of the results; times are of one call, in microseconds.

    Args:
        suite: The suite.
        case: What was done.
        backend: How; empty if the case failed before that.
        shape: Its sizes.
        dtype: The dtype that it computed in.
        median_us: Median time.
        p20_us: A fifth of the times was shorter.
        p80_us: A fifth was longer.
        samples: Times that were taken.
        reference: The backend that ratios are to.
        ratio_to_reference: Median over the rounds of the time an item, divided by the reference's
            in the same round. In suite `memory`, of the peaks.
        ratio_p20: A fifth of these was smaller.
        ratio_p80: A fifth was larger.
        items_per_second: Queries, pairs, ... a second.
        floor_us: Shortest time by the machine's ceilings.
        ratio_to_floor: Median time divided by it.
        achieved_tflops: 1e12 operations a second that this backend did.
        achieved_tbs: 1e12 bytes a second that it had to move.
        error_vs_float64: Root mean square of the error over that of the result in float64; the
            largest of the outputs'.
        peak_mib: Memory that a call took; in suite `memory`, with all that was there before.
        error: Why there is no result.
    """

    suite: str
    case: str
    backend: str
    shape: Mapping[str, Any]
    dtype: str
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    samples: int = 0
    reference: str | None = None
    ratio_to_reference: float | None = None
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    items_per_second: float | None = None
    floor_us: float | None = None
    ratio_to_floor: float | None = None
    achieved_tflops: float | None = None
    achieved_tbs: float | None = None
    error_vs_float64: float | None = None
    peak_mib: float | None = None
    error: str | None = None


RECORD_FIELDS = tuple(one.name for one in fields(Record))


@dataclass(frozen=True)
class Bench:
    """What cases are measured with.

    Args:
        device: Where they run.
        clock: Its clock.
        effort: How much is measured, unless a case says otherwise.
        ceilings: What the device can do.
    """

    device: torch.device
    clock: Clock
    effort: Effort
    ceilings: Ceilings


@dataclass(frozen=True)
class TimedCase:
    """Candidates that do the same, against the clock.

    Args:
        suite: The suite.
        name: What is done.
        shape: Its sizes.
        dtype: The dtype that candidates compute in.
        build: Makes the candidates and their inputs.
        reference: Backend that ratios are to.
        floor: Shortest time of a call, in seconds, by the machine's ceilings.
        effort: How much is measured, if not the run's.
    """

    suite: str
    name: str
    shape: Mapping[str, Any]
    dtype: torch.dtype
    build: Callable[[], Contest]
    reference: str = "reference"
    floor: Callable[[Ceilings], float] | None = None
    effort: Effort | None = None

    def measure(self, bench: Bench) -> list[Record]:
        """Run it. What fails is recorded with its error, and the others go on."""
        try:
            contest = self.build()
        except Exception as error:
            return [self._failed("", error)]
        try:
            return self._measure(contest, bench)
        finally:
            contest.close()

    def _measure(self, contest: Contest, bench: Bench) -> list[Record]:
        effort = self.effort or bench.effort
        try:
            expected = None if contest.expected is None else contest.expected()
            floor = None if self.floor is None else self.floor(bench.ceilings)
        except Exception as error:
            return [self._failed("", error)]
        records: dict[str, Record] = {}
        turns: dict[str, Callable[[int], float]] = {}
        for one in contest.candidates:
            try:
                record, seconds = self._warm_up(one, bench, effort, expected)
            except Exception as error:
                records[one.backend] = self._failed(one.backend, error)
                continue
            records[one.backend] = record
            turns[one.backend] = _turn(one, bench.clock, calls_a_turn(seconds, effort))
        try:
            seconds_of = take_turns(turns, effort) if turns else {}
        except Exception as error:
            return [*records.values(), self._failed("", error)]
        running = {one.backend: one for one in contest.candidates if one.backend in seconds_of}
        reference = running.get(self.reference)
        for backend, one in running.items():
            records[backend] = _with_times(records[backend], one, seconds_of, reference, floor)
        return list(records.values())

    def _warm_up(
        self,
        candidate: Candidate,
        bench: Bench,
        effort: Effort,
        expected: Sequence[Tensor] | None,
    ) -> tuple[Record, float]:
        """Run a candidate until it is ready; what it computes and takes, and seconds a call."""
        dtype = dtype_name(candidate.dtype or self.dtype)
        record = Record(self.suite, self.name, candidate.backend, self.shape, dtype)
        shortest = float("inf")
        for number in range(effort.warm_up):
            before = reset_peak(bench.device)
            seconds, result = _timed_call(candidate, number, bench.clock)
            peak = peak_since(bench.device, before)
            record = replace(record, peak_mib=None if peak is None else peak / MIB)
            shortest = min(shortest, seconds)
            if number == 0 and expected is not None and candidate.outputs is not None:
                error = relative_error(candidate.outputs(result), expected)
                record = replace(record, error_vs_float64=error)
        return record, shortest

    def _failed(self, backend: str, error: Exception) -> Record:
        return failed(self.suite, self.name, backend, self.shape, self.dtype, error)


def _timed_call(candidate: Candidate, number: int, clock: Clock) -> tuple[float, Any]:
    given = candidate.inputs[number % len(candidate.inputs)]
    results: list[Any] = []
    with candidate.scope():
        seconds = clock.seconds(lambda: results.append(candidate.run(given)))
    return (results[0] if candidate.times_itself else seconds), results[0]


def _turn(candidate: Candidate, clock: Clock, calls: int) -> Callable[[int], float]:
    """Make what a candidate does in its turn: some calls, each on the next of its inputs."""
    inputs = candidate.inputs

    def turn(number: int) -> float:
        if candidate.times_itself:
            return float(candidate.run(inputs[number % len(inputs)]))
        given = [inputs[(number * calls + call) % len(inputs)] for call in range(calls)]

        def run() -> None:
            for one in given:
                candidate.run(one)

        with candidate.scope():
            return clock.seconds(run) / calls

    return turn


def _with_times(
    record: Record,
    candidate: Candidate,
    seconds_of: Mapping[str, Sequence[float]],
    reference: Candidate | None,
    floor: float | None,
) -> Record:
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
    """Something whose peak of memory is measured.

    Args:
        backend: How it is done.
        shape: Sizes of its own.
        call: Does it once.
    """

    backend: str
    shape: Mapping[str, Any]
    call: Callable[[], object]


@dataclass(frozen=True)
class MemoryCase:
    """Peaks of memory; ratios are to the first.

    Args:
        suite: The suite.
        name: What is done.
        shape: Sizes that all have in common.
        dtype: The dtype that is computed in.
        build: Makes what is run.
    """

    suite: str
    name: str
    shape: Mapping[str, Any]
    dtype: torch.dtype
    build: Callable[[], Sequence[Run]]

    def measure(self, bench: Bench) -> list[Record]:
        """Run it. What fails is recorded with its error, and the others go on."""
        try:
            runs = self.build()
        except Exception as error:
            return [failed(self.suite, self.name, "", self.shape, self.dtype, error)]
        records: list[Record] = []
        first: float | None = None
        for run in runs:
            shape = {**self.shape, **run.shape}
            try:
                run.call()  # what is made once and kept is no part of the growth
                peak = peak_bytes(run.call, bench.device) / MIB
            except Exception as error:
                records.append(failed(self.suite, self.name, run.backend, shape, self.dtype, error))
                continue
            first = peak if first is None else first
            record = Record(self.suite, self.name, run.backend, shape, dtype_name(self.dtype))
            records.append(replace(record, peak_mib=peak, ratio_to_reference=peak / first))
        return records


Case = TimedCase | MemoryCase


def failed(
    suite: str,
    case: str,
    backend: str,
    shape: Mapping[str, Any],
    dtype: torch.dtype,
    error: Exception,
) -> Record:
    """Record that something failed."""
    first_line = (str(error).strip() or "no message").splitlines()[0]
    reason = f"{type(error).__name__}: {first_line}"
    return Record(suite, case, backend, shape, dtype_name(dtype), error=reason)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Root mean square of the error, over that of the expected values; the worst of the tensors."""
    errors = []
    for one, truth in zip(found, expected, strict=True):
        truth = truth.double()
        error = (one.double() - truth).square().mean() / truth.square().mean()
        errors.append(error.sqrt().item())
    return max(errors)


def as_dicts(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Turn records into what JSON holds."""
    return [asdict(one) for one in records]
