import numpy as np
import pytest
import torch
from helpers.clock import FakeTime
from hypothesis import given
from hypothesis import strategies as st
from timing import (
    CpuClock,
    CudaClock,
    Effort,
    Spread,
    calls_a_turn,
    clock_of,
    seconds_elsewhere,
    take_turns,
)


def test_the_clock_times_the_call():
    time = FakeTime()
    assert CpuClock(time).seconds(lambda: time.wait(0.25)) == 0.25


def test_the_clock_of_a_gpu_is_between_events_that_enclose_the_work(monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("record")

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, other):
            assert other is not self
            return 3.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("synchronize"))
    clock = clock_of(torch.device("cuda"))
    assert isinstance(clock, CudaClock)
    assert clock.seconds(lambda: done.append("run")) == pytest.approx(3e-3)
    assert done == ["synchronize", "record", "run", "record", "wait"]


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30))
def test_spread_splits_the_values_in_shares(values):
    spread = Spread.of(values)
    assert min(values) <= spread.p20 <= spread.median <= spread.p80 <= max(values)
    assert spread.median == pytest.approx(np.median(values))
    assert sum(value <= spread.p20 for value in values) >= 0.2 * len(values) - 1e-9
    assert sum(value >= spread.p80 for value in values) >= 0.2 * len(values) - 1e-9


def test_short_calls_are_repeated_until_the_clock_can_tell():
    effort = Effort(shortest_turn=1e-3)
    assert calls_a_turn(1e-4, effort) == 10
    assert calls_a_turn(5.0, effort) == 1
    assert calls_a_turn(1e-12, effort) == calls_a_turn(1e-9, effort) == 1000
    assert calls_a_turn(0.0, effort) == 1
    assert calls_a_turn(float("inf"), effort) == 1


def test_candidates_take_turns_and_each_is_first_as_often():
    turns = []

    def make(name):
        return lambda number: turns.append((number, name)) or float(number)

    effort = Effort(rounds=3, seconds=0)
    seconds = take_turns({name: make(name) for name in "abc"}, effort, FakeTime())
    assert seconds == {name: [0.0, 1.0, 2.0] for name in "abc"}
    assert turns == [
        *((0, name) for name in "abc"),
        *((1, name) for name in "bca"),
        *((2, name) for name in "cab"),
    ]


def test_rounds_go_on_until_the_time_is_up_and_end_at_a_number():
    time = FakeTime()

    def slow(number):
        time.wait(1.0)
        return 1.0

    def count(**effort):
        return len(take_turns({"slow": slow, "too": slow}, Effort(**effort), time)["slow"])

    assert count(rounds=2, seconds=5.0) == 5  # per candidate: ten seconds in all
    assert count(rounds=7, seconds=5.0) == 7
    assert count(rounds=2, seconds=5.0, most_rounds=4) == 4


@pytest.mark.process
def test_programs_tell_their_seconds(tmp_path):
    (tmp_path / "here.py").write_text("SECONDS = 0.25")
    program = "import here, sys; print('loading'); print(here.SECONDS * int(sys.argv[1]))"
    assert seconds_elsewhere(program, "2", folder=tmp_path) == 0.5
    with pytest.raises(RuntimeError, match="no_such_module"):
        seconds_elsewhere("import no_such_module", folder=tmp_path)
