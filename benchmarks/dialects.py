"""What a translation costs: microseconds of CPU for a request, a whole answer, and an event of a stream.

No sockets: what a stream costs with them is a row of `benchmarks.gateway`. The upstream's bytes are those of the tests'
fake provider, one event at a time, as they come from a model that streams token by token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from benchmarks.measure import program, table
from reconciler.dialects.bridge import Bridge
from reconciler.dialects.chat_on_messages import ChatOnMessages
from reconciler.dialects.compose import Composed
from reconciler.dialects.messages_on_chat import MessagesOnChat
from reconciler.dialects.quirks import LOCAL, PLAIN
from reconciler.dialects.responses_fix import ResponsesFix
from reconciler.dialects.responses_on_chat import ResponsesOnChat
from reconciler.gateway.bridges import MendedMessages
from tests.support.fake_provider import (
    Reply,
    Way,
    chat_document,
    chat_events,
    message_document,
    message_events,
    response_document,
    response_events,
)

REPLY = Reply("token " * 500)
TURNS = [{"role": role, "content": "Some words that somebody said. " * 5} for role in ("user", "assistant") * 5]
TURNS.append({"role": "user", "content": "And then?"})
CHAT = {"model": "m", "messages": TURNS, "stream": True, "max_tokens": 50}
RESPONSES = {"model": "m", "input": TURNS, "stream": True}


def _on_messages(document: dict[str, Any]) -> ChatOnMessages:
    return ChatOnMessages(document, PLAIN, "r", 50)


def _two_steps() -> Bridge:
    first = ResponsesOnChat(RESPONSES, PLAIN, "r")
    return Composed(first, _on_messages(first.document))


_CHAT_UPSTREAM = (list(chat_events(REPLY, "m", Way(), True)), chat_document(REPLY, "m"))
_MESSAGES_UPSTREAM = (list(message_events(REPLY, "m", Way())), message_document(REPLY, "m"))
_RESPONSES_UPSTREAM = (list(response_events(REPLY, "m", Way())), response_document(REPLY, "m"))
WAYS: dict[str, tuple[Callable[[], Bridge], tuple[list[bytes], dict[str, Any]]]] = {
    "messages on chat": (lambda: MessagesOnChat(CHAT, PLAIN, "r"), _CHAT_UPSTREAM),
    "chat on messages": (lambda: _on_messages(CHAT), _MESSAGES_UPSTREAM),
    "responses on chat": (lambda: ResponsesOnChat(RESPONSES, LOCAL, "r"), _CHAT_UPSTREAM),
    "responses on messages": (_two_steps, _MESSAGES_UPSTREAM),
    "messages, mended": (lambda: MendedMessages(CHAT, "r"), _MESSAGES_UPSTREAM),
    "responses, mended": (lambda: ResponsesFix(RESPONSES, "r"), _RESPONSES_UPSTREAM),
}


def run(quick: bool) -> str:
    rounds = 5 if quick else 50
    rows = []
    for name, (make, (events, document)) in WAYS.items():
        body = json.dumps(document).encode()
        asked = median(_took(make) for _ in range(rounds * 4))
        whole = median(_took(partial(make().whole, 200, body)) for _ in range(rounds))
        streamed = median(_took(partial(_feed, make(), events)) for _ in range(rounds))
        rows.append([name, f"{asked * 1e6:.0f}", f"{whole * 1e6:.0f}", f"{streamed * 1e6 / len(events):.1f}"])
    text = table(["translation", "request µs", "whole answer µs", "event µs"], rows)
    return f"{text}\n\nRequests of {len(TURNS)} turns, answers of {len(REPLY.text)} characters; medians."


def _feed(bridge: Bridge, events: list[bytes]) -> None:
    for event in events:
        bridge.feed(event)
    bridge.end()
    assert bridge.failed is None


def _took(what: Callable[[], object]) -> float:
    begun = time.thread_time()
    what()
    return time.thread_time() - begun


if __name__ == "__main__":
    program(run)
