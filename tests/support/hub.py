"""A model hub on 127.0.0.1 that speaks the protocol of the real hub's client.

Promises: repositories with commits, branches and tags; small files and LFS files, also in folders; LFS bytes are behind
a redirect to another origin (`cdn`, called localhost), as the real one's are. Gated, private, disabled and renamed
repositories answer as the real ones do, with and without a token. Every request is in `log` and `cdn.log` with its
headers, so that a test can prove where a token went: `hub.tokens()`, `hub.cdn_tokens()`. The faults of the file server
apply to both: `hub.server.status(503, retry_after=7)`, `hub.cdn.cut(1000, path=hub.lfs("acme/tiny", "m.gguf"))`.

    with Hub() as hub:
        repo = hub.add("acme/tiny", {"m.gguf": data, "README.md": b"# Tiny"}, licence="mit")
        repo.commit({"m.gguf": other})                    # a new commit on main; the old one stays
        hub.add("acme/gated", {"m.gguf": data}, gated=True)
        hub.grant("secret", "acme/gated")                 # a token, and what it may see besides the public
        HfApi(endpoint=hub.url).model_info("acme/tiny", files_metadata=True)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

from aiohttp import web
from multidict import CIMultiDictProxy

from tests.support.fileserver import File, FileServer, Request

JSON = "application/json"


@dataclass
class Repo:
    """One repository. `branches` and `tags` lead to commits; `lied` is laid over what the API says of a file."""

    name: str
    licence: str | None = None
    gated: bool = False
    private: bool = False
    disabled: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lied: dict[str, dict[str, Any]] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main", *, anew: bool = False) -> str:
        """Put `files` on a branch, over what is there or (`anew`) instead of it; returns the commit (40 hex)."""
        before = {} if anew else self.commits.get(self.branches.get(branch, self.branches.get("main", "")), {})
        now = {**before, **files}
        said = json.dumps([self.name, len(self.commits), sorted((n, _sha256(d)) for n, d in now.items())])
        sha = hashlib.sha1(said.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = now, sha
        return sha

    @property
    def head(self) -> str:
        return self.branches["main"]

    def found(self, revision: str) -> str | None:
        """The commit of a branch, a tag, a commit or the beginning of one."""
        named = self.branches.get(revision) or self.tags.get(revision)
        if named or len(revision) < 7:
            return named
        return next((sha for sha in self.commits if sha.startswith(revision)), None)

    def said(self, sha: str, *, blobs: bool) -> dict[str, Any]:
        """What the API says of a commit."""
        tags = ["gguf", *([f"license:{self.licence}"] if self.licence else [])]
        return {
            "id": self.name,
            "modelId": self.name,
            "sha": sha,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": self.disabled,
            "tags": tags,
            "cardData": {"license": self.licence} if self.licence else None,
            "siblings": [self._sibling(name, data, blobs) for name, data in sorted(self.commits[sha].items())],
        }

    def _sibling(self, name: str, data: bytes, blobs: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name}
        if blobs:
            entry |= {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
            if _is_lfs(name, data):
                entry["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 134}
        return entry | self.lied.get(name, {})


class Hub:
    """Serves repositories; `with` starts and stops it. Everything may be changed while it runs."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.cdn = FileServer()
        self.server: FileServer = _Front(self)
        self._moved: dict[str, str] = {}
        self._tokens: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        self.cdn.start()
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.stop()
        self.cdn.stop()

    @property
    def url(self) -> str:
        """The endpoint."""
        return self.server.base_url

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def log(self) -> list[Request]:
        return self.server.log

    def add(self, name: str, files: Mapping[str, bytes], **facts: Any) -> Repo:
        """A repository with one commit; `facts` are the fields of Repo. LFS: *.gguf and *.safetensors over 1 kB."""
        repo = self.repos[name] = Repo(name, **facts)
        repo.commit(files)
        return repo

    def rename(self, old: str, new: str) -> None:
        """The old name answers with a redirect from then on."""
        repo = self.repos.pop(old)
        repo.name = new
        self.repos[new], self._moved[old] = repo, new

    def grant(self, token: str, *repos: str) -> None:
        """Make a token known, with what it may see of gated and private repositories."""
        self._tokens.setdefault(token, set()).update(repos)

    def lfs(self, repo: str, file: str, revision: str = "main") -> str:
        """The path on `cdn` of an LFS file's bytes, for faults."""
        found = self.repos[repo]
        return f"/lfs/{_sha256(found.commits[found.found(revision) or revision][file])}"

    def tokens(self) -> set[str]:
        """Every Authorization that came to the hub itself."""
        return _tokens(self.server)

    def cdn_tokens(self) -> set[str]:
        return _tokens(self.cdn)

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(self, path: str, query: Mapping[str, str], headers: CIMultiDictProxy[str]) -> File | web.Response:
        """What a path is answered with: a file to be served, or a response as it is."""
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self._tokens:
            return _error(401, "", "Invalid credentials in Authorization header")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+)|(/auth-check))?", path):
            name, revision, check = match.groups()
            return self._reached(path, name, token) or self._info(
                name, unquote(revision or "main"), check, query, token
            )
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            return self._reached(path, name, token) or self._resolve(name, unquote(revision), unquote(file), token)
        return _error(404, "", "Not found")

    def _reached(self, path: str, name: str, token: str) -> web.Response | None:
        """A refusal, where the repository has moved, is not there, or is not for this token."""
        if name in self._moved:
            return web.Response(status=307, headers={"Location": path.replace(name, self._moved[name], 1)})
        repo = self.repos.get(name)
        if repo is None or (repo.private and name not in self._tokens.get(token, ())):
            if token:
                return _error(404, "RepoNotFound", "Repository not found")
            return _error(401, "", "Invalid username or password.")
        if repo.disabled:
            return _error(403, "", "Access to this resource is disabled.")
        return None

    def _refused(self, name: str, token: str) -> web.Response | None:
        if not self.repos[name].gated or name in self._tokens.get(token, ()):
            return None
        what = f"Access to model {name} is restricted."
        return _error(403 if token else 401, "GatedRepo", what)

    def _info(
        self, name: str, revision: str, check: str | None, query: Mapping[str, str], token: str
    ) -> File | web.Response:
        if check:
            return self._refused(name, token) or File(b"{}", JSON)
        repo = self.repos[name]
        sha = repo.found(revision)
        if sha is None:
            return _error(404, "RevisionNotFound", "Invalid rev id: " + revision)
        return File(json.dumps(repo.said(sha, blobs="blobs" in query)).encode(), JSON)

    def _resolve(self, name: str, revision: str, file: str, token: str) -> File | web.Response:
        if (refusal := self._refused(name, token)) is not None:
            return refusal
        repo = self.repos[name]
        sha = repo.found(revision)
        if sha is None:
            return _error(404, "RevisionNotFound", "Invalid rev id: " + revision)
        if (data := repo.commits[sha].get(file)) is None:
            return _error(404, "EntryNotFound", "Entry not found")
        if not _is_lfs(file, data):
            return File(data, "application/octet-stream")
        digest = _sha256(data)
        if not self.cdn.holds(f"/lfs/{digest}"):  # what a test replaced there stays
            self.cdn.replace(f"/lfs/{digest}", data)
        return web.Response(
            status=302,
            headers={
                "Location": self.cdn.url(f"/lfs/{digest}", host="localhost") + "?signature=" + quote(digest[:8]),
                "X-Repo-Commit": sha,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "ETag": f'"{digest}"',
                "Accept-Ranges": "bytes",
            },
        )


class _Front(FileServer):
    """The hub's own origin: what it does not answer itself is a file."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    def respond(self, request: web.Request) -> web.Response | File | None:
        return self._hub.answer(request.rel_url.raw_path, request.query, request.headers)


def _tokens(server: FileServer) -> set[str]:
    return {request.headers["Authorization"] for request in server.log if "Authorization" in request.headers}


def _error(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return web.json_response({"error": message}, status=status, headers=headers)


def _is_lfs(name: str, data: bytes) -> bool:
    return name.lower().endswith((".gguf", ".safetensors")) and len(data) > 1000


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
