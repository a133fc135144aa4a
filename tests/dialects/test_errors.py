"""Errors of every provider become either dialect's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.dialects import errors
from reconciler.dialects.errors import Error, anthropic_error, openai_error, parse_error

FUZZ = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def body(document: object) -> bytes:
    return json.dumps(document).encode()


SAID: dict[str, tuple[int, bytes, Error]] = {
    "openai": (
        400,
        body({"error": {"message": "No", "type": "invalid_request_error", "param": "messages", "code": "bad"}}),
        Error(400, "invalid_request_error", "No", "bad", "messages"),
    ),
    "anthropic": (
        529,
        body({"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}, "request_id": "r"}),
        Error(529, "overloaded_error", "Busy"),
    ),
    "gemini": (
        429,
        body([{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED", "details": []}}]),
        Error(429, "RESOURCE_EXHAUSTED", "Quota", "429"),
    ),
    "llama-server": (
        400,
        body({"error": {"code": 400, "message": "Too long", "type": "exceed_context_size_error"}}),
        Error(400, "exceed_context_size_error", "Too long", "400"),
    ),
    "vllm": (
        400,
        body({"object": "error", "message": "boom", "type": "BadRequestError", "param": None, "code": 400}),
        Error(400, "BadRequestError", "boom", "400"),
    ),
    "text in error": (500, body({"error": "model not loaded"}), Error(500, "", "model not loaded")),
    "message alone": (401, body({"message": "Who?"}), Error(401, "", "Who?")),
    "detail": (422, body({"detail": "No such field"}), Error(422, "", "No such field")),
    "details": (422, body({"detail": [{"msg": "x"}]}), Error(422, "", '[{"msg":"x"}]')),
    "string": (500, body("down"), Error(500, "", "down")),
    "text": (503, b"upstream connect error\n", Error(503, "", "upstream connect error")),
    "nothing": (502, b"", Error(502, "", "The upstream answered 502 without saying why")),
    "empty object": (500, b"{}", Error(500, "", "The upstream answered 500 without saying why")),
    "null": (500, b"null", Error(500, "", "The upstream answered 500 without saying why")),
    "html": (
        504,
        b"<html><head><title>504 Gateway &amp; Time-out</title></head><body>x</body></html>",
        Error(504, "", "504 Gateway & Time-out"),
    ),
    "html without title": (500, b"<p>It is <b>broken</b></p><script>x()</script>", Error(500, "", "It is broken")),
    "not utf-8": (500, b"\xff down", Error(500, "", "\ufffd down")),
    "success that is an error": (200, body({"error": {"message": "x", "code": 429}}), Error(429, "", "x", "429")),
    "success with a type": (
        200, body({"error": {"message": "x", "type": "rate_limit_error"}}), Error(429, "rate_limit_error", "x"),
    ),
    "success with a code in words": (
        200, body({"error": {"message": "x", "code": "insufficient_quota"}}), Error(429, "", "x", "insufficient_quota"),
    ),
    "success without a word": (200, b"", Error(502, "", "The upstream answered 200 without saying why")),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_an_upstream_says(name: str) -> None:
    status, said, error = SAID[name]
    assert parse_error(status, said) == error


def test_a_long_message_is_cut() -> None:
    error = parse_error(400, body({"error": {"message": "x" * 100_000}}))
    assert len(error.message) == 4000
    assert len(parse_error(500, b"y" * 1_000_000).message) == 4000


@FUZZ
@given(st.integers(0, 999), st.binary(max_size=200))
def test_any_bytes(status: int, data: bytes) -> None:
    error = parse_error(status, data)
    assert 400 <= error.status <= 599
    assert error.message


KEYS = st.sampled_from(["error", "message", "type", "code", "status", "detail", "param", "object", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=10,
)


@FUZZ
@given(st.integers(200, 599), JSON)
def test_any_document(status: int, document: Any) -> None:
    error = parse_error(status, body(document))
    assert 400 <= error.status <= 599
    assert json.loads(openai_error(error))["error"]["message"] == error.message != ""
    assert json.loads(anthropic_error(error))["error"]["type"] in errors.ANTHROPIC_TYPES.values()


@pytest.mark.parametrize(("status", "kind"), errors.ANTHROPIC_TYPES.items())
def test_every_status_has_its_type_at_anthropic(status: int, kind: str) -> None:
    assert json.loads(anthropic_error(Error(status, "", "x"))) == {
        "type": "error",
        "error": {"type": kind, "message": "x"},
    }
    assert parse_error(200, anthropic_error(Error(status, "", "x"))).status == status


@pytest.mark.parametrize(("status", "kind"), errors.OPENAI_TYPES.items())
def test_every_status_has_its_type_at_openai(status: int, kind: str) -> None:
    said = {"message": "x", "type": kind, "param": None, "code": None}
    assert json.loads(openai_error(Error(status, "", "x"))) == {"error": said}


@pytest.mark.parametrize(
    ("error", "openai", "anthropic"),
    [
        (Error(503, "", "x"), "overloaded_error", "overloaded_error"),
        (Error(529, "overloaded_error", "x"), "overloaded_error", "overloaded_error"),
        (Error(500, "api_error", "x"), "server_error", "api_error"),
        (Error(500, "server_error", "x"), "server_error", "api_error"),
        (Error(429, "insufficient_quota", "x"), "insufficient_quota", "rate_limit_error"),
        (Error(429, "RESOURCE_EXHAUSTED", "x"), "rate_limit_error", "rate_limit_error"),
        (Error(422, "", "x"), "invalid_request_error", "invalid_request_error"),
        (Error(418, "", "x"), "invalid_request_error", "invalid_request_error"),
        (Error(599, "", "x"), "server_error", "api_error"),
    ],
)
def test_types_in_the_callers_words(error: Error, openai: str, anthropic: str) -> None:
    assert json.loads(openai_error(error))["error"]["type"] == openai
    assert json.loads(anthropic_error(error, "r"))["error"]["type"] == anthropic
    assert json.loads(anthropic_error(error, "r"))["request_id"] == "r"


def test_a_prompt_that_is_too_long_is_known_as_such() -> None:
    engine = parse_error(400, body({"error": {"code": 400, "message": "9 > 4", "type": "exceed_context_size_error"}}))
    openai = parse_error(400, body({"error": {"code": "context_length_exceeded", "message": "9 > 4", "type": "x"}}))
    for error in (engine, openai):
        said = {"type": "invalid_request_error", "message": "prompt is too long: 9 > 4"}
        assert json.loads(anthropic_error(error))["error"] == said
        assert json.loads(openai_error(error))["error"]["code"] == "context_length_exceeded"


def test_overloaded_has_two_statuses() -> None:
    assert (errors.openai_status(529), errors.openai_status(503), errors.openai_status(429)) == (503, 503, 429)
    assert (errors.anthropic_status(503), errors.anthropic_status(529), errors.anthropic_status(404)) == (529, 529, 404)
