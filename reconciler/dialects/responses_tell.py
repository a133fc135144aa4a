"""An answer, told as the items and events of a response.

PURE. A response is a list of items (reasoning, messages, function calls), told strictly one after the other:

    created, in_progress, (item added, its parts and deltas, item done)*, completed | incomplete | failed

`sequence_number` has no gaps. Nothing is said before there is something to tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reconciler.dialects.errors import Error
from reconciler.dialects.responses_answer import brief
from reconciler.dialects.responses_items import Item, sealed
from reconciler.dialects.responses_request import Asked
from reconciler.dialects.sse import event

_TEXT, _REFUSAL = "output_text", "refusal"


class Telling:
    """Say what there is in its order; `take` gives the events so far. `response` is the answer object as it stands.

    `clock` gives Unix times; without one, `created_at` is what somebody else puts there.
    """

    def __init__(self, asked: Asked, request_id: str, model: object, clock: Callable[[], float] | None) -> None:
        self.begun = False
        self.over = False
        self._asked = asked
        self._request_id = request_id
        self._clock = clock
        self._events: list[bytes] = []
        self._sequence = 0
        self._open: Item | None = None  # the item that is being told
        self._part: Item | None = None  # its part
        self._pieces: list[str] = []  # the text, or the arguments, that are not in it yet
        self._logprobs: list[Item] = []
        self.response: dict[str, Any] = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(clock()) if clock else 0,
            "status": "in_progress",
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "usage": None,
            **asked.echo,
        }

    def take(self) -> bytes:
        """The bytes of the events since the last time."""
        events, self._events = self._events, []
        return b"".join(events)

    def text(self, piece: str, logprobs: list[Item]) -> None:
        """A piece of a message's text."""
        self._in_message(_TEXT)
        self._pieces.append(piece)
        self._logprobs += logprobs
        self._say_in_part("response.output_text.delta", delta=piece, logprobs=[brief(one) for one in logprobs])

    def refusal(self, piece: str) -> None:
        """A piece of a message's refusal."""
        self._in_message(_REFUSAL)
        self._pieces.append(piece)
        self._say_in_part("response.refusal.delta", delta=piece)

    def cite(self, annotation: Item) -> None:
        """An annotation of the text."""
        part = self._in_message(_TEXT)
        part["annotations"].append(annotation)
        number = len(part["annotations"]) - 1
        self._say_in_part("response.output_text.annotation.added", annotation=annotation, annotation_index=number)

    def reasoning(self, piece: str) -> None:
        """A piece of what was thought; shown as a summary where one was asked for."""
        if self._open is None or self._open["type"] != "reasoning":
            self._open_reasoning()
        self._pieces.append(piece)
        if self._asked.as_summary:
            self._say_of_item("response.reasoning_summary_text.delta", summary_index=0, delta=piece)
        else:
            self._say_in_part("response.reasoning_text.delta", delta=piece)

    def call(self, ident: str, chat_name: str) -> None:
        """A function is called; its arguments follow. `chat_name` is what the function is called in chat."""
        space, name = self._asked.names.get(chat_name, ("", chat_name))
        item: Item = {"type": "function_call", "id": self._ident("fc"), "status": "in_progress"}
        item |= {"call_id": ident or self._ident("call"), "name": name, "arguments": ""}
        if space:
            item["namespace"] = space
        self._open_item(item)

    def arguments(self, piece: str) -> None:
        """A piece of the arguments of the call."""
        self._pieces.append(piece)
        self._say_of_item("response.function_call_arguments.delta", delta=piece)

    def close(self, status: str) -> None:
        """The item that is being told is over: completed or incomplete."""
        item = self._open
        if item is None:
            return
        if item["type"] == "function_call":
            if not self._pieces and status == "completed":
                self.arguments("{}")
            self._fill()
            self._say_of_item("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        self._close_part()
        item["status"] = status
        self._say("response.output_item.done", output_index=self._index(), item=item)
        self._open = None

    def end(self, reason: str | None) -> None:
        """The answer is over: complete, or incomplete for a reason."""
        status = "incomplete" if reason else "completed"
        self._begin()
        self.close(status)
        self.over = True
        self.response["status"] = status
        if reason:
            self.response["incomplete_details"] = {"reason": reason}
        elif self._clock:
            self.response["completed_at"] = int(self._clock())
        self._say(f"response.{status}", response=self.response)

    def fail(self, error: Error) -> None:
        """The answer will never be whole: an error event, then the response as far as it came, as failed."""
        self._begin()
        self.over = True
        self._say("error", code=error.code or error.type or None, message=error.message, param=error.param)
        if self._open is not None:
            self._fill()
            self._open["status"] = "incomplete"
        self.response["status"] = "failed"
        # The official client's type knows few codes, and these are the ones that tell whether to try again.
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response["error"] = {"code": code, "message": error.message}
        self._say("response.failed", response=self.response)

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            self._say("response.created", response=self.response)
            self._say("response.in_progress", response=self.response)

    def _open_item(self, item: Item) -> None:
        self._begin()
        self.close("completed")
        self._open = item
        self.response["output"].append(item)
        self._say("response.output_item.added", output_index=self._index(), item=item)

    def _open_reasoning(self) -> None:
        item: Item = {"type": "reasoning", "id": self._ident("rs"), "status": "in_progress", "summary": []}
        if not self._asked.as_summary:
            item["content"] = []
        if self._asked.with_sealed:
            item["encrypted_content"] = None
        self._open_item(item)
        if self._asked.as_summary:
            self._part = {"type": "summary_text", "text": ""}
            self._say_of_item("response.reasoning_summary_part.added", summary_index=0, part=self._part)
        else:
            self._open_part({"type": "reasoning_text", "text": ""})

    def _in_message(self, kind: str) -> Item:
        """The part of that kind that is being told, opened where need be."""
        if self._open is None or self._open["type"] != "message":
            item: Item = {"type": "message", "id": self._ident("msg"), "status": "in_progress"}
            self._open_item({**item, "role": "assistant", "content": []})
        if self._part is not None and self._part["type"] == kind:
            return self._part
        self._close_part()
        if kind == _REFUSAL:
            return self._open_part({"type": kind, "refusal": ""})
        return self._open_part({"type": kind, "text": "", "annotations": [], "logprobs": []})

    def _open_part(self, part: Item) -> Item:
        assert self._open is not None
        self._part = part
        self._open["content"].append(part)
        self._say_in_part("response.content_part.added", part=part)
        return part

    def _fill(self) -> str:
        """Put what was told in pieces into the item."""
        text, self._pieces = "".join(self._pieces), []
        part, item = self._part, self._open
        if item is not None and item["type"] == "function_call":
            item["arguments"] = text
        if part is None or item is None:
            return text
        part["refusal" if part["type"] == _REFUSAL else "text"] = text
        if part["type"] == _TEXT:
            part["logprobs"], self._logprobs = self._logprobs, []
        if part["type"] == "summary_text":
            item["summary"] = [part]
        if item["type"] == "reasoning" and self._asked.with_sealed:
            item["encrypted_content"] = sealed(text)
        return text

    def _close_part(self) -> None:
        part = self._part
        if part is None:
            return
        text = self._fill()
        match part["type"]:
            case "summary_text":
                self._say_of_item("response.reasoning_summary_text.done", summary_index=0, text=text)
                self._say_of_item("response.reasoning_summary_part.done", summary_index=0, part=part)
                self._part = None
                return
            case "reasoning_text":
                self._say_in_part("response.reasoning_text.done", text=text)
            case "refusal":
                self._say_in_part("response.refusal.done", refusal=text)
            case _:
                logprobs = [brief(one) for one in part["logprobs"]]
                self._say_in_part("response.output_text.done", text=text, logprobs=logprobs)
        self._say_in_part("response.content_part.done", part=part)
        self._part = None

    def _ident(self, prefix: str) -> str:
        return f"{prefix}_{self._request_id}_{len(self.response['output'])}"

    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _say_in_part(self, kind: str, **fields: object) -> None:
        assert self._open is not None
        self._say_of_item(kind, content_index=len(self._open["content"]) - 1, **fields)

    def _say_of_item(self, kind: str, **fields: object) -> None:
        assert self._open is not None
        self._say(kind, item_id=self._open["id"], output_index=self._index(), **fields)

    def _say(self, kind: str, **fields: object) -> None:
        self._events.append(event(kind, {"type": kind, "sequence_number": self._sequence, **fields}))
        self._sequence += 1
