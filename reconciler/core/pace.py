"""How fast something goes: its rate over the last seconds, what is left, and both in words. Pure: time is given."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from reconciler.core.plan import human_bytes

WINDOW = 10.0  # seconds that a rate is taken over
STEP = 0.25  # between two samples: the window never holds more than some forty
SETTLE = 0.5  # before this much was seen, no rate is told
TELL_EVERY = 5.0  # seconds between two messages about it
TELL_LEAST = 1.0  # however fast it goes
TELL_SHARE = 0.1  # of the whole, which is told sooner


@dataclass(slots=True)
class Pace:
    """One thing that is counted in bytes. Times are seconds of a clock that only goes forward.

    What was there when it began does not count: a resumed download has come as far as its first message says.
    """

    what: str
    done: int
    total: int | None
    began: float
    came: int = 0  # bytes since it began
    last: float = 0.0  # when it was last heard of
    earlier: tuple[int, float] = (0, 0.0)  # bytes and seconds of what was counted before under other names
    _samples: deque[tuple[float, int]] = field(default_factory=deque)
    _told: tuple[float, int] = (0.0, 0)

    def __post_init__(self) -> None:
        self.last = self.began
        self._samples.append((self.began, 0))
        self._told = (self.began, self.done)

    def note(self, now: float, done: int, total: int | None) -> None:
        """It has come so far. Cheap: called for every piece."""
        if done > self.done:
            self.came += done - self.done
            self.last = now
        self.done, self.total = done, total
        if now - self._samples[-1][0] >= STEP:
            self._samples.append((now, self.came))
            while now - self._samples[0][0] > WINDOW:
                self._samples.popleft()

    def rate(self, now: float) -> float | None:
        """Bytes a second over the window; None while too little was seen, 0 for what stands still."""
        at, came = next(((at, came) for at, came in self._samples if now - at <= WINDOW), self._samples[-1])
        return (self.came - came) / (now - at) if now - at >= SETTLE else None

    def eta(self, now: float) -> float | None:
        """Seconds until all of it is here, if it goes on so; None where that cannot be said."""
        rate = self.rate(now)
        return max(0, self.total - self.done) / rate if rate and self.total is not None else None

    def due(self, now: float) -> bool:
        """Whether it is time to tell how far it is; asking says that it is told."""
        at, done = self._told
        share = self.total is not None and self.done - done >= self.total * TELL_SHARE
        if now - at >= TELL_EVERY or (share and now - at >= TELL_LEAST):
            self._told = (now, self.done)
            return True
        return False

    def summary(self) -> str:
        """What came in all, how long that took, and the mean rate: `98.4 MB in 4.1 s (24.0 MB/s)`."""
        came, seconds = self.came + self.earlier[0], self.last - self.began + self.earlier[1]
        if not came:
            return ""
        mean = f" ({human_bytes(int(came / seconds))}/s)" if seconds > 0 else ""
        return f"{human_bytes(came)} in {human_seconds(seconds)}{mean}"

    def followed(self, what: str, done: int, total: int | None, now: float) -> Pace:
        """What is counted next, of the same work."""
        earlier = (self.came + self.earlier[0], self.last - self.began + self.earlier[1])
        return Pace(what, done, total, now, earlier=earlier)


def words(done: int, total: int | None, rate: float | None, eta: float | None) -> str:
    """`38.3 MB of 98.4 MB · 24.0 MB/s · 3 s left`, as far as it is known."""
    parts = [f"{human_bytes(done)} of {human_bytes(total)}" if total is not None else human_bytes(done)]
    if rate is not None:
        parts.append(f"{human_bytes(int(rate))}/s" if rate >= 1 else "stands still")
    if eta is not None:
        parts.append(f"{human_seconds(eta)} left")
    return " · ".join(parts)


def human_seconds(seconds: float) -> str:
    """4.12 → `4.1 s`, 45 → `45 s`, 190 → `3 min 10 s`, 5000 → `1 h 23 min`, 200000 → `2 d 7 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, unit, part, smaller in ((3600, "min", 60, "s"), (86_400, "h", 3600, "min"), (1 << 62, "d", 86_400, "h")):
        if whole < size:
            rest = whole % part // {"s": 1, "min": 60, "h": 3600}[smaller]
            return f"{whole // part} {unit}" + (f" {rest} {smaller}" if rest else "")
    return "for ever"
