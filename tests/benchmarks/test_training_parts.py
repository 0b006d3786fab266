"""Where the time of a training step goes."""

import pytest
import torch
from training_parts import Stopwatch, main


class Clock:
    """A clock that work moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_parts_do_not_count_the_parts_within_them() -> None:
    clock = Clock()

    class Work:
        def outer(self) -> str:
            clock.time += 1
            self.inner(2)
            self.inner(4)
            clock.time += 8
            return "done"

        @staticmethod
        def inner(seconds: float) -> None:
            clock.time += seconds
            if seconds == 4:
                raise_and_catch()

    def raise_and_catch() -> None:
        with pytest.raises(ValueError, match="over"):
            Failing.fail()

    class Failing:
        @classmethod
        def fail(cls) -> None:
            clock.time += 16
            raise ValueError("over")

    with Stopwatch(clock) as stopwatch:
        stopwatch.watch(Work, "outer", "outside")
        stopwatch.watch(Work, "inner", "inside")
        stopwatch.watch(Failing, "fail", "innermost")
        assert Work().outer() == "done"
    assert stopwatch.seconds == {"outside": 9, "inside": 6, "innermost": 16}
    Work().outer()
    assert sum(stopwatch.seconds.values()) == 31


def test_prints_the_parts_of_a_step_with_one_thread_and_with_several(
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = torch.get_num_threads()
    main(["--preset", "nano", "--batch", "4", "--videos", "2", "--epochs", "2", "--threads", "3"])
    assert torch.get_num_threads() == threads
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| part | 1 thread, ms a step | 3 threads | ratio |"
    parts, *columns = zip(*(row.strip("| ").split(" | ") for row in rows), strict=True)
    assert {"styled_residual", "styled_residual, gradient", "AdamW", "data"} <= {*parts}
    for column in columns[:2]:
        *times, of_all = (float(one) for one in column)
        assert sum(times) == pytest.approx(of_all, abs=0.05 * len(rows))
