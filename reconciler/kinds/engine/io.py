"""Engines: look for them, install them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.core.plan import Action
from reconciler.core.state import Absent, Declared, Found, Observation
from reconciler.kinds.base import Tools
from reconciler.kinds.engine import flags as help_text
from reconciler.kinds.engine.help import flags_of
from reconciler.kinds.engine.rules import EngineRules, EngineState
from reconciler.kinds.engine.spec import EngineSpec

HOST_PROGRAM = Path(__file__).with_name("llama_host.py")
MARK = ".installed"  # written last: an environment without it is a half-made one


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
            spec = desired[ref].spec if ref in desired else EngineSpec(**owned[ref].spec)
            out[ref] = _look(spec, tools)
        return out

    async def apply(self, action: Action, ref: Ref, declared: Declared | None, tools: Tools) -> None:
        match action.verb:
            case "install":
                assert declared is not None
                async with tools.downloads:
                    await _install(ref, declared.spec, tools)
            case "renew":
                assert declared is not None
                await _renew(declared.spec, tools)
                return
            case "adopt":
                assert declared is not None
                _usable(declared.spec)
            case "purge":
                spec = EngineSpec(**tools.ledger.owned()[ref].spec)
                await asyncio.to_thread(tools.files.remove_tree, tools.layout.engines / spec.folder)
        if declared is None:
            tools.ledger.disown(ref)
        else:
            tools.ledger.own(ref, declared.digest, declared.spec)

    def sweep(self, tools: Tools) -> None:
        owned = [o for ref, o in tools.ledger.owned().items() if ref.kind == self.name]
        needed = {EngineSpec(**o.spec).folder for o in owned}
        for folder in tools.layout.engines.glob("*"):
            if folder.name not in needed:
                tools.files.remove_tree(folder)


def _look(spec: EngineSpec, tools: Tools) -> Observation:
    if spec.type == "embedded":
        folder = tools.layout.engines / spec.folder
        if not (folder / MARK).is_file() or not _python(folder).exists():
            return Absent()
        told = help_text.embedded(spec.version)
        return Found(EngineState((str(_python(folder)), str(HOST_PROGRAM)), f"xllamacpp {spec.version}", flags=told))
    path = Path(spec.path).expanduser()
    if not (path.is_file() and os.access(path, os.X_OK)):
        return Absent(f"{path} is not an executable file")
    told = flags_of(path)
    title = f"{path} ({told.version})" if told.version else str(path)
    return Found(EngineState((str(path),), title, owned=False, flags=told))


def _usable(spec: EngineSpec) -> None:
    if spec.type != "llama.cpp":
        return
    path = Path(spec.path).expanduser()
    if not path.is_file():
        raise Fault(
            "BINARY_NOT_FOUND",
            f"{path} does not exist",
            hint="give the path of a llama-server program, or use type: embedded",
            kind=FaultClass.NEEDS_HUMAN,
        )
    if not os.access(path, os.X_OK):
        raise Fault(
            "BINARY_NOT_EXECUTABLE", f"{path} may not be executed", hint=f"chmod +x {path}", kind=FaultClass.NEEDS_HUMAN
        )


async def _install(ref: Ref, spec: EngineSpec, tools: Tools) -> None:
    """Make the environment under its final name (a venv cannot be moved); the mark makes it count."""
    from reconciler.sources.pypi import pip_fault, run_pip

    folder = tools.layout.engines / spec.folder
    await asyncio.to_thread(tools.files.remove_tree, folder)
    tools.files.folder(folder.parent)
    tools.progress(ref, f"installing xllamacpp {spec.version}", 0, None)
    with tools.effects("venv", folder):
        await _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], ref)
    wanted, report = folder / "wanted.txt", folder / "report.json"
    locked = f" --hash=sha256:{spec.locked}" if spec.locked else ""
    tools.files.write(wanted, f"xllamacpp=={spec.version}{locked}\n".encode())
    argv = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install", "--quiet", "--no-deps"]
    argv += ["--disable-pip-version-check", "--only-binary", ":all:", "--no-compile"]
    argv += ["--report", str(report), "--requirement", str(wanted)]
    with tools.effects("pip-install", folder):
        _, err, code = await run_pip(argv)
    if code:
        raise pip_fault(f"xllamacpp=={spec.version}", err)
    if (facts := _installed(report)) is not None:
        tools.ledger.pin(spec.pin, facts)
    await _run([str(_python(folder)), "-c", "import xllamacpp"], ref)  # the smoke test: it loads on this machine
    tools.files.write(folder / MARK, f"{spec.version}\n".encode())


async def _renew(spec: EngineSpec, tools: Tools) -> None:
    """Find out which wheel it would be installed from now."""
    from reconciler.sources.pypi import wheel_of

    if spec.source:
        wheel = await wheel_of(spec.source.removeprefix("pypi:"))
        if wheel.sha256:
            tools.ledger.pin(spec.pin, {"name": wheel.name, "sha256": wheel.sha256})


def _installed(report: Path) -> dict[str, str] | None:
    """What pip says that it installed: the wheel's name and sha256."""
    found = json.loads(report.read_text())["install"][0]["download_info"]
    sha256 = found.get("archive_info", {}).get("hashes", {}).get("sha256")
    name = PurePosixPath(unquote(urlsplit(found["url"]).path)).name
    return {"name": name, "sha256": sha256} if sha256 else None


async def _run(argv: list[str], ref: Ref) -> None:
    from reconciler.sources.pypi import run_pip

    _, err, code = await run_pip(argv)
    if code:
        last = (err.strip().splitlines() or [f"exit code {code}"])[-1]
        raise Fault(
            "ENGINE_BROKEN",
            f"{ref}: {last}",
            hint="a Python with the venv module is needed (on Debian: apt install python3-venv)",
            kind=FaultClass.NEEDS_HUMAN,
        )


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"
