"""Quota: how much a key may still ask for.

PURE: the clock is handed in. A bucket holds what may be used at once and fills up evenly; it may be overdrawn by what
was not known beforehand (the tokens of an answer), and is then shut until it has filled up again.
"""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.gateway.routes import Rate


@dataclass(slots=True)
class Bucket:
    """What is `left` of a rate at the time `at` (seconds of any steady clock)."""

    rate: Rate
    left: float
    at: float

    def wait(self, now: float) -> float:
        """Seconds until one more may be used; 0 where it may be now."""
        self._fill(now)
        missing = min(1.0, self.rate.count) - self.left
        return max(0.0, missing * self.rate.seconds / self.rate.count)

    def use(self, amount: float, now: float) -> None:
        """Take so much out."""
        self._fill(now)
        self.left -= amount

    def _fill(self, now: float) -> None:
        gained = (now - self.at) * self.rate.count / self.rate.seconds
        self.left, self.at = min(float(self.rate.count), self.left + gained), now


class Quota:
    """The buckets of all keys, by name and by what is counted in them."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def bucket(self, key: str, what: str, rate: Rate, now: float) -> Bucket:
        """The one of that key; a new one, full, where its rate was not this."""
        bucket = self._buckets.get((key, what))
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[key, what] = Bucket(rate, float(rate.count), now)
        return bucket
