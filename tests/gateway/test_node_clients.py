"""The official JavaScript clients, which many programs use, against the gateway: what they read is what was said.

They are installed once into the user's cache, outside of the repository. Every stream that they read is read by the
strict readers too.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.harness import CLIENT_KEY, Gateway, provider
from tests.support.fake_provider import FakeProvider, Reply, Tool, Way
from tests.support.processes import wait_until
from tests.support.streams import chat_stream, messages_stream
from tests.support.streams_responses import responses_stream

NODE = Path(__file__).parents[1] / "support" / "node"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"at": {"type": "integer"}}}
CHAT_TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": SCHEMA}}
MESSAGES_TOOL = {"name": "look", "description": "Look.", "input_schema": SCHEMA}
RESPONSES_TOOL = {"type": "function", "name": "look", "description": "Look.", "parameters": SCHEMA, "strict": False}
CALLS = Reply("I will look.", tools=(Tool("look", '{"at": 7}', "call_1"), Tool("look", '{"at": 8}', "call_2")))
SAID = Reply("Hello from afar, ünïcode 🌍 too.", reasoning="Let me think.")
MODEL = "far/small"


@dataclass
class Told:
    """What a client said: its answer or its error, and the bytes of the stream that it read."""

    said: Any
    error: dict[str, Any] | None
    raw: bytes


class Twin:
    """One process with both clients."""

    def __init__(self, folder: Path) -> None:
        command = [shutil.which("node") or "node", str(folder / "twin.mjs")]
        self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, what: str, **told: Any) -> Told:
        """Have it do that; AssertionError where it does not answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"do": what, **told}).encode() + b"\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], 30)[0], f"no answer to {what}"
        line = process.stdout.readline()
        assert line, f"it ended while it did {what}"
        answer = json.loads(line)
        return Told(answer.get("said"), answer.get("error"), answer["raw"].encode())

    def stop(self) -> None:
        with self._process as process:
            process.kill()


