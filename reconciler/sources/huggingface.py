"""`hf:owner/name[@revision]`: what a model repository holds, through the hub's own client; bytes by our downloader.

Mirrors are asked first, in order, then the origin; the first that gives a sensible answer is believed. A mirror that is
down, lacks the repository or the revision, or calls it by another name is passed over, and a note says so. Origin and
mirror are not compared: who names a mirror trusts it for what is brought first, and often cannot reach the origin.
From then on the lock's commit and sha256 hold against both, as every byte is verified.

A token goes to the origin's own host only: the one given, else what the hub's client finds by itself. The client is
used for metadata alone: none of its caches is written, telemetry is off, it tries once, an answer has a bound in
time and size, and a redirect is followed only within the host that was asked.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.fetch import OPEN, Access, retry_after
from reconciler.sources import Brought, Listing, Remote, Request, Tap, url
from reconciler.sources.names import of_folder, printable

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

MOST_FILES = 2000  # GGUF files of one repository
MOST_ANSWER = 64 << 20  # bytes of metadata
PATIENCE = 20.0  # seconds without a byte
DEADLINE = 90.0  # seconds for one answer

_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKEN_HINT = "give a token with access to it: `hub: {token: env:NAME}`, or `token: env:NAME` of the model"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Place:
    """One hub that may be asked. The token is the secret itself."""

    endpoint: str
    origin: bool
    token: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]

    @property
    def access(self) -> Access:
        return Access(self.token, self.host) if self.token else OPEN


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a source text names; the revision is empty where it names none."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}" if self.revision else f"hf:{self.repo}"


async def find(source: str, tap: Tap) -> Listing:
    """The GGUF files of a repository at one commit, or its folder of weights.

    Raises Fault; see `_meant` for what each answer means.
    """
    wanted = _wanted(source)
    places = await asyncio.to_thread(_places, tap)
    passed: list[str] = []
    for number, place in enumerate(places):
        try:
            info = await asyncio.to_thread(_ask, place, wanted)
            return _listing(wanted, info, places[number:], tuple(passed), tap.folders)
        except Fault as fault:
            if place.origin:
                raise _with(fault, passed) from fault
            passed.append(f"the mirror {place.host} was passed over: {fault.message}")
    raise AssertionError("the last place is the origin")


async def bring(request: Request, tap: Tap) -> Brought:
    try:
        return await url.bring(request, tap)
    except Fault as fault:
        raise _refused(fault, request.remote) from fault


async def peek(remote: Remote, start: int, length: int, tap: Tap) -> bytes:
    try:
        return await url.peek(remote, start, length, tap)
    except Fault as fault:
        raise _refused(fault, remote) from fault


# -- where to ask -----------------------------------------------------------------------------------------------------


def _wanted(source: str) -> Wanted:
    repo, _, revision = source.removeprefix("hf:").partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo or not revision.isprintable():
        raise Fault(
            "BAD_SOURCE",
            f"{printable(source)} names no repository",
            hint="a repository is written hf:owner/name or hf:owner/name@revision",
            kind=FaultClass.PERMANENT,
        )
    return Wanted(repo, revision)


def _places(tap: Tap) -> tuple[Place, ...]:
    """Mirrors, then the origin. HF_ENDPOINT is a mirror where the manifest says nothing of a hub."""
    constants = _library()
    public = str(constants._HF_DEFAULT_ENDPOINT)
    endpoint, mirrors = tap.hub.endpoint or public, tap.hub.mirrors
    if not tap.hub.endpoint and not mirrors and (set_up := os.environ.get("HF_ENDPOINT", "").strip()):
        mirrors = (set_up,)
    origin = endpoint.rstrip("/")
    asked = dict.fromkeys(mirror.rstrip("/") for mirror in mirrors)
    asked.pop(origin, None)
    return (*(Place(mirror, False) for mirror in asked), Place(origin, True, tap.token or tap.hub.token or _found()))


def _found() -> str:
    """The token that the hub's client would use: HF_TOKEN, or that of its login."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return ""
    try:
        return get_token() or ""
    except Exception as error:  # of whatever keeps it: a file, a keyring, a log-in that has run out
        raise Fault(
            "TOKEN_UNREADABLE",
            f"the hub client's own token cannot be read: {type(error).__name__}",
            hint="log in anew with that client, or give the token: `hub: {token: env:NAME}`",
            kind=FaultClass.NEEDS_HUMAN,
        ) from error


