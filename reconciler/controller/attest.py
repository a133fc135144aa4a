"""A statement of what is installed: which bytes, from where, made into what. Canonical JSON that may be signed.

It tells nothing of the person: no user, no host name, no path. Statements of the same state are equal but for their
times, so that a machine can be compared with what it once was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from reconciler import __version__
from reconciler.controller.holdings import ENGINE, MODEL, Piece, shown
from reconciler.controller.proving import Check, Progress, check
from reconciler.core.diagnostics import Diagnostic, Fault, Refused
from reconciler.core.ids import canonical
from reconciler.core.state import Owned
from reconciler.host import hardware
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.spec import EngineSpec
from reconciler.store.blobs import prove
from reconciler.store.generations import Generations

FORMAT = "1.0"
TYPE = "reconciler/attestation"
PASSING = ("at", "deep", "reconciler", "generation.number")  # what may differ though the same is installed
SKIPPED = ("__pycache__",)  # written as a program runs


def text(statement: Mapping[str, Any]) -> bytes:
    """The one text of a statement: what is signed."""
    return canonical(statement).encode() + b"\n"


def gather(
    tools: Tools, deep: bool, now: float, progress: Progress = lambda name, done, total: None
) -> tuple[dict[str, Any], list[Diagnostic]]:
    """(the statement of what is owned here, what of it is not as it should be). `deep` reads all files again."""
    owned = tools.ledger.owned()
    checks = check(tools, {}, deep=deep, progress=progress)
    faults = [
        Diagnostic(f"{c.name} is {c.state}: {c.problem}", path=", ".join(map(str, c.refs)))
        for c in checks
        if c.state != "good"
    ]
    resources = []
    for ref, mine in sorted(owned.items()):
        entry: dict[str, Any] = {"ref": str(ref), "spec": mine.digest}
        if ref.kind == MODEL:
            entry["files"] = [_file(c, now) for c in checks if ref in c.refs]
        if ref.kind == ENGINE:
            try:
                entry["engine"] = _engine(mine, tools)
            except (Fault, OSError, TypeError) as error:
                entry["engine"] = {}
                faults.append(Diagnostic(f"it cannot be read: {error}", path=str(ref)))
        resources.append(entry)
    return _whole(tools, resources, deep, now), faults


def _whole(tools: Tools, resources: list[dict[str, Any]], deep: bool, now: float) -> dict[str, Any]:
    generations = Generations(tools.layout, tools.files, tools.ledger)
    current, facts = generations.get(generations.current), hardware.facts()
    return {
        "format": FORMAT,
        "type": TYPE,
        "at": datetime.fromtimestamp(int(now), UTC).isoformat().replace("+00:00", "Z"),
        "reconciler": __version__,
        "deep": deep,
        "host": {"os": facts.os, "arch": facts.arch, "gpu": facts.gpu},
        "generation": {
            "number": current.number if current is not None else 0,
            "manifest": current.digest if current is not None else "",
            "lock": current.locked if current is not None else "",
        },
        "resources": resources,
    }


def _file(one: Check, now: float) -> dict[str, Any]:
    piece = one.piece
    return {
        "name": piece.name,
        "role": piece.role,
        "sha256": piece.digest,
        "size": one.size or piece.size,
        "checked": int(now if one.proof is not None and one.state == "good" else one.checked),
        **_origin(piece),
    }


def _origin(piece: Piece) -> dict[str, str]:
    return {
        "source": _nameless(piece.source),
        "resolved": _nameless(piece.resolved),
        "licence": piece.licence,
        "quant": piece.quant,
    }


def _nameless(source: str) -> str:
    """A source without what belongs to the person: of a file its name only, of an address not what follows the `?`."""
    scheme, _, rest = source.partition(":")
    return f"file:{PurePosixPath(rest).name}" if scheme == "file" else shown(source)


def _engine(mine: Owned, tools: Tools) -> dict[str, Any]:
    """What an engine is: its version, the wheel that it came from, and one sha256 over all that is installed."""
    spec = EngineSpec(**mine.spec)
    made: dict[str, Any] = {"type": spec.type, "version": spec.version, "wheel": "", "program": "", "sha256": ""}
    if spec.source:
        pin = tools.ledger.pins().get(spec.pin, {})
        digest, count = tree(tools.layout.engines / spec.folder)
        return made | {"wheel": str(pin.get("sha256", "") or spec.locked), "sha256": digest, "files": count}
    program = Path(spec.path).expanduser()
    return made | {"program": program.name, "sha256": prove(program.resolve()).sha256, "files": 1}


def tree(folder: Path) -> tuple[str, int]:
    """(sha256 over every file of a folder with its path, whether it may be run, and where links lead; their number).

    Caches that a running program writes do not count. Raises OSError, Fault.
    """
    whole, count = hashlib.sha256(), 0
    for path in _below(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            line = ["link", name, os.fspath(path.readlink())]
        else:
            line = ["program" if path.stat().st_mode & 0o100 else "file", name, prove(path).sha256]
        whole.update(canonical(line).encode() + b"\n")
        count += 1
    if not count:
        raise FileNotFoundError(f"there is nothing in {folder.name}")
    return whole.hexdigest(), count


def _below(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir(), key=lambda p: p.name):
        if entry.is_dir() and not entry.is_symlink():
            if entry.name not in SKIPPED:
                yield from _below(entry)
        else:
            yield entry


# -- comparing ----------------------------------------------------------------------------------------------------


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What differs between two statements: `path`, `then` and `now` (None where it is not there)."""
    before, after = dict(_flat(then, "")), dict(_flat(now, ""))
    paths = [*before, *(path for path in after if path not in before)]
    return [
        {"path": path, "then": before.get(path), "now": after.get(path)}
        for path in paths
        if path not in PASSING and not path.endswith(".checked") and before.get(path) != after.get(path)
    ]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every plain value with its path; entries of a list are known by what names them."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            named = isinstance(inner, Mapping) and (inner.get("ref") or inner.get("name"))
            yield from _flat(inner, f"{path}[{named or number}]")
    else:
        yield path, value


def parse(data: bytes) -> dict[str, Any]:
    """A statement from its text. Raises Refused for what is not one, or of a later format."""
    import json

    try:
        made = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"this is not a statement: {error}") from error
    if not isinstance(made, dict) or made.get("type") != TYPE:
        raise Refused("this is not a statement", hint="`reconcile attest --out FILE` makes one")
    if str(made.get("format", "")).partition(".")[0] != FORMAT.partition(".")[0]:
        hint = "upgrade reconciler with pip"
        raise Refused(f"the statement has format {made.get('format')}; this release knows {FORMAT}", hint=hint)
    return made


def harm(faults: list[Diagnostic]) -> list[dict[str, Any]]:
    """What is not as it should be, as differences."""
    return [{"path": fault.path, "then": "good", "now": fault.summary} for fault in faults]
