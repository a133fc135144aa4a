"""All that a machine without a network needs: the files that a manifest's lock names, and the lock, in one tar file.

Nothing of a bundle is believed: a file counts once its sha256 was found to be the one that it is called by, and only
what the bundle lists is looked at. A package that is built from its source, or that brings others, is not in it; that
is told.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reconciler.controller import holdings
from reconciler.controller.turn import wanted_of
from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.core.plan import human_bytes
from reconciler.host.digest import Digest
from reconciler.host.files import disk_faults, require_room
from reconciler.kinds.base import Tools
from reconciler.manifest import lock as locks
from reconciler.manifest.reading import Reading

FORMAT = 1
LISTING, LOCK, BLOBS = "bundle.json", "stack.lock", "blobs/"
MOST_LISTING = 64 << 20  # bytes
CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Bundled:
    """What was written or taken in. `size` in bytes; `notes` say what a bundle cannot have."""

    files: int
    size: int
    notes: tuple[str, ...] = ()
    new: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"format": "1.0", "files": self.files, "size": self.size, "new": self.new, "notes": list(self.notes)}


def export(made: Reading, tools: Tools, target: Path) -> Bundled:
    """Write what a manifest needs of the store to `target`. Blocks. Raises Refused where something is not here yet."""
    resources = wanted_of(made, tools.layout).resources
    needed, gaps, notes = dict[str, str](), set[str](), list[str]()
    for ref, pieces in holdings.models(resources, {}, {**tools.ledger.pins(), **made.lock.pins}).items():
        needed |= {piece.digest: str(ref) for piece in pieces}
    for ref, declared in resources.items():
        if ref.kind != holdings.ENGINE or not declared.spec.source:
            continue
        files = declared.spec.archives(tools.host())
        if files is None:
            notes.append(f"{ref} is not one wheel ({declared.spec.source}): an index must be there to install it from")
        elif not files:
            gaps.add(str(ref))
        else:
            needed |= {file.sha256: str(ref) for file in files}
    gaps |= {what for digest, what in needed.items() if not digest or not tools.blobs.holds(digest)}
    if gaps:
        hint = "`reconcile apply` (or `lock`) fetches and pins it first"
        raise Refused([Diagnostic(f"{what} is not here yet", hint=hint) for what in sorted(gaps)])
    sizes = {digest: tools.layout.blob(digest).stat().st_size for digest in sorted(needed)}
    listing = {"format": FORMAT, "files": [{"sha256": d, "size": sizes[d], "of": needed[d]} for d in sizes]}
    require_room(target.absolute(), sum(sizes.values()))
    aside = target.with_name(f".{target.name}.new")
    with tools.effects("bundle", target), disk_faults(target):
        try:
            with tarfile.open(aside, "w") as out:
                _put(out, LISTING, json.dumps(listing, indent=2).encode())
                _put(out, LOCK, made.lock.text().encode())
                for digest in sizes:
                    out.add(tools.layout.blob(digest).resolve(), f"{BLOBS}{digest}", recursive=False, filter=_plain)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    return Bundled(len(sizes), sum(sizes.values()), tuple(notes))


def _put(out: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    out.addfile(_plain(info), io.BytesIO(data))


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what tells of the machine that it was made on."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    info.mode = 0o644
    return info


def take_in(source: Path, lock: Path, tools: Tools) -> Bundled:
    """Put the files of a bundle into the store, and its pins into the lock where that does not say. Blocks.

    Raises Refused for what is no bundle, or is damaged; what was proved until then stays.
    """
    try:
        data = source.open("rb")
    except OSError as error:
        raise Refused(f"{source} cannot be read: {error.strerror}") from error
    with data, _damaged(source), tarfile.open(fileobj=data, mode="r:") as archive:
        sizes = _listing(_next(archive, LISTING))
        pins = locks.read(_next(archive, LOCK), f"{source}: {LOCK}")
        missing = {digest: size for digest, size in sizes.items() if not tools.blobs.holds(digest)}
        require_room(tools.layout.partial, sum(missing.values()))
        left = set(missing)
        for member in archive:
            digest = member.name.removeprefix(BLOBS)
            if digest in left and member.isreg() and member.size == missing[digest]:
                content = archive.extractfile(member)
                assert content is not None
                _take(content, digest, source, tools)
                left.discard(digest)
    if left:
        raise Refused(f"{source} is not whole: it lists {len(left)} files that it does not hold")
    _learn(pins, lock, tools)
    return Bundled(len(sizes), sum(sizes.values()), new=len(missing))


def _next(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.next()
    if member is None or member.name != name or not member.isreg() or member.size > MOST_LISTING:
        raise ValueError(f"{name} is not where it belongs")
    content = archive.extractfile(member)
    assert content is not None
    return content.read()


def _listing(text: bytes) -> dict[str, int]:
    said = json.loads(text)
    if not isinstance(said, dict) or said.get("format") != FORMAT or not isinstance(said.get("files"), list):
        raise ValueError("its list is not one")
    out = {}
    for entry in said["files"]:
        digest, size = (entry.get("sha256"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest) or type(size) is not int or size < 0:
            raise ValueError("its list is not one")
        out[digest] = size
    return out


def _take(content: IO[bytes], digest: str, source: Path, tools: Tools) -> None:
    part = tools.files.folder(tools.layout.partial) / f"bundle-{digest[:32]}"
    found = Digest()
    with tools.effects("bundle-take", part), disk_faults(part):
        part.unlink(missing_ok=True)
        with part.open("xb") as out:
            while piece := content.read(CHUNK):
                out.write(piece)
                found.update(piece)
    if found.sha256 != digest:
        tools.files.remove(part)
        raise Refused(
            f"{source}: a file of it has sha256 {found.sha256}, and is called {digest}",
            hint="the bundle was damaged or changed on its way: bring it anew",
        )
    tools.blobs.take(part, digest, found.blocks)


def _learn(pins: locks.Lock, lock: Path, tools: Tools) -> None:
    """What the lock here says already wins."""
    known = locks.read(lock.read_bytes(), str(lock)) if lock.exists() else locks.Lock()
    merged = known.learned(pins.pins, pins.pins)
    if merged != known:
        tools.files.write(lock, merged.text().encode(), mode=0o644)


@contextmanager
def _damaged(source: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, EOFError, zlib.error, RecursionError) as error:
        hint = "`reconcile bundle export` makes one"
        raise Refused([Diagnostic(f"{source} is no bundle, or is damaged: {error}", hint=hint)]) from error


def told(made: Bundled) -> str:
    """`3 files, 1.2 GB`."""
    return f"{made.files} file{'' if made.files == 1 else 's'}, {human_bytes(made.size)}"
