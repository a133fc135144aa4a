"""With a real engine: what it says becomes responses by both ways, and a conversation goes on from a kept answer."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.dialects.bridge import Bridge
from reconciler.dialects.quirks import LOCAL
from reconciler.dialects.responses_fix import ResponsesFix
from reconciler.dialects.responses_on_chat import ResponsesOnChat
from reconciler.gateway.responses_store import ResponsesStore
from tests.dialects.responses_corpus import clock
from tests.support.processes import free_port, wait_until
from tests.support.streams_responses import check_response, responses_stream
from tests.support.tiny_gguf import tiny_gguf

KEY = "engine-key"
REPLY = "The gateway stands in front of it all."
HOST = Path(__file__).parents[1] / "gateway" / "engine_host.py"


class Engine:
    def __init__(self, gguf: Path) -> None:
        self.port = free_port()
        command = [sys.executable, str(HOST), str(gguf), str(self.port), "fast", KEY]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(self, path: str, document: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            connection.request("GET" if document is None else "POST", path, json.dumps(document).encode(), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ready(self) -> bool:
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    one = Engine(tiny_gguf(tmp_path_factory.mktemp("models") / "chat.gguf", reply=REPLY, ctx=4096))
    try:
        wait_until(one.ready, timeout=30, message="the engine is ready")
        yield one
    finally:
        one.process.kill()
        one.process.wait()


def made(way: str, **fields: Any) -> Bridge:
    document = {"model": "fast", "input": "Hello", **fields}
    if way == "chat":
        return ResponsesOnChat(document, LOCAL, "r1", clock=clock)
    return ResponsesFix(document, "r1", clock=clock)


def whole(engine: Engine, bridge: Bridge) -> dict[str, Any]:
    status, body = bridge.whole(*engine.ask(f"/v1{bridge.path}", bridge.document))
    assert status == 200, body
    response: dict[str, Any] = json.loads(body)
    check_response(response)
    return response


def words(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


@pytest.mark.parametrize("way", ["chat", "fix"])
def test_a_whole_answer(engine: Engine, way: str) -> None:
    response = whole(engine, made(way))
    assert (response["status"], words(response), response["model"]) == ("completed", REPLY, "fast")
    assert response["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("way", ["chat", "fix"])
def test_a_stream(engine: Engine, way: str) -> None:
    bridge = made(way, stream=True)
    status, body = engine.ask(f"/v1{bridge.path}", bridge.document)
    assert status == 200
    said = responses_stream(bridge.feed(body) + bridge.end())
    assert (said.text, said.finish) == (REPLY, "completed")
    assert said.usage is not None
    assert said.usage["output_tokens"] > 0


@pytest.mark.parametrize("way", ["chat", "fix"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_limit_ends_is_incomplete(engine: Engine, way: str, stream: bool) -> None:
    bridge = made(way, stream=stream, max_output_tokens=2)
    if stream:
        said = responses_stream(bridge.feed(engine.ask(f"/v1{bridge.path}", bridge.document)[1]) + bridge.end())
        response = said.response
    else:
        response = whole(engine, bridge)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert REPLY.startswith(words(response))
    assert words(response) != REPLY


@pytest.mark.parametrize("way", ["chat", "fix"])
def test_a_conversation_goes_on_from_a_kept_answer(engine: Engine, way: str, tmp_path: Path) -> None:
    store = ResponsesStore(tmp_path, clock=clock)
    previous, lengths = None, []
    for number in range(3):
        document = {"model": "fast", "input": "Hello", "previous_response_id": previous}
        history = None if previous is None else store.history(previous, "anna")
        bridge = (
            ResponsesOnChat(document, LOCAL, f"r{number}", history, clock=clock)
            if way == "chat"
            else ResponsesFix(document, f"r{number}", history, clock=clock)
        )
        response = whole(engine, bridge)
        assert bridge.answer == response
        assert store.put(response["id"], previous, "anna", bridge.items, response["output"], answer=response)
        assert store.get(response["id"], "anna") == response
        assert response["previous_response_id"] == previous
        previous = response["id"]
        lengths.append(response["usage"]["input_tokens"])
    assert lengths[0] < lengths[1] < lengths[2]
    kept = store.history(previous or "", "anna") or []
    assert [item["role"] for item in kept] == ["user", "assistant"] * 3
    store.close()


def test_every_kind_of_input_that_we_make_is_taken(engine: Engine) -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "seen"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "So."}]},
        {"role": "user", "content": "And?"},
    ]
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}
    fields = {"tools": [tool], "reasoning": {"effort": "none"}, "instructions": "Be brief.", "min_p": 0.1}
    assert words(whole(engine, made("chat", input=items, top_logprobs=1, **fields))) == REPLY


def test_log_probabilities(engine: Engine) -> None:
    response = whole(engine, made("chat", top_logprobs=2))
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert "".join(one["token"] for one in logprobs) == REPLY
    assert all(len(one["top_logprobs"]) == 2 for one in logprobs)


def test_a_format_is_kept_to(engine: Engine) -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}, "strict": True}
    response = whole(engine, made("chat", text={"format": form}, max_output_tokens=20))
    assert words(response).lstrip()[:1] == "{"


@pytest.mark.parametrize("way", ["chat", "fix"])
def test_an_error_of_the_engine(engine: Engine, way: str) -> None:
    bridge = made(way, input="x " * 6000)
    status, body = bridge.whole(*engine.ask(f"/v1{bridge.path}", bridge.document))
    assert status == 400
    assert "context" in json.loads(body)["error"]["message"]
