"""What differs between two manifests is told key by key, and no secret with it."""

from __future__ import annotations

import json
from typing import Any

from reconciler.core.ids import pin_key
from reconciler.manifest.compare import differences
from reconciler.manifest.lock import Lock
from reconciler.manifest.reading import Reading
from tests.manifest.helper import WHOLE, read_text

ONE = """\
version: 1
models:
  a: {source: file:x, context: 2k, aliases: [p, q]}
  b: {source: file:y}
gateway: {port: 1400}
"""
A, B = "a" * 64, "b" * 64


def told(left: str, right: str, old: dict[str, Any] | None = None, new: dict[str, Any] | None = None) -> list[Any]:
    found = differences(Reading(read_text(left), Lock(old or {})), Reading(read_text(right), Lock(new or {})))
    return [(f.path, f.before, f.after) for f in found]


def test_the_same_manifest_differs_in_nothing() -> None:
    assert told(WHOLE, WHOLE, {pin_key("file:x"): {"sha256": A}}, {pin_key("file:x"): {"sha256": A}}) == []
    assert told(ONE, ONE.replace("\n", "\n# a comment\n")) == []


def test_a_changed_key_is_told_by_its_path() -> None:
    right = ONE.replace("2k", "4k").replace("[p, q]", "[q]").replace("1400", "1500")
    assert told(ONE, right) == [
        ("models.a.context", "2k", "4k"),
        ("models.a.aliases", ["p", "q"], ["q"]),
        ("gateway.port", 1400, 1500),
    ]


def test_what_one_side_lacks_is_none_there() -> None:
    assert told(ONE, ONE.replace("  b: {source: file:y}\n", "").replace("context: 2k, ", "")) == [
        ("models.a.context", "2k", None),
        ("models.b", {"source": "file:y"}, None),
    ]
    assert told("version: 1\n", "version: 1\nname: n\n") == [("name", None, "n")]


def test_a_value_of_another_type_differs() -> None:
    assert told(ONE, ONE.replace("context: 2k", "context: 2048")) == [("models.a.context", "2k", 2048)]
    before, after = (ONE.replace("context: 2k", f"options: {{x: {v}}}") for v in ("1", "true"))
    assert told(before, after) == [("models.a.options.x", 1, True)]


def test_pins_are_told_by_their_source() -> None:
    kept, gone, new, moved = (pin_key(f"file:{n}") for n in "kgnm")
    mac = pin_key("pypi:z==1", "", "macos-arm64-cp311")
    old = {kept: {"sha256": A}, gone: {"sha256": A}, moved: {"sha256": A}}
    now = {kept: {"sha256": A}, moved: {"sha256": B}, new: {"sha256": B}, mac: {"sha256": B}}
    assert told(ONE, ONE, old, now) == [
        ("file:g in the lock", A, None),
        ("file:m in the lock", A, B),
        ("file:n in the lock", None, B),
        ("pypi:z==1 in the lock for macos-arm64-cp311", None, B),
    ]


SECRET = "hunter2"
PRIVATE = [
    "models: {a: {source: file:x, env: {TOKEN: %s}}}",
    "models: {a: {source: 'https://host/m.gguf?token=%s'}}",
    "models: {a: {source: file:x, draft: 'https://host/m.gguf?token=%s'}}",
    "models: {a: {source: file:x, lora: ['https://host/m.gguf?token=%s']}}",
    "models: {a: {source: file:x, lora: [{source: 'https://host/m.gguf?token=%s'}]}}",
    "providers: {p: {preset: openai, headers: {X-Key: %s}}}",
    "providers: {p: {preset: openai, api_key: 'env:%s'}}",
    "providers: {p: {preset: openai, api_key: ['env:%s', 'env:B']}}",
    "mcp_servers: {m: {command: x, env: {TOKEN: %s}}}",
    "mcp_servers: {m: {url: 'http://host/', headers: {X-Key: %s}}}",
    "engines: {e: {type: command, argv: [x, '{port}'], env: {TOKEN: %s}}}",
    "gateway: {api_keys: [{name: a, key: 'env:%s'}]}",
]


def test_no_secret_is_told_whichever_side_has_it_and_however_much_of_it_is_new() -> None:
    for template in PRIVATE:
        with_, other = (f"version: 1\n{template % word}\n" for word in (SECRET, "another"))
        section = template.partition(":")[0]
        sides = [(with_, other), (with_, "version: 1\n"), (with_, f"version: 1\n{section}: {{}}\n")]
        for left, right in [*sides, *((b, a) for a, b in sides)]:
            found = told(left, right)
            assert found, "that something differs is told"
            assert SECRET not in json.dumps(found), template


def test_a_token_in_the_address_of_a_pin_is_not_told() -> None:
    pins = {pin_key(f"https://host/m.gguf?token={SECRET}"): {"sha256": A}}
    assert told(ONE, ONE, {}, pins) == [("https://host/m.gguf?… in the lock", None, A)]


def test_that_a_hidden_value_changed_is_told() -> None:
    before, after = (ONE.replace("context: 2k", f"env: {{TOKEN: {v}}}") for v in ("one", "two"))
    assert told(before, after) == [("models.a.env.TOKEN", "…", "…")]
