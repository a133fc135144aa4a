"""The description is what is served: each path and method of it is asked for, and nothing else is there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.gateway import docs_page, openapi, operations
from tests.gateway.harness import CLIENT_KEY, SESSION_KEY, Gateway, model, provider, raw_exchange, status_of, target
from tests.gateway.test_guards import routes
from tests.gateway.test_surface import call
from tests.support.fake_provider import FakeProvider

SHA = hashlib.sha256(CLIENT_KEY.encode()).hexdigest()
KEYS = [{"name": "me", "sha256": SHA}]
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
VALUES = {"model": "chat", "response_id": "resp_1", "slot": "0", "file": "page.js"}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeProvider]:
    with FakeProvider(models=("m",)) as running:
        yield running


def told(gateway: Gateway, **headers: str) -> dict[str, Any]:
    status, _, document = call(gateway, "GET", "/openapi.json", **headers)
    assert status == 200
    return document  # type: ignore[no-any-return]


def filled(path: str) -> str:
    for name, value in VALUES.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def test_it_is_openapi_3_1(gateway: Gateway) -> None:
    gateway.use({"chat": model(None)}, api_keys=KEYS)
    document = told(gateway, x_api_key=CLIENT_KEY)
    assert document["openapi"].startswith("3.1.")
    idents = [o["operationId"] for item in document["paths"].values() for k, o in item.items() if k != "parameters"]
    assert len(set(idents)) == len(idents)
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name in json.dumps({k: v for k, v in document.items() if k != "components"} | schemas), name
    text = json.dumps(document)
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.partition('"')[0] in schemas
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    for path, item in document["paths"].items():
        named = {p["name"] for p in item.get("parameters", [])}
        assert named == {word[1:-1] for word in path.split("/") if word.startswith("{")}


def test_examples_are_what_they_say(gateway: Gateway) -> None:
    gateway.use({"chat": model(None)})
    document = told(gateway)
    seen = 0
    for item in document["paths"].values():
        media = item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        for example in (media or {}).get("examples", {}).values():
            schema = {**media["schema"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(example["value"])
            seen += 1
    assert seen > 15


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("prefix", ["/v1", "/api/x", ""])
def test_each_path_and_method_is_served_and_no_other(
    gateway: Gateway, fake: FakeProvider, prefix: str, keyed: bool
) -> None:
    """A path in the table never says that it is not there; a method that is not in it is a 405 with those that are."""
    gateway.use(
        {"chat": model(target(1))},
        providers={"far": provider(fake.url, ["m"])},
        prefix=prefix or "/",
        api_keys=KEYS if keyed else [],
    )
    shown = {"x_api_key": CLIENT_KEY} if keyed else {}
    document = told(gateway, **shown)
    assert len(document["paths"]) > 40
    for path, item in document["paths"].items():
        described = {name.upper() for name in item if name != "parameters"}
        for method in METHODS:
            body = b"{}" if method in ("POST", "PUT", "PATCH") else None
            status, headers, answer = _ask(gateway, method, filled(path), body, shown)
            if method in described:
                assert status != 405
                if status == 404 and answer:
                    assert answer["error"].get("code") in ("not_found", "model_not_found"), (path, method, answer)
                    assert "There is no /" not in answer["error"]["message"]
                assert str(status) in item[method.lower()]["responses"], (path, method, status)
            else:
                assert status == 405, (path, method)
                assert set(headers["allow"].split(", ")) == described
            if keyed:
                open_to_all = item.get(method.lower(), {}).get("security") == []
                assert (_ask(gateway, method, filled(path), body, {})[0] == 401) is not open_to_all, (path, method)


def _ask(
    gateway: Gateway, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, dict[str, str], Any]:
    """As `call`, for answers that are no JSON, too."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}"] if body is not None else []
    raw = raw_exchange(gateway.port, ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b""), one=False)
    head, _, data = raw.partition(b"\r\n\r\n")
    pairs = [line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:]]
    is_json = b"application/json" in head and data
    return status_of(raw), {k.lower(): v for k, v in pairs}, json.loads(data) if is_json else data


