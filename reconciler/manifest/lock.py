"""stack.lock: what every source was found to be, beside the manifest and committed with it. Pure.

JSON with one entry a pin, sorted, so that the same pins give the same bytes and a merge touches only what differs.
A pin is known by its source, the file asked for, and the platform where the bytes depend on one; pins of other
platforms and of entries that `when` leaves out here are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Diagnostic, Refused, Where
from reconciler.core.ids import digest_of, pin_key
from reconciler.kinds.model.spec import shown

FORMAT = 1
KEYS = ("source", "file", "platform", "asked")
HEAD = (
    "source",
    "file",
    "platform",
    "asked",
    "resolved",
    "name",
    "size",
    "sha256",
)  # in this order, the rest after them

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MARKER = re.compile(rb"^(<<<<<<< |=======$|>>>>>>> |\|\|\|\|\|\|\| )", re.MULTILINE)

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lock:
    """`pins` maps the key of a pin (core/ids.pin_key) to its facts."""

    pins: Mapping[str, Facts] = field(default_factory=dict)

    def text(self) -> str:
        """The one text of these pins."""
        entries = []
        for key in sorted(self.pins):
            facts = {**dict(zip(KEYS, json.loads(key), strict=False)), **self.pins[key]}
            order = [*(k for k in HEAD if facts.get(k) not in (None, "")), *sorted(set(facts) - set(HEAD))]
            entries.append({k: facts[k] for k in order})
        return json.dumps({"version": FORMAT, "pins": entries}, indent=2, ensure_ascii=False) + "\n"

    def digest(self, keys: Iterable[str]) -> str:
        """sha256 of the pins with these keys."""
        return digest_of({key: self.pins[key] for key in keys if key in self.pins})

    def learned(self, found: Mapping[str, Facts], keys: Iterable[str]) -> Lock:
        """With what was `found` for those of the keys that are not pinned yet; what is pinned stays as it is."""
        new = {key: found[key] for key in keys if key not in self.pins and whole(found.get(key, {}))}
        return Lock({**self.pins, **new}) if new else self

    def renewed(self, found: Mapping[str, Facts]) -> Lock:
        """With what was found, whatever was pinned before."""
        return Lock({**self.pins, **found})

    def pruned(self, wanted: Iterable[tuple[str, str, str]]) -> Lock:
        """Without the pins of sources that no entry of the manifest names, on any platform."""
        named = set(wanted)
        return Lock({key: facts for key, facts in self.pins.items() if _asked(key) in named})

    def extends(self, earlier: Lock, keys: Iterable[str]) -> bool:
        """Whether it says all that the earlier one said of these keys."""
        return all(self.pins.get(key) == earlier.pins[key] for key in keys if key in earlier.pins)


def whole(facts: Facts) -> bool:
    """Whether what was found says which bytes are meant; a source that was only looked at may not."""
    return all(file.get("sha256") for file in (facts, *facts.get("also", ())))


def _asked(key: str) -> tuple[str, str, str]:
    source, file, _, *asked = json.loads(key)
    return source, file, asked[0] if asked else ""


def beside(manifest: Path) -> Path:
    """Where the lock of a manifest lies: stack.yaml → stack.lock."""
    return manifest.parent / f"{manifest.stem}.lock"  # with_suffix() would stumble over `/`


def read(text: bytes, file: str) -> Lock:
    """Parse a lock. Raises Refused for anything that is not one: conflict markers, damage, a newer format."""
    if found := _MARKER.search(text):
        line = text[: found.start()].count(b"\n") + 1
        raise Refused(
            [
                Diagnostic(
                    "a merge left conflict markers in it",
                    Where(file, line, 1),
                    hint="take either side whole (`git checkout --theirs`), then run `reconcile lock`",
                )
            ]
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
        raise Refused([Diagnostic(f"it is not JSON: {error}", Where(file, line, column), hint=_ANEW)]) from error
    found = document.get("version") if isinstance(document, dict) else None
    if type(found) is int and found > FORMAT:
        problem = f"it has format {found}; this version of reconcile knows {FORMAT}"
        raise Refused([Diagnostic(problem, Where(file, 1, 1), hint="upgrade reconciler with pip")])
    if found != FORMAT or not isinstance(document.get("pins"), list):
        raise Refused([Diagnostic("it is not a lock", Where(file, 1, 1), hint=_ANEW)])
    faults: list[Diagnostic] = []
    pins: dict[str, Facts] = {}
    lines = _lines(text)
    for number, entry in enumerate(document["pins"], 1):
        where = Where(file, lines[number - 1] if number <= len(lines) else 1, 1)
        if problem := _problem(entry):
            faults.append(Diagnostic(f"pin {number}: {problem}", where, hint=_ANEW))
            continue
        key = pin_key(*(entry.get(k, "") for k in KEYS))
        if key in pins:
            faults.append(Diagnostic(f"pin {number}: {shown(entry['source'])} is pinned twice", where, hint=_ANEW))
        pins[key] = {k: v for k, v in entry.items() if k not in KEYS}
    if faults:
        raise Refused(faults)
    return Lock(pins)


_ANEW = "`git checkout` the last good one, or remove it and run `reconcile lock`"


def _problem(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "must be a mapping"
    if any(not isinstance(entry.get(k, ""), str) for k in KEYS) or not entry.get("source"):
        return "has no source"
    if not isinstance(entry.get("sha256"), str) or not _SHA256.fullmatch(entry["sha256"]):
        return "its sha256 must have 64 lower-case hexadecimal digits"
    if type(entry.get("size", 0)) is not int or entry.get("size", 0) < 0:
        return "its size must be a number of bytes"
    if not isinstance(entry.get("also", []), list) or not all(_is_file(file) for file in entry.get("also", [])):
        return "its further files must each have role, name, size and sha256"
    return ""


def _is_file(file: Any) -> bool:
    return (
        isinstance(file, dict)
        and all(isinstance(file.get(k), str) for k in ("role", "name", "sha256"))
        and _SHA256.fullmatch(file["sha256"]) is not None
        and type(file.get("size")) is int
        and file["size"] >= 0
    )


def _lines(text: bytes) -> list[int]:
    """The lines where pins begin, as we write them."""
    return [i for i, line in enumerate(text.split(b"\n"), 1) if line == b"    {"]


def gaps(lock: Lock, wanted: Mapping[str, tuple[str, Where | None]]) -> Iterator[Diagnostic]:
    """What the manifest wants here and the lock does not pin. `wanted`: key → (what it is, where it is declared)."""
    for key, (what, where) in wanted.items():
        if key not in lock.pins:
            source = json.loads(key)[0]
            yield Diagnostic(
                f"{shown(source)} is not pinned in the lock", where, hint="run `reconcile lock`", path=what
            )
