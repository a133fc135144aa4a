"""An address brings one file, or all parts of a split model; its server's words are not taken for a sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.sources import url
from tests.sources.conftest import Desk, left
from tests.support.fileserver import FileServer

DATA = bytes(range(256)) * 10_000
PARTS = [f"/d/m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/m.gguf": DATA, **{path: path.encode() for path in PARTS}}) as running:
        yield running


async def test_an_address_brings_one_file_under_its_own_name(desk: Desk, server: FileServer) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    server.replace("/a b/my model.gguf", DATA)
    got = await desk.bring(server.url("/a%20b/my%20model.gguf?download=true"), sha256=digest)
    assert (got.sha256, got.size, got.name) == (digest, len(DATA), "my model.gguf")
    assert desk.part.read_bytes() == DATA


async def test_an_address_with_other_bytes_than_asked_for_brings_nothing(
    desk: Desk, server: FileServer, tmp_path: Path
) -> None:
    with pytest.raises(Fault, match="CHECKSUM_MISMATCH"):
        await desk.bring(server.url("/m.gguf"), sha256="0" * 64)
    assert left(tmp_path) == []


async def test_the_size_is_known_before_a_byte_comes_and_the_sha256_is_not(desk: Desk, server: FileServer) -> None:
    """The server's ETag here is the sha256 itself, and still is not taken for it."""
    (remote,) = (await desk.find(server.url("/m.gguf"))).files
    assert (remote.size, remote.sha256) == (len(DATA), "")
    assert server.sent["/m.gguf"] == 0


async def test_a_stretch_is_read_without_the_rest(desk: Desk, server: FileServer) -> None:
    assert await desk.peek(server.url("/m.gguf"), 512, 100) == DATA[512:612]
    assert server.sent["/m.gguf"] == 100


@pytest.mark.parametrize("named", PARTS)
async def test_any_part_of_a_split_model_stands_for_all_with_its_query(
    desk: Desk, server: FileServer, named: str
) -> None:
    listing = await desk.find(server.url(f"{named}?key=v"))
    assert [f.urls for f in listing.files] == [(server.url(f"{path}?key=v"),) for path in PARTS]
    assert [f.size for f in listing.files] == [len(path) for path in PARTS]


async def test_a_part_that_is_not_there_is_said(desk: Desk, server: FileServer) -> None:
    server.remove(PARTS[1])
    with pytest.raises(
        Fault, match=r"m-00002-of-00003\.gguf answered 404: by its name the model has 3 parts"
    ) as caught:
        await desk.find(server.url(PARTS[0]))
    assert (caught.value.code, caught.value.kind) == ("PARTS_MISSING", FaultClass.PERMANENT)


@pytest.mark.parametrize("name", ["m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-99999.gguf"])
async def test_a_count_that_makes_no_sense_is_a_name_like_any_other(desk: Desk, server: FileServer, name: str) -> None:
    server.replace(f"/{name}", DATA)
    assert [f.name for f in (await desk.find(server.url(f"/{name}"))).files] == [name]


@pytest.mark.parametrize("status", [403, 405])
async def test_a_server_that_does_not_answer_head_is_asked_for_the_file(
    desk: Desk, server: FileServer, status: int
) -> None:
    server.status(status, times=1, path="/m.gguf")
    (remote,) = (await desk.find(server.url("/m.gguf"))).files
    assert remote.size in (None, len(DATA))
    assert (await url.bring(desk.request(remote), desk.tap)).size == len(DATA)


async def test_a_file_that_is_not_there_is_said_at_once(desk: Desk, server: FileServer) -> None:
    with pytest.raises(Fault, match="NOT_FOUND"):
        await desk.find(server.url("/no.gguf"))


async def test_the_page_about_a_file_is_told_from_the_file(desk: Desk, server: FileServer) -> None:
    with pytest.raises(Fault, match="WEB_PAGE") as caught:
        await desk.find(server.url("/acme/tiny/blob/main/deep/m.gguf?x=y"))
    assert caught.value.hint == f"use {server.url('/acme/tiny/resolve/main/deep/m.gguf')}"
    assert server.log == []


async def test_a_name_is_fit_to_be_shown(desk: Desk, server: FileServer) -> None:
    server.replace("/a\x1b[31m\u202e.gguf", DATA)
    (remote,) = (await desk.find(server.url("/a%1B%5B31m%E2%80%AE.gguf"))).files
    assert remote.name == r"a\x1b[31m\u202e.gguf"


async def test_a_token_goes_to_its_own_host_only(desk: Desk, server: FileServer) -> None:
    with FileServer({"/m.gguf": DATA}) as other:
        server.redirect("/m.gguf", other.url("/m.gguf", host="localhost"))
        known = Desk(replace(desk.tap, token="secret"), desk.part, [])
        await known.bring(server.url("/m.gguf"))
        assert {r.headers.get("Authorization") for r in server.log} == {"Bearer secret"}
        assert {r.headers.get("Authorization") for r in other.log} == {None}
        assert len(other.log) >= 1


async def test_a_sha256_that_the_source_itself_contradicts_is_not_fetched(desk: Desk, server: FileServer) -> None:
    (remote,) = (await desk.find(server.url("/m.gguf"))).files
    with pytest.raises(Fault, match="CHECKSUM_MISMATCH"):
        await url.bring(desk.request(replace(remote, sha256="1" * 64), sha256="2" * 64), desk.tap)
    assert server.sent["/m.gguf"] == 0
