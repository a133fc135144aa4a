"""A real Python package index on the file server, for pip and uv, and wheels to put on it.

Promises: PEP 503 pages and their PEP 691 JSON form, links with sha256, and each wheel's METADATA beside it (PEP 658).
127.0.0.1 needs no --trusted-host. The faults and counters of the file server apply, as in
`index.server.cut(1000, path=index.path(wheel))`.

`index.protect("user", "password")` makes it one that wants credentials.

    wheel = build_wheel(tmp_path, "tiny-model", "1.0", {"tiny_model/m.gguf": data})
    with Index([wheel]) as index:
        run("pip", "download", "--index-url", index.simple_url, "tiny-model")
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from aiohttp import web
from multidict import CIMultiDictProxy

from tests.support.fileserver import File, FileServer

HTML = "text/html"
JSON = "application/vnd.pypi.simple.v1+json"


def build_wheel(
    directory: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    tag: str = "py3-none-any",
    requires: Sequence[str] = (),
    requires_python: str | None = None,
    deflated: bool = False,
    licence: str = "",
) -> Path:
    """Write a valid wheel with `files` (path in site-packages → content), METADATA, WHEEL and RECORD.

    The same arguments give the same bytes. Contents are stored unless they are to be deflated, so the wheel is a
    little larger than they are together.
    """
    stem = f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    metadata += [f"Requires-Python: {requires_python}\n"] if requires_python else []
    metadata += [f"License-Expression: {licence}\n"] if licence else []
    metadata += [f"Requires-Dist: {requirement}\n" for requirement in requires]
    contents = dict(files)
    contents[f"{stem}.dist-info/METADATA"] = "".join(metadata).encode()
    contents[f"{stem}.dist-info/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests.support.index\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    )
    record = f"{stem}.dist-info/RECORD"
    rows = [f"{path},sha256={_record_hash(content)},{len(content)}\n" for path, content in contents.items()]
    contents[record] = "".join([*rows, f"{record},,\n"]).encode()
    wheel = directory / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for path, content in contents.items():
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
            archive.writestr(entry, content)
    return wheel


def _record_hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def normalized(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Index:
    """Serves wheels; `with` starts and stops the server. `add` works while it runs."""

    def __init__(self, wheels: Sequence[Path] = ()) -> None:
        self.server = _NegotiatingServer()
        self._projects: dict[str, list[_Release]] = {}
        self._publish()
        for wheel in wheels:
            self.add(wheel)

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.stop()

    @property
    def simple_url(self) -> str:
        """For --index-url."""
        return self.server.url("/simple")

    def protect(self, user: str, password: str) -> str:
        """Let nobody in without these from now on; returns the address for --index-url with them in it."""
        self.server.wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        return self.simple_url.replace("://", f"://{quote(user, safe='')}:{quote(password, safe='')}@")

    def path(self, wheel: Path) -> str:
        """The wheel's path on the server, for faults and `server.sent`; its metadata is at this + ".metadata"."""
        return f"/files/{wheel.name}"

    def add(self, wheel: Path) -> None:
        content = wheel.read_bytes()
        release = _Release.read(wheel.name, content)
        self.server.replace(self.path(wheel), content)
        self.server.replace(f"{self.path(wheel)}.metadata", release.metadata)
        self._projects.setdefault(normalized(wheel.name.split("-")[0]), []).append(release)
        self._publish()

    def _publish(self) -> None:
        """Write every page anew, each in both forms."""
        root = "".join(f'<a href="{name}/">{name}</a>\n' for name in sorted(self._projects))
        listing: dict[str, Any] = {"projects": [{"name": name} for name in sorted(self._projects)]}
        self._page("/simple/", root, listing)
        for name, releases in self._projects.items():
            links = "".join(release.link() for release in releases)
            details = {"name": name, "files": [release.details() for release in releases]}
            self._page(f"/simple/{name}/", links, details)

    def _page(self, path: str, links: str, details: dict[str, Any]) -> None:
        meta = '<meta name="pypi:repository-version" content="1.0">'
        page = f"<!DOCTYPE html><html><head>{meta}<title>index</title></head><body>\n{links}</body></html>\n"
        self.server.replace(path, page.encode(), HTML)
        document = {"meta": {"api-version": "1.0"}, **details}
        self.server.replace(f"{path}{_NegotiatingServer.JSON_NAME}", json.dumps(document).encode(), JSON)


@dataclass(frozen=True)
class _Release:
    filename: str
    sha256: str
    size: int
    metadata: bytes
    requires_python: str | None

    @classmethod
    def read(cls, filename: str, content: bytes) -> _Release:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = archive.read(member)
        match = re.search(rb"^Requires-Python: (.+)$", metadata, re.MULTILINE)
        requires_python = match.group(1).decode().strip() if match else None
        return cls(filename, hashlib.sha256(content).hexdigest(), len(content), metadata, requires_python)

    @property
    def metadata_hash(self) -> str:
        return hashlib.sha256(self.metadata).hexdigest()

    def link(self) -> str:
        attributes = {
            "href": f"../../files/{self.filename}#sha256={self.sha256}",
            "data-core-metadata": f"sha256={self.metadata_hash}",
            "data-dist-info-metadata": f"sha256={self.metadata_hash}",
        }
        if self.requires_python:
            attributes["data-requires-python"] = self.requires_python
        text = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
        return f"<a {text}>{self.filename}</a><br>\n"

    def details(self) -> dict[str, Any]:
        metadata = {"sha256": self.metadata_hash}
        details: dict[str, Any] = {
            "filename": self.filename,
            "url": f"../../files/{self.filename}",
            "hashes": {"sha256": self.sha256},
            "size": self.size,
            "core-metadata": metadata,
            "dist-info-metadata": metadata,
        }
        if self.requires_python:
            details["requires-python"] = self.requires_python
        return details


class _NegotiatingServer(FileServer):
    """Gives a page's JSON form to clients that name it in Accept, and may want to know who asks."""

    JSON_NAME = "index.json"
    wanted = ""  # the Authorization without which there is nothing but 401

    def respond(self, request: web.Request) -> web.Response | File | None:
        if self.wanted and request.headers.get("Authorization") != self.wanted:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="index"'}, text="who is it?\n")
        return super().respond(request)

    def find(self, path: str, headers: CIMultiDictProxy[str]) -> File | None:
        if path.endswith("/") and JSON in headers.get("Accept", ""):
            return super().find(path + self.JSON_NAME, headers)
        return super().find(path, headers)
