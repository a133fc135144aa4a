"""Engines that come as Python packages: a virtual environment of their own, made under its final name, marked last.

pip finds them, with the person's own index settings. A wheel is fetched into the store by our own downloader and
installed from there, so that installing it again needs no network, and a bundle can carry it. A package without a
wheel for this machine is built from its source by pip, which may take minutes and needs a compiler; mlx-lm brings many
other packages, which pip fetches.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.host.bulk import in_bulk
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.install import stored
from reconciler.kinds.engine.mark import MARK, mark, python
from reconciler.kinds.engine.smoke import smoke
from reconciler.kinds.engine.spec import EngineSpec, File, pinned
from reconciler.sources import Tap

SERVER = "llama-server"
QUIET = ["--quiet", "--disable-pip-version-check"]


async def resolve(spec: EngineSpec, tools: Tools) -> dict[str, Any]:
    """Ask pip what it would install → version, name and sha256, which are noted. Raises Fault."""
    from reconciler.sources.pypi import pip_fault, run_pip

    argv = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", *QUIET]
    out, err, code = await run_pip([*argv, "--report", "-", spec.origin.removeprefix("pypi:")])
    if code:
        raise pip_fault(spec.origin, err)
    facts = installed(json.loads(out)) or {}
    tools.ledger.pin(spec.pin, facts)
    return facts


def installed(report: Any) -> dict[str, Any] | None:
    """What pip's report says of the package that was named: version, and the file's name and sha256."""
    first = report["install"][0]
    found = first["download_info"]
    sha256 = found.get("archive_info", {}).get("hashes", {}).get("sha256")
    name = PurePosixPath(unquote(urlsplit(found["url"]).path)).name
    return {"name": name, "sha256": sha256, "version": first["metadata"]["version"]} if sha256 else None


async def environment(folder: Path, tools: Tools, ref: Ref) -> None:
    """Make a virtual environment under its final name, since it cannot be moved. Raises Fault."""
    await in_bulk(tools.files.remove_tree, folder)
    tools.files.folder(folder.parent)
    with tools.effects("venv", folder):
        await run([sys.executable, "-m", "venv", "--without-pip", str(folder)], ref)


async def run(argv: list[str], ref: Ref) -> None:
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


async def install(ref: Ref, spec: EngineSpec, tools: Tools) -> EngineSpec:
    """Install a package that brings a server → the spec with what was installed. Raises Fault."""
    host = tools.host()
    if not spec.files:
        spec = pinned(spec, tools.ledger.pins().get(spec.pin) or await resolve(spec, tools), host)
    if not spec.installed:
        raise Fault(
            "NOT_PINNED",
            f"{spec.origin}: the package index says no sha256 of it",
            hint="use an index that does",
            kind=FaultClass.NEEDS_HUMAN,
        )
    folder = tools.layout.engines / spec.installed
    if (folder / MARK).is_file():
        return spec
    package = spec.origin.removeprefix("pypi:").partition("==")[0]
    tools.progress(ref, f"installing {package} {spec.resolved}", 0, None)
    await environment(folder, tools, ref)
    await _pip(folder, package, spec, tools, ref)
    if spec.type == "mlx":
        await run([str(python(folder)), "-c", "import mlx_lm"], ref)
        mark(folder, Path("bin/python"), spec, "metal", "Apple's GPU", spec.resolved, tools)
        return spec
    program = _server(folder, spec)
    with tools.effects("chmod", program):
        program.chmod(program.stat().st_mode | 0o755)
    await _complete(folder, program, tools)
    said = await smoke(ref, [str(program)], program, folder, tools)
    mark(folder, program.relative_to(folder), spec, "", "", said, tools)
    return spec


async def _pip(folder: Path, package: str, spec: EngineSpec, tools: Tools, ref: Ref) -> None:
    if spec.wheel:
        await _from_store(folder, await brought(ref, spec, f"{package}=={spec.resolved}", tools), tools)
        return
    meant = f"{package}=={spec.resolved}"
    tools.files.write(folder / "wanted.txt", f"{meant} --hash=sha256:{spec.locked}\n".encode())
    await _install_into(folder, ["--no-deps", "--requirement", str(folder / "wanted.txt")], meant, tools)
    if spec.type == "mlx":  # with a hash pip would want one of everything that it brings along: that comes unpinned
        await _install_into(folder, [meant], meant, tools)


async def _from_store(folder: Path, wheel: File, tools: Tools) -> None:
    path = folder / wheel.name  # pip learns from the name what it is
    tools.files.link(path, tools.layout.blob(wheel.sha256))
    await _install_into(folder, ["--no-index", "--no-deps", str(path)], wheel.name, tools)
    tools.files.remove(path)


async def _install_into(folder: Path, wanted: list[str], what: str, tools: Tools) -> None:
    from reconciler.sources.pypi import pip_fault, run_pip

    argv = [sys.executable, "-m", "pip", "--python", str(python(folder)), "install", *QUIET, "--no-compile", *wanted]
    with tools.effects("pip-install", folder):
        _, err, code = await run_pip(argv)
    if code:
        raise pip_fault(what, err)


async def brought(ref: Ref, spec: EngineSpec, requirement: str, tools: Tools) -> File:
    """Have the wheel that is meant in the store. Raises Fault. Who pins it does so last: a lock that learns something
    has what is under way begun anew.
    """
    from reconciler.sources import pypi

    wheel = spec.wheel or File("")
    async with tools.bringing.setdefault(wheel.sha256 or spec.pin, asyncio.Lock()):
        if wheel.sha256 and await stored(wheel.sha256, tools):
            return wheel
        part = tools.layout.partial / f"{hashlib.sha256(spec.pin.encode()).hexdigest()[:32]}.0"
        tap = Tap(tools.base, tools.files, tools.effects, tools.fetch)
        got = await pypi.bring_wheel(
            requirement,
            part,
            lambda done, total: tools.progress(ref, f"fetching {requirement}", done, total),
            spec.locked,
            tap,
        )
        tools.blobs.take(part, got.sha256, got.blocks)
        tools.fetch.discard(part)
        return File(got.name, got.size, got.sha256)


async def _complete(folder: Path, program: Path, tools: Tools) -> None:
    """Import the package that has the program, if one has: a wheel cannot hold links, and such a package makes those
    that its libraries need when it is first imported. What that brings is for the trial to say.
    """
    from reconciler.sources.pypi import run_pip

    inside = next(iter(folder.glob("lib/python*/site-packages")), folder)
    name = program.relative_to(inside).parts[0] if program.is_relative_to(inside) else ""
    if name.isidentifier() and (inside / name / "__init__.py").is_file():
        with tools.effects("import", inside / name):
            await run_pip([str(python(folder)), "-c", f"import {name}"])


def _server(folder: Path, spec: EngineSpec) -> Path:
    script = folder / "bin" / SERVER
    found = [script] if script.is_file() else sorted(path for path in folder.rglob(SERVER) if path.is_file())
    if not found:
        raise Fault(
            "NO_SERVER",
            f"{spec.origin.removeprefix('pypi:')} {spec.resolved} brings no {SERVER}",
            hint="name another package with `package`",
            kind=FaultClass.PERMANENT,
        )
    return found[0]


# -- the embedded engine ----------------------------------------------------------------------------------------------


async def install_embedded(ref: Ref, spec: EngineSpec, tools: Tools) -> EngineSpec:
    """Install the wheel that has the server inside: nothing of it is built here. Raises Fault."""
    folder = tools.layout.engines / spec.folder
    wheel = await brought(ref, spec, spec.source.removeprefix("pypi:"), tools)
    tools.progress(ref, f"installing xllamacpp {spec.version}", 0, None)
    await environment(folder, tools, ref)
    await _from_store(folder, wheel, tools)
    await run([str(python(folder)), "-c", "import xllamacpp"], ref)  # the smoke test: it loads on this machine
    if wheel not in spec.files:
        tools.ledger.pin(spec.pin, {"name": wheel.name, "size": wheel.size, "sha256": wheel.sha256})
    tools.files.write(folder / MARK, f"{spec.version}\n".encode())
    return spec


async def renew_embedded(spec: EngineSpec, tools: Tools) -> None:
    """Find out which wheel it would be installed from now."""
    from reconciler.sources.pypi import wheel_of

    wheel = await wheel_of(spec.source.removeprefix("pypi:"))
    if wheel.sha256:
        tools.ledger.pin(spec.pin, {"name": wheel.name, "sha256": wheel.sha256})
