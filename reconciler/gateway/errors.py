"""Refusals: every way in which the gateway says no, in OpenAI's error shape.

PURE. A refusal says whose fault it is: `invalid_request_error`, `authentication_error` and `permission_error`
are the client's, `upstream_error` the engine's, `server_error` ours. It never carries a key or request content
beyond the name of the model or path that was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

CLIENT = "invalid_request_error"
UPSTREAM = "upstream_error"
OURS = "server_error"


class Refusal(Exception):
    """An answer other than the one asked for.

    `status` is the HTTP status; `headers` are extra response headers, already legal HTTP;
    `close` asks that the client's connection is not used again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = CLIENT,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.close = close

    def body(self) -> bytes:
        """The error object as JSON, as an HTTP body or as the data of an event."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


def model_not_found(name: str, nearest: str | None, available: list[str], more: int) -> Refusal:
    """404 with the nearest name and a short list of what there is."""
    text = f"The model '{name}' does not exist."
    if nearest is not None:
        text += f" Did you mean '{nearest}'?"
    text += f" Available: {', '.join(available) or 'none'}"
    if more:
        text += f" and {more} more (GET models lists all)"
    return Refusal(404, text, param="model", code="model_not_found")


def model_not_ready(name: str, reason: str) -> Refusal:
    """503 for a model that is declared but not yet served."""
    text = f"The model '{name}' is not ready: {reason or 'it is being started'}"
    return Refusal(503, text, kind=UPSTREAM, param="model", code="model_not_ready", headers={"Retry-After": "2"})


def model_not_loaded(name: str, why: str, retry_after: float) -> Refusal:
    """503 for a model that loads on demand and did not; `retry_after` in seconds."""
    headers = {"Retry-After": str(max(1, round(retry_after)))}
    text = f"The model '{name}' could not be loaded: {why}"
    return Refusal(503, text, kind=UPSTREAM, param="model", code="model_not_loaded", headers=headers)


def too_many_waiting(name: str, most: int) -> Refusal:
    """503 when `most` clients wait for a model to be loaded already."""
    text = f"{most} requests wait for the model '{name}' to be loaded; try again later"
    return Refusal(503, text, kind=UPSTREAM, param="model", code="queue_full", headers={"Retry-After": "10"})


def no_such_path(path: str, prefix: str) -> Refusal:
    """404 for a path that the gateway does not serve."""
    return Refusal(404, f"There is no {path[:200]} here. The API is under {prefix}", code="not_found")


def wrong_method(method: str, allowed: tuple[str, ...]) -> Refusal:
    """405 with the methods that the path has."""
    listed = ", ".join(allowed)
    return Refusal(
        405, f"{method} is not allowed here; use {listed}", code="method_not_allowed", headers={"Allow": listed}
    )


def body_too_large(limit: int) -> Refusal:
    """413; `limit` in bytes."""
    return Refusal(413, f"The request body is larger than {limit} bytes", code="body_too_large", close=True)


def target_restarting(target: str) -> Refusal:
    """503: nothing listens at the target's address, or it no longer takes our key: it is being replaced."""
    text = f"{target} is being restarted; try again in a moment"
    return Refusal(503, text, kind=UPSTREAM, code="upstream_restarting", headers={"Retry-After": "1"})


def target_broke(target: str, why: str) -> Refusal:
    """502: the engine ended the connection, or spoke nonsense."""
    return Refusal(502, f"{target} broke off: {why}", kind=UPSTREAM, code="upstream_broken")


def target_silent(target: str, seconds: float) -> Refusal:
    """504: the engine sent nothing for `seconds`."""
    return Refusal(504, f"{target} sent nothing for {seconds:g} seconds", kind=UPSTREAM, code="upstream_timeout")
