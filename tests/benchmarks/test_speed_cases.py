import json
from contextlib import contextmanager
from dataclasses import asdict

import pytest
import torch
from helpers.clock import FakeTime
from speed_cases import (
    Bench,
    Candidate,
    Ceilings,
    Contest,
    MemoryCase,
    Record,
    Run,
    TimedCase,
    Work,
    relative_error,
)
from timing import CpuClock, Effort

CPU = torch.device("cpu")
CEILINGS = Ceilings(bytes_a_second=100.0, operations_a_second={torch.float32: 1000.0})


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture
def bench(time):
    return Bench(CPU, CpuClock(time), Effort(rounds=5, seconds=0), CEILINGS)


def case_of(*candidates, expected=None, **fields):
    fields = {"shape": {"batch": 2}, "dtype": torch.float32, **fields}
    return TimedCase("suite", "case", build=lambda: Contest(candidates, expected), **fields)


def takes(time, seconds, backend="reference", **fields):
    return Candidate(backend, lambda given: time.wait(seconds), ["x"], **fields)


def fail(*given):
    raise ValueError("first line\nsecond line")


BROKEN = Candidate("broken", fail, ["x"])


def test_times_and_ratios(time, bench):
    ours = takes(time, 0.5, "auto", items=4, work=Work(100.0, 50.0))
    floor = {"floor": lambda ceilings: 0.2}
    one, other = case_of(takes(time, 2.0, items=4), ours, **floor).measure(bench)
    assert (one.backend, one.median_us, one.ratio_to_reference) == ("reference", 2e6, 1.0)
    assert (other.median_us, other.p20_us, other.p80_us, other.samples) == (5e5, 5e5, 5e5, 5)
    assert (other.reference, other.ratio_to_reference) == ("reference", 0.25)
    assert (other.ratio_p20, other.ratio_p80) == (0.25, 0.25)
    assert other.items_per_second == 8.0
    assert (other.floor_us, other.ratio_to_floor) == (2e5, 2.5)
    assert other.achieved_tflops == pytest.approx(200e-12)
    assert other.achieved_tbs == pytest.approx(100e-12)
    assert (one.achieved_tflops, other.error) == (None, None)


def test_ratios_are_of_the_time_per_item(time, bench):
    case = case_of(takes(time, 3.0, items=30), takes(time, 1.0, "auto", items=5))
    assert case.measure(bench)[1].ratio_to_reference == pytest.approx(2.0)


def test_ratios_are_taken_round_by_round(time, bench):
    # Both slow down together, which ratios per round ignore.
    rounds = {"reference": 0, "auto": 0}

    def slowing(name, seconds):
        def run(given):
            rounds[name] += 1
            time.wait(seconds * rounds[name])

        return run

    candidates = [Candidate(name, slowing(name, 1.0 + (name == "auto")), ["x"]) for name in rounds]
    record = case_of(*candidates).measure(bench)[1]
    assert record.p20_us < record.median_us < record.p80_us
    assert record.ratio_p20 == record.ratio_to_reference == record.ratio_p80 == 2.0


def test_inputs_rotate_through_all_calls(time):
    seen = []

    def run(given):
        seen.append(given)
        time.wait(1e-3)

    effort = Effort(rounds=3, seconds=0, shortest_turn=2e-3, warm_up=2)
    bench = Bench(CPU, CpuClock(time), effort, CEILINGS)
    case_of(Candidate("reference", run, ["a", "b", "c"])).measure(bench)
    assert seen[:2] == ["a", "b"]  # warm-up
    assert seen[2:] == ["a", "b", "c", "a", "b", "c"]  # two calls per turn


def test_each_candidate_runs_in_its_scope(time, bench):
    open_scopes, seen = [], []

    def scope_of(name):
        @contextmanager
        def scope():
            open_scopes.append(name)
            yield
            open_scopes.remove(name)

        return scope

    def run(given):
        seen.append(tuple(open_scopes))
        time.wait(1.0)

    candidates = [Candidate(name, run, ["x"], scope_of(name)) for name in ("reference", "auto")]
    case_of(*candidates).measure(bench)
    assert set(seen) == {("reference",), ("auto",)}
    assert not open_scopes


