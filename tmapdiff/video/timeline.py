"""When frames are shown, whatever the timestamps of their file do."""

import math
from fractions import Fraction
from typing import Any, Literal

Timestamps = Literal["shown", "decoded", "none"]
LONGEST = Fraction(3600)  # seconds that one frame may be shown


class Timeline:
    """Says of frames, as a decoder gives them, when they are shown.

    A decoder gives frames in the order they are shown. Timestamps need not follow it: they may tell
    when frames are decoded, start again where files were joined, leap, or be missing. On the time
    line no frame comes before an earlier one: where timestamps go back or leap, a frame follows the
    one before it.

    Args:
        first: The first frame, as PyAV gives it.
        start: Seconds at which it is shown, by the file's own clock.
        origin: Time 0, by the same clock.
        timestamps: What those of the file tell: when frames are `shown`, when they are `decoded`,
            or `none` that can be used: frames follow each other then.
        period: Seconds from one frame to the next, on average; 0 if unknown.
        longest_gap: Seconds that a frame may be shown beyond `period`: what is longer is a leap.
        may_restart: Whether clocks of this format start again without being damaged.

    Attributes:
        start: Seconds at which the frame that was placed last is shown, or the first one.
        is_mended: Whether timestamps went back or leapt.
    """

    def __init__(
        self,
        first: Any,
        start: Fraction,
        origin: Fraction,
        timestamps: Timestamps,
        *,
        period: Fraction,
        longest_gap: Fraction,
        may_restart: bool,
    ) -> None:
        self.is_mended = False
        self._timestamps = timestamps
        self._period = period
        self._longest_gap = longest_gap
        self._may_restart = may_restart
        self._shift = -origin  # from the file's clock to the time line
        self.start = self._end = start - origin
        # PyAV tells of a frame when the packet was decoded upon which the decoder gave it.
        decoded = _seconds(first, first.dts)
        self._delay = Fraction(0) if decoded is None else decoded - start
        self._last_decoded: Fraction | float = -math.inf if decoded is None else decoded
        self._faults: list[str] = []

    def place(self, frame: Any) -> tuple[Fraction, Fraction]:
        """Return from when until when the next frame is shown, in seconds."""
        start = self._start_of(frame)
        duration = _seconds(frame, frame.duration) or self._period
        self.start, self._end = start, start + min(duration, LONGEST)
        return self.start, self._end

    @property
    def problem(self) -> str | None:
        """What was wrong with the timestamps, in a line; None if nothing was."""
        if not self._faults:
            return None
        more = len(self._faults) - 1
        return self._faults[0] + (f" (and {more} more times)" if more else "")

    def _start_of(self, frame: Any) -> Fraction:
        decoded = _seconds(frame, frame.dts)
        goes_on = decoded is not None and decoded > self._last_decoded
        start = self._time_of(frame)
        is_joint = self._may_restart and decoded is not None and decoded < self._last_decoded
        near = 4 * self._period
        if start is None or (is_joint and abs(start - self._end) <= near):
            # FFmpeg guesses pts of the last frames before a joint.
            start = self._end
        elif start < self.start and self._timestamps == "shown" and goes_on:
            self._timestamps = "decoded"
            self._faults.append("its timestamps are not in the order of its frames")
            start = max(self._time_of(frame) or self.start, self.start)
        elif start < self.start:
            goes_on = decoded is not None
            start = self._mend("go back", start, self._end, is_fault=not self._may_restart)
        elif start > self.start + self._period + self._longest_gap:
            step = min(self._end, self.start + self._period) if self._period else self._end
            start = self._mend("jump", start, step, is_fault=True)
        if decoded is not None and goes_on:
            self._last_decoded = decoded
        return start

    def _time_of(self, frame: Any) -> Fraction | None:
        if self._timestamps == "none":
            return None
        is_shown = self._timestamps == "shown"
        time = _seconds(frame, frame.pts if is_shown else frame.dts)
        if time is None:
            return None
        return time + self._shift - (0 if is_shown else self._delay)

    def _mend(self, what: str, start: Fraction, instead: Fraction, *, is_fault: bool) -> Fraction:
        if is_fault:
            times = f"from {float(self.start):.2f} s to {float(start):.2f} s"
            self._faults.append(f"its timestamps {what} {times}")
        self.is_mended = True
        self._shift += instead - start
        return instead


def _seconds(frame: Any, ticks: int | None) -> Fraction | None:
    return None if ticks is None else Fraction(ticks * frame.time_base)