WORDS = [
    "", "v1", "models", "chat", "upstream", "responses", "x", "docs", "props", "..", "{model}", "completions",
    "input_items", "openapi.json", "%2f", "messages",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_what_is_found_is_in_the_table(words: list[str]) -> None:
    path = "/" + "/".join(words)
    there = [operations.served(True), operations.served(False)]
    for keep, table in zip((True, False), there, strict=True):
        place = operations.mapped("/v1", keep).find(path)
        if place is None:
            continue
        found = next(iter(place.operations.values())).whole("/v1")
        assert found in {each.whole("/v1") for each in table}
        for name, value in place.parts.items():
            assert value
            found = found.replace(f"{{{name}}}", value, 1)
        assert found == path


def test_paths_that_look_like_others_are_not_served(gateway: Gateway) -> None:
    gateway.use({"chat": model(target(1))})
    described = told(gateway)["paths"]
    paths = [filled(path) for path in described]
    for path in [filled(path) for path in described if not path.endswith("}")]:
        for other in (path + "/", path.upper(), "/" + path, path + "%20", path + ";x", "/v2" + path, path + "/x/y/z"):
            if other in paths or (other.startswith(("/v1/models/", "//")) and path == "/"):
                continue
            status = _ask(gateway, "GET", other, None, {})[0]
            assert status in (404, 400) or (other.startswith("/v1/models/") and status == 200), (path, other, status)


def test_nothing_kept_is_nothing_described(gateway: Gateway) -> None:
    gateway.use(keep_responses=False)
    assert not [path for path in told(gateway)["paths"] if path.startswith("/v1/responses/")]
    assert call(gateway, "GET", "/v1/responses/resp_1")[0] == 404
    gateway.use()
    assert "/v1/responses/{response_id}" in told(gateway)["paths"]


def test_it_tells_who_may_ask_what_they_may_ask(gateway: Gateway) -> None:
    keys = [{**KEYS[0], "allow": ["mine"]}]
    gateway.use({"mine": model(target(1)), "hidden-canary": model(target(1))}, api_keys=keys)
    assert call(gateway, "GET", "/openapi.json")[0] == 401
    text = json.dumps(told(gateway, x_api_key=CLIENT_KEY))
    assert '"mine"' in text
    for secret in ("hidden-canary", CLIENT_KEY, SESSION_KEY, SHA):
        assert secret not in text


def test_a_path_that_is_not_there_says_what_is(gateway: Gateway) -> None:
    status, _, body = call(gateway, "POST", "/v1/chat/completion", b"{}")
    assert (status, body["error"]["code"]) == (404, "not_found")
    assert "/v1/chat/completions" in body["error"]["message"]
    status, _, body = call(gateway, "POST", "/v1/message", b"{}", anthropic_version="2023-06-01")
    assert (status, body["type"], "/v1/messages" in body["error"]["message"]) == (404, "error", True)


def test_each_row_says_what_it_is() -> None:
    document = openapi.describe(dataclasses.replace(routes([]), keep_responses=True), ["a"], "1")
    for operation in operations.TABLE:
        described = document["paths"][operation.whole("/v1")][operation.method.lower()]
        assert described["summary"] == operation.summary
        assert described["responses"]["200"]
    assert set(docs_page.FILES) >= {"", "page.js"}


# -- ready ------------------------------------------------------------------------------------------------------------


def test_ready(gateway: Gateway) -> None:
    late = {**model(None), "on_demand": True}
    gateway.use({"chat": model(target(1)), "late": late, "mine": {**model(None), "by_hand": True}})
    status, _, body = call(gateway, "GET", "/ready")
    assert (status, body["status"], body["missing"]) == (200, "ready", {})
    assert body["serial"] == gateway.serial
    gateway.use({"chat": model(None, reason="downloading 40 %"), "late": late, "other": model(None)})
    status, headers, body = call(gateway, "GET", "/ready")
    expected = {"chat": "downloading 40 %", "other": "it is being started"}
    assert (status, body["status"], body["waiting"], body["missing"]) == (503, "waiting", 2, expected)
    assert headers["retry-after"] == "2"
    assert call(gateway, "HEAD", "/ready")[::2] == (503, None)
    assert call(gateway, "POST", "/ready", b"")[1]["allow"] == "GET, HEAD"


def test_ready_names_nothing_to_strangers(gateway: Gateway) -> None:
    keys = [{**KEYS[0], "allow": ["chat"]}]
    gateway.use({"chat": model(None), "other": model(None)}, api_keys=keys)
    status, _, body = call(gateway, "GET", "/ready")
    assert (status, body["waiting"], body["missing"]) == (503, 2, {})
    assert set(call(gateway, "GET", "/ready", x_api_key=CLIENT_KEY)[2]["missing"]) == {"chat"}
