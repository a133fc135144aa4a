"""The tap: what goes by is shown while somebody listens, without keys, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from reconciler.gateway.mask import MASKED, Mask
from reconciler.gateway.tap import MOST_BODY, MOST_COPIES, MOST_HELD, MOST_TAPS
from reconciler.host.layout import Layout
from tests.gateway.harness import CLIENT_KEY, ROOT, Gateway, provider, route
from tests.support.fake_provider import FakeProvider, Reply, Way
from tests.support.processes import wait_until

MakeGateway = Callable[..., Gateway]
PROVIDER_KEY = "provider-canary-0001"  # of a form that nobody would take for a key
Entry = dict[str, Any]


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(keys=(PROVIDER_KEY,), models=("small", "large")) as running:
        running.reply = Reply("Hello from afar.", prompt_tokens=20, completion_tokens=10)
        yield running


@pytest.fixture
def watched(make_gateway: MakeGateway, fake: FakeProvider, tmp_path: Path) -> Gateway:
    """A gateway where `reconcile tap --data-root` looks for it."""
    gateway = make_gateway()
    gateway.socket_path = Layout(tmp_path / "root").gateway_socket
    gateway.socket_path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    gateway.start()
    lead(gateway, fake)
    return gateway


def lead(gateway: Gateway, fake: FakeProvider) -> None:
    keys = [{"name": "ci", "sha256": hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}]
    far = provider(fake.url, ["small", "large"])
    gateway.write(
        gateway.routes(providers={"far": far}, routes={"smart": route("far/small", "far/large")}, api_keys=keys)
    )
    assert gateway.reload({"far": {"keys": [PROVIDER_KEY]}})["error"] is None


async def ask(gateway: Gateway, name: str = "far/small", text: str = "hi", **body: Any) -> httpx2.Response:
    document = {"model": name, "messages": [{"role": "user", "content": text}]} | body
    shown = {"Authorization": f"Bearer {CLIENT_KEY}", "Cookie": "session=cookie-canary", "X-Own": "seen"}
    async with httpx2.AsyncClient(base_url=gateway.base, timeout=20) as client:
        return await client.post("/v1/chat/completions", json=document, headers=shown)


class Listening:
    """One who listens on the control socket."""

    def __init__(self, gateway: Gateway, name: str, query: str = "", small: bool = False) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        if small:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect(str(gateway.socket_path))
        self.sock.sendall(f"GET /tap?model={name}{query} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        self.held = b""
        while b"\r\n\r\n" not in self.held:
            self._more()
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        self.status = int(head.split()[1])

    def read(self) -> Entry:
        """The next entry."""
        while b"\n" not in self.held:
            self._more()
        line, _, self.held = self.held.partition(b"\n")
        entry: Entry = json.loads(line)
        return entry

    def _more(self) -> None:
        piece = self.sock.recv(1 << 20)
        assert piece, "the gateway went away"
        self.held += piece

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def listen(watched: Gateway) -> Iterator[Callable[..., Listening]]:
    with contextlib.ExitStack() as stack:

        def begin(name: str, query: str = "", small: bool = False) -> Listening:
            return stack.enter_context(contextlib.closing(Listening(watched, name, query, small)))

        yield begin


Listen = Callable[..., Listening]


async def test_a_request_and_its_answer_are_shown_to_who_listens_for_it(watched: Gateway, listen: Listen) -> None:
    taps = {name: listen(name) for name in ("far/small", "far/large", "smart")}
    answer = await ask(watched, "smart", temperature=0.5)
    for name in ("far/small", "smart"):
        first, second = taps[name].read(), taps[name].read()
        assert (first["event"], second["event"]) == ("request", "answer")
        assert first["id"] == second["id"] == answer.headers["x-request-id"]
        assert (first["model"], first["key"], first["path"]) == ("smart", "ci", "/v1/chat/completions")
        assert first["headers"]["x-own"] == "seen"
        assert first["body"] == json.loads(answer.request.content)
        assert second["body"] == answer.json()
        assert (second["status"], second["target"], second["attempts"]) == (200, "provider/far", 1)
        assert (second["tokens_in"], second["tokens_out"], second["broke"]) == (20, 10, "")
    await ask(watched, "far/large", stream=True)
    first, second = taps["far/large"].read(), taps["far/large"].read()
    assert first["model"] == "far/large", "what was asked of another was not shown"
    assert second["body"][-1] == "[DONE]"
    said = "".join(e["choices"][0]["delta"].get("content", "") for e in second["body"][:-1])
    assert said == "Hello from afar."


async def test_no_key_is_shown(watched: Gateway, fake: FakeProvider, listen: Listen) -> None:
    tap = listen("far/small")
    secrets = [CLIENT_KEY, PROVIDER_KEY, "sk-proj-canary-abcdefgh", "Bearer canary.token-12345", "AKIACANARYCANARY0001"]
    fake.reply = Reply(" and ".join(secrets))
    for changes in ({}, {"stream": True}, {"stream": True, "model": "far/small"}):
        await ask(watched, text=f"my keys: {secrets}", metadata={CLIENT_KEY: "x"}, **changes)
        request, answer = tap.read(), tap.read()
        shown = json.dumps([request, answer])
        assert "canary" not in shown.lower(), shown
        assert "authorization" not in request["headers"]
        assert "cookie" not in request["headers"]
        pieces = [""]
        if isinstance(answer["body"], list):
            pieces = [e["choices"][0]["delta"].get("content") or "" for e in answer["body"][:-1]]
            assert "".join(pieces) == f"{MASKED} and {MASKED} and {MASKED} and {MASKED} and {MASKED}"
    fake.script(Way(status=400, message=f"{PROVIDER_KEY} is not right, {CLIENT_KEY} neither"))
    await ask(watched)
    assert "canary" not in json.dumps([tap.read(), tap.read()])
    assert "canary" not in watched.log()


async def test_headers_only(watched: Gateway, listen: Listen) -> None:
    tap, whole = listen("far/small", "&bodies=0"), listen("far/small")
    await ask(watched, text="what-was-said")
    entries = [tap.read(), tap.read()]
    assert "what-was-said" not in json.dumps(entries)
    assert "Hello" not in json.dumps(entries)
    assert entries[0]["headers"]["x-own"] == "seen"
    assert whole.read()["body"]["messages"][0]["content"] == "what-was-said", "others still see it"


async def test_large_bodies_are_cut(watched: Gateway, fake: FakeProvider, listen: Listen) -> None:
    tap = listen("far/small")
    fake.reply = Reply("y" * 2_000_000)
    answer = await ask(watched, text="x" * 1_000_000)
    request, shown = tap.read(), tap.read()
    assert request["body_cut"]
    assert shown["body_cut"]
    assert len(json.dumps(request)) < MOST_BODY + 5000
    assert len(json.dumps(shown)) < MOST_BODY + 5000
    assert len(answer.content) > 2_000_000, "the client has it whole"


async def test_nobody_reads(watched: Gateway, fake: FakeProvider, listen: Listen) -> None:
    tap = listen("far/small", small=True)
    fake.reply = Reply("z" * 200_000)
    assert watched.process is not None
    process, size = psutil.Process(watched.process.pid), 60
    await ask(watched)
    before = process.memory_info().rss
    for _ in range(size):
        assert (await ask(watched)).status_code == 200
    grown = process.memory_info().rss - before
    assert grown < 4 * MOST_HELD, "what nobody fetches is let go"
    shown = lost = 0
    while shown + lost < 2 * (size + 1):
        entry = tap.read()
        shown, lost = (shown, lost + entry["entries"]) if entry["event"] == "lost" else (shown + 1, lost)
    assert shown + lost == 2 * (size + 1), "what was lost is told to the last entry"
    assert lost > size / 2
    last = await ask(watched)
    assert [tap.read()["id"], tap.read()["id"]] == [last.headers["x-request-id"]] * 2, "and it goes on"


async def test_one_who_leaves_costs_nothing_more_and_there_are_not_too_many(watched: Gateway, listen: Listen) -> None:
    taps = [listen("far/small", "&bodies=0") for _ in range(MOST_TAPS)]
    refused = listen("far/small")
    assert refused.status == 429
    for tap in taps:
        tap.close()
    await asyncio.to_thread(wait_until, lambda: _status(watched) == 200)
    unknown = listen("far/nobody")
    assert unknown.status == 404
    assert b"far/small" in unknown.held + unknown.sock.recv(65536), "the nearest name is told"


def _status(gateway: Gateway) -> int:
    with contextlib.closing(Listening(gateway, "far/small")) as tap:
        return tap.status


async def test_more_at_once_than_are_copied(watched: Gateway, fake: FakeProvider, listen: Listen) -> None:
    tap = listen("far/small", "&bodies=0")
    fake.ways["small"] = Way(stall="head")
    asking = [asyncio.create_task(ask(watched)) for _ in range(MOST_COPIES + 3)]
    await asyncio.to_thread(wait_until, lambda: sum(watched.state()["inflight"].values()) == MOST_COPIES + 3)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    entries = [tap.read() for _ in range(2 * MOST_COPIES + 1)]
    assert sum(e["entries"] for e in entries if e["event"] == "lost") == 3
    assert {e["broke"] for e in entries if e["event"] == "answer"} == {"client_gone"}
    fake.ways.clear()
    await asyncio.to_thread(wait_until, lambda: not watched.state()["inflight"])
    await ask(watched)
    assert [tap.read()["event"], tap.read()["event"]] == ["request", "answer"], "they are let go of"


def run(root: Path, *arguments: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "reconciler", "tap", *arguments, "--data-root", str(root)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_the_command(watched: Gateway, fake: FakeProvider, tmp_path: Path) -> None:
    root = tmp_path / "root"
    fake.reply = Reply("a bell\x07 and \x1b[31mred")
    shown, told = run(root, "far/small", "--count", "2"), run(root, "smart", "-o", "json", "--count", "1")
    try:
        while shown.poll() is None:  # it ends by itself once it has seen two
            await ask(watched)
        while told.poll() is None:
            await ask(watched, "smart", stream=True)
        text, error = shown.communicate()
        assert shown.returncode == 0, error
        assert len(re.findall("← 200  provider/far", text)) == 2
        assert "20 tokens in" not in text
        assert "11 tokens in  7 out" in text
        assert '"content": "hi"' in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", text), "nothing reaches the terminal that could move it"
        entries = [json.loads(line) for line in told.communicate()[0].splitlines()]
        assert [e["event"] for e in entries if e["event"] == "answer"] == ["answer"]
        assert {e["model"] for e in entries if e["event"] == "request"} == {"smart"}
    finally:
        for process in (shown, told):
            if process.poll() is None:
                process.kill()
                process.communicate()


def test_the_command_ends_in_time_and_says_what_is_wrong(watched: Gateway, tmp_path: Path) -> None:
    quiet = run(tmp_path / "root", "far/small", "--seconds", "0.5s")
    assert (quiet.communicate(timeout=20)[0], quiet.returncode) == ("", 0)
    unknown = run(tmp_path / "root", "far/smal")
    error = unknown.communicate(timeout=20)[1]
    assert unknown.returncode != 0
    assert "Did you mean 'far/small'?" in error
    nobody = run(tmp_path / "nowhere", "far/small")
    error = nobody.communicate(timeout=20)[1]
    assert nobody.returncode != 0
    assert "no gateway answers" in error
    assert "reconcile apply" in error


# -- what is masked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    ["sk-abcdefgh12", "sk-ant-api03-AbC_d-123456", "Bearer abc.def-123456", "hf_AbCdEfGhIjKl", "ghp_0123456789ab",
     "AIzaSyA-1234567890abcdefghij", "xoxb-123456-abcdef", "eyJhbGciOi.eyJzdWIiOiIx.c2lnbmF0dXJl", "known.secret"],
)  # fmt: skip
def test_forms_of_keys_in_one_piece_and_in_many(secret: str) -> None:
    mask = Mask(["known.secret"])
    assert mask.text(f"so: {secret}, then") == f"so: {MASKED}, then"
    escaped = json.dumps({"text": secret}).replace("e", "\\u0065").encode()
    assert mask.body(escaped.replace(b'"t\\u0065xt"', b'"text"')) == {"text": MASKED}
    for size in range(1, len(secret) + 1):
        text = f"so: {secret}, then"
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        events = "".join(f"data: {json.dumps({'n': n, 'd': [piece]})}\n\n" for n, piece in enumerate(pieces))
        shown = mask.body(events.encode())
        assert "".join(event["d"][0] for event in shown) == f"so: {MASKED}, then"
        assert [event["n"] for event in shown] == list(range(len(pieces)))


def test_plain_words_stay() -> None:
    text = "task-force, a basic idea, the bearer of news, risk-free, pk, hf, a key"
    assert Mask().text(text) == text
    assert Mask(["x", "key"]).text(text) == text, "a short secret would mask ordinary words"
    assert Mask().body(b"\xff plain \x00") == "� plain \x00"
    assert Mask().body(b"[" * 100_000) == "[" * 100_000
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    assert MASKED in json.dumps(Mask().value(deep))
