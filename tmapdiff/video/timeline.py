"""When frames are shown, whatever the timestamps of their file do."""

import math
from fractions import Fraction
from typing import Any, Literal

Timestamps = Literal["shown", "guessed", "decoded", "none"]
LONGEST = Fraction(3600)  # seconds that one frame may be shown
_MOST_FAULTS = 2  # times that frames may come out of order before their pts are believed to be dts


class Timeline:
    """When the frames that a decoder gives are shown.

    A decoder gives frames in the order they are shown. Timestamps need not follow it: they may be
    those of decoding, start again where files were joined, leap, or be missing. Here no frame comes
    before an earlier one: where timestamps go back or leap, it follows the one before it.

    Args:
        first: The first frame, as PyAV gives it.
        start: Seconds at which it is shown, by the file's own clock.
        origin: Time 0, by the same clock.
        timestamps: What those of the file mean: when frames are `shown`; the same, `guessed` for
            some frames, wrong by up to four periods; when they are `decoded`; or nothing (`none`):
            then frames follow each other.
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
        # Of a frame, PyAV states when the packet was decoded upon which the decoder gave it.
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
        decoded, last_decoded = _seconds(frame, frame.dts), self._last_decoded
        # The last frames of a file, which come without a packet, have no dts.
        goes_on = last_decoded > -math.inf if decoded is None else decoded > last_decoded
        if decoded is not None:
            self._last_decoded = max(decoded, last_decoded)
        start = self._time_of(frame)
        if start is None:
            return self._end
        is_near = abs(start - self._end) <= 4 * self._period
        if self._timestamps == "guessed" and is_near and (start <= self.start or not goes_on):
            return self._end
        if start < self.start and goes_on:
            self._faults.append("its timestamps are not in the order of its frames")
            if len(self._faults) > _MOST_FAULTS and self._timestamps == "shown":
                self._timestamps = "decoded"
                start = self._time_of(frame)
            return max(start or self.start, self.start)
        if start < self.start:
            self._last_decoded = -math.inf if decoded is None else decoded
            return self._mend("go back", start, self._end, is_fault=not self._may_restart)
        if start > self.start + self._period + self._longest_gap:
            step = min(self._end, self.start + self._period) if self._period else self._end
            return self._mend("jump", start, step, is_fault=True)
        return start

    def _time_of(self, frame: Any) -> Fraction | None:
        if self._timestamps == "none":
            return None
        is_of_decoding = self._timestamps == "decoded"
        time = _seconds(frame, frame.dts if is_of_decoding else frame.pts)
        if time is None:
            return None
        return time + self._shift - (self._delay if is_of_decoding else 0)

    def _mend(self, what: str, start: Fraction, instead: Fraction, *, is_fault: bool) -> Fraction:
        if is_fault:
            times = f"from {float(self.start):.2f} s to {float(start):.2f} s"
            self._faults.append(f"its timestamps {what} {times}")
        self.is_mended = True
        self._shift += instead - start
        return instead


def _seconds(frame: Any, ticks: int | None) -> Fraction | None:
    return None if ticks is None else Fraction(ticks * frame.time_base)