# -- the library ------------------------------------------------------------------------------------------------------

_SET_UP = threading.Lock()
_ready = False


def _library() -> Any:
    """The hub client's constants, once it is set up for this process alone: children inherit nothing of it."""
    global _ready
    from huggingface_hub import constants, set_client_factory

    with _SET_UP:
        if not _ready:
            constants.HF_HUB_DISABLE_TELEMETRY = True
            constants.HF_HUB_DISABLE_UPDATE_CHECK = True
            set_client_factory(_client)
            _ready = True
    return constants


def _client() -> httpx2.Client:
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    return httpx2.Client(
        event_hooks={"request": [hf_request_event_hook], "response": [_bound]},
        headers={"Accept-Encoding": "identity"},  # what is unpacked has no bound
        follow_redirects=True,
        max_redirects=5,
        timeout=httpx2.Timeout(PATIENCE, connect=15.0),
    )


def _bound(response: httpx2.Response) -> None:
    """Let no answer be endless, and no redirect leave its host."""
    import httpx2

    request = response.request.url
    if response.has_redirect_location:
        target = request.join(response.headers["location"])
        safer = target.host == request.host and (request.scheme, target.scheme) == ("http", "https")
        if (target.scheme, target.netloc) != (request.scheme, request.netloc) and not safer:
            raise Fault(
                "FOREIGN_REDIRECT",
                f"{request.host} sends on to another host, {printable(target.host)}",
                hint="name the hub that is meant: `hub: {endpoint: …}`",
                kind=FaultClass.NEEDS_HUMAN,
            )
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _no_hub(request.host, "its answer is compressed, which was not asked for")
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _bounded_stream(response.stream, request.host)


def _bounded_stream(stream: httpx2.SyncByteStream, host: str) -> httpx2.SyncByteStream:
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            size, end = 0, monotonic() + DEADLINE
            for piece in stream:
                size += len(piece)
                if size > MOST_ANSWER:
                    raise _no_hub(host, f"its answer goes on beyond {MOST_ANSWER} bytes")
                if monotonic() > end:
                    raise Fault("STALLED", f"{host} takes more than {DEADLINE:.0f} s for one answer")
                yield piece

        def close(self) -> None:
            stream.close()

    return Bounded()


def _ask(place: Place, wanted: Wanted) -> ModelInfo:
    """Ask one hub. Blocks. Raises Fault for every way in which that can fail."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=place.endpoint, token=place.token or False, library_name="reconciler")
    try:
        info = _info(api, wanted.repo, wanted)
        if place.origin and info.id.lower() != wanted.repo.lower():
            info = _info(api, info.id, wanted)  # the redirect may have lost that sizes were asked for
        if place.origin and info.gated:
            _check_access(api, info)
    except Fault:
        raise
    except Exception as error:  # the client trips over an answer that makes no sense in ways without number
        raise _meant(error, place, wanted) from error
    _check(info, place, wanted)
    return info


def _info(api: HfApi, repo: str, wanted: Wanted) -> ModelInfo:
    return api.model_info(repo, revision=wanted.revision or None, files_metadata=True, timeout=PATIENCE)


def _check_access(api: HfApi, info: ModelInfo) -> None:
    """The files of a gated repository are shown to everyone; whether they may be had is another question."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        api.auth_check(info.id)
    except GatedRepoError:
        raise
    except HfHubHTTPError:
        return  # not every hub knows this question; then the download says


def _check(info: ModelInfo, place: Place, wanted: Wanted) -> None:
    """Whether an answer makes sense. A mirror may not say that the repository has another name."""
    if not _COMMIT.fullmatch(info.sha or "") or not isinstance(info.id, str) or not _REPO.fullmatch(info.id):
        raise _no_hub(place.host, "its answer names no commit")
    if _COMMIT.fullmatch(wanted.revision) and info.sha != wanted.revision:
        raise _no_hub(place.host, f"it answers for commit {info.sha} where {wanted.revision} was asked for")
    if not place.origin and info.id.lower() != wanted.repo.lower():
        raise Fault("RENAMED", f"it calls {wanted.repo} by another name, {info.id}", kind=FaultClass.PERMANENT)
    if info.disabled:
        raise _disabled(wanted)


# -- what it holds ----------------------------------------------------------------------------------------------------


