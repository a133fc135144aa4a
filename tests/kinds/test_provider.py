"""Providers: what a manifest means, what follows from what asking gave, and what a plan and a status say of it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_args

import pytest

from reconciler.core.ids import Ref
from reconciler.core.plan import Change
from reconciler.core.state import Declared, Found, Owned, World
from reconciler.dialects.quirks import PLAIN
from reconciler.kinds.provider.listing import page
from reconciler.kinds.provider.presets import PRESETS
from reconciler.kinds.provider.rules import AGAIN, FRESH, ProviderRules, ProviderState, Record, record, seen
from reconciler.kinds.provider.spec import PresetName, ProviderSection, ProviderSpec, QuirksSection, resolve, shape
from tests.manifest.helper import the_fault

REF = Ref("provider", "p")


def spec(**keys: Any) -> ProviderSpec:
    return resolve("p", ProviderSection.model_validate(keys))


# -- presets and sections -------------------------------------------------------------------------------------------


def test_every_preset_has_its_row_and_its_quirks_are_known() -> None:
    assert set(PRESETS) == set(get_args(PresetName))
    for name, preset in PRESETS.items():
        assert set(preset.quirks) <= set(QuirksSection.model_fields), name
        QuirksSection.model_validate(dict(preset.quirks))
        assert preset.needs_base or preset.openai or preset.anthropic, name
        for url in filter(None, (preset.openai, preset.anthropic)):
            assert url.startswith(("https://", "http://localhost:")), name
            assert not url.endswith("/"), name
        assert not (preset.responses and not preset.openai and not preset.needs_base), name


def test_quirks_are_those_that_the_translators_read() -> None:
    """All but `temperature`, which is a pair, and follows from the dialect."""
    known = {field.name: getattr(PLAIN, field.name) for field in fields(PLAIN)}
    assert set(QuirksSection.model_fields) == set(known) - {"temperature"}
    for name, preset in PRESETS.items():
        assert all(type(value) is type(known[key]) for key, value in preset.quirks.items()), name


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"azure"}))
def test_every_preset_can_be_asked_with_its_name_alone(name: str) -> None:
    made = spec(preset=name)
    assert made.speaks
    assert made.private == any("localhost" in url for _, url in made.speaks)
    assert made.keyless is PRESETS[name].keyed


@pytest.mark.parametrize(
    ("keys", "speaks"),
    [
        ({"preset": "openai"}, {"openai": "https://api.openai.com/v1", "responses": "https://api.openai.com/v1"}),
        ({"preset": "anthropic"}, {"anthropic": "https://api.anthropic.com/v1"}),
        (
            {"preset": "deepseek"},
            {"openai": "https://api.deepseek.com/v1", "anthropic": "https://api.deepseek.com/anthropic/v1"},
        ),
        ({"preset": "deepseek", "dialect": "anthropic"}, {"anthropic": "https://api.deepseek.com/anthropic/v1"}),
        ({"preset": "deepseek", "base_url": "https://h/v1"}, {"openai": "https://h/v1"}),
        (
            {"preset": "azure", "base_url": "https://me.openai.azure.com/"},
            {
                "openai": "https://me.openai.azure.com/openai/v1",
                "responses": "https://me.openai.azure.com/openai/v1",
            },
        ),
        (
            {"preset": "azure", "base_url": "https://me.openai.azure.com/openai/v1/", "responses": False},
            {"openai": "https://me.openai.azure.com/openai/v1"},
        ),
        ({"base_url": "http://10.0.0.7:8000/v1/"}, {"openai": "http://10.0.0.7:8000/v1"}),
        ({"base_url": "https://h/v1", "responses": True}, {"openai": "https://h/v1", "responses": "https://h/v1"}),
        ({"base_url": "https://h/a", "dialect": "anthropic"}, {"anthropic": "https://h/a/v1"}),
        ({"anthropic_base_url": "https://h/a"}, {"anthropic": "https://h/a/v1"}),
        ({"anthropic_base_url": "https://h/a/v1/"}, {"anthropic": "https://h/a/v1"}),
        (
            {"base_url": "https://h/v1", "anthropic_base_url": "https://h/anthropic"},
            {"openai": "https://h/v1", "anthropic": "https://h/anthropic/v1"},
        ),
        (
            {"preset": "ollama", "base_url": "http://nas:11434"},
            {"openai": "http://nas:11434/v1", "anthropic": "http://nas:11434/v1"},
        ),
        ({"preset": "vllm", "base_url": "http://nas:8000", "responses": False}, {"openai": "http://nas:8000/v1"}),
    ],
)
def test_where_each_dialect_is_spoken(keys: dict[str, Any], speaks: dict[str, str]) -> None:
    assert dict(spec(**keys).speaks) == speaks


@pytest.mark.parametrize(
    ("keys", "auth", "lists"),
    [
        ({"preset": "openai"}, "bearer", "openai"),
        ({"preset": "anthropic"}, "x-api-key", "anthropic"),
        ({"preset": "azure", "base_url": "https://a"}, "api-key", "none"),
        ({"base_url": "https://h/v1"}, "bearer", "openai"),
        ({"base_url": "https://h", "dialect": "anthropic"}, "x-api-key", "anthropic"),
        ({"base_url": "https://h/v1", "auth": "none"}, "none", "openai"),
        ({"preset": "openrouter", "auth": "x-api-key"}, "x-api-key", "openai"),
    ],
)
def test_how_it_is_asked(keys: dict[str, Any], auth: str, lists: str) -> None:
    made = spec(**keys)
    assert (made.auth, made.lists) == (auth, lists)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("http://localhost:1/v1", True),
        ("http://10.0.0.7/v1", True),
        ("http://[::1]:8/v1", True),
        ("http://nas.local/v1", False),
        ("https://example.com/v1", False),
    ],
)
def test_a_private_address_is_meant_where_it_is_written(url: str, private: bool) -> None:
    assert spec(base_url=url).private is private
    assert spec(base_url=url, private=not private).private is not private


def test_headers_keys_and_proxies_are_told_apart_from_secrets() -> None:
    made = spec(
        preset="anthropic",
        api_key=["env:A", "file:b"],
        headers={"X-Team": "ml", "X-Secret": "file:s", "Anthropic-Version": "2024-01-01"},
        proxy="env:PROXY",
    )
    assert made.keys == ("env:A", "file:b")
    assert made.headers == (("Anthropic-Version", "2024-01-01"), ("X-Team", "ml"))
    assert made.secret_headers == (("X-Secret", "file:s"),)
    assert (made.proxy, made.secret_proxy) == ("", "env:PROXY")
    assert (spec(preset="openai", proxy="http://p:3128").proxy, made.keyless) == ("http://p:3128", False)


def test_timeouts_requests_and_quirks_arrive() -> None:
    made = spec(
        preset="openai",
        timeouts={"connect": "2s", "idle": "1m"},
        request={"set": {"temperature": 0}},
        quirks={"max_tokens": "max_tokens", "choices": 1},
    )
    assert dict(made.timeouts) == {"connect_seconds": 2.0, "idle_seconds": 60.0}
    assert shape(made.request) == {"set": {"temperature": 0}}
    assert shape(made.quirks) == {"max_tokens": "max_tokens", "effort": "xhigh", "files": True, "choices": 1}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("{}", "it has neither a `preset` nor a `base_url`"),
        ("{preset: azure}", "the preset 'azure' needs a `base_url`"),
        ("{preset: opnai}", "must be"),
        ("{preset: anthropic, dialect: openai}", "does not speak openai"),
        ("{base_url: 'https://h/v1?key=secret-canary'}", "no `?` and no `#`"),
        ("{base_url: 'https://me:secret-canary@h/v1'}", "credentials do not belong"),
        ("{base_url: 'http://169.254.169.254/v1'}", "credentials: it is never asked"),
        ("{base_url: 'http://0.0.0.0/v1'}", "it is never asked"),
        ("{preset: openai, proxy: 'http://u:secret-canary@p'}", "is written as a reference"),
        ("{preset: openai, proxy: 'socks5://p'}", "a proxy is written http://host:port"),
        ("{preset: openai, api_key: sk-secret-canary}", ""),
        ("{preset: openai, headers: {authorization: 'Bearer secret-canary'}}", "holds a secret, which is written as"),
        ("{preset: openai, headers: {Host: a.example}}", "the header Host belongs to the connection"),
        ("{preset: openai, headers: {X-A: a, x-a: b}}", "two headers have the same name"),
        ("{preset: openai, quirks: {nonsense: 1}}", "unknown key 'nonsense'"),
        ("{preset: openai, quirks: {effort: most}}", "must be"),
        ("{preset: openai, allow: []}", "must not be empty"),
    ],
)
def test_a_mistake_is_told_at_its_place_without_secrets(keys: str, said: str) -> None:
    fault = the_fault(f"version: 1\nproviders: {{p: {keys}}}\n")
    assert fault.where is not None
    assert fault.where.line == 2
    assert said in fault.summary
    assert "secret-canary" not in f"{fault}{fault.to_json()}"


def test_what_is_allowed_is_a_matter_of_globs() -> None:
    made = spec(preset="openai", allow=["gpt-5*", "o4-mini"])
    assert [m for m in ("gpt-5.2", "o4-mini", "o4", "tts-1") if made.allowed(m)] == ["gpt-5.2", "o4-mini"]
    assert made.named == ("o4-mini",)
    assert spec(preset="openai", models=["a", "b", "a"], allow=["b"]).named == ("b",)


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "models"),
    [
        (b'{"object": "list", "data": [{"id": "b"}, {"id": "a"}, {"id": "b"}]}', ("b", "a")),
        (b'[{"id": "x/y"}, {"id": 5}, {}, null]', ("x/y",)),
        (b'{"models": [{"name": "models/gemini-3"}, {"model": "m"}]}', ("gemini-3", "m")),
        (b'{"data": [{"id": "models/gemini-3"}]}', ("gemini-3",)),
        (b'{"data": ["plain"]}', ("plain",)),
        (b'{"object": "list", "data": null}', ()),
        (b'{"data": []}', ()),
        ('{"data": [{"id": "a b"}, {"id": "ü"}, {"id": ""}, {"id": "ok"}]}'.encode(), ("ok",)),
    ],
)
def test_lists_of_many_shapes_are_understood(body: bytes, models: tuple[str, ...]) -> None:
    assert page(body).models == models


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"5", b"{}", b'{"data": {}}', b'{"error": {}}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        page(body)


def test_pages_go_on_where_there_is_more() -> None:
    assert page(b'{"data": [{"id": "a"}], "has_more": true, "last_id": "a"}').after == "a"
    assert page(b'{"data": [{"id": "a"}], "has_more": false, "last_id": "a"}').after == ""
    assert page(b'{"data": [], "has_more": true, "last_id": null}').after == ""


def test_a_list_is_bounded() -> None:
    body = b'{"data": [' + b",".join(b'{"id": "m%d"}' % i for i in range(20_100)) + b"]}"
    assert len(page(body).models) == 20_000


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_written() -> None:
    kept = Record("who").listed(("a", "b"), "GET /models", 5.0).failed("X", "why", "do", 3.0, 7.0)
    assert record(kept.to_bytes(), "who") == kept
    assert (kept.models, kept.fetched, kept.failures) == (("a", "b"), 5.0, 1)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"format": 1}', b'{"format": 2, "asked": "who"}', b"\xff"]
)
def test_what_is_no_record_is_none(data: bytes) -> None:
    assert record(data, "who") is None


def test_a_record_of_somebody_else_is_none() -> None:
    assert record(Record("who").to_bytes(), "other") is None


def test_it_is_asked_again_after_an_hour_and_after_a_failure_sooner_with_backoff() -> None:
    good = Record("who").listed(("a",), "", 1000.0)
    assert [good.due(REF, 1000.0 + FRESH + d) for d in (-1, 0)] == [False, True]
    assert good.due(REF, 999.0), "a clock that was set back"
    bad, waits = good, []
    for _ in range(12):
        bad = bad.failed("X", "", "", 0.0, 1000.0)
        waits.append(next(s for s in range(1, 2000) if bad.due(REF, 1000.0 + s)))
    assert 10 <= waits[0] <= 15
    assert waits[:6] == sorted(waits[:6])
    assert all(0.8 * AGAIN.cap <= wait <= AGAIN.cap for wait in waits[-5:])
    limited = good.failed("RATE_LIMITED", "", "", 1800.0, 1000.0)
    assert [limited.due(REF, 1000.0 + s) for s in (1799, 1800)] == [False, True]


# -- rules ------------------------------------------------------------------------------------------------------------

LISTED = Record("").listed(("a", "b"), "GET https://h/v1/models", 1_790_000_000.0)


def state(made: ProviderSpec, known: Record | None = None, problem: str = "") -> ProviderState:
    return seen(made, known, problem)


def world(made: ProviderSpec | None, found: ProviderState | None, owned: ProviderSpec | None = None) -> World:
    desired = {REF: Declared(REF, made)} if made is not None else {}
    observed = {REF: Found(found)} if found is not None else {}
    mine = {REF: Owned(REF, owned.digest, {})} if owned is not None else {}
    return World(desired, observed, mine)


def change(made: ProviderSpec | None, found: ProviderState | None, owned: ProviderSpec | None = None) -> Change | None:
    return ProviderRules().change(REF, world(made, found, owned))


@pytest.mark.parametrize(
    ("keys", "known", "expected"),
    [
        ({}, None, ((), True)),
        ({}, Record("").failed("X", "", "", 0, 1), ((), True)),
        ({}, LISTED, (("a", "b"), False)),
        ({}, LISTED.failed("X", "", "", 0, 1), (("a", "b"), False)),
        ({}, Record("").listed((), "", 1), ((), False)),
        ({"allow": ["b*", "o"]}, LISTED, (("b",), False)),
        ({"allow": ["b*", "o"]}, None, (("o",), False)),
        ({"models": ["x", "y"]}, None, (("x", "y"), False)),
        ({"models": ["x", "y"]}, LISTED, (("x", "y"), False)),
        ({"models": []}, None, ((), False)),
        ({"preset": "azure", "base_url": "https://a"}, None, ((), True)),
        ({"preset": "azure", "base_url": "https://a", "models": ["d"]}, None, (("d",), False)),
    ],
)
def test_what_may_be_asked_for(
    keys: dict[str, Any], known: Record | None, expected: tuple[tuple[str, ...], bool]
) -> None:
    found = state(spec(**{"preset": "openai", **keys}), known)
    assert (found.models, found.open) == expected


def test_it_is_asked_once_and_then_left_to_the_refresh() -> None:
    made = spec(preset="openai")
    first = change(made, state(made))
    assert first is not None
    assert [a.verb for a in first.actions] == ["discover"]
    assert "https://api.openai.com/v1" in first.actions[0].text
    failed = Record(made.asked).failed("UNREACHABLE", "no", "", 0.0, 5.0)
    assert change(made, state(made, failed), owned=made) is None, "a failure waits for nobody"
    assert change(made, state(made, LISTED), owned=made) is None


def test_a_changed_declaration_asks_again_and_a_declared_list_asks_nobody() -> None:
    made, other = spec(preset="openai"), spec(preset="openai", allow=["gpt-*"])
    again = change(other, state(other, LISTED), owned=made)
    assert again is not None
    assert ([a.verb for a in again.actions], again.drift) == (["discover"], False)
    declared = spec(preset="openai", models=["x"])
    noted = change(declared, state(declared), owned=made)
    assert noted is not None
    assert [a.verb for a in noted.actions] == ["note"]
    lost = change(made, state(made), owned=made)
    assert lost is not None
    assert (lost.drift, lost.reason) == (True, "what is known of its models is gone")
    gone = change(None, None, owned=made)
    assert gone is not None
    assert [a.verb for a in gone.actions] == ["release"]


@pytest.mark.parametrize(
    ("keys", "known", "problem", "ready", "discovered"),
    [
        ({}, None, "", ("False", "NotAsked"), ("False", "NotAsked")),
        ({}, LISTED, "", ("True", "Listed"), ("True", "Listed")),
        ({}, LISTED.failed("UNREACHABLE", "no", "", 0, 1), "", ("True", "Listed"), ("False", "Unreachable")),
        ({}, Record("").failed("UNREACHABLE", "no", "", 0, 1), "", ("True", "Open"), ("False", "Unreachable")),
        ({}, Record("").failed("KEY_REFUSED", "no", "", 0, 1), "", ("False", "KeyRefused"), ("False", "KeyRefused")),
        ({"allow": ["a"]}, Record("").failed("X", "no", "", 0, 1), "", ("True", "Allowed"), ("False", "X")),
        ({}, LISTED.failed("KEY_REFUSED", "no", "", 0, 1), "", ("True", "Listed"), ("False", "KeyRefused")),
        ({}, LISTED, "env:X is not set", ("False", "SecretMissing"), ("True", "Listed")),
        ({"models": ["x"]}, None, "", ("True", "Declared"), None),
        ({"models": ["x"]}, None, "env:X is not set", ("False", "SecretMissing"), None),
        ({"preset": "azure", "base_url": "https://a"}, None, "", ("True", "Open"), None),
    ],
)
def test_what_status_says(
    keys: dict[str, Any],
    known: Record | None,
    problem: str,
    ready: tuple[str, str],
    discovered: tuple[str, str] | None,
) -> None:
    made = spec(**{"preset": "openai", **keys})
    found = ProviderRules().conditions(REF, world(made, state(made, known, problem), owned=made))
    told = {c.type: (c.status, c.reason) for c in found}
    assert told == {"Ready": ready} | ({"Discovered": discovered} if discovered else {})


def test_a_failure_is_told_beside_the_list_that_still_counts() -> None:
    made = spec(preset="openai")
    failed = LISTED.failed("UNREACHABLE", "it cannot be reached", "check that it runs", 0.0, 1.0)
    ready, discovered = ProviderRules().conditions(REF, world(made, state(made, failed), owned=made))
    assert ready.message == "2 models; it cannot be reached"
    assert discovered.message == (
        "it cannot be reached — check that it runs; what counts are its 2 models of 2026-09-21 14:13 UTC"
    )


def test_a_missing_key_is_a_warning_of_the_plan() -> None:
    rules, bare = ProviderRules(), spec(preset="openai")
    assert rules.caution(REF, world(bare, None)) == "it has no `api_key`, and answers nobody without one"
    keyed = spec(preset="openai", api_key="env:X")
    assert rules.caution(REF, world(keyed, state(keyed, problem="env:X is not set"))) == "env:X is not set"
    for free in (spec(preset="ollama"), spec(base_url="https://h/v1"), spec(preset="openai", headers={"A": "env:B"})):
        assert rules.caution(REF, world(free, state(free))) == ""


def test_what_a_provider_is_asked_for_does_not_hang_on_its_keys() -> None:
    made = spec(preset="openai", api_key="env:A")
    assert made.asked == spec(preset="openai", api_key="env:B", allow=["x"]).asked
    assert made.asked != spec(base_url="https://elsewhere/v1").asked
    assert made.digest != replace(made, keys=("env:B",)).digest
