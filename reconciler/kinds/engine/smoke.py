"""Trying an engine out before it counts as installed: it says its version, then it loads a tiny model and answers.

What goes wrong has a name of its own, as it says what to do: another archive, a library, a newer processor.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.ids import Ref
from reconciler.host.probes import free_port
from reconciler.host.process import NONCE, ROOT, workload_environment
from reconciler.kinds.base import Tools
from reconciler.kinds.engine.tiny import CONTEXT, tiny_model
from reconciler.supervise.exits import meaning
from reconciler.supervise.logs import rotate
from reconciler.supervise.readiness import wait_ready

HOST = "127.0.0.1"
SPEAKS = 60.0  # seconds that `--version` may take: a driver of a GPU is loaded meanwhile
LOADS = 120.0
MOST_SAID = 1 << 16  # bytes

_MACHINES = {62: "x86_64", 183: "arm64", 3: "x86", 40: "arm", 243: "riscv64", 22: "s390x", 21: "ppc64"}
_LIBRARY = re.compile(r"loading shared libraries: ([^:\s]+)|Library not loaded: (\S+)")
_SYMBOLS = re.compile(r"version `(GLIBC[^']*)' not found|`((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found")


async def smoke(ref: Ref, argv: Sequence[str], program: Path, folder: Path, tools: Tools) -> str:
    """Run an engine that nobody uses yet → what it says of its version. Raises Fault, and leaves nothing running.

    `program` is the file that runs in the end, `folder` where the tiny model is put, and taken away again.
    """
    _refuse_another_machine(program)
    tools.progress(ref, "trying it out", 0, None)
    said = await _version(argv, program, tools)
    model, log = folder / ".tiny.gguf", tools.layout.log(str(ref))
    tools.files.write(model, tiny_model())
    try:
        await _serve(argv, model, log, tools)
    finally:
        tools.files.remove(model)
    return said


def _refuse_another_machine(program: Path) -> None:
    """Raise Fault where a program's header (ELF) says that it is for another processor."""
    with program.open("rb") as data:
        head = data.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF" or sys.platform != "linux":
        return
    number = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])[0]
    built, here = _MACHINES.get(number, f"machine {number}"), os.uname().machine.replace("aarch64", "arm64")
    if built != here:
        raise Fault(
            "WRONG_ARCHITECTURE",
            f"{program.name} is built for {built}, and this machine is {here}",
            hint="take the archive for this machine",
            kind=FaultClass.PERMANENT,
        )


async def _all(stream: asyncio.StreamReader) -> bytes:
    """What it brings until its end, at most MOST_SAID bytes; one `read` gives whatever is there."""
    try:
        return await stream.readexactly(MOST_SAID)
    except asyncio.IncompleteReadError as short:
        return short.partial


async def _version(argv: Sequence[str], program: Path, tools: Tools) -> str:
    with tools.effects("try", program):
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                "--version",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=workload_environment({ROOT: str(tools.layout.root), NONCE: secrets.token_hex(8)}),
                start_new_session=True,
            )
        except OSError as error:
            raise Fault(
                "BINARY_NOT_EXECUTABLE",
                f"{program.name} cannot be run here: {error.strerror}",
                hint="is it built for this system and this processor?",
                kind=FaultClass.PERMANENT,
            ) from error
        assert process.stdout is not None
        try:
            async with asyncio.timeout(SPEAKS):
                said = await _all(process.stdout)
                code = await process.wait()
        except TimeoutError as error:
            raise Fault(
                "ENGINE_SILENT", f"{program.name} --version did not end within {SPEAKS:.0f} s", hint=_ANOTHER
            ) from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
    text = said.decode(errors="replace")
    if code:
        raise explained(meaning(code, text.splitlines()), text, program.name)
    found = re.search(r"version:?\s*(\S+)", text)
    return found[1] if found else ""


async def _serve(argv: Sequence[str], model: Path, log: Path, tools: Tools) -> None:
    """Have it load the model on a free port with a key, until its /health answers."""
    port, nonce = free_port(HOST), secrets.token_hex(8)
    tools.files.folder(log.parent)
    rotate(log, tools.files)
    begin = log.stat().st_size if log.exists() else 0
    flags = ["--model", str(model), "--alias", "tiny", "--host", HOST, "--port", str(port), "--ctx-size", str(CONTEXT)]
    marks = {NONCE: nonce, ROOT: str(tools.layout.root), "LLAMA_API_KEY": secrets.token_urlsafe(24)}
    identity = tools.processes.spawn([*argv, *flags], workload_environment(marks), log, model.parent)
    try:
        await wait_ready(tools.processes, identity, HOST, port, LOADS, log, begin)
    except Fault as fault:
        with log.open("rb") as data:
            data.seek(begin)
            text = data.read(MOST_SAID).decode(errors="replace")
        raise explained(fault, text, Path(argv[0]).name) from fault
    finally:
        await tools.processes.stop(identity, nonce, grace=5.0)


def explained(fault: Fault, said: str, name: str) -> Fault:
    """The fault of an engine that could not be tried out, in words about the engine."""
    if found := _SYMBOLS.search(said):
        return Fault(
            "LIBRARY_TOO_OLD",
            f"{name} was built for a newer system: it needs {found[1] or found[2]}",
            hint="choose an older release, or build llama.cpp here and name it with `path`",
            kind=FaultClass.PERMANENT,
        )
    if found := _LIBRARY.search(said):
        library = found[1] or found[2]
        return Fault(
            "LIBRARY_MISSING",
            f"{name} needs {library}, which is not on this machine",
            hint=f"install what brings {library}, or choose another variant",
            kind=FaultClass.NEEDS_HUMAN,
        )
    if fault.code == "ILLEGAL_INSTRUCTION":
        return fault
    if fault.code in ("PROCESS_EXITED", "PROCESS_ERROR", "BINARY_NOT_FOUND"):
        return Fault("ENGINE_BROKEN", f"{name}: {fault.message}", hint=_ANOTHER, kind=FaultClass.NEEDS_HUMAN)
    return Fault(fault.code, f"{name} failed on a tiny model: {fault.message}", hint=fault.hint, kind=fault.kind)


_ANOTHER = "choose another version or variant; what was here before stays in use"