def test_candidates_may_time_themselves(time, bench):
    def elsewhere(given):
        time.wait(50.0)  # not counted
        return 0.125

    record = case_of(Candidate("reference", elsewhere, ["x"], times_itself=True)).measure(bench)[0]
    assert record.median_us == 0.125e6


def test_what_fails_is_recorded_and_the_others_go_on(time, bench):
    broken, good = case_of(BROKEN, takes(time, 1.0)).measure(bench)
    assert (broken.backend, broken.error) == ("broken", "ValueError: first line")
    assert broken.median_us is None
    assert (good.backend, good.error, good.median_us) == ("reference", None, 1e6)
    # Without its reference, a case has times but no ratios.
    other = case_of(BROKEN, takes(time, 1.0), reference="broken").measure(bench)[1]
    assert (other.median_us, other.ratio_to_reference) == (1e6, None)

    def build():
        raise RuntimeError

    [record] = TimedCase("suite", "case", {}, torch.float32, build).measure(bench)
    assert (record.backend, record.error) == ("", "RuntimeError: no message")
    calls = []

    def fail_later(given):
        calls.append(given)
        time.wait(1.0)
        if len(calls) > bench.effort.warm_up:
            raise ValueError("later")

    records = case_of(Candidate("reference", fail_later, ["x"])).measure(bench)
    assert [one.error for one in records] == [None, "ValueError: later"]


@pytest.mark.parametrize("works", [True, False])
def test_what_was_started_for_a_case_is_ended(works, time, bench):
    ended = []
    contest = Contest([takes(time, 1.0)], None if works else fail, lambda: ended.append(True))
    records = TimedCase("suite", "case", {}, torch.float32, lambda: contest).measure(bench)
    assert [one.error for one in records] == [None if works else "ValueError: first line"]
    assert ended == [True]


def test_errors_are_of_the_first_sample_of_the_first_input(time, bench):
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)

    def run(given):
        time.wait(1.0)
        return given

    inputs = [truth.float() * 1.5, truth.float()]
    candidate = Candidate("reference", run, inputs, outputs=lambda one: [one])
    [record] = case_of(candidate, expected=lambda: [truth]).measure(bench)
    assert record.error_vs_float64 == pytest.approx(0.5)
    [other] = case_of(Candidate("reference", run, [truth])).measure(bench)
    assert other.error_vs_float64 is None
    # The worst of several outputs counts.
    assert relative_error([truth, truth * 1.1], [truth, truth]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="longer"):
        relative_error([truth], [truth, truth])


def test_ceilings_are_of_operations_or_bytes():
    assert CEILINGS.seconds(500.0, 10.0, torch.float32) == 0.5
    assert CEILINGS.seconds(500.0, 80.0, torch.float32) == 0.8


def test_records_have_one_form_and_fit_into_json(time, bench):
    records = case_of(takes(time, 1.0), BROKEN).measure(bench)
    found = json.loads(json.dumps(list(map(asdict, records)), allow_nan=False))
    assert found[0].keys() == found[1].keys() == Record.__dataclass_fields__.keys()
    assert found[0]["shape"] == {"batch": 2}
    assert found[0]["dtype"] == "float32"


def test_peaks_are_compared_with_the_first(bench):
    runs = [
        Run("auto", {"steps": steps}, lambda numbers=numbers: torch.ones(numbers).add_(1))
        for steps, numbers in ((1, 2**18), (2, 2**19))
    ]
    runs.append(Run("broken", {}, fail))
    case = MemoryCase("memory", "case", {"batch": 2}, torch.float32, lambda: runs)
    first, second, broken = case.measure(bench)
    assert (first.peak_mib, first.ratio_to_reference) == (1.0, 1.0)
    assert (second.peak_mib, second.ratio_to_reference) == (2.0, 2.0)
    assert second.shape == {"batch": 2, "steps": 2}
    assert broken.error == "ValueError: first line"
