"""Several who may answer, keys that take turns, and the way to those elsewhere: with upstreams that really go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.harness import (
    CLIENT_KEY,
    EVENTS_HEAD,
    Asked,
    Gateway,
    Stub,
    chunk,
    model,
    provider,
    response,
    route,
    stub,
    target,
)
from tests.gateway.test_proxy import DONE, event, post
from tests.support.authority import Authority
from tests.support.processes import free_port
from tests.support.proxy import Proxy

Script = Callable[[Asked, StreamWriter], Awaitable[bool | None]]
MakeGateway = Callable[..., Gateway]
FINE = b'{"choices":[]}'
WHOLE = {"messages": [{"role": "user", "content": "hi"}]}


def says(body: bytes, status: str = "200 OK", **headers: str) -> Script:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        writer.write(response(body, status, **headers))

    return answer


async def breaks(asked: Asked, writer: StreamWriter) -> bool:
    return False


async def stalls(asked: Asked, writer: StreamWriter) -> None:
    await asyncio.sleep(30)


async def streams(asked: Asked, writer: StreamWriter) -> None:
    writer.write(EVENTS_HEAD + chunk(event("a")) + chunk(event("b") + DONE) + chunk(b""))


async def streams_an_error(asked: Asked, writer: StreamWriter) -> None:
    writer.write(EVENTS_HEAD + chunk(b'data: {"error":{"message":"no room","code":529}}\n\n') + chunk(b""))


async def streams_nothing(asked: Asked, writer: StreamWriter) -> bool:
    writer.write(EVENTS_HEAD)
    await writer.drain()
    return False


async def streams_half(asked: Asked, writer: StreamWriter) -> bool:
    writer.write(EVENTS_HEAD + chunk(event("a")))
    await writer.drain()
    await asyncio.sleep(0.05)
    return False


@asynccontextmanager
async def both(first: Script, second: Script) -> AsyncIterator[tuple[Stub, Stub]]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(stub(first)), await stack.enter_async_context(stub(second))


def lead(gateway: Gateway, first: Stub, second: Stub, **more: Any) -> None:
    """`smart` is the first, and the second where that fails."""
    providers = {
        "one": provider(f"http://127.0.0.1:{first.port}/v1", ["m"]),
        "two": provider(f"http://127.0.0.1:{second.port}/api/v1", ["n"]),
    }
    gateway.use(providers=providers, routes={"smart": route("one/m", "two/n")} | more.pop("routes", {}), **more)


def body(name: str = "smart", **more: Any) -> bytes:
    return json.dumps({"model": name, **WHOLE, **more}).encode()


REFUSED = says(b'{"error":{"message":"no"}}', "500 Internal Server Error")


@pytest.mark.parametrize(
    "first",
    [
        breaks,
        REFUSED,
        says(b"<html>down</html>", "502 Bad Gateway", content_type="text/html"),
        says(b"{}", "429 Too Many Requests", retry_after="3"),
        says(b"{}", "529 Overloaded"),
        says(b"{}", "401 Unauthorized"),
        says(b"{}", "402 Payment Required"),
        says(b"{}", "404 Not Found"),
        says(b"", "307 Temporary Redirect", location="http://127.0.0.1:1/"),
        stalls,
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_next_one_answers(make_gateway: MakeGateway, first: Script, streamed: bool) -> None:
    gateway = make_gateway()
    gateway.start()
    async with both(first, streams if streamed else says(FINE)) as (one, two):
        lead(gateway, one, two, limits={"first_byte_seconds": 0.5})
        got = await post(gateway, body=body(stream=streamed))
        assert got.status_code == 200
        assert got.headers["x-reconciler-target"] == "provider/two"
        assert got.headers["x-reconciler-attempts"] == "2"
        assert (b"[DONE]" in got.content) == streamed
        assert json.loads(two.asked[0].body)["model"] == "n", "a provider is told its own name for the model"
        assert two.asked[0].line.startswith("POST /api/v1/chat/completions ")
        times = len(one.asked)
        again = await post(gateway, body=body(stream=streamed))
        assert "x-reconciler-attempts" not in again.headers
        assert len(one.asked) == times, "who failed is passed over at first"


@pytest.mark.parametrize("first", [streams_an_error, streams_nothing])
async def test_a_stream_that_fails_before_it_says_anything_is_asked_for_elsewhere(
    gateway: Gateway, first: Script
) -> None:
    async with both(first, streams) as (one, two):
        lead(gateway, one, two)
        got = await post(gateway, body=body(stream=True))
        assert (got.headers["x-reconciler-target"], got.content.count(b"data:")) == ("provider/two", 3)
        assert (len(one.asked), len(two.asked)) == (1, 1)


async def test_a_stream_that_has_begun_is_never_begun_anew(gateway: Gateway) -> None:
    async with both(streams_half, streams) as (one, two):
        lead(gateway, one, two)
        got = await post(gateway, body=body(stream=True))
        assert got.content.startswith(event("a"))
        assert b'"code":"upstream_broken"' in got.content
        assert b"[DONE]" not in got.content
        assert two.asked == []


@pytest.mark.parametrize("status", ["400 Bad Request", "413 Too Large", "422 Unprocessable"])
async def test_what_is_wrong_with_the_request_is_told_and_nobody_else_asked(gateway: Gateway, status: str) -> None:
    said = b'{"error":{"message":"max_tokens is too large","type":"invalid_request_error"}}'
    async with both(says(said, status), says(FINE)) as (one, two):
        lead(gateway, one, two)
        got = await post(gateway, body=body())
        assert (got.status_code, got.content) == (int(status[:3]), said)
        assert two.asked == []


async def test_only_the_troubles_that_a_route_names_have_another_asked(gateway: Gateway) -> None:
    async with both(says(b'{"error":{"message":"slow down"}}', "429 Too Many", retry_after="7"), says(FINE)) as (
        one,
        two,
    ):
        lead(gateway, one, two, routes={"smart": route("one/m", "two/n", on=("timeout",))})
        got = await post(gateway, body=body())
        assert (got.status_code, got.headers["retry-after"]) == (429, "7")
        assert two.asked == []


async def test_the_last_ones_words_are_told_when_all_fail(gateway: Gateway) -> None:
    async with both(breaks, says(b'{"error":{"message":"gone fishing"}}', "503 Unavailable", retry_after="9")) as (
        one,
        two,
    ):
        lead(gateway, one, two)
        got = await post(gateway, body=body())
        assert (got.status_code, got.headers["retry-after"]) == (503, "9")
        assert "gone fishing" in got.text
        assert len(one.asked) == len(two.asked) == 1


async def test_a_local_model_falls_back_to_a_provider_and_its_words_go_unchanged(gateway: Gateway) -> None:
    async with stub(says(FINE)) as far:
        providers = {"far": provider(f"http://127.0.0.1:{far.port}/v1", ["chat"])}
        routes = {"smart": route("chat", "far/chat")}
        gateway.use({"chat": model(None, reason="it failed")}, providers=providers, routes=routes)
        got = await post(gateway, body=body())
        assert (got.status_code, got.headers["x-reconciler-target"]) == (200, "provider/far")


async def test_nobody_can_stand_in_so_a_broken_connection_is_tried_once_more(gateway: Gateway) -> None:
    async def first_breaks(asked: Asked, writer: StreamWriter) -> bool:
        if asked.connection == 1:
            return False
        writer.write(response(FINE))
        return True

    async with stub(first_breaks) as far:
        gateway.use(providers={"far": provider(f"http://127.0.0.1:{far.port}/v1", ["m"])})
        assert (await post(gateway, body=body("far/m"))).status_code == 200
        assert len(far.asked) == 2


# -- keys -------------------------------------------------------------------------------------------------------------


def keyed(*good: str, status: str = "401 Unauthorized", header: str = "authorization") -> Script:
    async def answer(asked: Asked, writer: StreamWriter) -> None:
        right = (asked.header(header) or "").removeprefix("Bearer ") in good
        writer.write(
            response(FINE) if right else response(b'{"error":{"message":"bad key"}}', status, retry_after="60")
        )

    return answer


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests"])
async def test_keys_take_turns_when_one_is_refused(gateway: Gateway, status: str) -> None:
    keys = [f"{status[:3]}-{number}" for number in range(3)]
    async with stub(keyed(keys[2], status=status)) as far:
        providers = {"far": provider(f"http://127.0.0.1:{far.port}/v1", ["m"])}
        gateway.use(providers=providers, secrets={"far": {"keys": keys}})
        assert (await post(gateway, body=body("far/m"))).status_code == 200
        assert [a.header("authorization") for a in far.asked] == [f"Bearer {key}" for key in keys]
        assert (await post(gateway, body=body("far/m"))).status_code == 200
        assert far.asked[-1].header("authorization") == f"Bearer {keys[2]}"
        assert len(far.asked) == 4, "the ones that were refused are left alone for a while"


async def test_a_refused_key_is_ours_and_not_the_clients(gateway: Gateway) -> None:
    async with stub(keyed("good")) as far:
        providers = {"far": provider(f"http://127.0.0.1:{far.port}/v1", ["m"])}
        gateway.use(providers=providers, secrets={"far": {"keys": ["bad-canary"]}})
        got = await post(gateway, body=body("far/m"), authorization=f"Bearer {CLIENT_KEY}")
        assert (got.status_code, got.json()["error"]["code"]) == (502, "upstream_refused_key")
        assert "canary" not in got.text + gateway.log()
        assert all(CLIENT_KEY not in str(asked.headers) for asked in far.asked)


@pytest.mark.parametrize(("auth", "header"), [("x-api-key", "x-api-key"), ("api-key", "api-key"), ("none", "")])
async def test_a_provider_gets_its_key_as_it_wants_it(gateway: Gateway, auth: str, header: str) -> None:
    async with stub(says(FINE)) as far:
        providers = {"far": provider(f"http://127.0.0.1:{far.port}", ["m"], auth=auth, headers={"x-team": "ml"})}
        gateway.use(providers=providers, secrets={"far": {"keys": ["k1"], "headers": {"x-secret": "s1"}}})
        await post(gateway, body=body("far/m"))
        (asked,) = far.asked
        assert asked.line == "POST /chat/completions HTTP/1.1"
        assert asked.header("authorization") is None
        assert [n for n, v in asked.headers if v == "k1"] == ([header] if header else [])
        assert (asked.header("x-team"), asked.header("x-secret")) == ("ml", "s1")


async def test_without_its_secrets_a_provider_is_not_asked(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    gateway.start(RECONCILER_NONCE="salt")
    async with stub(says(FINE)) as far:
        gateway.use(providers={"far": provider(f"http://127.0.0.1:{far.port}", ["m"])}, secrets={})
        got = await post(gateway, body=body("far/m"))
        assert (got.status_code, got.json()["error"]["code"]) == (503, "provider_unavailable")
        secrets = {"far": {"keys": ["sk-canary"]}}
        state = gateway.reload(secrets)
        told = json.dumps(secrets, sort_keys=True, separators=(",", ":"))
        assert state["secrets"] == hashlib.sha256(f"salt{told}".encode()).hexdigest()
        assert (await post(gateway, body=body("far/m"))).status_code == 200
        assert "canary" not in json.dumps(gateway.state()) + gateway.log()


async def test_bad_secrets_are_refused_and_the_old_ones_kept(gateway: Gateway) -> None:
    async with stub(keyed("k1")) as far:
        providers = {"far": provider(f"http://127.0.0.1:{far.port}/v1", ["m"])}
        gateway.use(providers=providers, secrets={"far": {"keys": ["k1"]}})
        for bad in ({"far": {"keys": ["a\r\nx: y"]}}, {"far": []}, {"far": {"headers": {"x": "\n"}}}, []):
            assert "error" in gateway.reload(bad)  # type: ignore[arg-type]
        assert (await post(gateway, body=body("far/m"))).status_code == 200


# -- the way there ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def secured(script: Script, context: ssl.SSLContext) -> AsyncIterator[Stub]:
    upstream = Stub(script)
    server = await asyncio.start_server(upstream._serve, "127.0.0.1", 0, ssl=context)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        await upstream.hang_up()
        await asyncio.sleep(0.02)


async def test_tls_is_spoken_with_whom_the_certificate_names(make_gateway: MakeGateway, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    gateway = make_gateway()
    gateway.start(SSL_CERT_FILE=str(authority.ca))
    async with secured(streams, authority.server("far.example")) as far:
        base = f"https://127.0.0.1:{far.port}/v1"
        wrong = f"https://localhost:{far.port}/v1"
        gateway.use(providers={"far": provider(base, ["m"]), "wrong": provider(wrong, ["m"])})
        got = await post(gateway, body=body("far/m", stream=True))
        assert (got.status_code, got.content.count(b"data:")) == (200, 3)
        assert (await post(gateway, body=body("far/m", stream=True))).status_code == 200
        assert far.connections == 1, "it is kept"
        refused = await post(gateway, body=body("wrong/m"))
        assert refused.status_code == 502
        assert "certificate is not trusted" in refused.text


async def test_a_certificate_of_nobody_is_not_trusted(gateway: Gateway, tmp_path: Path) -> None:
    async with secured(says(FINE), Authority(tmp_path).server()) as far:
        gateway.use(providers={"far": provider(f"https://127.0.0.1:{far.port}/v1", ["m"])})
        got = await post(gateway, body=body("far/m"))
        assert (got.status_code, got.json()["error"]["code"]) == (502, "upstream_unreachable")
        assert far.asked == []


async def test_a_proxy_sees_a_tunnel_and_nothing_in_it(make_gateway: MakeGateway, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    gateway = make_gateway()
    gateway.start(SSL_CERT_FILE=str(authority.ca))
    async with secured(says(FINE), authority.server("far.example")) as far, stub(says(FINE)) as plain:
        hosts = {"far.example:443": far.port, "plain.example:8000": plain.port}
        with Proxy(hosts) as proxy:
            providers = {
                "far": provider("https://far.example/v1", ["m"], proxy=proxy.url),
                "plain": provider("http://plain.example:8000/v1", ["m"], proxy=proxy.url),
                "none": provider("https://nowhere.example/v1", ["m"], proxy=proxy.url),
                "dead": provider("https://far.example/v1", ["m"], proxy=f"http://127.0.0.1:{free_port()}"),
            }
            gateway.use(providers=providers)
            assert (await post(gateway, body=body("far/m"))).status_code == 200
            assert (await post(gateway, body=body("plain/m"))).status_code == 200
            assert far.asked[0].header("host") == "far.example"
            assert plain.asked[0].header("host") == "plain.example:8000"
            refused = await post(gateway, body=body("none/m"))
            assert "the proxy answered 502" in refused.text
            assert (await post(gateway, body=body("dead/m"))).status_code == 502
            assert all(line.startswith("CONNECT ") for line in proxy.log)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "this machine"), ("localhost", "this machine"), ("10.0.0.1", "private network"),
        ("169.254.1.1", "link-local"), ("[::1]", "this machine"), ("[::ffff:127.0.0.1]", "this machine"),
        ("0.0.0.0", "no address"), ("127.1", "this machine"), ("2130706433", "this machine"),
        ("0x7f.1", "this machine"),
    ],
)  # fmt: skip
async def test_a_public_provider_does_not_lead_into_the_house(gateway: Gateway, host: str, why: str) -> None:
    async with stub(says(FINE)) as inside:
        gateway.use(providers={"far": provider(f"http://{host}:{inside.port}/v1", ["m"], private=False)})
        got = await post(gateway, body=body("far/m"))
        assert (got.status_code, got.json()["error"]["code"]) == (502, "upstream_unreachable")
        assert "may not be asked" in got.text
        assert why in got.text
        assert inside.connections == 0


async def test_metadata_addresses_are_asked_by_nobody(gateway: Gateway) -> None:
    gateway.use(providers={"far": provider("http://169.254.169.254/latest", ["m"], private=True)})
    got = await post(gateway, body=body("far/m"))
    assert (got.status_code, "may not be asked" in got.text) == (502, True)


async def test_a_name_that_is_not_known_is_said(gateway: Gateway) -> None:
    gateway.use(providers={"far": provider("http://no-such-host.invalid/v1", ["m"])})
    got = await post(gateway, body=body("far/m"))
    assert (got.status_code, "no-such-host.invalid is not known" in got.text) == (502, True)


# -- keys of clients --------------------------------------------------------------------------------------------------


def client_key(name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


async def test_a_client_has_a_rate_and_a_list(gateway: Gateway) -> None:
    async with stub(says(FINE)) as upstream:
        keys = [
            client_key("me", "k-me"),
            client_key("ci", "k-ci", allow=["chat"], rate={"count": 2, "seconds": 60}),
        ]
        names = {"chat": model(target(upstream.port)), "other": model(target(upstream.port, "other#1"))}
        gateway.use(names, api_keys=keys)
        for _ in range(5):
            assert (await post(gateway, body=body("other"), authorization="Bearer k-me")).status_code == 200
        denied = await post(gateway, body=body("other"), authorization="Bearer k-ci")
        assert (denied.status_code, denied.json()["error"]["code"]) == (403, "model_not_allowed")
        assert (await post(gateway, body=body("chat"), x_api_key="k-ci")).status_code == 200
        late = await post(gateway, body=body("chat"), authorization="Bearer k-ci")
        assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 20 <= int(late.headers["retry-after"]) <= 31
        listed = openai.OpenAI(base_url=f"{gateway.base}/v1", api_key="k-ci").models.list()
        assert [one.id for one in listed] == ["chat"]
