"""What a provider is shown: keys and secret headers, resolved when they are used, held in memory only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host import secrets

_LINE = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Credentials:
    """`keys` take turns; `headers` are sent with each request; `proxy` is the address of one, or empty."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    proxy: str = field(default="", repr=False)

    def told(self) -> dict[str, Any]:
        """As the gateway is told of them. `proxy` is there only where it is a secret."""
        out: dict[str, Any] = {"keys": list(self.keys), "headers": dict(self.headers)}
        return out | ({"proxy": self.proxy} if self.proxy else {})


def credentials(
    keys: Iterable[str], headers: Iterable[tuple[str, str]], proxy: str, base: Path
) -> tuple[Credentials, Fault | None]:
    """What references lead to, and what is wrong with those that lead nowhere; the rest is good all the same.

    One key of several that cannot be had is no fault as long as there is another.
    """
    faults: list[Fault] = []
    missing: list[Fault] = []

    def found(reference: str, into: list[Fault]) -> str:
        try:
            return _shown(reference, base)
        except Fault as fault:
            into.append(fault)
            return ""

    good = tuple(filter(None, [found(key, missing) for key in keys]))
    sent = tuple((name, value) for name, reference in headers if (value := found(reference, faults)))
    through = found(proxy, faults) if proxy else ""
    if missing and not good:
        faults.insert(0, missing[0])
    return Credentials(good, sent, through), faults[0] if faults else None


def _shown(reference: str, base: Path) -> str:
    """A secret that can stand in a header. Raises Fault."""
    value = secrets.resolve(reference, base)
    if not _LINE.fullmatch(value):
        what = "command:" if reference.startswith("command:") else reference
        problem = f"{what} holds something that cannot be sent in a header"
        raise Fault("SECRET_UNFIT", problem, hint="it must be one line of ASCII text", kind=FaultClass.NEEDS_HUMAN)
    return value
