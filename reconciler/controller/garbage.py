"""What of the data root nobody needs any more, why everything else stays, and the removal of the former.

What is in force, owned, protected, under way, used by a process, or needed to go back to a generation stays: going back
needs no network. `survey` only looks; `clear` asks again, at the moment of removal, what is needed by then.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.controller import holdings
from reconciler.controller.holdings import Kept
from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.core.ids import Ref
from reconciler.core.plan import human_bytes
from reconciler.core.state import Declared
from reconciler.host.bulk import in_bulk
from reconciler.host.usage import users
from reconciler.kinds.base import Tools
from reconciler.kinds.carried import CACHE
from reconciler.manifest import lock as locks
from reconciler.manifest.reading import reading, sources_of
from reconciler.store.blobs import token
from reconciler.store.generations import Generations

if TYPE_CHECKING:
    from reconciler.controller.daemon import Controller

VIEWS = ("models", "views", "artifacts/views")  # folders of links by name, where a release makes them
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Ask:
    """`older` in seconds, for what may be of use for a while; `keep` is how many generations stay, None for all."""

    older: float = 7 * DAY
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class Uses:
    """What refers to a thing; `pins` counts those of the lock in force, `pids` are processes that use it now."""

    resources: tuple[str, ...] = ()
    generations: tuple[int, ...] = ()
    pins: int = 0
    pids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.resources or self.generations or self.pins or self.pids)

    def __str__(self) -> str:
        said = []
        if self.resources:
            said.append(", ".join(self.resources[:3]) + (" …" if len(self.resources) > 3 else ""))
        if self.generations:
            said.append(f"{_count(len(self.generations), 'generation')} ({_runs(self.generations)})")
        if self.pins:
            said.append(f"{_count(self.pins, 'pin')} of the lock")
        if self.pids:
            said.append("used by pid " + ", ".join(map(str, self.pids[:3])))
        return "; ".join(said)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing on disk: `what` is blob, part, quarantine, engine, view, cache or generation; `size` in bytes."""

    what: str
    path: Path
    size: int
    why: str
    uses: Uses = Uses()


@dataclass(frozen=True, slots=True)
class Survey:
    """What would go and what stays. `forgotten` are numbers of generations; `notes` what is wrong with others."""

    go: tuple[Item, ...]
    stay: tuple[Item, ...]
    forgotten: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(item.size for item in self.go)


@dataclass(slots=True)
class Needs:
    """What is needed: files by sha256, folders under engines/, and by server what its cache held."""

    digests: dict[str, Uses] = field(default_factory=dict)
    folders: dict[str, Uses] = field(default_factory=dict)
    caches: frozenset[str] = frozenset()
    every_folder: bool = False
    notes: list[str] = field(default_factory=list)


class Garbage:
    """The upkeep of one data root. `manifest` is the one whose lock is in force."""

    def __init__(self, tools: Tools, manifest: Path) -> None:
        self._tools, self._manifest = tools, manifest
        self._generations = Generations(tools.layout, tools.files, tools.ledger)
        self._known: dict[tuple[int, str], Kept | Diagnostic] = {}

    # -- looking -------------------------------------------------------------------------------------------------

    def survey(self, ask: Ask, desired: Mapping[Ref, Declared], working: Collection[Ref] = ()) -> Survey:
        """Look at everything; takes as long as the disk needs. `working` are the resources something is done for now.

        Raises Refused where the ledger is lost: then nobody knows what is needed.
        """
        tools = self._tools
        if not tools.ledger.lineage:
            hint = "`reconcile apply`, or `reconcile state rebuild`, makes it again"
            raise Refused(f"there is no ledger in {tools.layout.root}, which says what is needed", hint=hint)
        forgotten = self._forgotten(ask)
        needs = self.needs(desired, forgotten)
        used = users(tools.layout.root)
        go: list[Item] = [
            Item("generation", tools.layout.generations / f"{n}.json", self._generations.size(n), "older ones may go")
            for n in forgotten
        ]
        stay: list[Item] = []
        awaited = self._awaited(desired) | {ref for ref in working if ref in desired}
        for item in (
            *self._blobs(ask, needs, awaited, used),
            *self._engines(needs, used, any(ref.kind == holdings.ENGINE for ref in working)),
            *self._parts(ask, desired, awaited, used),
            *self._quarantine(ask, used),
            *self._caches(needs),
        ):
            (stay if item.uses or item.why else go).append(item)
        go = [Item(i.what, i.path, i.size, i.why or "nothing refers to it") for i in go]
        go += self._views({item.path for item in go})
        return Survey(tuple(go), tuple(stay), tuple(forgotten), tuple(needs.notes))

    def needs(self, desired: Mapping[Ref, Declared], forgotten: Iterable[int]) -> Needs:
        """What is needed now. Quick: what a generation needs is found once."""
        tools, out = self._tools, Needs()
        owned = tools.ledger.owned()
        keeping = (ref.name for ref, d in desired.items() if getattr(d.spec, "keep_cache", False))
        out.caches = frozenset((*keeping, *(row.ref.name for row in tools.ledger.processes() if CACHE in row.inputs)))
        resources: dict[str, list[str]] = {}
        for ref, pieces in holdings.models(desired, owned, tools.ledger.pins(), generous=True).items():
            name = f"{ref} (protected)" if ref in owned and owned[ref].protect else str(ref)
            for piece in pieces:
                resources.setdefault(piece.digest, []).append(name)
        engines = {name: list(map(str, refs)) for name, refs in holdings.folders(desired, owned).items()}
        kept = self._kept(set(forgotten), out)
        pins = self._pinned()
        by_digest: dict[str, list[int]] = {}
        by_folder: dict[str, list[int]] = {}
        for one in kept:
            out.every_folder = out.every_folder or one.whole
            for digest in one.digests:
                by_digest.setdefault(digest, []).append(one.number)
            for folder in one.folders:
                by_folder.setdefault(folder, []).append(one.number)
        for digest in {*resources, *by_digest, *pins}:
            numbers = tuple(sorted(by_digest.get(digest, ())))
            out.digests[digest] = Uses(tuple(resources.get(digest, ())), numbers, pins.get(digest, 0))
        for folder in {*engines, *by_folder}:
            numbers = tuple(sorted(by_folder.get(folder, ())))
            out.folders[folder] = Uses(tuple(engines.get(folder, ())), numbers)
        return out

    def _forgotten(self, ask: Ask) -> list[int]:
        if ask.keep is None:
            return []
        spared = self._generations.spared(ask.keep)
        return [g.number for g in self._generations.all() if g.number not in spared]

    def _kept(self, forgotten: set[int], out: Needs) -> list[Kept]:
        """What going back needs. A generation that cannot be read any more cannot be gone back to, and is told."""
        kept = []
        for generation in self._generations.all():
            if generation.number in forgotten:
                continue
            key = (generation.number, generation.locked)
            if key not in self._known:
                self._known[key] = holdings.of_generation(generation, self._generations, self._tools)
            found = self._known[key]
            if isinstance(found, Kept):
                kept.append(found)
            else:
                out.notes.append(found.summary)
        return kept

    def _pinned(self) -> dict[str, int]:
        """How often the lock names a sha256. Pins of what the manifest no longer names do not count."""
        try:
            made = reading(self._manifest)
            texts = [str(facts) for facts in made.lock.pruned(sources_of(made.manifest.stack)).pins.values()]
        except Refused:
            try:
                texts = [locks.beside(self._manifest).read_text()]
            except (OSError, ValueError):
                return {}
        out: dict[str, int] = {}
        for text in texts:
            for digest in holdings.named_in([text]):
                out[digest] = out.get(digest, 0) + 1
        return out

    def _blobs(
        self, ask: Ask, needs: Needs, awaited: Collection[Ref], used: Mapping[Path, frozenset[int]]
    ) -> list[Item]:
        """Files of the store. One that came lately may be of a model whose other files are still to come."""
        out = []
        came = {a.digest: a.verified for a in self._tools.ledger.artifacts()}
        for digest in self._tools.blobs.digests():
            path = self._tools.layout.blob(digest)
            uses = needs.digests.get(digest, Uses())
            pids = tuple(sorted(used.get(path, ())))
            uses = Uses(uses.resources, uses.generations, uses.pins, pids)
            young = time.time() - came.get(digest, 0.0) < ask.older
            why = str(uses) or (f"{_listed(awaited)} may need it" if awaited and young else "")
            out.append(Item("blob", path, _freed(path), why, uses))
        return out

    def _engines(self, needs: Needs, used: Mapping[Path, frozenset[int]], installing: bool) -> list[Item]:
        """Folders under engines/. One that begins with a dot is being filled, while an engine is installed."""
        out = []
        for path in sorted(self._tools.layout.engines.glob("*")):
            uses = needs.folders.get(path.name, Uses())
            pids = {pid for file, found in used.items() if path in (file, *file.parents) for pid in found}
            uses = Uses(uses.resources, uses.generations, 0, tuple(sorted(pids)))
            why = str(uses) or ("a generation that this release cannot read may need it" if needs.every_folder else "")
            why = why or ("an engine is being installed" if installing and path.name.startswith(".") else "")
            out.append(Item("engine", path, _size(path), why, uses))
        return out

    def _parts(
        self,
        ask: Ask,
        desired: Mapping[Ref, Declared],
        awaited: Collection[Ref],
        used: Mapping[Path, frozenset[int]],
    ) -> list[Item]:
        """Parts of downloads, with what lies beside each: they stay as long as somebody may go on with them."""
        groups: dict[str, list[Path]] = {}
        for path in sorted(self._tools.layout.partial.glob("*")):
            groups.setdefault(path.name.partition(".")[0], []).append(path)
        names = {_part_name(desired[ref]) for ref in awaited}
        out = []
        for name, paths in groups.items():
            pids = tuple(sorted({pid for path in paths for pid in used.get(path, ())}))
            young = time.time() - max(_touched(path) for path in paths) < ask.older
            if pids:
                why = f"being fetched by pid {', '.join(map(str, pids))}"
            elif any(name.startswith(mine) for mine in names) or (awaited and young):
                why = f"{_listed(awaited)} may go on with it"
            else:
                why = ""
            out += [Item("part", path, _size(path), why, Uses(pids=pids)) for path in paths]
        return out

    def _awaited(self, desired: Mapping[Ref, Declared]) -> set[Ref]:
        """The models that are wanted and not here."""
        held = holdings.models(desired, {}, self._tools.ledger.pins())
        return {
            ref
            for ref, pieces in held.items()
            if not all(p.digest and self._tools.blobs.holds(p.digest) for p in pieces)
        }

    def _quarantine(self, ask: Ask, used: Mapping[Path, frozenset[int]]) -> list[Item]:
        out = []
        for path in sorted(self._tools.layout.quarantine.glob("*")):
            days = (time.time() - _set_aside_at(path)) / DAY
            pids = tuple(sorted(used.get(path, ())))
            why = f"set aside {max(days, 0):.1f} days ago" if days * DAY < ask.older else str(Uses(pids=pids))
            out.append(Item("quarantine", path, _size(path), why, Uses(pids=pids)))
        return out

    def _caches(self, needs: Needs) -> list[Item]:
        """What caches of servers held: it stays as long as they are to be kept."""
        out = []
        for path in sorted(self._tools.layout.slots.glob("*")):
            uses = Uses((f"server/{path.name}",)) if path.name in needs.caches else Uses()
            out.append(Item("cache", path, _size(path), str(uses), uses))
        return out

    def _views(self, going: set[Path]) -> list[Item]:
        """Links by name that lead nowhere, or will; a folder of them goes as a whole."""
        out = []
        gone = {path.resolve() for path in going}
        for folder in VIEWS:
            for path in sorted((self._tools.layout.root / folder).glob("*")):
                links = [p for p in (path, *path.rglob("*")) if p.is_symlink()]
                if any(not link.exists() or link.resolve() in gone for link in links):
                    out.append(Item("view", path, 0, "it leads nowhere"))
        return out

    # -- removing ------------------------------------------------------------------------------------------------

    async def clear(self, survey: Survey, desired: Mapping[Ref, Declared]) -> int:
        """Remove what a survey found, unless it is needed by now → bytes freed. Raises Fault.

        What is needed is asked and acted upon without a pause; then it has another name, and may take its time to go.
        """
        for number in survey.forgotten:
            self._generations.forget(number)
        needs = self.needs(desired, ())
        doomed: list[tuple[Path, Item]] = []
        try:
            for item in survey.go:
                if item.what != "generation" and _there(item.path) and not self._needed(item, needs):
                    doomed.append((self._out_of_the_way(item), item))
        finally:  # what was moved before a disk failed goes all the same
            for aside, _ in doomed:
                await in_bulk(self._remove, aside)
        for _, item in doomed:  # the last, since a full disk lets us write only now
            if item.what == "blob" and not _there(item.path):
                self._tools.ledger.forget_artifact(item.path.name)
        freed = sum(item.size for _, item in doomed)
        if doomed or survey.forgotten:
            text = f"{_count(len(doomed), 'thing')} removed, {human_bytes(freed)} freed"
            self._tools.ledger.event("store", "Collected", text)
        return freed

    def _out_of_the_way(self, item: Item) -> Path:
        aside = self._tools.layout.partial / f"gone-{hashlib.sha256(os.fsencode(item.path)).hexdigest()[:32]}"
        if item.path.parent == aside.parent and item.path.name.startswith("gone-"):  # an earlier removal was cut off
            return item.path
        self._remove(aside)
        self._tools.files.move(item.path, aside)
        return aside

    def _remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            self._tools.files.remove_tree(path)
        else:
            self._tools.files.remove(path)

    def _needed(self, item: Item, needs: Needs) -> bool:
        if item.what == "blob":
            return item.path.name in needs.digests
        if item.what == "engine":
            return needs.every_folder or item.path.name in needs.folders
        if item.what == "cache":
            return item.path.name in needs.caches
        return item.what == "part" and time.time() - _touched(item.path) < 5.0  # somebody has just gone on with it


async def collect(controller: Controller, ask: Ask, yes: bool) -> dict[str, Any]:
    """What the control API's `gc` does → what it answers. Raises Refused, Fault."""
    garbage = Garbage(controller.tools, controller.source.path)
    working = frozenset({*controller.work, *controller.demands})
    survey = await asyncio.to_thread(garbage.survey, ask, controller.desired(), working)
    freed = await garbage.clear(survey, controller.desired()) if yes else None
    controller.wake()
    return to_json(survey, controller.tools.layout.root, freed)


def to_json(survey: Survey, root: Path, freed: int | None) -> dict[str, Any]:
    """`freed` is None where nothing was done."""

    def item(one: Item) -> dict[str, Any]:
        return {
            "what": one.what,
            "path": str(one.path.relative_to(root)),
            "size": one.size,
            "why": one.why,
            "resources": list(one.uses.resources),
            "generations": list(one.uses.generations),
            "pins": one.uses.pins,
            "pids": list(one.uses.pids),
        }

    return {
        "format": "1.0",
        "done": freed is not None,
        "size": survey.size,
        "freed": freed or 0,
        "go": [item(one) for one in survey.go],
        "stay": [item(one) for one in survey.stay],
        "forgotten": list(survey.forgotten),
        "notes": list(survey.notes),
    }


