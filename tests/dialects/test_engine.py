"""With a real llama-server: what is asked is understood, and what it answers is said in the other dialect."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.mend import FixedMessages, fix_error, fix_message
from reconciler.dialects.messages_on_chat import MessagesOnChat, count_on_chat, counted
from reconciler.dialects.quirks import LOCAL
from tests.dialects.corpus import CHAT_WITH_USAGE, MESSAGES_REQUEST
from tests.support.processes import free_port, wait_until
from tests.support.streams import chat_stream, messages_stream
from tests.support.tiny_gguf import tiny_gguf

REPLY = "Grüße from a small model."
HOST = Path(__file__).parents[1] / "gateway" / "engine_host.py"
LONG = [{"role": "user", "content": "x " * 9000}]

pytestmark = pytest.mark.engines


class Engine:
    def __init__(self, port: int) -> None:
        self._port = port

    def ready(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, document: Any = None) -> tuple[int, list[bytes]]:
        """Status and the body in small pieces."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(document), headers)
            answer = connection.getresponse()
            pieces = list(iter(lambda: answer.read1(17), b""))
        finally:
            connection.close()
        return answer.status, pieces

    def post(self, path: str, document: Any) -> tuple[int, bytes]:
        status, pieces = self.ask("POST", f"/v1{path}", document)
        return status, b"".join(pieces)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tiny_gguf(tmp_path_factory.mktemp("model") / "chat.gguf", reply=REPLY, ctx=4096)
    port = free_port()
    command = [sys.executable, str(HOST), str(path), str(port), "fast", "k"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        found = Engine(port)
        wait_until(found.ready, 60)
        yield found
    finally:
        process.terminate()
        process.wait()


def test_a_message_is_answered_through_chat(engine: Engine) -> None:
    bridge = MessagesOnChat({**MESSAGES_REQUEST, "stream": False, "system": "Be kind."}, LOCAL, "r1")
    status, body = bridge.whole(*engine.post(bridge.path, bridge.document))
    said = json.loads(body)
    assert (status, said["content"], said["stop_reason"]) == (200, [{"type": "text", "text": REPLY}], "end_turn")
    assert said["usage"]["input_tokens"] + said["usage"]["cache_read_input_tokens"] > 1
    assert said["usage"]["output_tokens"] > 1


def test_a_message_is_streamed_through_chat(engine: Engine) -> None:
    bridge = MessagesOnChat(MESSAGES_REQUEST, LOCAL, "r1")
    status, pieces = engine.ask("POST", f"/v1{bridge.path}", bridge.document)
    said = messages_stream(b"".join(bridge.feed(piece) for piece in pieces) + bridge.end())
    assert (status, said.text, said.finish) == (200, REPLY, "end_turn")
    assert said.usage is not None
    assert said.usage["output_tokens"] > 1


def test_the_limit_is_said(engine: Engine) -> None:
    bridge = MessagesOnChat({**MESSAGES_REQUEST, "max_tokens": 2}, LOCAL, "r1")
    _, body = engine.post(bridge.path, bridge.document)
    assert messages_stream(bridge.feed(body) + bridge.end()).finish == "max_tokens"


def test_a_chat_is_streamed_through_messages(engine: Engine) -> None:
    bridge = ChatOnMessages(CHAT_WITH_USAGE, LOCAL, "r1", 100, created=1)
    status, pieces = engine.ask("POST", f"/v1{bridge.path}", bridge.document)
    said = chat_stream(b"".join(bridge.feed(piece) for piece in pieces) + bridge.end())
    assert (status, said.text, said.finish) == (200, REPLY, "stop")
    assert said.usage is not None
    assert said.usage["prompt_tokens"] > 1


def test_a_chat_is_answered_through_messages(engine: Engine) -> None:
    bridge = ChatOnMessages({**CHAT_WITH_USAGE, "stream": False}, LOCAL, "r1", 100, created=1)
    status, body = bridge.whole(*engine.post(bridge.path, bridge.document))
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, REPLY)


def test_tokens_are_counted_as_the_prompt_has_them(engine: Engine) -> None:
    asked = {**MESSAGES_REQUEST, "stream": False, "system": "Be kind."}
    status, body = counted(*engine.post("/chat/completions/input_tokens", count_on_chat(asked)))
    bridge = MessagesOnChat(asked, LOCAL, "r1")
    usage = json.loads(bridge.whole(*engine.post(bridge.path, bridge.document))[1])["usage"]
    assert (status, json.loads(body)) == (
        200,
        {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]},
    )


def test_what_the_engine_leaves_open_is_mended(engine: Engine) -> None:
    status, body = engine.post("/messages", {**MESSAGES_REQUEST, "stream": False})
    assert (status, json.loads(body)["id"][:9]) == (200, "chatcmpl-")
    assert json.loads(fix_message(body)) == json.loads(body) | {"id": "msg_" + json.loads(body)["id"][9:]}
    status, pieces = engine.ask("POST", "/v1/messages", MESSAGES_REQUEST)
    mended = FixedMessages()
    out = b"".join(mended.feed(piece) for piece in pieces) + mended.end()
    assert out.replace(b'"id":"msg_', b'"id":"chatcmpl-') == b"".join(pieces) != out


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_in_the_callers_words(engine: Engine, stream: bool) -> None:
    document = {**MESSAGES_REQUEST, "messages": LONG, "stream": stream}
    status, body = fix_error(*engine.post("/messages", document), "anthropic")
    said = json.loads(body)
    assert (status, said["type"], said["error"]["type"]) == (400, "error", "invalid_request_error")
    assert said["error"]["message"].startswith("prompt is too long: ")
    bridge = MessagesOnChat(document, LOCAL, "r1")
    assert bridge.whole(*engine.post(bridge.path, bridge.document)) == fix_error(
        status, body[:-1] + b',"request_id":"r1"}', "anthropic"
    )
