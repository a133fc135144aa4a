"""A real server of releases in the form of GitHub's API, and archives laid out as llama.cpp's are.

Promises: `/repos/OWNER/NAME/releases/latest`, `/releases/tags/TAG` and `/releases` answer with tag, assets, sizes and
digests; the assets lie on the same server and may be spoilt with its faults. Nothing else is asked of it.

    with Releases() as releases:
        releases.add("b100", {"llama-b100-bin-ubuntu-x64.tar.gz": archive({"llama-server": program})})
        run(RECONCILER_RELEASES=releases.api)
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tests.support.engines import FAKE_ENGINE
from tests.support.fileserver import FileServer

REPO = "ggml-org/llama.cpp"
UBUNTU = "llama-{tag}-bin-ubuntu-x64.tar.gz"


class Releases:
    """Serves the releases of one repository; `with` starts and stops it."""

    def __init__(self, repo: str = REPO) -> None:
        self.server, self.repo = FileServer(), repo
        self.releases: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self.server.start()
        self._publish()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.stop()

    @property
    def api(self) -> str:
        return self.server.url("")

    def path(self, tag: str, name: str) -> str:
        """Where an asset lies, for faults and `server.sent`."""
        return f"/{self.repo}/releases/download/{tag}/{name}"

    def tagged(self, tag: str) -> str:
        return f"/repos/{self.repo}/releases/tags/{tag}"

    @property
    def latest(self) -> str:
        return f"/repos/{self.repo}/releases/latest"

    def add(self, tag: str, assets: Mapping[str, bytes], *, digests: bool = True, waiting: Sequence[str] = ()) -> None:
        """A new release, the latest from now on. Without `digests` the API names none; `waiting` are still uploaded."""
        told = []
        for name, content in assets.items():
            self.server.replace(self.path(tag, name), content)
            entry = {"name": name, "size": len(content), "browser_download_url": self.server.url(self.path(tag, name))}
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}" if digests else None
            told.append({**entry, "digest": digest, "state": "starter" if name in waiting else "uploaded"})
        self.releases.insert(0, {"tag_name": tag, "name": tag, "draft": False, "prerelease": False, "assets": told})
        self._publish()

    def _publish(self) -> None:
        base = f"/repos/{self.repo}/releases"
        self._answer(base, self.releases)
        for release in self.releases:
            self._answer(f"{base}/tags/{release['tag_name']}", release)
        if self.releases:
            self._answer(f"{base}/latest", self.releases[0])

    def _answer(self, path: str, document: Any) -> None:
        self.server.replace(path, json.dumps(document).encode(), "application/json")

    def asked(self) -> list[str]:
        """What the API was asked, in order."""
        return [request.path for request in self.server.log if request.path.startswith("/repos/")]

    def fetched(self) -> list[str]:
        """The names of the assets that were asked for, in order, each once."""
        paths = [r.path for r in self.server.log if "/releases/download/" in r.path]
        return list(dict.fromkeys(path.rpartition("/")[2] for path in paths))


def program(version: str = "b100", *, behaves: str = "", fails: str = "") -> bytes:
    """A llama-server: the fake engine, which says this version. `behaves` are its switches; `fails` is shell code that
    runs before it, such as `exit 127`."""
    lines = [
        "#!/bin/sh",
        f'if [ "$1" = --version ]; then echo "version: {version.removeprefix("b")} (0000000)" >&2; fi',
        fails,
        f'FAKE_ENGINE="{behaves}" exec "{sys.executable}" "{FAKE_ENGINE}" "$@"',
    ]
    return ("\n".join(line for line in lines if line) + "\n").encode()


def layout(tag: str, server: bytes, style: str = "flat") -> dict[str, bytes]:
    """The members of an archive: `flat` as tarballs are now (`llama-b100/`), `build` as they were (`build/bin/`),
    `top` as zips are."""
    folder = {"flat": f"llama-{tag}/", "build": "build/bin/", "top": ""}[style]
    return {
        f"{folder}LICENSE": b"MIT\n",
        f"{folder}llama-cli": b"#!/bin/sh\nexit 0\n",
        f"{folder}libllama.so": b"\x7fELF no library at all",
        f"{folder}llama-server": server,
    }


def tarball(members: Mapping[str, bytes | str | tarfile.TarInfo], how: str = "gz", *, executable: bool = True) -> bytes:
    """A tar archive; a text is a symbolic link to it, a TarInfo is taken as it is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{how}") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
                continue
            info.size, info.mode = len(content), 0o755 if executable and content[:2] == b"#!" else 0o644
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(members: Mapping[str, bytes | str]) -> bytes:
    """A zip archive; a text is a symbolic link to it. No member may be executed, as in archives made on Windows."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((stat.S_IFLNK | 0o777) if isinstance(content, str) else 0o100644) << 16
            archive.writestr(info, content)
    return out.getvalue()


def ubuntu(tag: str, server: bytes | None = None, style: str = "flat") -> dict[str, bytes]:
    """The one asset for this machine, under its usual name."""
    members = layout(tag, program(tag) if server is None else server, style)
    return {UBUNTU.format(tag=tag): tarball(members)}
