"""A caller that speaks responses, and a llama-server that speaks them nearly.

PURE. What llama-server b11434 leaves undone is done here, and everything else passes byte for byte; of a delta not even
JSON is read. Requests: it refuses previous_response_id, item references, messages of the assistant without a type and
reasoning without content. Answers: it says "completed" where the limit of tokens ended them, and its objects and events
lack what the official client's types require (`sequence_number`, `output_index`, the request's settings …).

It leaves some of what can be asked undone without a word; `responses_native.fits` says for which requests it is a way
at all. The other way is `ResponsesOnChat`, which does them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from reconciler.dialects.errors import Error, error_in, from_object, openai_error, openai_status, parse_error
from reconciler.dialects.fields import given
from reconciler.dialects.responses_items import Ignored, Item
from reconciler.dialects.responses_native import native_request
from reconciler.dialects.responses_request import before, echo, input_items
from reconciler.dialects.sse import EVENT_LIMIT, event
from reconciler.dialects.text import decode, encode

_NUMBERED = b'"sequence_number":'
_ITEM_ID = re.compile(rb'"item_id":"([^"\\]*)"')
_END = re.compile(rb"\r?\n\r?\n")
_LIFE = ("response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed")


class ResponsesFix:
    """One exchange with an upstream that speaks responses; a `Bridge`.

    Arguments as those of `ResponsesOnChat`; `context` is the model's context length in tokens, which also ends
    answers. Whether the limit did so is told by the usage, so an answer that ends by itself with its last allowed
    token counts as cut off. Raises `Unmappable`.
    """

    path = "/responses"

    def __init__(
        self,
        document: dict[str, Any],
        request_id: str,
        history: list[Item] | None = None,
        *,
        referred: Mapping[str, Item] | None = None,
        context: int | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        said = given(document)
        ignored = Ignored()
        self._echo = echo(said)
        self.items = input_items(said, re.sub(r"[^A-Za-z0-9_\-]", "", request_id), referred or {})
        """The request's own input items, as they are to be kept."""
        self.document = native_request(said, [*before(said, history), *self.items], ignored)
        self.ignored = ignored.names()
        self.failed: tuple[int, bytes] | None = None
        self.store: bool = self._echo["store"] is True
        """Whether the caller lets the answer be kept."""
        self.previous: str | None = self._echo["previous_response_id"]
        """The response that this one goes on from."""
        self.answer: dict[str, Any] | None = None
        """The Response object once it is over; None before."""
        self._model = document.get("model")
        self._most = said.get("max_output_tokens")
        self._context = context
        self._held = b""
        self._sequence = 0
        self._numbered: bool | None = None
        self._places: dict[bytes, int] = {}  # by the item's id
        self._done: dict[str, Any] | None = None  # an item that ended, until it is known how the answer does
        self._created = int(clock()) if clock else None
        self._begun: dict[str, Any] | None = None  # the response as it began, and its items that ended
        self._ended: list[Item] = []
        self._head = b""  # the events before the first content, which is when an answer can be taken back no more
        self._told = False
        self._over = False

    def whole(self, status: int, body: bytes) -> tuple[int, bytes]:
        """As `Bridge`."""
        if status >= 400:
            return self._refused(parse_error(status, body))
        try:
            document = decode(body)
        except ValueError:
            document = None
        if not isinstance(document, dict) or document.get("object") != "response":
            return self._refused(parse_error(502, body))
        self._answer(document)
        try:
            said = encode(document)
        except ValueError:
            return self._refused(Error(502, "", "the upstream's answer is nested too deeply"))
        self.answer = document
        return status, said

    def feed(self, data: bytes) -> bytes:
        """As `Bridge`."""
        self._held += data
        said = []
        start = 0
        for end in _END.finditer(self._held):
            said.append(self._tell(self._event(self._held[start : end.start()], self._held[start : end.end()])))
            start = end.end()
        self._held = self._held[start:]
        if len(self._held) > EVENT_LIMIT:
            self._held = b""
            said.append(self._break(Error(502, "", f"an event of the stream is longer than {EVENT_LIMIT} bytes")))
        return b"".join(said)

    def end(self) -> bytes:
        """As `Bridge`."""
        said = b"" if self._over or not self._held.strip() else self.feed(b"\n\n")
        if self.failed is not None and not self._told:
            return said + self._tell(self._error(parse_error(*self.failed)))
        return said + self.broke(502, "the stream ended before the answer did")

    def broke(self, status: int, message: str) -> bytes:
        """As `Bridge`."""
        if self._over:
            return b""
        self._over = True
        return self._tell(self._let_go("completed") + self._error(Error(status, "", message)))

    def _tell(self, said: bytes) -> bytes:
        if said and not self._told:
            self._told = True
            said = self._head + said
        return said

    def _break(self, error: Error) -> bytes:
        """The stream is of no use: an error event, or `failed` where there was no content yet."""
        self._over = True
        if self._numbered:
            self._sequence -= 1  # the event that said so is not passed on
        if self._told:
            return self._let_go("completed") + self._error(error)
        self.failed = self._refused(error)
        return b""

    def _error(self, error: Error) -> bytes:
        """An error event, and the response as far as it came, as failed: some clients look at one of them only."""
        fields = {"code": error.code or error.type or None, "message": error.message, "param": error.param}
        said = self._write("error", {"type": "error", **fields, "sequence_number": self._sequence})
        if self._begun is None:
            return said
        why = {"code": "rate_limit_exceeded" if error.status == 429 else "server_error", "message": error.message}
        self.answer = {**self._begun, "status": "failed", "error": why, "output": self._ended}
        number = self._sequence + 1 if self._numbered else self._sequence
        return said + self._write("response.failed", {"response": self.answer, "sequence_number": number})

    def _refused(self, error: Error) -> tuple[int, bytes]:
        return openai_status(error.status), openai_error(error)

    def _event(self, block: bytes, raw: bytes) -> bytes:
        """One event: its bytes without and with the empty line; what becomes of it."""
        if self._over:
            return b""
        name, data = _parts(block)
        if not data:
            return raw if self._told else b""
        if self._numbered is None:
            self._numbered = _NUMBERED in data
        if self._numbered:
            self._sequence += 1
        if name.endswith(".delta"):
            return self._let_go("completed") + (raw if self._numbered else self._delta(name, data, raw))
        try:
            document = decode(data)
        except ValueError:
            return self._break(Error(502, "", "the upstream's stream holds what is not JSON"))
        found = error_in(document)
        if found is not None:
            return self._break(from_object(0, found))
        if not isinstance(document, dict) or not isinstance(document.get("type"), str):
            return self._let_go("completed") + raw
        try:
            return self._document(document["type"], document, raw)
        except ValueError:
            return self._break(Error(502, "", "the upstream's stream is nested too deeply"))

    def _delta(self, name: str, data: bytes, raw: bytes) -> bytes:
        found = _ITEM_ID.search(data)
        place = self._places.get(found[1]) if found else None
        if place is None or not data.startswith(b"{"):
            return raw
        more = b'"sequence_number":%d,"output_index":%d,' % (self._sequence, place)
        if name != "response.function_call_arguments.delta":
            more += b'"content_index":0,'
        if name == "response.output_text.delta":
            more += b'"logprobs":[],'
        self._sequence += 1
        return b"event: %b\ndata: {%b%b\n\n" % (name.encode(), more, data[1:])

    def _document(self, kind: str, document: dict[str, Any], raw: bytes) -> bytes:
        response = document.get("response")
        if kind in _LIFE and isinstance(response, dict):
            return self._life(kind, document, response)
        if self._numbered:
            return self._let_go("completed") + raw
        said = self._let_go("completed")
        item = document.get("item")
        if isinstance(item, dict):
            self._item(kind, item)
            document["output_index"] = self._places.setdefault(_key(item), len(self._places))
            if kind == "response.output_item.done":
                self._done = document
                return said
        elif isinstance(document.get("item_id"), str):
            document["output_index"] = self._places.get(document["item_id"].encode("utf-8", "replace"), 0)
            if kind != "response.function_call_arguments.done":
                document["content_index"] = 0
            if kind == "response.output_text.done":
                document["logprobs"] = []
            part = document.get("part")
            if isinstance(part, dict) and part.get("type") == "output_text":
                part.setdefault("annotations", [])
        return said + self._write(kind, document)

    def _life(self, kind: str, document: dict[str, Any], response: dict[str, Any]) -> bytes:
        """The response as a whole: at its beginning and at its end."""
        document.pop("timings", None)
        self._answer(response)
        self._begun = self._begun or response
        if response["status"] == "in_progress" and not self._told:
            self._head += self._write(kind, document)
            return b""
        if response["status"] == "failed" and not self._told:
            return self._break(from_object(0, response["error"] if isinstance(response["error"], dict) else {}))
        last = response["output"][-1]["status"] if response["output"] else "completed"
        said = self._let_go(last)
        self._over = True
        self.answer = response
        return said + self._write(f"response.{response['status']}", document)

    def _let_go(self, status: str) -> bytes:
        """The end of an item that was held back."""
        document, self._done = self._done, None
        if document is None:
            return b""
        document["item"]["status"] = status
        self._ended.append(document["item"])
        return self._write("response.output_item.done", document)

    def _write(self, kind: str, document: dict[str, Any]) -> bytes:
        document["type"] = kind
        if not self._numbered:
            document["sequence_number"] = self._sequence
            self._sequence += 1
        return event(kind, document)

    def _answer(self, response: dict[str, Any]) -> None:
        """Complete a Response object in place."""
        if self._created is None and isinstance(response.get("created_at"), int):
            self._created = response["created_at"]
        for key, value in self._echo.items():
            response.setdefault(key, value)
        status = response.setdefault("status", "completed")
        output = response.get("output")
        response["output"] = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
        for item in response["output"]:
            self._item("", item)
        response |= {"object": "response", "created_at": self._created or 0, "model": self._model}
        for key in ("error", "incomplete_details", "usage", "completed_at"):
            response.setdefault(key, None)
        _usage(response["usage"])
        if status == "completed" and self._cut_off(response["usage"]):
            response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
            response["completed_at"] = None
            for item in response["output"][-1:]:
                item["status"] = "incomplete"

    def _item(self, kind: str, item: Item) -> None:
        """Complete an item in place."""
        item.setdefault("status", "in_progress" if kind == "response.output_item.added" else "completed")
        if not item.get("id") and isinstance(item.get("call_id"), str):
            item["id"] = item["call_id"]
        if item.get("encrypted_content") == "":
            del item["encrypted_content"]

    def _cut_off(self, usage: object) -> bool:
        if not isinstance(usage, dict):
            return False
        wrote, all_ = usage.get("output_tokens"), usage.get("total_tokens")
        if isinstance(self._most, int) and isinstance(wrote, int) and wrote >= self._most:
            return True
        return self._context is not None and isinstance(all_, int) and all_ >= self._context


def _usage(usage: object) -> None:
    if not isinstance(usage, dict):
        return
    for key, inner in (
        ("input_tokens_details", {"cached_tokens": 0, "cache_write_tokens": 0}),
        ("output_tokens_details", {"reasoning_tokens": 0}),
    ):
        details = usage.get(key)
        usage[key] = {**inner, **(details if isinstance(details, dict) else {})}


def _key(item: Item) -> bytes:
    return str(item.get("id", "")).encode("utf-8", "replace")


def _parts(block: bytes) -> tuple[str, bytes]:
    """(name, data) of an event of llama-server's, whose data is one line."""
    name, data = "", b""
    for line in block.splitlines():
        if line.startswith(b"data:"):
            data = line[5:].strip()
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode("utf-8", "replace")
    return name, data
