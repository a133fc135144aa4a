"""Archives as llama.cpp makes them, and such as nobody should: nothing is ever written outside of the folder."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault
from reconciler.sources import unpack as module
from reconciler.sources.archive import Unfit
from reconciler.sources.unpack import unpack
from tests.support.releases import layout, tarball, zipped

PROGRAM = b"#!/bin/sh\nexit 0\n"


def opened(tmp_path: Path, content: bytes) -> Path:
    archive, target = tmp_path / "a", tmp_path / "inner" / "out"
    archive.write_bytes(content)
    target.parent.mkdir(exist_ok=True)
    unpack(archive, target, threading.Event())
    return target


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("how", ["gz", "xz", "bz2", ""])
def test_a_tar_archive_is_unpacked_with_its_links_and_modes(tmp_path: Path, how: str) -> None:
    members = layout("b1", PROGRAM, "build") | {"build/bin/libggml.so.0": "libggml.so.0.9.4"}
    members["build/bin/libggml.so.0.9.4"] = b"library"
    target = opened(tmp_path, tarball(members, how))
    server = target / "build/bin/llama-server"
    assert server.read_bytes() == PROGRAM
    assert os.access(server, os.X_OK)
    assert not os.access(target / "build/bin/LICENSE", os.X_OK)
    assert (target / "build/bin/libggml.so.0").read_bytes() == b"library"


def test_a_zip_archive_is_unpacked(tmp_path: Path) -> None:
    target = opened(tmp_path, zipped({**layout("b1", PROGRAM, "top"), "libx.so": "libllama.so"}))
    assert (target / "llama-server").read_bytes() == PROGRAM
    assert (target / "libx.so").readlink() == Path("libllama.so")


def test_a_hard_link_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    target = opened(tmp_path, tarball({"a": b"x", "b": special("b", tarfile.LNKTYPE, "a")}))  # type: ignore[dict-item]
    assert (target / "b").read_bytes() == b"x"
    assert (target / "b").stat().st_nlink == 1


BAD = [
    ("a web page", b"<!DOCTYPE html><html><body>Sign in</body></html>", "it is a web page"),
    ("nothing", b"", "it is no archive"),
    ("text", b"x" * 300, "it is no archive"),
    ("a path that leads out", tarball({"../out": b"x"}), "leads out of it"),
    ("one that leads out later", tarball({"a/../../out": b"x"}), "leads out of it"),
    ("an absolute path", tarball({"/tmp/reconciler-out": b"x"}), "leads out of it"),
    ("a link out", tarball({"a": "../../secret"}), "leads out of it"),
    ("an absolute link", tarball({"a": "/etc/passwd"}), "leads out of it"),
    ("a link out over another", tarball({"d/e/f": b"", "a": "d/e", "b": "a/../../.."}), "leads out of it"),
    ("a link to nothing", tarball({"a": "b"}), "leads nowhere"),
    ("a ring of links", tarball({"a": "b", "b": "a"}), "leads nowhere"),
    ("a file behind a link", tarball({"a": "b", "b/c": b"", "a/x": b"evil"}), "is a link and a folder"),
    ("a hard link out", tarball({"a": special("a", tarfile.LNKTYPE, "/etc/passwd")}), "leads out of it"),
    ("a device", tarball({"a": special("a", tarfile.CHRTYPE)}), "is neither file"),
    ("a pipe", tarball({"a": special("a", tarfile.FIFOTYPE)}), "is neither file"),
    ("a file that is a folder", tarball({"a": b"x", "a/b": b"y"}), "is a file and a folder"),
    ("a truncated tar", tarball({"a": os.urandom(50_000)})[:30_000], "it is damaged"),
    ("a truncated zip", zipped({"a": os.urandom(50_000)})[:30_000], "it is damaged"),
    ("a spoilt gzip", tarball({"a": b"x" * 5000})[:-8] + b"12345678", "it is damaged"),
    ("a path out of a zip", zipped({"../out": b"x"}), "leads out of it"),
    ("a path of Windows", zipped({"..\\out": b"x"}), "leads out of it"),
    ("a drive", zipped({"C:/out": b"x"}), "leads out of it"),
    ("a link out of a zip", zipped({"a": "/etc/passwd"}), "leads out of it"),
]  # type: ignore[list-item]


@pytest.mark.parametrize(("content", "why"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_cannot_be_trusted_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(Unfit, match=why):
        opened(tmp_path, content)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "inner"}
    assert {path.name for path in (tmp_path / "inner").iterdir()} <= {"out"}
    assert not Path("/tmp/reconciler-out").exists()


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for content in (b"one", b"two!"):
            info = tarfile.TarInfo("a")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(Unfit, match="twice"):
        opened(tmp_path, out.getvalue())


@pytest.mark.parametrize("make", [tarball, zipped])
def test_a_bomb_is_refused_before_the_disk_is_full(tmp_path: Path, make: object) -> None:
    content = make({"a": bytes(200 << 20)})  # type: ignore[operator]
    assert len(content) < 1 << 20
    with pytest.raises(Unfit, match="unpack"):
        opened(tmp_path, content)
    written = sum(path.stat().st_size for path in (tmp_path / "inner").rglob("*") if path.is_file())
    assert written <= 101 << 20


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MEMBERS", 5)
    with pytest.raises(Unfit, match="more than 5 members"):
        opened(tmp_path, tarball({str(n): b"" for n in range(6)}))


def test_a_full_disk_is_told_before_a_zip_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.require_room.__globals__["shutil"].disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(Fault) as caught:
        opened(tmp_path, zipped({"a": b"x" * 100}))
    assert caught.value.code == "DISK_FULL"


def test_it_ends_early_when_it_is_told_to(tmp_path: Path) -> None:
    archive, stop = tmp_path / "a", threading.Event()
    archive.write_bytes(gzip.compress(b""))
    archive.write_bytes(tarball({"a": b"x" * 100}))
    stop.set()
    with pytest.raises(Unfit, match="stopped"):
        unpack(archive, tmp_path / "out", stop)