def _listing(
    wanted: Wanted, info: ModelInfo, places: tuple[Place, ...], notes: tuple[str, ...], folders: str = ""
) -> Listing:
    every = {s.rfilename: s for s in info.siblings or () if isinstance(s.rfilename, str)}
    models = [s for name, s in every.items() if name.lower().endswith(".gguf")]
    where = f"hf:{info.id}@{wanted.revision or info.sha}"
    inside = of_folder(every) if folders == "only" or (folders and not models) else []
    if inside:
        models = [every[name] for name in inside]
    elif folders == "only":
        raise Fault(
            "NO_WEIGHTS",
            f"{where} is no folder of weights: one has a config.json and .safetensors files",
            hint="name a repository whose weights are in that form, or serve its GGUF with llama.cpp",
            kind=FaultClass.PERMANENT,
        )
    if not models:
        raise Fault(
            "NO_GGUF",
            f"{where} holds {len(info.siblings or ())} files, and none is a GGUF",
            hint="name a repository of its GGUF conversion; their names often end in -GGUF",
            kind=FaultClass.PERMANENT,
        )
    if len(models) > MOST_FILES:
        raise Fault(
            "TOO_MANY_FILES",
            f"{where} holds {len(models)} GGUF files, more than the {MOST_FILES} that are looked at",
            hint="name the one that is meant by its https: address",
            kind=FaultClass.PERMANENT,
        )
    if info.id.lower() != wanted.repo.lower():
        notes = (*notes, f"{wanted.repo} is now called {info.id}; write hf:{info.id} in the manifest")
    remotes = (_remote(sibling, info, places) for sibling in models)
    files = tuple(remotes) if inside else tuple(sorted(remotes, key=lambda remote: remote.name))
    return Listing(f"hf:{info.id}@{info.sha}", files, _licence(info), notes=notes, folder=bool(inside))


def _remote(sibling: RepoSibling, info: ModelInfo, places: tuple[Place, ...]) -> Remote:
    path = _quoted(sibling.rfilename)
    addresses = tuple(f"{place.endpoint}/{info.id}/resolve/{info.sha}/{path}" for place in places)
    sha256 = sibling.lfs.sha256 if sibling.lfs else ""
    size = sibling.lfs.size if sibling.lfs else sibling.size
    return Remote(
        printable(sibling.rfilename),
        addresses,
        size if type(size) is int and size >= 0 else None,
        sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else "",
        places[-1].access,
    )


def _quoted(name: str) -> str:
    """A file's name in an address, out of which no `..` leads."""
    text = quote(name, safe="/", errors="surrogatepass")
    return "/".join(part.replace(".", "%2E") if part in (".", "..") else part for part in text.split("/"))


def _licence(info: ModelInfo) -> str:
    """The licence that the repository's card names, by its own name where it is none of the usual ones."""
    card: Callable[[str], object] = getattr(info.card_data, "get", lambda key: None)
    named = card("license_name") if card("license") == "other" else card("license")
    if isinstance(named, list):
        named = ", ".join(str(one) for one in named)
    tagged = next((t[8:] for t in info.tags or () if isinstance(t, str) and t.startswith("license:")), "")
    return printable(named if isinstance(named, str) and named else tagged, 100)


# -- what went wrong --------------------------------------------------------------------------------------------------


