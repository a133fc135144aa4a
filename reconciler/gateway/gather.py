"""Gather: a whole answer, made by listening to a stream.

PURE. llama-server notices that a client has gone only between the events of a stream; a request for a whole answer
runs on to its end, and keeps others waiting. So the plain ones are asked for as streams and put together here, and
leaving cancels them like any stream. Only requests whose every field is known to mean the same both ways are
(tools, log probabilities and whatever is not listed here are passed on as they are).
"""

from __future__ import annotations

import json
from typing import Any

_SAMPLING = frozenset(
    (
        "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "max_tokens", "max_completion_tokens",
        "frequency_penalty", "presence_penalty", "repeat_penalty", "repeat_last_n", "cache_prompt", "ignore_eos",
        "user", "metadata",
    )
)  # fmt: skip
_ASK_FOR_STREAM = b',"stream":true,"stream_options":{"include_usage":true}}'
_FIELDS = {
    "/chat/completions": _SAMPLING
    | {"model", "messages", "stream", "response_format", "reasoning_effort", "chat_template_kwargs"},
    "/completions": _SAMPLING | {"model", "prompt", "stream"},
}


def as_stream(path: str, document: dict[str, Any], body: bytes) -> bytes | None:
    """The body that asks for the same as a stream; None where the request is to go as it is.

    `document` is what `body` says: an object with at least a model.
    """
    known = _FIELDS.get(path)
    if known is None or document.get("stream") or not document.keys() <= known:
        return None
    if path == "/completions" and not isinstance(document.get("prompt"), str):
        return None  # several prompts make several answers
    if "stream" in document:
        document = {key: value for key, value in document.items() if key != "stream"}
        body = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return body.rstrip()[:-1] + _ASK_FOR_STREAM


class Gathering:
    """Feed it the stream's bytes, cut anywhere; `complete` once the stream has said that it is over."""

    def __init__(self) -> None:
        self.complete = False
        self._held = b""
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._error: dict[str, Any] | None = None

    def feed(self, data: bytes) -> None:
        """Raises ValueError for an event that is not what a completion streams."""
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def result(self) -> tuple[int, bytes]:
        """(status, JSON body): the answer, or the error that the stream ended with."""
        if self._error is not None:
            code = self._error.get("code")
            status = code if isinstance(code, int) and 400 <= code <= 599 else 500
            return status, json.dumps({"error": self._error}, ensure_ascii=False).encode("utf-8", "replace")
        choices = [self._choices[index] for index in sorted(self._choices)]
        kind = str(self._answer.get("object", "")).removesuffix(".chunk")
        answer = {**self._answer, "object": kind, "choices": choices}
        return 200, json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.complete = True
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event that is not an object")
        if isinstance(event.get("error"), dict):
            self._error, self.complete = event["error"], True
            return
        for choice in event.pop("choices", []):
            self._choice(choice)
        self._answer |= event

    def _choice(self, piece: dict[str, Any]) -> None:
        index = int(piece.get("index", 0))
        delta = piece.get("delta")
        if delta is None:
            whole = self._choices.setdefault(index, {**piece, "text": ""})
            whole["text"] += piece.get("text") or ""
        else:
            fresh = {"index": index, "message": {"role": "assistant", "content": ""}, "finish_reason": None}
            whole = self._choices.setdefault(index, fresh)
            for key, value in delta.items():
                if isinstance(value, str) and key != "role":
                    whole["message"][key] = whole["message"].get(key, "") + value
        whole["finish_reason"] = piece.get("finish_reason") or whole["finish_reason"]
