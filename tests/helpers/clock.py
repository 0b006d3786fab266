"""Time that goes on when it is told to."""


class FakeTime:
    """Seconds since some moment: call it, or let some pass."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds
