"""Installing an engine from the archives of a release: fetched into the store, unpacked aside, tried out, put in place.

An engine lies in a folder of its own, whose name says which bytes it is made of: versions are side by side, and two
engines of the same archives share one. The folder counts once its mark is there, which is written last; what a crash
leaves has another name, or no mark, and is made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.state import HostFacts
from reconciler.host.bulk import in_bulk, in_bulk_until
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.mark import MARK, mark
from reconciler.kinds.engine.smoke import smoke
from reconciler.kinds.engine.spec import EngineSpec, File, pinned, version_of
from reconciler.kinds.engine.variants import Choice, Refusal, builds, choose
from reconciler.sources import release as releases
from reconciler.sources.archive import Unfit
from reconciler.sources.names import printable
from reconciler.sources.unpack import unpack
from reconciler.store.blobs import prove

SERVER = "llama-server"
LAUNCHER = "run"
ASIDE = ".new-"  # how a folder is called that is being filled


async def find(spec: EngineSpec, host: HostFacts, tag: str = "") -> releases.Release:
    """The release that a spec means, or the one with a `tag`. Raises Fault."""
    repo, _, asked = spec.origin.removeprefix("github:").partition("@")

    def fits(names: Sequence[str]) -> bool:
        return isinstance(choose(names, host, spec.variant), Choice)

    return await releases.find(repo, tag or asked, fits, spec.api)


def facts_of(found: releases.Release, spec: EngineSpec, host: HostFacts) -> dict[str, Any]:
    """What a pin says of a release: its tag, and every archive for this platform. Raises Fault where it has none."""
    here = builds(found.names, host.os, host.arch)
    if not any(not made.runtime for made in here):
        refusal = choose(found.names, host, spec.variant)
        assert isinstance(refusal, Refusal)
        raise refused(f"{spec.origin.removeprefix('github:')} ({found.tag})", refusal)
    order = sorted(here, key=lambda made: (made.runtime, made.name))
    assets = {asset.name: asset for asset in found.assets}
    files = [File(made.name, assets[made.name].size, assets[made.name].sha256) for made in order]
    roles = ["runtime" if made.runtime else "archive" for made in order]
    return _facts(spec, found.tag, files, roles)


def _facts(spec: EngineSpec, version: str, files: Sequence[File], roles: Sequence[str]) -> dict[str, Any]:
    first, *others = (
        {"role": role, "name": file.name, "size": file.size, "sha256": file.sha256}
        for file, role in zip(files, roles, strict=True)
    )
    first.pop("role")
    out: dict[str, Any] = {**first, "version": version}
    if spec.origin.startswith("github:"):
        out["resolved"] = f"{spec.origin.rpartition('@')[0]}@{version}"
    return out | ({"also": others} if others else {})


def refused(what: str, refusal: Refusal) -> Fault:
    return Fault("NO_FITTING_ARCHIVE", f"{what}: {refusal.reason}", hint=refusal.hint, kind=FaultClass.PERMANENT)


async def resolve(spec: EngineSpec, tools: Tools) -> Mapping[str, Any]:
    """See what a release has for this machine and note it, once. Raises Fault."""
    async with tools.bringing.setdefault(spec.pin, asyncio.Lock()):
        if known := tools.ledger.pins().get(spec.pin):
            return known
        host = tools.host()
        facts = facts_of(await find(spec, host), spec, host)
        tools.ledger.pin(spec.pin, facts)
        return facts


async def install(ref: Ref, spec: EngineSpec, tools: Tools) -> EngineSpec:
    """Install what a spec means → the spec with what was installed. Raises Fault; then what was in use is untouched."""
    host = tools.host()
    if not spec.files:
        facts = await resolve(spec, tools) if spec.origin.startswith("github:") else _given(spec, tools)
        spec = pinned(spec, facts, host)
    spec = await brought(ref, spec, tools, host)
    async with tools.bringing.setdefault(spec.installed, asyncio.Lock()):
        if not (tools.layout.engines / spec.installed / MARK).is_file():
            await _put_in_place(ref, spec, tools, host)
    return spec


def _given(spec: EngineSpec, tools: Tools) -> Mapping[str, Any]:
    """The facts of an address, as far as they are known: a pin that the manifest contradicts does not count."""
    pin = tools.ledger.pins().get(spec.pin, {})
    if pin and pin.get("sha256") == (spec.sha256 or pin.get("sha256")):
        return pin
    name = printable(PurePosixPath(unquote(urlsplit(spec.origin).path)).name) or "archive"
    return {"name": name, "size": 0, "sha256": spec.sha256, "version": version_of(name)}


async def renew(ref: Ref, spec: EngineSpec, tools: Tools) -> None:
    """Find what a release is now, whatever was pinned. Archives of which nobody says the sha256 are brought for it."""
    host = tools.host()
    spec = replace(spec, locked="", resolved="", files=(), installed="")
    if spec.origin.startswith("github:"):
        facts: Mapping[str, Any] = facts_of(await find(spec, host), spec, host)
        if all(file["sha256"] for file in (facts, *facts.get("also", ()))):
            tools.ledger.pin(spec.pin, facts)
            return
    else:
        facts = {**_given(spec, tools), "sha256": spec.sha256, "size": 0}
    await brought(ref, pinned(spec, facts, host), tools, host)


# -- bytes ------------------------------------------------------------------------------------------------------------


async def brought(ref: Ref, spec: EngineSpec, tools: Tools, host: HostFacts) -> EngineSpec:
    """Have the archives that are meant in the store → the spec with their sha256. Raises Fault."""
    found = spec.chosen(host)
    if isinstance(found, Refusal):
        raise refused(spec.origin.removeprefix("github:"), found)
    wanted = [spec.file(name) for name in found.names]
    if not spec.origin.startswith("github:"):
        wanted[0] = replace(wanted[0], sha256=spec.sha256 or spec.locked or wanted[0].sha256)
    elif spec.wanted:
        wanted[0] = replace(wanted[0], sha256=spec.wanted)
    held = [bool(file.sha256) and await stored(file.sha256, tools) for file in wanted]
    urls = await _addresses(spec, host) if not all(held) else {}
    known: list[File] = []
    for number, (file, here) in enumerate(zip(wanted, held, strict=True)):
        known.append(file if here else await _fetched(ref, spec, file, urls, number, tools))
    if all(file.sha256 for file in wanted) and spec.installed:
        return spec
    roles = ["archive", *("runtime" for _ in known[1:])]
    facts = _facts(spec, spec.resolved or version_of(known[0].name), known, roles)
    tools.ledger.pin(spec.pin, facts)
    return pinned(spec, facts, host)


async def stored(sha256: str, tools: Tools) -> bool:
    """Whether an archive is in the store; one that the ledger does not vouch for is proved first."""
    if tools.blobs.holds(sha256):
        return True
    path = tools.layout.blob(sha256)
    if not path.is_file() or path.is_symlink():
        return False
    proof = await in_bulk(prove, path)
    if proof.sha256 != sha256:
        tools.blobs.set_aside(sha256)
        return False
    tools.blobs.record(sha256, proof.blocks)
    return True


async def _addresses(spec: EngineSpec, host: HostFacts) -> dict[str, str]:
    if not spec.origin.startswith("github:"):
        return {spec.files[0].name: spec.origin}
    found = await find(spec, host, spec.resolved)
    return {asset.name: asset.url for asset in found.assets}


async def _fetched(ref: Ref, spec: EngineSpec, file: File, urls: Mapping[str, str], number: int, tools: Tools) -> File:
    if file.name not in urls:
        raise Fault(
            "FILE_NOT_FOUND",
            f"{spec.origin.removeprefix('github:')} no longer has {file.name}, which the lock names",
            hint=f"see what it has now with `reconcile lock --upgrade {ref}`",
            kind=FaultClass.PERMANENT,
        )
    part = tools.layout.partial / f"{hashlib.sha256(spec.pin.encode()).hexdigest()[:32]}.{number}"
    async with tools.bringing.setdefault(file.sha256 or spec.pin, asyncio.Lock()):
        if file.sha256 and tools.blobs.holds(file.sha256):  # another engine has just brought it
            return file
        what = f"fetching {file.name}"
        got = await tools.fetch.get(
            urls[file.name],
            part,
            lambda done, total: tools.progress(ref, what, done, total),
            file.sha256,
            size=file.size or None,
        )
        tools.blobs.take(part, got.sha256, got.blocks)
        tools.fetch.discard(part)
    return replace(file, size=got.size, sha256=got.sha256)


# -- the folder -------------------------------------------------------------------------------------------------------


async def _put_in_place(ref: Ref, spec: EngineSpec, tools: Tools, host: HostFacts) -> None:
    folder, aside = tools.layout.engines / spec.installed, tools.layout.engines / f"{ASIDE}{spec.installed}"
    found = spec.chosen(host)
    assert isinstance(found, Choice)
    for left in tools.layout.engines.glob(f"{ASIDE}*"):  # by a crash; what is under way now has its lock
        busy = tools.bringing.get(left.name.removeprefix(ASIDE))
        if left == aside or busy is None or not busy.locked():
            await in_bulk(tools.files.remove_tree, left)
    tools.files.folder(tools.layout.engines)
    try:
        for number, name in enumerate(found.names):
            tools.progress(ref, f"unpacking {name}", 0, None)
            await _unpacked(spec, spec.file(name), aside if number == 0 else aside / f"runtime{number}", tools)
        program = server_in(aside, spec.files[0].name)
        start = _launcher(aside, program, tools)
        said = await smoke(ref, [str(start)], program, aside, tools)
        await in_bulk(tools.files.remove_tree, folder)
        tools.files.move(aside, folder)
    except BaseException:
        with suppress(Fault, OSError):
            await in_bulk(tools.files.remove_tree, aside)
        raise
    mark(folder, start.relative_to(aside), spec, found.variant, found.why, said, tools)


async def _unpacked(spec: EngineSpec, file: File, target: Path, tools: Tools) -> None:
    stop = threading.Event()
    try:
        with tools.effects("unpack", target):
            await in_bulk_until(stop, unpack, tools.layout.blob(file.sha256), target, stop)
    except Unfit as why:
        await in_bulk(tools.blobs.remove, file.sha256)
        raise Fault(
            "BAD_ARCHIVE",
            f"{file.name}: {why}",
            hint="check the address, or choose another release",
            kind=FaultClass.PERMANENT,
        ) from why


def server_in(folder: Path, name: str) -> Path:
    """The llama-server in a folder that was just filled, the one nearest to its top. Raises Fault."""
    found = sorted(
        (path for path in folder.rglob(SERVER) if path.is_file()), key=lambda path: (len(path.parts), str(path))
    )
    if not found:
        raise Fault(
            "NO_SERVER",
            f"{name} holds no {SERVER}",
            hint="is it an archive of llama.cpp for this system?",
            kind=FaultClass.PERMANENT,
        )
    return found[0]


def _launcher(folder: Path, program: Path, tools: Tools) -> Path:
    """What starts a program with the libraries that came with it; the program itself where none did.

    A script, so that it may be moved with its folder. It becomes the program: there is one process.
    """
    with tools.effects("chmod", program):
        program.chmod(program.stat().st_mode | 0o755)
    beside = {path.parent for path in folder.rglob("*.so*")}
    if not beside:
        return program
    near = sorted(beside, key=lambda path: (path != program.parent, str(path)))
    paths = ":".join(f'"$here"/{shlex.quote(str(path.relative_to(folder)))}' for path in near)
    text = (
        "#!/bin/sh\n"
        f'here="${{0%/*}}"\n'
        f'LD_LIBRARY_PATH={paths}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"\n'
        "export LD_LIBRARY_PATH\n"
        f'exec "$here"/{shlex.quote(str(program.relative_to(folder)))} "$@"\n'
    )
    tools.files.write(folder / LAUNCHER, text.encode(), mode=0o755)
    return folder / LAUNCHER
