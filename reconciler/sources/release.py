"""Releases of a repository, as GitHub's API and its mirrors tell them: metadata only; archives by our downloader.

`latest` is what the API calls so, unless that has nothing that fits yet (archives appear one after the other, for an
hour or more): then the newest of the recent releases that has. A token goes to GitHub's own API only, and only where
the environment has one (GITHUB_TOKEN): it raises the number of questions that one address may ask. An answer has a
bound in time and size, and none is believed that does not have the expected form.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.fetch import OPEN, Access, retry_after
from reconciler.host.fetch.wire import Place, Wire, body, shown, status_fault
from reconciler.sources.names import printable

LATEST = "latest"
VARIABLE = "RECONCILER_RELEASES"
PUBLIC = "https://api.github.com"
MOST_ANSWER = 16 << 20  # bytes
STALL = 20.0  # seconds without a byte
DEADLINE = 60.0  # seconds for one answer
RECENT = 20  # releases that are looked at where the latest has nothing that fits

_SHA256 = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NUMBERS = re.compile(r"\d+")
_FORM = {"Accept": "application/vnd.github+json", "Accept-Encoding": "identity", "User-Agent": "reconciler"}

Fits = Callable[[Sequence[str]], bool]


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a release. `size` in bytes, 0 where it is not told; `sha256` (hex) empty where it is not."""

    name: str
    size: int
    sha256: str
    url: str


@dataclass(frozen=True, slots=True)
class Release:
    """A release: its tag, its files in order of their names."""

    tag: str
    assets: tuple[Asset, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(asset.name for asset in self.assets)


async def find(repo: str, tag: str, fits: Fits, api: str = "") -> Release:
    """The release of `owner/name` with that tag, or the `latest` one of which `fits` finds something among its names.

    `api` is where to ask instead of RECONCILER_RELEASES or the public place. Raises Fault.
    """
    base = (api or os.environ.get(VARIABLE, "").strip() or PUBLIC).rstrip("/")
    wire = Wire(STALL)
    try:
        async with asyncio.timeout(DEADLINE):
            if tag != LATEST:
                return _release(await _ask(wire, base, f"/repos/{repo}/releases/tags/{quote(tag, safe='')}"), base)
            return await _latest(wire, base, repo, fits)
    except TimeoutError as error:
        raise Fault("STALLED", f"{shown(base)} did not answer within {DEADLINE:.0f} s") from error
    except Fault as fault:
        if fault.code == "NOT_FOUND":
            raise _not_there(repo, tag, base) from fault
        raise
    finally:
        await wire.close()


async def _latest(wire: Wire, base: str, repo: str, fits: Fits) -> Release:
    try:
        first = _release(await _ask(wire, base, f"/repos/{repo}/releases/latest"), base)
        if fits(first.names):
            return first
    except Fault as fault:
        if fault.code != "NOT_FOUND":  # there are repositories with nothing but previews
            raise
        first = Release("", ())
    recent = await _ask(wire, base, f"/repos/{repo}/releases?per_page={RECENT}")
    if not isinstance(recent, list):
        raise _odd(base, "a list of releases was expected")
    fitting = [found for entry in recent if fits((found := _release(entry, base)).names)]
    if fitting:
        return max(fitting, key=lambda release: _order(release.tag))
    if first.tag:
        return first  # what it lacks is for the caller to say
    raise _not_there(repo, LATEST, base)


def _order(tag: str) -> tuple[int, ...]:
    """What tags are compared by: b9999 comes before b10000."""
    return tuple(int(number) for number in _NUMBERS.findall(tag))


def access(base: str) -> Access:
    """The token for an API: none but the public one's own host ever sees it."""
    token = os.environ.get("GITHUB_TOKEN", "").strip()
    return Access(token, urlsplit(PUBLIC).netloc) if token and base == PUBLIC else OPEN


async def _ask(wire: Wire, base: str, path: str) -> Any:
    url = f"{base}{path}"
    response, _ = await wire.ask("GET", Place(url), access(base), _FORM)
    try:
        if response.status_code != 200:
            raise _refused(url, response.status_code, response.headers, base)
        found = bytearray()
        async with aclosing(body(response, url)) as pieces:
            async for piece in pieces:
                found += piece
                if len(found) > MOST_ANSWER:
                    raise _odd(base, f"its answer is longer than {MOST_ANSWER >> 20} MiB")
    finally:
        await response.aclose()
    try:
        return json.loads(found)
    except (ValueError, RecursionError) as error:
        raise _odd(base, "its answer is not JSON" + (": it is a web page" if found[:1] == b"<" else "")) from error


def _release(said: Any, base: str) -> Release:
    tag, assets = (said.get("tag_name"), said.get("assets")) if isinstance(said, dict) else (None, None)
    if not isinstance(tag, str) or not tag or not isinstance(assets, list):
        raise _odd(base, "its answer is not a release")
    found = [asset for entry in assets if (asset := _asset(entry)) is not None]
    return Release(tag, tuple(sorted(found, key=lambda asset: asset.name)))


def _asset(said: Any) -> Asset | None:
    """A file of a release; None for one that is still on its way there, or is told in a way that makes no sense."""
    if not isinstance(said, dict):
        return None
    name, url, size = said.get("name"), said.get("browser_download_url"), said.get("size")
    digest = _SHA256.fullmatch(said["digest"]) if isinstance(said.get("digest"), str) else None
    whole = said.get("state", "uploaded") == "uploaded"
    if not (whole and isinstance(name, str) and isinstance(url, str) and url.startswith(("https://", "http://"))):
        return None
    known = size if type(size) is int and size >= 0 else 0
    return Asset(printable(name), known, digest[1].lower() if digest else "", url)


# -- what went wrong --------------------------------------------------------------------------------------------------


def _refused(url: str, status: int, headers: Mapping[str, str], base: str) -> Fault:
    if status in (403, 429) and (headers.get("x-ratelimit-remaining") == "0" or "retry-after" in headers):
        wait = max(retry_after(headers), _until_reset(headers))
        minutes = f" for the next {max(1, round(wait / 60))} min" if wait else ""
        own = base == PUBLIC and not os.environ.get("GITHUB_TOKEN")
        hint = "set GITHUB_TOKEN: with a token many more questions are allowed" if own else "it is tried again by then"
        return Fault("RATE_LIMITED", f"{shown(base)} answers no more questions{minutes}", hint=hint, after=wait)
    if status == 401:
        return Fault(
            "BAD_TOKEN",
            f"{shown(base)} does not know the token",
            hint="correct GITHUB_TOKEN, or unset it: releases are public",
            kind=FaultClass.NEEDS_HUMAN,
        )
    return status_fault(url, status, headers)


def _until_reset(headers: Mapping[str, str]) -> float:
    """Seconds until questions are answered again, as the API says it; at most an hour, which is its period."""
    text = headers.get("x-ratelimit-reset", "")
    return min(max(float(text) - time.time(), 0.0), 3600.0) if text.isascii() and text.isdigit() else 0.0


def _odd(base: str, why: str) -> Fault:
    return Fault(
        "BAD_ANSWER",
        f"{shown(base)}: {why}",
        hint=f"check the network (a log-in page?), and {VARIABLE} or `releases` if a mirror is meant",
    )


def _not_there(repo: str, tag: str, base: str) -> Fault:
    what = f"no release {printable(tag)}" if tag != LATEST else "no release"
    return Fault(
        "RELEASE_NOT_FOUND",
        f"{repo} has {what} at {shown(base)}",
        hint="check `version` in the manifest: a tag such as b11434, or latest",
        kind=FaultClass.PERMANENT,
    )