def _meant(error: Exception, place: Place, wanted: Wanted) -> Fault:
    """What a failure of the hub's client means, and what to do."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return Fault(
            "OFFLINE",
            f"{wanted}: the hub is not asked, as HF_HUB_OFFLINE is set",
            hint="unset HF_HUB_OFFLINE where the controller runs",
            kind=FaultClass.NEEDS_HUMAN,
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error, place, wanted)
    if isinstance(error, httpx2.TimeoutException):
        return Fault("STALLED", f"{place.host} does not answer within {PATIENCE:.0f} s", hint="check the network")
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol | ExceptionGroup):
        return Fault(
            "BAD_ADDRESS",
            f"{place.host or 'the hub'} is, or leads to, an impossible address",
            hint="check `hub: {endpoint: …, mirrors: […]}` and HF_ENDPOINT",
            kind=FaultClass.NEEDS_HUMAN,
        )
    if isinstance(error, httpx2.TransportError):
        return Fault(
            "NETWORK_UNREACHABLE",
            f"{place.host} cannot be reached: {error or type(error).__name__}",
            hint="check the network, and the proxy settings (HTTPS_PROXY, SSL_CERT_FILE) if there is one",
        )
    if isinstance(error, errors.HFValidationError):
        return Fault("BAD_SOURCE", f"{wanted} names no repository", kind=FaultClass.PERMANENT)
    return _no_hub(place.host, type(error).__name__)


def _status(error: Any, place: Place, wanted: Wanted) -> Fault:
    from huggingface_hub import errors

    status, headers = error.response.status_code, error.response.headers
    if isinstance(error, errors.GatedRepoError):
        return _gated(f"{place.endpoint}/{wanted.repo}", wanted, bool(place.token))
    if isinstance(error, errors.DisabledRepoError):
        return _disabled(wanted)
    if isinstance(error, errors.RevisionNotFoundError):
        return Fault(
            "REVISION_NOT_FOUND",
            f"{wanted.repo} has no revision {wanted.revision} on {place.host}",
            hint="name a branch, a tag or a commit that its page lists",
            kind=FaultClass.PERMANENT,
        )
    if status == 401 and "Invalid credentials" in headers.get("X-Error-Message", "") and place.token:
        return Fault(
            "TOKEN_REFUSED",
            f"{place.host} does not know the token it was given",
            hint="it may have expired or been withdrawn; make a new one, or unset it for a public repository",
            kind=FaultClass.NEEDS_HUMAN,
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return _missing(place, wanted)
    if status == 403:
        return Fault(
            "ACCESS_DENIED",
            f"{place.host} refuses {wanted.repo}",
            hint="the token lacks a right to read it" if place.token else _TOKEN_HINT,
            kind=FaultClass.NEEDS_HUMAN,
        )
    if status in (408, 425, 429) or status >= 500:
        return Fault("SOURCE_BUSY", f"{place.host} answered {status}", after=_after(headers))
    return Fault("SOURCE_REFUSED", f"{place.host} answered {status} for {wanted.repo}", kind=FaultClass.PERMANENT)


def _missing(place: Place, wanted: Wanted) -> Fault:
    """A hub does not tell a private repository from none."""
    if place.token:
        what, hint = "or this token may not see it", "check the spelling, and what the token may read"
    else:
        what, hint = "or it is private", f"check the spelling; if it is private, {_TOKEN_HINT}"
    return Fault(
        "REPO_NOT_FOUND",
        f"there is no repository {wanted.repo} on {place.host}, {what}",
        hint=hint,
        kind=FaultClass.NEEDS_HUMAN,
    )


def _gated(page: str, wanted: Wanted, token: bool) -> Fault:
    if token:
        what = "and the account of this token has no access"
        hint = f"accept its conditions at {page} with that account (it may need to be granted, and the token may need the right to read gated repositories)"  # noqa: E501
    else:
        what, hint = "and no token was given", f"accept its conditions at {page}, then {_TOKEN_HINT}"
    return Fault(
        "GATED", f"{wanted.repo} is only for those who accepted its conditions, {what}", hint=hint,
        kind=FaultClass.NEEDS_HUMAN,
    )  # fmt: skip


def _disabled(wanted: Wanted) -> Fault:
    return Fault(
        "REPO_DISABLED",
        f"the hub has disabled {wanted.repo}",
        hint="its page may say why; name another repository",
        kind=FaultClass.NEEDS_HUMAN,
    )


def _no_hub(host: str, why: str) -> Fault:
    return Fault(
        "NOT_A_HUB",
        f"{host} does not answer as a model hub does: {why}",
        hint="check `hub:` in the manifest and HF_ENDPOINT; a network that wants a login answers like this, too",
        kind=FaultClass.NEEDS_HUMAN,
    )


def _refused(fault: Fault, remote: Remote) -> Fault:
    """What it means that a file is refused which the repository showed."""
    if fault.code != "ACCESS_DENIED":
        return fault
    origin = remote.urls[-1]
    repo = urlsplit(origin).path.partition("/resolve/")[0].lstrip("/")
    return _gated(origin.partition("/resolve/")[0], Wanted(repo, ""), bool(remote.access.token))


def _with(fault: Fault, passed: Iterable[str]) -> Fault:
    """The origin's fault, with what the mirrors said before it."""
    message = "; ".join((fault.message, *passed))
    return Fault(fault.code, message, hint=fault.hint, kind=fault.kind, after=fault.after)


def _after(headers: Any) -> float:
    """Seconds to wait, from Retry-After or from the hub's own RateLimit; at most an hour."""
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,6})", headers.get("ratelimit", ""))
    return retry_after(headers) or (min(float(limit[1]), 3600.0) if limit else 0.0)
