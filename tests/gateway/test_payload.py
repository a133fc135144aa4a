from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.gateway.errors import Refusal
from reconciler.gateway.payload import encoded, parse, refuse_addresses, rewritten
from reconciler.gateway.routes import Rewrite


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "missing_body", None),
        (b"{", "invalid_json", None),
        (b"model=chat", "invalid_json", None),
        (b'{"model":"a"} x', "invalid_json", None),
        (b'{"model":"a","x":NaN}', "invalid_json", None),
        (b'{"model":"a","x":-Infinity}', "invalid_json", None),
        (b'{"model":"\xff"}', "invalid_json", None),
        ('{"model":"a"}'.encode("utf-16"), "invalid_json", None),
        (b'\xef\xbb\xbf{"model":"a"}', "invalid_json", None),
        (b'{"model":"a","x":' + b"9" * 5000 + b"}", "invalid_json", None),
        (b'{"model":"a","x":' + b"[" * 200_000, "invalid_json", None),
        (b'{"model":"a","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"chat"', "invalid_json", None),
        (b"null", "invalid_json", None),
        (b"{}", "invalid_model", "model"),
        (b'{"model":null}', "invalid_model", "model"),
        (b'{"model":""}', "invalid_model", "model"),
        (b'{"model":["a"]}', "invalid_model", "model"),
        (b'{"messages":[{"model":"a"}]}', "invalid_model", "model"),
        (b'{"model":"a","model":"b"}', "invalid_model", "model"),
        (b'{"model":"a","model":"a"}', "invalid_model", "model"),
        (b'{"model":"a","\\u006dodel":"b"}', "invalid_model", "model"),
        (b'{"model":"a","mo\\u0064e\\u006C":"b"}', "invalid_model", "model"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        parse(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a"}',
        b' \n{"messages":[{"model":"x"},{"model":"y"}],"model":"a"} \n',
        b'{"\\u006dodel":"a"}',
        b'{"model":"a","m":"\\u0065"}',
    ],
)
def test_the_top_level_model_counts(body: bytes) -> None:
    assert parse(body)["model"] == "a"


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_make_it_fail_otherwise(body: bytes) -> None:
    try:
        name = parse(body)["model"]
    except Refusal as refusal:
        assert refusal.status == 400  # noqa: PT017 - any refusal will do, but nothing else
    else:
        assert json.loads(body)["model"] == name


def test_another_name_changes_nothing_else() -> None:
    body = '{"x":[1,2.5,null,"é\\ud800"],"model":"a","messages":[{"model":"a"}]}'.encode()
    assert parse(encoded(rewritten(parse(body), Rewrite(), "/m/é"))) == {**parse(body), "model": "/m/é"}


def test_a_number_that_json_cannot_say_is_not_passed_on_under_another_name() -> None:
    with pytest.raises(Refusal) as caught:
        encoded(parse(b'{"model":"a","x":1e999}'))
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_a_request_is_rewritten_and_otherwise_left_alone() -> None:
    document = {"model": "a", "top_k": 3, "temperature": 1, "user": "me"}
    rewrite = Rewrite(set={"temperature": 0}, default={"top_k": 9, "seed": 1}, strip=("user",))
    assert rewritten(document, rewrite, None) == {"model": "a", "top_k": 3, "temperature": 0, "seed": 1}
    assert rewritten(document, Rewrite(set={"model": "z"}), "b")["model"] == "b", "whom to ask is not the request's"
    assert rewritten(document, Rewrite(), "a") is document


@pytest.mark.parametrize(
    "field",
    [
        {"api_base": "http://evil"},
        {"metadata": {"base_url": "http://evil"}},
        {"extra_body": [{"a": {"Api-Base": "http://evil"}}]},
        {"litellm_params": {}},
        {"fallbacks": [[{"model": "x", "api_base": "http://evil"}]]},
    ],
)
def test_a_client_cannot_say_whom_to_ask(field: dict[str, object]) -> None:
    with pytest.raises(Refusal, match="cannot say whom to ask") as caught:
        refuse_addresses({"model": "a", **field})
    assert caught.value.code == "address_refused"


def test_what_people_write_is_not_searched_for_addresses() -> None:
    properties = {"parameters": {"properties": {"base_url": {"type": "string"}}}}
    call = {"role": "assistant", "tool_calls": [{"function": {"arguments": {"api_base": "x"}}}]}
    refuse_addresses({"model": "a", "messages": [call], "tools": [{"function": properties}], "temperature": 1})
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    refuse_addresses({"model": "a", "metadata": deep})
