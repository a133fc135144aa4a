"""Where a token goes, where a redirect may lead, and what the environment says of proxies and certificates."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from reconciler.core.diagnostics import Fault, FaultClass
from reconciler.host.effects import Effects
from reconciler.host.fetch import Access, Fetch, Patience
from reconciler.host.files import Files
from tests.support.authority import Authority
from tests.support.downloads import quiet, whole
from tests.support.fileserver import FileServer, Request
from tests.support.processes import free_port
from tests.support.proxy import Proxy

DATA = random.Random(7).randbytes(100_000)
TOKEN = "hunter2token"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def fetch(files: Files) -> AsyncIterator[Fetch]:
    made = Fetch(files, Effects(), patience=Patience(stall=2, tries=1))
    yield made
    await made.close()


@pytest.fixture
def home() -> Iterator[FileServer]:
    with FileServer({"/m": DATA, "/away": b"", "/back": b"", "/near": b""}) as server:
        yield server


@pytest.fixture
def away() -> Iterator[FileServer]:
    with FileServer({"/m": DATA, "/back": b""}) as server:
        yield server


def authorized(request: Request) -> bool:
    return request.headers.get("Authorization") == f"Bearer {TOKEN}"


def access(server: FileServer) -> Access:
    return Access(TOKEN, urlsplit(server.base_url).netloc)


async def everything(fetch: Fetch, urls: list[str], part: Path, allowed: Access) -> None:
    """All that sends requests."""
    assert await fetch.get(urls, part, quiet, access=allowed) == whole(DATA)
    assert await fetch.read(urls, 5, 5, allowed) == DATA[5:10]
    assert (await fetch.head(urls, allowed)).size == len(DATA)
    (part.parent / "old").write_bytes(bytes(len(DATA)))
    await fetch.patch(urls, part.parent / "old", [(0, 100)], len(DATA), quiet, allowed)


async def test_the_token_goes_to_its_host(fetch: Fetch, home: FileServer, tmp_path: Path) -> None:
    home.redirect("/near", "/m")
    await everything(fetch, [home.url("/near")], tmp_path / "p", access(home))
    assert {request.path for request in home.log} == {"/near", "/m"}
    assert all(authorized(request) for request in home.log)


async def test_the_token_does_not_go_to_a_mirror_or_another_port(
    fetch: Fetch, home: FileServer, away: FileServer, tmp_path: Path
) -> None:
    await everything(fetch, [away.url("/m"), home.url("/m")], tmp_path / "p", access(home))
    assert away.log
    assert not any("Authorization" in request.headers for request in away.log)
    assert home.log == []
    fetch.discard(tmp_path / "p")
    await everything(fetch, [home.url("/m", host="localhost")], tmp_path / "p", access(home))
    assert not any("Authorization" in request.headers for request in home.log)


async def test_the_token_does_not_cross_a_redirect_and_does_not_come_back(
    fetch: Fetch, home: FileServer, away: FileServer, tmp_path: Path
) -> None:
    home.redirect("/away", away.url("/m"))
    await everything(fetch, [home.url("/away")], tmp_path / "p", access(home))
    assert all(authorized(request) for request in home.log)
    assert not any("Authorization" in request.headers for request in away.log)
    fetch.discard(tmp_path / "p")
    home.redirect("/away", away.url("/back"))
    away.redirect("/back", home.url("/m"))
    await everything(fetch, [home.url("/away")], tmp_path / "p", access(home))
    assert home.requests("/m")
    assert not any(authorized(request) for request in home.requests("/m"))


async def test_a_segment_after_the_first_is_asked_for_without_the_token_too(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconciler.host.fetch import transfer

    monkeypatch.setattr(transfer, "SEGMENT", 10_000)
    with FileServer({"/away": b""}) as home, FileServer({"/m": DATA}) as away:
        home.redirect("/away", away.url("/m"))
        assert await fetch.get(home.url("/away"), tmp_path / "p", quiet, access=access(home)) == whole(DATA)
        assert len(home.log) == 1
        assert len(away.log) == 10
        assert not any("Authorization" in request.headers for request in away.log)


async def test_a_link_that_ran_out_is_renewed_at_its_source(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconciler.host.fetch import transfer

    monkeypatch.setattr(transfer, "SEGMENT", 10_000)
    with FileServer({"/away": b""}) as home, FileServer({"/1": DATA, "/2": DATA}) as away:
        home.redirect("/away", away.url("/1"))
        away.status_after("/1", 3, 403)
        from_then_on = away.url("/2")

        def told(done: int, total: int | None) -> None:
            home.redirect("/away", from_then_on)

        assert await fetch.get(home.url("/away"), tmp_path / "p", told) == whole(DATA)
        assert away.requests("/2")


# --- redirects ------------------------------------------------------------------------------------------------------


async def through(proxy: Proxy, files: Files, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    return Fetch(files, Effects(), patience=Patience(stall=2, tries=1))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "127.1",
     "2130706433", "0x7f.1", "a.localhost", "0.0.0.0"],
)  # fmt: skip
async def test_a_public_address_does_not_lead_to_a_private_one(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with FileServer({"/a": b"", "/m": DATA}) as server, Proxy({"files.example": server.port}) as proxy:
        server.redirect("/a", f"http://{host}:{server.port}/m")
        fetch = await through(proxy, files, monkeypatch)
        with pytest.raises(Fault) as caught:
            await fetch.get("http://files.example/a", tmp_path / "p", quiet)
        with pytest.raises(Fault, match="UNSAFE_REDIRECT"):
            await fetch.read("http://files.example/a", 0, 5)
        with pytest.raises(Fault, match="UNSAFE_REDIRECT"):
            await fetch.head("http://files.example/a")
        await fetch.close()
        assert server.requests("/m") == []
    assert (caught.value.code, caught.value.kind) == ("UNSAFE_REDIRECT", FaultClass.PERMANENT)


async def test_a_public_address_may_lead_to_a_public_one(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer({"/a": b"", "/m": DATA}) as server:
        with Proxy({"files.example": server.port, "store.example": server.port}) as proxy:
            server.redirect("/a", "http://store.example/m")
            fetch = await through(proxy, files, monkeypatch)
            allowed = Access(TOKEN, "files.example")
            assert await fetch.get("http://files.example/a", tmp_path / "p", quiet, access=allowed) == whole(DATA)
            await fetch.close()
        assert [authorized(request) for request in server.log] == [True, False]


async def test_https_does_not_lead_to_http(fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with FileServer({"/m": DATA}) as plain, FileServer({"/a": b""}, tls=authority.server()) as server:
        server.redirect("/a", plain.url("/m"))
        with pytest.raises(Fault, match="INSECURE_REDIRECT"):
            await fetch.get(server.url("/a"), tmp_path / "p", quiet)
        assert plain.log == []


async def test_http_that_leads_to_https_does_not_take_the_token_along(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with FileServer({"/a": b""}) as plain, FileServer({"/m": DATA}, tls=authority.server()) as server:
        plain.redirect("/a", server.url("/m"))
        assert await fetch.get(plain.url("/a"), tmp_path / "p", quiet, access=access(server)) == whole(DATA)
        assert not any(authorized(request) for request in [*plain.log, *server.log])


# --- proxies --------------------------------------------------------------------------------------------------------


async def test_a_proxy_is_used_for_http_and_https(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    with (
        FileServer({"/m": DATA}) as plain,
        FileServer({"/m": DATA}, tls=authority.server("safe.example")) as server,
        Proxy({"files.example": plain.port, "safe.example:443": server.port}) as proxy,
    ):
        fetch = await through(proxy, files, monkeypatch)
        assert await fetch.get("http://files.example/m", tmp_path / "p", quiet) == whole(DATA)
        assert await fetch.get("https://safe.example/m", tmp_path / "q", quiet) == whole(DATA)
        await fetch.close()
        assert proxy.log[0] == "GET http://files.example/m HTTP/1.1"
        assert proxy.log[1] == "CONNECT safe.example:443 HTTP/1.1"


async def test_no_proxy_goes_straight(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: FileServer
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Proxy({}) as proxy:
        fetch = await through(proxy, files, monkeypatch)
        assert await fetch.get(home.url("/m"), tmp_path / "p", quiet) == whole(DATA)
        await fetch.close()
        assert proxy.log == []


async def test_a_proxy_that_wants_a_password_asks_for_a_person(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy({}, authenticate=True) as proxy:
        fetch = await through(proxy, files, monkeypatch)
        for url in ("http://files.example/m", "https://files.example/m"):
            with pytest.raises(Fault) as caught:
                await fetch.get(url, tmp_path / "p", quiet)
            assert caught.value.kind is FaultClass.NEEDS_HUMAN
        await fetch.close()


@pytest.mark.parametrize("proxy", ["socks5h://127.0.0.1:1", "http://proxy:port", "gopher://x"])
async def test_a_proxy_that_cannot_be_used_is_told(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    fetch = Fetch(files, Effects(), patience=Patience(tries=1))
    with pytest.raises(Fault, match="BAD_PROXY"):
        await fetch.get(f"http://127.0.0.1:{free_port()}/m", tmp_path / "p", quiet)
    assert not (tmp_path / "p").exists()


# --- certificates ---------------------------------------------------------------------------------------------------


async def test_an_authority_of_ones_own_is_trusted_by_file_or_folder(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    folder = tmp_path / "authorities"
    folder.mkdir()
    with FileServer({"/m": DATA}, tls=authority.server("localhost")) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        by_file = Fetch(files, Effects())
        assert await by_file.get(server.url("/m"), tmp_path / "p", quiet) == whole(DATA)
        await by_file.close()
        monkeypatch.delenv("SSL_CERT_FILE")
        monkeypatch.setenv("SSL_CERT_DIR", str(folder))
        (folder / authority.link).symlink_to(authority.ca)
        by_folder = Fetch(files, Effects())
        assert await by_folder.get(server.url("/m", host="localhost"), tmp_path / "q", quiet) == whole(DATA)
        await by_folder.close()


async def test_a_stranger_is_not_trusted(fetch: Fetch, tmp_path: Path) -> None:
    with FileServer({"/m": DATA}, tls=Authority(tmp_path).server()) as server, pytest.raises(Fault) as caught:
        await fetch.get(server.url("/m"), tmp_path / "p", quiet)
    assert (caught.value.code, caught.value.kind) == ("UNTRUSTED_CERTIFICATE", FaultClass.NEEDS_HUMAN)
    assert "SSL_CERT_FILE" in caught.value.hint


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_certificates_that_cannot_be_loaded_are_told(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(Fault) as caught:
        await fetch.get("https://127.0.0.1:1/m", tmp_path / "p", quiet)
    assert (caught.value.code, caught.value.kind) == ("BAD_CERTIFICATES", FaultClass.NEEDS_HUMAN)
