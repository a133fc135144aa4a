"""A manifest and its lock as they are read together, from disk or from what a generation kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.core.ids import Ref
from reconciler.core.state import Declared
from reconciler.kinds.engine import spec as engine
from reconciler.kinds.engine.spec import EmbeddedEngine
from reconciler.kinds.model.spec import sources
from reconciler.manifest import lock as locks
from reconciler.manifest.include import Disk, Kept, shown
from reconciler.manifest.lock import Lock
from reconciler.manifest.parse import Manifest, Stack, load


@dataclass(frozen=True, slots=True)
class Reading:
    """A checked manifest and its lock."""

    manifest: Manifest
    lock: Lock

    @property
    def digest(self) -> str:
        """sha256 of every text with its path, relative to the manifest's folder; the lock does not count."""
        return digest_of_texts(self.manifest.path.parent, self.manifest.texts)

    def gaps(self, resources: Mapping[Ref, Declared]) -> list[Diagnostic]:
        """What these resources need and the lock does not pin."""
        wanted = {key: (str(needs[0].ref), needs[0].where) for key, needs in pins_of(resources).items()}
        return list(locks.gaps(self.agreed(resources), wanted))

    def agreed(self, resources: Mapping[Ref, Declared]) -> Lock:
        """The lock without pins that the manifest's own sha256 contradicts."""
        wrong = set()
        for declared in resources.values():
            wanted, key = getattr(declared.spec, "sha256", ""), getattr(declared.spec, "pin", "")
            if wanted and key in self.lock.pins and self.lock.pins[key]["sha256"] != wanted:
                wrong.add(key)
        return Lock({k: v for k, v in self.lock.pins.items() if k not in wrong}) if wrong else self.lock


def reading(path: Path, disk: Disk | None = None) -> Reading:
    """Read a manifest and its lock from disk. Raises Refused with everything that is wrong with them.

    `disk` remembers what was looked at, whatever comes of it.
    """
    disk = disk if disk is not None else Disk()
    beside = locks.beside(path)
    try:
        text = disk.read(beside)
    except FileNotFoundError:
        text = None
    except OSError as error:
        raise Refused(f"{beside} cannot be read: {error.strerror}") from error
    manifest = load(path, disk)
    return Reading(manifest, locks.read(text, shown(beside)) if text is not None else Lock())


def kept(root: Path, files: Mapping[Path, bytes], lock: str) -> Reading:
    """The same from what a generation kept. Raises Refused."""
    manifest = load(root, Kept(files))
    return Reading(manifest, locks.read(lock.encode(), "the lock of a generation") if lock else Lock())


def pins_of(resources: Mapping[Ref, Declared]) -> dict[str, tuple[Declared, ...]]:
    """The key of every pin that these resources need, with those that need it."""
    out: dict[str, tuple[Declared, ...]] = {}
    for declared in resources.values():
        if key := getattr(declared.spec, "pin", ""):
            out[key] = (*out.get(key, ()), declared)
    return out


def sources_of(stack: Stack) -> set[tuple[str, str, str]]:
    """(source, file, what is asked for) of everything that the manifest names, whatever machine it is for."""
    engines = {engine.sources(entry) for entry in (*stack.engines.values(), EmbeddedEngine(type="embedded"))}
    return {key for m in stack.models.values() for key in sources(m)} | engines


def digest_of_texts(base: Path, texts: Mapping[Path, bytes] | Mapping[Path, bytes | None]) -> str:
    """sha256 of texts with their paths, relative to `base` where they lie below it."""
    hasher = hashlib.sha256()
    for path, text in sorted(texts.items()):
        named = path.relative_to(base) if path.is_relative_to(base) else path
        hasher.update(f"{named}\0{-1 if text is None else len(text)}\0".encode())
        hasher.update(text or b"")
    return hasher.hexdigest()
