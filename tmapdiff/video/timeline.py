"""Display times of frames, robust to damaged timestamps."""

import math
from fractions import Fraction
from typing import Any, Literal

Timestamps = Literal["shown", "guessed", "decoded", "none"]
LONGEST = Fraction(3600)  # seconds a frame may be shown
_MOST_FAULTS = 2  # frames out of order; if there are more, pts are taken to be dts


class Timeline:
    """Display times of decoded frames.

    A decoder returns frames in display order. Their timestamps may be times of decoding, restart
    where files were joined, jump, or be missing. Where they go back or jump, a frame is placed
    directly after the previous one.

    `start` and `origin` (time 0) are on the clock of the file, in seconds. `timestamps` are when
    frames are `shown`; the same, but `guessed` for some frames and wrong by up to four periods;
    when frames are `decoded`; or `none`. `period` is the mean seconds per frame, 0 if unknown. Gaps
    longer than `longest_gap` and `period` are jumps. Clocks that `may_restart` do so without
    damage. `is_mended` is whether timestamps went back or jumped.
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
        self._shift = -origin  # from the file's clock to the timeline
        self.start = self._end = start - origin
        # In PyAV, a frame's dts is that of the packet upon which the decoder returned the frame.
        decoded = _seconds(first, first.dts)
        self._delay = Fraction(0) if decoded is None else decoded - start
        self._last_decoded: Fraction | float = -math.inf if decoded is None else decoded
        self._faults: list[str] = []

    def place(self, frame: Any) -> tuple[Fraction, Fraction]:
        """Return when the display of the next frame starts and ends, in seconds."""
        start = self._start_of(frame)
        duration = _seconds(frame, frame.duration) or self._period
        self.start, self._end = start, start + min(duration, LONGEST)
        return self.start, self._end

    @property
    def problem(self) -> str | None:
        """Faults of the timestamps, in one line, or None."""
        if not self._faults:
            return None
        more = len(self._faults) - 1
        return self._faults[0] + (f" (and {more} more times)" if more else "")

    def _start_of(self, frame: Any) -> Fraction:
        decoded, last_decoded = _seconds(frame, frame.dts), self._last_decoded
        # The last frames of a file come without a packet and have no dts.
        in_order = last_decoded > -math.inf if decoded is None else decoded > last_decoded
        if decoded is not None:
            self._last_decoded = max(decoded, last_decoded)
        start = self._time_of(frame)
        if start is None:
            return self._end
        is_near = abs(start - self._end) <= 4 * self._period
        if self._timestamps == "guessed" and is_near and (start <= self.start or not in_order):
            return self._end
        if start < self.start and in_order:
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