def installed() -> Path:
    """The cached folder with the packages; skips where they cannot be had."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    wanted = (NODE / "package.json").read_bytes()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reconciler"
    folder = base / f"node-clients-{hashlib.sha256(wanted).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    made = folder.with_name(f"{folder.name}.{os.getpid()}")
    made.mkdir(parents=True)
    try:
        (made / "package.json").write_bytes(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=110, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install the clients: {done.stderr.strip()[-300:]}")
        if not folder.is_dir():  # another test process may have been first
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(installed() / "node_modules")
    shutil.copy(NODE / "twin.mjs", folder)
    twin = Twin(folder)
    yield twin
    twin.stop()


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(keys=("k1",), models=("small", "large")) as fake:
        yield fake


@pytest.fixture(params=["openai", "anthropic"])
def spoken(request: pytest.FixtureRequest) -> str:
    """The one dialect that the provider speaks."""
    return str(request.param)


@pytest.fixture
def far(gateway: Gateway, fake: FakeProvider, spoken: str) -> Gateway:
    auth = "bearer" if spoken == "openai" else "x-api-key"
    told = provider("", ["small", "large"], speaks={spoken: fake.url}, auth=auth)
    gateway.use(providers={"far": told}, secrets={"far": {"keys": ["k1"]}})
    return gateway


def well(told: Told) -> Any:
    assert told.error is None, told.error
    return told.said


def test_chat(twin: Twin, far: Gateway, fake: FakeProvider) -> None:
    fake.reply = SAID
    said = well(twin("chat", base=far.base, body={"model": MODEL, "messages": HI, "max_tokens": 9}))
    assert said["choices"][0]["message"]["content"] == SAID.text
    assert said["usage"]["total_tokens"] == SAID.prompt_tokens + SAID.completion_tokens
    assert CLIENT_KEY not in str(fake.asked[-1].headers)


@pytest.mark.parametrize("reply", [SAID, CALLS, Reply("cut", finish="length")])
def test_chat_streamed(twin: Twin, far: Gateway, fake: FakeProvider, reply: Reply) -> None:
    fake.reply = reply
    body = {
        "model": MODEL,
        "messages": HI,
        "max_tokens": 9,
        "tools": [CHAT_TOOL],
        "stream_options": {"include_usage": True},
    }
    told = twin("chat_stream", base=far.base, body=body)
    read = chat_stream(told.raw)
    assert (read.text, read.finish, len(read.calls)) == (reply.text, reply.end, len(reply.tools))
    choice = well(told)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (reply.text, reply.end)
    calls = [json.loads(c["function"]["arguments"]) for c in choice["message"].get("tool_calls") or []]
    assert calls == [json.loads(t.arguments) for t in reply.tools]
    assert told.said["usage"]["completion_tokens"] == reply.completion_tokens


def test_tools_and_their_results_go_round(twin: Twin, far: Gateway, fake: FakeProvider) -> None:
    fake.reply = CALLS
    body: dict[str, Any] = {"model": MODEL, "messages": HI, "max_tokens": 9}
    message = well(twin("chat", base=far.base, body={**body, "tools": [CHAT_TOOL]}))["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "seen"} for c in message["tool_calls"]]
    fake.reply = SAID
    well(twin("chat", base=far.base, body={**body, "tools": [CHAT_TOOL], "messages": [*HI, message, *results]}))
    assert json.dumps(fake.asked[-1].body).count("seen") == 2
    fake.reply = CALLS
    answer = well(twin("messages", base=far.base, body={**body, "tools": [MESSAGES_TOOL]}))
    uses = [b for b in answer["content"] if b["type"] == "tool_use"]
    seen = [{"type": "tool_result", "tool_use_id": b["id"], "content": "seen"} for b in uses]
    turns = [*HI, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": seen}]
    fake.reply = SAID
    well(twin("messages", base=far.base, body={**body, "tools": [MESSAGES_TOOL], "messages": turns}))
    assert json.dumps(fake.asked[-1].body).count("seen") == 2


@pytest.mark.parametrize("reply", [SAID, CALLS, Reply("cut", finish="length")])
def test_messages(twin: Twin, far: Gateway, fake: FakeProvider, reply: Reply) -> None:
    fake.reply = reply
    body = {"model": MODEL, "messages": HI, "max_tokens": 9, "tools": [MESSAGES_TOOL]}
    ends = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    streamed = twin("messages_stream", base=far.base, body=body)
    read = messages_stream(streamed.raw)
    assert (read.text, read.finish, len(read.calls)) == (reply.text, ends[reply.end], len(reply.tools))
    for said in (well(streamed), well(twin("messages", base=far.base, body=body))):
        assert "".join(b["text"] for b in said["content"] if b["type"] == "text") == reply.text
        assert [b["input"] for b in said["content"] if b["type"] == "tool_use"] == [
            json.loads(t.arguments) for t in reply.tools
        ]
        assert (said["stop_reason"], said["usage"]["output_tokens"]) == (ends[reply.end], reply.completion_tokens)


@pytest.mark.parametrize("reply", [SAID, CALLS, Reply("cut", finish="length")])
def test_responses(twin: Twin, far: Gateway, fake: FakeProvider, reply: Reply) -> None:
    fake.reply = reply
    body = {"model": MODEL, "input": "hi", "tools": [RESPONSES_TOOL]}
    streamed = twin("responses_stream", base=far.base, body=body)
    read = responses_stream(streamed.raw)
    assert (read.text, len(read.calls)) == (reply.text, len(reply.tools))
    for said in (well(streamed), well(twin("responses", base=far.base, body=body))):
        assert said["output_text"] == reply.text
        assert said["status"] == ("incomplete" if reply.end == "length" else "completed")
        calls = [json.loads(item["arguments"]) for item in said["output"] if item["type"] == "function_call"]
        assert calls == [json.loads(t.arguments) for t in reply.tools]


def test_responses_are_gone_on_from(twin: Twin, make_gateway: Any, fake: FakeProvider, tmp_path: Path) -> None:
    gateway = make_gateway("--kept", str(tmp_path / "kept"))
    gateway.start()
    told = provider("", ["small"], speaks={"openai": fake.url})
    gateway.use(providers={"far": told}, secrets={"far": {"keys": ["k1"]}})
    said = well(twin("responses_kept", base=gateway.base, body={"model": MODEL, "input": "hi"}))
    assert said["again"]["output_text"] == said["first"]["output_text"] == fake.reply.text
    assert [m["role"] for m in fake.asked[-1].body["messages"]] == ["user", "assistant", "user"]
    assert len(said["items"]) == 3
    gone = twin("responses", base=gateway.base, body={"model": MODEL, "input": "x", "previous_response_id": "resp_no"})
    assert gone.error is not None
    assert gone.error["kind"] in ("BadRequestError", "NotFoundError")


def test_models(twin: Twin, far: Gateway) -> None:
    names = ["far/large", "far/small"]
    assert well(twin("models", base=far.base)) == {"openai": names, "anthropic": names}
    assert well(twin("model", base=far.base, name=MODEL)) == {"openai": MODEL, "anthropic": MODEL}


def test_what_only_one_dialect_has(twin: Twin, far: Gateway, spoken: str) -> None:
    count = twin("count", base=far.base, body={"model": MODEL, "messages": HI})
    embeddings = twin("embeddings", base=far.base, body={"model": MODEL, "input": ["a", "b"]})
    completion = twin("completion", base=far.base, body={"model": MODEL, "prompt": "a"})
    if spoken == "anthropic":
        assert well(count)["input_tokens"] > 0
        assert embeddings.error is not None
        assert completion.error is not None
        assert {embeddings.error["kind"], completion.error["kind"]} <= {"BadRequestError", "NotFoundError"}
    else:
        assert len(well(embeddings)["data"]) == 2
        assert well(completion)["choices"][0]["text"]
        assert count.error is not None
        assert count.error["kind"] in ("BadRequestError", "NotFoundError")


@pytest.mark.parametrize(
    ("way", "chat", "messages"),
    [
        (Way(status=400), "BadRequestError", "BadRequestError"),
        (Way(status=429, headers={"retry-after": "7"}), "RateLimitError", "RateLimitError"),
        (Way(status=500, error="html"), "InternalServerError", "InternalServerError"),
        (Way(status=529), "InternalServerError", "OverloadedError"),
        (Way(status=404), "NotFoundError", "NotFoundError"),
    ],
)
def test_errors(twin: Twin, far: Gateway, fake: FakeProvider, way: Way, chat: str, messages: str) -> None:
    fake.ways["small"] = way
    body = {"model": MODEL, "messages": HI, "max_tokens": 9}
    for what, kind in (("chat", chat), ("chat_stream", chat), ("messages", messages), ("messages_stream", messages)):
        told = twin(what, base=far.base, body=body)
        assert told.error is not None
        assert (told.error["kind"], bool(told.error["request"])) == (kind, True), what
        assert "k1" not in str(told.error)


def test_an_unknown_model(twin: Twin, far: Gateway) -> None:
    body = {"model": "far/smal", "messages": HI, "max_tokens": 9}
    for what in ("chat", "messages"):
        told = twin(what, base=far.base, body=body)
        assert told.error is not None
        assert (told.error["kind"], told.error["status"]) == ("NotFoundError", 404)
        assert "far/small" in told.error["message"]


@pytest.mark.parametrize("way", [Way(cut=8), Way(fails=8)])
def test_a_stream_that_breaks_is_an_error(twin: Twin, far: Gateway, fake: FakeProvider, way: Way) -> None:
    fake.reply, fake.ways["small"] = Reply("word " * 50), way
    for what, read in (("chat_stream", chat_stream), ("messages_stream", messages_stream)):
        told = twin(what, base=far.base, body={"model": MODEL, "messages": HI, "max_tokens": 9})
        assert told.error is not None, f"{what} took it for a whole answer"
        assert read(told.raw).error is not None
    told = twin("responses_stream", base=far.base, body={"model": MODEL, "input": "hi"})
    assert told.error is not None, "responses took it for a whole answer"


@pytest.mark.parametrize("what", ["chat_leave", "messages_leave", "responses_leave"])
def test_the_upstream_hears_of_a_client_that_leaves(twin: Twin, far: Gateway, fake: FakeProvider, what: str) -> None:
    fake.ways["small"] = Way(endless=True, drip=0.002)
    body = {"model": MODEL, "max_tokens": 9, "messages": HI} if "resp" not in what else {"model": MODEL, "input": "hi"}
    assert well(twin(what, base=far.base, body=body, after=5)) == {"seen": 5}
    wait_until(lambda: fake.left == 1 and fake.running == 0, 10, "the upstream has been left")
