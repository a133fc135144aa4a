"""Whether the files that resources need are there and are what they should be. Looks only, but for `suspect`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.controller import holdings
from reconciler.controller.holdings import Piece
from reconciler.controller.turn import wanted_of
from reconciler.core.diagnostics import Fault, Refused
from reconciler.core.ids import Ref
from reconciler.core.plan import human_bytes
from reconciler.core.state import Declared
from reconciler.host.digest import BLOCK
from reconciler.host.layout import Layout
from reconciler.kinds.base import Tools
from reconciler.manifest.reading import reading
from reconciler.store.blobs import Proof, prove, token

if TYPE_CHECKING:
    from reconciler.controller.daemon import Controller

Progress = Callable[[str, int, int], None]
"""Hears the name of the file that is being read, the bytes done of all files, and the bytes of all files."""


@dataclass(frozen=True, slots=True)
class Check:
    """One file of one or more resources.

    `state` is good, suspect (to be proved), damaged, missing or unreadable; `problem` says what is wrong, or what may
    be improved of a good one. `checked` is when all of it was last hashed (Unix seconds, 0 for never).
    """

    refs: tuple[Ref, ...]
    piece: Piece
    path: Path
    state: str = "good"
    problem: str = ""
    size: int = 0
    checked: float = 0.0
    proof: Proof | None = None

    @property
    def name(self) -> str:
        return self.piece.name or self.piece.digest[:12] or holdings.shown(self.piece.source)


def wanted(path: Path, layout: Layout) -> Mapping[Ref, Declared]:
    """What the manifest asks for; nothing where it cannot be read."""
    try:
        return wanted_of(reading(path), layout).resources
    except Refused:
        return {}


def check(
    tools: Tools,
    desired: Mapping[Ref, Declared],
    only: Collection[Ref] = (),
    deep: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> list[Check]:
    """Look at every file that models need, or those of `only`; `deep` reads all of them. Each file once."""
    held = holdings.models(desired, tools.ledger.owned(), tools.ledger.pins())
    users: dict[str, list[Ref]] = {}
    found: dict[str, Piece] = {}
    for ref, pieces in held.items():
        if not only or ref in only:
            for piece in pieces:
                key = piece.digest or str(ref)
                found.setdefault(key, piece)
                users.setdefault(key, []).append(ref)
    checks = [_look(tuple(users[key]), piece, tools) for key, piece in found.items()]
    return _deepened(checks, tools, progress) if deep else checks


def _look(refs: tuple[Ref, ...], piece: Piece, tools: Tools) -> Check:
    """What can be said of a file without reading it."""
    if not piece.digest:
        return Check(refs, piece, Path(), "missing", "it was not fetched yet")
    path, record = tools.layout.blob(piece.digest), tools.ledger.artifact(piece.digest)
    made = Check(refs, piece, path, checked=record.checked if record is not None else 0.0)
    try:
        info = path.lstat()
    except FileNotFoundError:
        return replace(made, state="missing", problem="its file is not in the store")
    except OSError as error:
        return replace(made, state="unreadable", problem=error.strerror or str(error))
    if not stat.S_ISREG(info.st_mode):
        what = "a link" if stat.S_ISLNK(info.st_mode) else "a folder" if stat.S_ISDIR(info.st_mode) else "no plain file"
        return replace(made, state="damaged", problem=f"{what} lies in its place")
    made = replace(made, size=info.st_size)
    if record is None:
        return replace(made, state="suspect", problem="the ledger does not know it")
    if record.size != info.st_size:
        return replace(made, state="damaged", problem=f"it has {info.st_size} bytes instead of {record.size}")
    if not record.token:
        return replace(made, state="suspect", problem="it was found damaged, and is to be mended")
    if record.token != token(path):
        return replace(made, state="suspect", problem="it was written to, or replaced, since it was verified")
    if not os.access(path, os.R_OK):
        return replace(made, state="unreadable", problem="this user may not read it")
    if info.st_mode & 0o222 and info.st_nlink == 1:  # what another tool has a name for, too, keeps its mode
        return replace(made, problem="it may be written to: chmod 444 protects it")
    return made


def _deepened(checks: list[Check], tools: Tools, progress: Progress) -> list[Check]:
    """The same, once every file was read."""
    readable = [c for c in checks if c.state in ("good", "suspect", "damaged") and c.size and token(c.path)]
    total, before = sum(c.size for c in readable), 0
    out = []
    for one in checks:
        if one not in readable:
            out.append(one)
            continue
        out.append(_proved(one, tools, partial(_counted, progress, one.name, before, total)))
        before += one.size
    return out


def _counted(progress: Progress, name: str, before: int, total: int, done: int) -> None:
    progress(name, before + done, total)


def _proved(one: Check, tools: Tools, progress: Callable[[int], None]) -> Check:
    try:
        proof = prove(one.path, progress)
    except Fault as fault:
        return replace(one, state="missing" if fault.code == "FILE_GONE" else "unreadable", problem=fault.message)
    if proof.sha256 == one.piece.digest:
        problem = one.problem if one.state == "good" else f"{one.problem}; its bytes are right"
        return replace(one, state="good", problem=problem, proof=proof)
    blocks = tools.ledger.blocks(one.piece.digest)
    bad = [n for n, crc in enumerate(blocks) if n >= len(proof.blocks) or proof.blocks[n] != crc]
    where = f": {len(bad)} of {len(blocks)} blocks of {human_bytes(BLOCK)} are damaged" if blocks else ""
    return replace(one, state="damaged", problem=f"its sha256 is {proof.sha256}{where}", proof=proof)


def suspect(controller: Controller, digests: Iterable[str]) -> list[str]:
    """Somebody found these files damaged: they are proved, and mended, from the next turn on → those we have."""
    tools, out = controller.tools, []
    for digest in digests:
        record = tools.ledger.artifact(digest)
        if record is None:
            continue
        out.append(digest)
        if record.token and tools.blobs.doubt(digest, record.token):
            tools.ledger.event("store", "Suspect", f"{digest[:12]}: somebody found it damaged; it is proved again")
    if out:
        controller.wake()
    return out


def to_json(checks: Iterable[Check], deep: bool, seconds: float, told: Collection[str]) -> dict[str, Any]:
    """`told` are the files that the running controller was told of."""
    made = list(checks)
    return {
        "format": "1.0",
        "deep": deep,
        "good": all(c.state == "good" for c in made),
        "bytes": sum(c.proof.size for c in made if c.proof is not None),
        "seconds": round(seconds, 3),
        "files": [
            {
                "refs": [str(ref) for ref in c.refs],
                "name": c.piece.name,
                "sha256": c.piece.digest,
                "size": c.size,
                "state": c.state,
                "problem": c.problem,
                "checked": c.checked,
                "told": c.piece.digest in told,
            }
            for c in made
        ],
    }
