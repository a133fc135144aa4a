"""Health: who has lately failed to answer, and is passed over while others can be asked.

PURE: the clock is handed in. Nobody is probed: what requests meet is what is known. One that says how long it wants
to be left alone is; others are passed over for a second, then two, four … up to a minute, and forgiven by one success.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST = 60.0  # seconds
LONGEST_ASKED = 600.0  # seconds that one may ask to be left alone
MOST = 1024  # records; names of models come from clients


@dataclass(slots=True)
class _Record:
    failures: int = 0
    until: float = 0.0


class Health:
    """What is known of each target (or of one key of it) by its name."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def failed(self, name: str, now: float, asked: float | None = None) -> None:
        """It failed; `asked` is for how many seconds it wants to be left alone."""
        if len(self._records) >= MOST:
            self._forget(now)
        record = self._records.setdefault(name, _Record())
        record.failures += 1
        seconds = min(2.0 ** (record.failures - 1), LONGEST) if asked is None else min(asked, LONGEST_ASKED)
        record.until = max(record.until, now + seconds)

    def succeeded(self, name: str) -> None:
        """It answered."""
        self._records.pop(name, None)

    def cools(self, name: str, now: float) -> float:
        """Seconds for which it is passed over; 0 where it may be asked."""
        record = self._records.get(name)
        return max(0.0, record.until - now) if record is not None else 0.0

    def cooling(self, now: float) -> dict[str, float]:
        """Seconds for which each one is passed over that is."""
        return {name: record.until - now for name, record in self._records.items() if record.until > now}

    def _forget(self, now: float) -> None:
        """Those that may be asked again anyway; the oldest where all are left alone."""
        self._records = {name: record for name, record in self._records.items() if record.until > now}
        while len(self._records) >= MOST:
            del self._records[next(iter(self._records))]