def _part_name(declared: Declared) -> str:
    """How the parts of a model's download begin."""
    return hashlib.sha256(str(getattr(declared.spec, "pin", "")).encode()).hexdigest()[:32]


def _set_aside_at(path: Path) -> float:
    """When a file came to quarantine, which its name says (Unix seconds)."""
    found = re.fullmatch(r"[0-9a-f]{64}\.([0-9]{1,12})(\.[0-9]+)*", path.name)
    return float(found[1]) if found else _touched(path)


def _touched(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _freed(path: Path) -> int:
    """Bytes that removing a file frees: none where another tool has a name for it, too."""
    try:
        return _size(path) if path.lstat().st_nlink == 1 else 0
    except OSError:
        return 0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what cannot be looked at counts nothing."""
    if token(path) is not None:
        return int((token(path) or "0:0").split(":")[1])
    if path.is_symlink() or not path.is_dir():
        return 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            seen = token(Path(folder, name))
            total += int(seen.split(":")[1]) if seen else 0
    return total


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _listed(refs: Collection[Ref]) -> str:
    names = sorted(map(str, refs))
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _runs(numbers: tuple[int, ...]) -> str:
    """1, 2, 3, 7 → `1–3, 7`."""
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and out[-1][-1] == number - 1:
            out[-1][1:] = [number]
        else:
            out.append([number])
    return ", ".join("–".join(map(str, run)) for run in out)
