"""The chunks of a chat's answer, put into the order in which a response tells things.

PURE. Chat may mix the pieces of several calls, and text with them; a response tells one item after the other. The
first call is told as it comes; what does not belong to it waits in a queue until its arguments are a complete JSON
object, or the answer is over.
"""

from __future__ import annotations

from typing import Any

from reconciler.dialects.ids import pack
from reconciler.dialects.responses_answer import citation, listed, logprob, signature, usage, words
from reconciler.dialects.responses_items import Item
from reconciler.dialects.responses_tell import Telling
from reconciler.dialects.text import decode, dumps

_INCOMPLETE = {
    "length": "max_output_tokens",
    "model_length": "max_output_tokens",  # Mistral's word for the end of the context
    "content_filter": "content_filter",
}


class Wrong(Exception):
    """The upstream said what cannot be an answer of a chat."""


class _Call:
    """One function call as far as it has come."""

    def __init__(self) -> None:
        self.id = ""
        self.said_id = ""  # by the upstream, which may not be unlike others
        self.name = ""
        self.signature = ""
        self.pieces: list[str] = []
        self.told = False

    def complete(self) -> bool:
        """Whether the arguments are a whole JSON object, after which nothing can come."""
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        try:
            return isinstance(decode("".join(self.pieces)), dict)
        except ValueError:
            return False


class Listening:
    """Takes the chunks and has `telling` tell them. Methods raise `Wrong`."""

    def __init__(self, telling: Telling, *, with_logprobs: bool, own_times: bool) -> None:
        """`own_times`: the answer has a clock, and does not take the upstream's word for when it was made."""
        self._telling = telling
        self._with_logprobs = with_logprobs
        self._own_times = own_times
        self._queue: list[tuple[str, Any]] = []  # ("call", _Call) and pieces of other kinds
        self._live: _Call | None = None  # the call that is being told
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._reason = ""

    def chunk(self, document: dict[str, Any]) -> None:
        """One chunk of a stream, or a whole answer, whose messages stand where a chunk has its deltas."""
        response = self._telling.response
        created = document.get("created")
        if not self._own_times and not self._telling.begun and isinstance(created, int):
            response["created_at"] = created
        if isinstance(document.get("service_tier"), str):
            response["service_tier"] = document["service_tier"]
        groq = document.get("x_groq")
        counted = document.get("usage") or (groq.get("usage") if isinstance(groq, dict) else None)
        if isinstance(counted, dict):
            response["usage"] = usage(counted)
        for choice in listed(document.get("choices")):
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                self._choice(choice)

    def finish(self) -> None:
        """The upstream has said all: the end of the answer, if it came to one."""
        if not self._reason:
            raise Wrong("the stream ended before the answer did")
        if self._reason == "error":
            raise Wrong("the upstream ended the answer with an error, and did not say which")
        reason = _INCOMPLETE.get(self._reason)
        if reason:  # a call that was cut off before its name says nothing
            self._queue = [(kind, value) for kind, value in self._queue if kind != "call" or value.name]
        self._advance("incomplete" if reason else "completed")
        self._telling.end(reason)

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, dict):
            self._delta(delta, choice.get("logprobs"))
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self._reason = reason

    def _delta(self, delta: dict[str, Any], logprobs: object) -> None:
        thought, text = words(delta.get("content"))
        for piece in (delta.get("reasoning_content") or delta.get("reasoning"), thought):
            if isinstance(piece, str) and piece:
                self._put("reasoning", piece)
        if text:
            self._put("text", (text, self._logprobs(logprobs)))
        if isinstance(delta.get("refusal"), str) and delta["refusal"]:
            self._put("refusal", delta["refusal"])
        for annotation in listed(delta.get("annotations")):
            if (cited := citation(annotation)) is not None:
                self._put("citation", cited)
        for entry in listed(delta.get("tool_calls")):
            if isinstance(entry, dict):
                self._piece_of_call(entry)
        if isinstance(delta.get("function_call"), dict):
            self._piece_of_call({"index": 0, "function": delta["function_call"]})

    def _logprobs(self, logprobs: object) -> list[Item]:
        if not self._with_logprobs or not isinstance(logprobs, dict):
            return []
        return [found for entry in listed(logprobs.get("content")) if (found := logprob(entry)) is not None]

    def _piece_of_call(self, entry: dict[str, Any]) -> None:
        function = entry.get("function")
        function = function if isinstance(function, dict) else {}
        call = self._call_of(entry, function)
        if not call.id and isinstance(entry.get("id"), str):
            taken = any(other.id == entry["id"] for other in self._calls)  # some servers give each call the same
            call.id = f"{entry['id']}_{len(self._calls)}" if entry["id"] and taken else entry["id"]
            call.said_id = entry["id"]
        if not call.name and isinstance(function.get("name"), str):
            call.name = function["name"]
        call.signature = call.signature or signature(entry)
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            try:
                arguments = dumps(arguments)
            except ValueError:
                raise Wrong(f"arguments of the call {call.name!r:.80} are nested too deeply") from None
        if isinstance(arguments, str) and arguments:
            self._arguments(call, arguments)
        self._advance()

    def _arguments(self, call: _Call, piece: str) -> None:
        if call.told and call is not self._live:
            if piece.strip():
                raise Wrong(f"arguments of the call {call.name!r:.80} go on after their end")
            return
        call.pieces.append(piece)
        if call is self._live:
            self._telling.arguments(piece)

    def _call_of(self, entry: dict[str, Any], function: dict[str, Any]) -> _Call:
        """The call that a piece belongs to: some servers leave out the index, or give each call the same."""
        index, ident = entry.get("index"), entry.get("id")
        ident = ident if isinstance(ident, str) else ""
        known: _Call | None = None
        if isinstance(index, int):
            known = self._by_index.get(index)
            if known is not None and ident and known.said_id not in ("", ident) and function.get("name"):
                known = None
        elif ident:
            known = next((call for call in self._calls if call.said_id == ident), None)
        elif self._calls and not (function.get("name") and self._calls[-1].name):
            known = self._calls[-1]
        if known is None:
            known = _Call()
            self._calls.append(known)
            self._queue.append(("call", known))
        if isinstance(index, int):
            self._by_index[index] = known
        return known

    def _put(self, kind: str, value: Any) -> None:
        if self._live is not None or self._queue:
            self._queue.append((kind, value))
            self._advance()
        else:
            self._tell(kind, value)

    def _advance(self, status: str = "") -> None:
        """Tell what waits, as far as it may be told; all of it where the answer is over with that status."""
        while self._queue:
            if self._live is not None:
                complete = self._live.complete()
                if not complete and not status:
                    return
                self._telling.close("completed" if complete else status)
                self._live = None
            kind, value = self._queue[0]
            if kind == "call" and not value.name:
                if status:
                    raise Wrong("a tool call without a name")
                return
            del self._queue[0]
            self._tell(kind, value)

    def _tell(self, kind: str, value: Any) -> None:
        match kind:
            case "call":
                self._live, value.told = value, True
                self._telling.call(pack(value.id, value.signature) if value.signature else value.id, value.name)
                if value.pieces:
                    self._telling.arguments("".join(value.pieces))
            case "reasoning":
                self._telling.reasoning(value)
            case "citation":
                self._telling.cite(value)
            case "refusal":
                self._telling.refusal(value)
            case _:
                self._telling.text(*value)
