"""The one choke-point: every change to the world happens inside `with effects(name, subject)`.

In production it does nothing but debug logging. The crash harness stops the world before and after each effect,
and a dry run uses `Denied`, under which no effect can happen at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Effects:
    """Subclasses may act in `before` and `after`; `after` runs only when the effect did not raise."""

    @contextmanager
    def __call__(self, name: str, subject: object = "") -> Iterator[None]:
        self.before(name, str(subject))
        yield
        self.after(name, str(subject))

    def before(self, name: str, subject: str) -> None:
        log.debug("effect name=%s subject=%s", name, subject)

    def after(self, name: str, subject: str) -> None:
        pass


class Denied(Effects):
    """For looking only: an attempt at any effect is a bug of ours, and stops it."""

    def before(self, name: str, subject: str) -> None:
        raise PermissionError(f"effect {name} on {subject} was attempted where only looking is allowed")
