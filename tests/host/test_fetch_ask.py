"""Questions about a file, a few of its bytes, and the repair of some of them where they lie."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Effects
from reconciler.host.fetch import About, Fetch, Patience, transfer
from reconciler.host.files import Files
from tests.support.downloads import quiet, sha
from tests.support.fileserver import FileServer
from tests.support.processes import free_port

DATA = random.Random(6).randbytes(300_000)
ETAG = f'"{sha(DATA)}"'


@pytest.fixture
async def fetch(files: Files) -> AsyncIterator[Fetch]:
    made = Fetch(files, Effects(), patience=Patience(stall=0.5, tries=3, pause=0.01, longest=0.5))
    yield made
    await made.close()


async def test_head_says_size_version_and_whether_ranges_are_there(fetch: Fetch) -> None:
    with FileServer({"/m": DATA, "/empty": b""}) as server:
        assert await fetch.head(server.url("/m")) == About(len(DATA), ETAG, True)
        assert (await fetch.head(server.url("/empty"))).size == 0
        assert [request.method for request in server.log] == ["HEAD", "HEAD"]
        assert server.sent["/m"] == 0


@pytest.mark.parametrize("code", [400, 403, 404, 405, 501])
async def test_head_asks_for_one_byte_where_it_is_refused(fetch: Fetch, code: int) -> None:
    with FileServer({"/m": DATA, "/empty": b""}) as server:
        server.no_head(code)
        assert await fetch.head(server.url("/m")) == About(len(DATA), ETAG, True)
        assert (await fetch.head(server.url("/empty"))).size == 0
        assert server.requests("/m")[-1].range == "bytes=0-0"
        assert server.sent["/m"] == 1


async def test_head_of_a_server_that_has_no_ranges_or_no_length(fetch: Fetch) -> None:
    with FileServer({"/m": DATA}) as server:
        server.no_range()
        assert await fetch.head(server.url("/m")) == About(len(DATA), ETAG, False)
        server.no_length()
        assert await fetch.head(server.url("/m")) == About(None, ETAG, False)


async def test_head_goes_to_the_next_mirror_and_is_patient(fetch: Fetch) -> None:
    with FileServer({"/m": DATA}) as server:
        server.status(503, times=2, path="/m")
        urls = [f"http://127.0.0.1:{free_port()}/m", server.url("/none"), server.url("/m")]
        assert (await fetch.head(urls)).size == len(DATA)
        with pytest.raises(Fault, match="NOT_FOUND"):
            await fetch.head([server.url("/none"), server.url("/nor-this")])


@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (0, 0), (1000, 65_536), (299_990, 10), (299_990, 100), (300_000, 5), (400_000, 5)]
)
async def test_read_gives_what_was_asked_for_and_never_more(fetch: Fetch, start: int, length: int) -> None:
    with FileServer({"/m": DATA}) as server:
        assert await fetch.read(server.url("/m"), start, length) == DATA[start : start + length]
        assert server.sent["/m"] == len(DATA[start : start + length])


async def test_read_is_whole_however_the_server_behaves(fetch: Fetch) -> None:
    with FileServer({"/m": DATA}) as server:
        wanted = DATA[1000:201_000]
        server.cut(after_bytes=70_000, times=2)
        assert await fetch.read(server.url("/m"), 1000, 200_000) == wanted
        assert server.sent["/m"] == 200_000
        server.short_ranges(30_000)
        assert await fetch.read(server.url("/m"), 1000, 200_000) == wanted
        server.clear()
        server.extra(b"x" * 1000)
        assert await fetch.read(server.url("/m"), 1000, 200_000) == wanted
        server.clear()
        server.status(429, times=2, retry_after="0.01")
        assert await fetch.read(server.url("/m"), 1000, 200_000) == wanted


async def test_read_never_puts_two_versions_together(fetch: Fetch) -> None:
    changed = DATA[::-1]
    with FileServer({"/m": DATA}) as server:
        server.cut(after_bytes=50_000, times=1)
        server.change_after("/m", 1, changed)
        assert await fetch.read(server.url("/m"), 1000, 200_000) == changed[1000:201_000]


async def test_read_without_ranges_is_refused_and_the_whole_is_not_brought(fetch: Fetch) -> None:
    with FileServer({"/m": DATA * 100}) as server:
        server.no_range()
        with pytest.raises(Fault) as caught:
            await fetch.read(server.url("/m"), 0, 100)
        assert (caught.value.code, caught.value.kind) == ("NO_RANGES", FaultClass.PERMANENT)
        assert server.sent["/m"] < len(DATA) * 100


async def test_read_goes_to_the_next_mirror(fetch: Fetch) -> None:
    with FileServer({"/m": DATA}) as bad, FileServer({"/m": DATA}) as good:
        bad.no_range()
        assert await fetch.read([bad.url("/m"), good.url("/m")], 7, 9) == DATA[7:16]


# --- repair ---------------------------------------------------------------------------------------------------------


def damaged(path: Path, *at: int) -> None:
    spoilt = bytearray(DATA)
    for place in at:
        spoilt[place] ^= 0xFF
    path.write_bytes(spoilt)


async def test_patch_brings_the_spans_alone_and_in_place(fetch: Fetch, tmp_path: Path) -> None:
    path, told = tmp_path / "m", list[tuple[int, int | None]]()
    damaged(path, 5, 70_000, 299_999)
    inode = path.stat().st_ino
    with FileServer({"/m": DATA}) as server:
        spans = [(0, 10), (69_000, 2000), (299_990, 10)]
        await fetch.patch(server.url("/m"), path, spans, len(DATA), lambda *at: told.append(at))
        assert server.sent["/m"] == 2020
    assert path.read_bytes() == DATA
    assert path.stat().st_ino == inode
    assert (told[0], told[-1]) == ((0, 2020), (2020, 2020))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


async def test_patch_survives_cuts_and_mirrors_that_fail(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SEGMENT", 40_000)
    path = tmp_path / "m"
    path.write_bytes(bytes(len(DATA)))
    with FileServer({"/m": DATA}) as server, FileServer({"/m": DATA}) as mirror:
        mirror.no_range()
        server.cut(after_bytes=9000, times=5)
        await fetch.patch([mirror.url("/m"), server.url("/m")], path, [(0, len(DATA))], len(DATA), quiet)
        assert server.sent["/m"] == len(DATA)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("fault", "code"),
    [("no_range", "NO_RANGES"), ("size", "SIZE_MISMATCH"), ("restless", "SOURCE_CHANGED"), ("gone", "NOT_FOUND")],
)
async def test_patch_that_cannot_be_says_why(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: str
) -> None:
    monkeypatch.setattr(transfer, "SEGMENT", 40_000)
    path = tmp_path / "m"
    damaged(path, 5)
    with FileServer({"/m": DATA if fault != "size" else DATA[:-1]}) as server:
        if fault == "no_range":
            server.no_range()
        if fault == "restless":
            server.restless("/m")
        url = server.url("/m" if fault != "gone" else "/gone")
        with pytest.raises(Fault, match=code):
            await fetch.patch(url, path, [(0, 100_000)], len(DATA), quiet)
    assert path.stat().st_size == len(DATA)
    assert path.read_bytes()[100_000:] == DATA[100_000:]


async def test_patch_of_nothing_asks_nobody(fetch: Fetch, tmp_path: Path) -> None:
    await fetch.patch("http://127.0.0.1:1/m", tmp_path / "none", [], 100, quiet)
    with pytest.raises(ValueError, match="outside"):
        await fetch.patch("http://127.0.0.1:1/m", tmp_path / "none", [(90, 20)], 100, quiet)


async def test_patch_of_a_file_that_is_gone_is_a_fault(fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="WRITE_FAILED"):
        await fetch.patch("http://127.0.0.1:1/m", tmp_path / "none", [(0, 20)], 100, quiet)
