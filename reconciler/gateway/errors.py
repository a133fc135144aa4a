"""Refusals: every way in which the gateway says no, in the shape of the caller's dialect.

PURE. A refusal says whose fault it is: `invalid_request_error`, `authentication_error` and `permission_error`
are the client's, `upstream_error` the engine's, `server_error` ours. It never carries a key or request content
beyond the name of the model or path that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from reconciler.dialects.errors import Error, anthropic_error, openai_error

CLIENT = "invalid_request_error"
UPSTREAM = "upstream_error"
OURS = "server_error"


class Refusal(Exception):
    """An answer other than the one asked for.

    `status` is the HTTP status; `headers` are extra response headers, already legal HTTP;
    `close` asks that the client's connection is not used again. `trouble` says what kind of trouble a target is in
    ("unavailable", "overloaded" or "timeout"), so that another may be asked; empty where asking another is no help.
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
        trouble: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.close = close
        self.trouble = trouble

    def body(self, dialect: str = "openai", request_id: str = "") -> bytes:
        """The error object as JSON, as an HTTP body or as the data of an event."""
        if dialect == "anthropic":  # whose types follow from the status alone
            return anthropic_error(Error(self.status, "", self.message), request_id)
        return openai_error(Error(self.status, self.kind, self.message, self.code, self.param))

    def event(self, dialect: str = "openai") -> bytes:
        """The event that ends a stream in the middle."""
        return (b"event: error\n" if dialect == "anthropic" else b"") + b"data: %b\n\n" % self.body(dialect)


def model_not_found(name: str, nearest: str | None, available: list[str], more: int) -> Refusal:
    """404 with the nearest name and a short list of what there is."""
    text = f"The model '{name}' does not exist."
    if nearest is not None:
        text += f" Did you mean '{nearest}'?"
    text += f" Available: {', '.join(available) or 'none'}"
    if more:
        text += f" and {more} more (GET models lists all)"
    return Refusal(404, text, param="model", code="model_not_found")


def wrong_task(name: str, task: str) -> Refusal:
    """400 for a model that does not make text."""
    text = f"The model '{name}' is for {task}; it does not generate text"
    return Refusal(400, text, param="model", code="wrong_task")


def not_allowed(name: str, key: str) -> Refusal:
    """403 for a model that the client's key may not ask for."""
    text = f"The key '{key}' may not ask for '{name}'"
    return Refusal(403, text, kind="permission_error", param="model", code="model_not_allowed")


def not_for_all(key: str) -> Refusal:
    """403 for a key that may ask for some models only, and so may not see what is said of all."""
    text = f"The key '{key}' may ask for some models only; metrics tell of all"
    return Refusal(403, text, kind="permission_error", code="metrics_not_allowed")


def too_many_requests(what: str, seconds: float) -> Refusal:
    """429 for a key that has used up what it may; `seconds` until it may ask again."""
    headers = {"Retry-After": str(max(1, ceil(seconds)))}
    return Refusal(429, what, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def cannot_do(name: str, what: str) -> Refusal:
    """400 for something that a target does not offer."""
    return Refusal(400, f"{name} does not offer {what}", param="model", code="not_offered")


def field_refused(field: str, message: str) -> Refusal:
    """400 that names a field which cannot be said to the target."""
    return Refusal(400, message, param=field, code="unsupported_field")


def provider_down(name: str, reason: str) -> Refusal:
    """503 for a provider that cannot be asked as things are."""
    text = f"The provider '{name}' cannot be asked: {reason}"
    return _down(503, text, "unavailable", "provider_unavailable", retry_after="5")


def model_not_ready(name: str, reason: str) -> Refusal:
    """503 for a model that is declared but not yet served."""
    text = f"The model '{name}' is not ready: {reason or 'it is being started'}"
    return _down(503, text, "unavailable", "model_not_ready", param="model", retry_after="2")


def model_not_loaded(name: str, why: str, retry_after: float) -> Refusal:
    """503 for a model that loads on demand and did not; `retry_after` in seconds."""
    after = str(max(1, round(retry_after)))
    text = f"The model '{name}' could not be loaded: {why}"
    return _down(503, text, "unavailable", "model_not_loaded", param="model", retry_after=after)


def too_many_waiting(name: str, most: int) -> Refusal:
    """503 when `most` clients wait for a model to be loaded already."""
    text = f"{most} requests wait for the model '{name}' to be loaded; try again later"
    return _down(503, text, "overloaded", "queue_full", param="model", retry_after="10")


def line_full(target: str, most: int) -> Refusal:
    """503 when `most` requests wait for their turn at a target already."""
    text = f"{most} requests wait for {target}, which takes only so many at once; try again later"
    return _down(503, text, "overloaded", "queue_full", retry_after="5")


def no_such_path(path: str, prefix: str, nearest: Sequence[str] = ()) -> Refusal:
    """404 for a path that the gateway does not serve, with those that are written most like it."""
    text = f"There is no {path[:200]} here. The API is under {prefix}"
    if nearest:
        text += f"; there is {', '.join(nearest)}"
    return Refusal(404, f"{text} (GET /openapi.json lists all)", code="not_found")


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
    return _down(503, text, "unavailable", "upstream_restarting", retry_after="1")


def target_unreachable(target: str, why: str) -> Refusal:
    """502: no connection to somebody elsewhere."""
    text = f"{target} cannot be reached: {why}"
    return _down(502, text, "unavailable", "upstream_unreachable")


def target_refused_key(target: str, status: int) -> Refusal:
    """502: somebody elsewhere refuses the gateway's key. The client's own key is not what is wrong."""
    text = f"{target} refused the key that the gateway has for it ({status})"
    return _down(502, text, "unavailable", "upstream_refused_key")


def target_broke(target: str, why: str) -> Refusal:
    """502: the engine ended the connection, or spoke nonsense."""
    return _down(502, f"{target} broke off: {why}", "unavailable", "upstream_broken")


def target_silent(target: str, seconds: float) -> Refusal:
    """504: the engine sent nothing for `seconds`."""
    return _down(504, f"{target} sent nothing for {seconds:g} seconds", "timeout", "upstream_timeout")


def _down(
    status: int, message: str, trouble: str, code: str, *, param: str | None = None, retry_after: str = ""
) -> Refusal:
    """What is wrong with a target; `retry_after` in seconds, as the header says it."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Refusal(status, message, kind=UPSTREAM, param=param, code=code, headers=headers, trouble=trouble)
