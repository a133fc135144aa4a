"""Names that clients may ask for: routes, families of them, providers' models, and what a client's key may do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.core.diagnostics import Refused
from reconciler.core.ids import Ref
from reconciler.core.state import HostFacts, World
from reconciler.gateway.routes import load as read_routes
from reconciler.kinds.gateway.rules import content, targets
from reconciler.kinds.gateway.spec import GatewaySpec
from reconciler.manifest.parse import load
from reconciler.manifest.resolve import denials, resolve
from tests.manifest.helper import ROOT, faults, read_text, the_fault

HEAD = """\
version: 1
models: {chat: {source: "file:x", aliases: [default]}}
providers:
  openai: {preset: openai, models: [gpt-5.2, gpt-5.2-mini]}
  claude: {preset: anthropic}
"""  # the next line is line 6


def gateway_of(text: str, **facts: Any) -> GatewaySpec:
    spec: GatewaySpec = resolve(read_text(text), "cp311", HostFacts(**facts))[Ref("gateway", "main")].spec
    return spec


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "summary", "hint"),
    [
        ("routes: {openai/gpt: {targets: [chat]}}", 6, 10, "routes.openai/gpt",
         "the name 'openai/gpt' already belongs to the provider 'openai'", "could not tell them apart"),
        ("routes: {openai/*: {targets: [chat]}}", 6, 10, "routes.openai/*", "already belongs to the provider", ""),
        ("routes: {a: {targets: [a]}}", 6, 24, "routes.a.targets.0", "in a circle: a → a", "end elsewhere"),
        ("routes: {a: {targets: [b]}, b: {targets: [chat, c]}, c: {targets: [a]}}", 6, 68,
         "routes.c.targets.0", "the routes lead in a circle: a → b → c → a", "end elsewhere"),
        ("routes: {r: {targets: [chta]}}", 6, 24, "routes.r.targets.0",
         "there is no model or route named 'chta'", "did you mean 'chat'?"),
        ("routes: {r: {targets: [openai]}}", 6, 24, "routes.r.targets.0",
         "there is no model or route named 'openai'", "openai/MODEL"),
        ("routes: {r: {targets: [openai/gpt-52]}}", 6, 24, "routes.r.targets.0",
         "the provider 'openai' does not list the model 'gpt-52'", "did you mean 'gpt-5.2'?"),
        ("routes: {r: {targets: [{to: opnai/x, weight: 1}]}}", 6, 29, "routes.r.targets.0.to",
         "there is no provider named 'opnai'", "did you mean 'openai'?"),
        ("routes: {r: {targets: [claude/c-*]}}", 6, 24, "routes.r.targets.0",
         "'claude/c-*' stands for many names, and the route 'r' for one", "end in `*`"),
        ("routes: {g-*: {targets: [openai/o-*]}}", 6, 26, "routes.g-*.targets.0",
         "the provider 'openai' lists no model that begins with 'o-'", "gpt-5.2"),
        ("routes: {a*b: {targets: [chat]}}", 6, 10, "routes.a*b", "may have a `*` at its end only", ""),
        ("gateway: {api_keys: [{name: a, key: env:K, allow: [chta]}]}", 6, 52, "gateway.api_keys.0.allow.0",
         "there is no model or route named 'chta'", "did you mean 'chat'?"),
        ("gateway: {api_keys: [{name: a, key: env:K, allow: [nobody/*]}]}", 6, 52, "gateway.api_keys.0.allow.0",
         "there is no provider named 'nobody'", "one of: claude, openai"),
        ("gateway: {api_keys: [{name: a, key: env:K, rate: 60}]}", 6, 50, "gateway.api_keys.0.rate",
         "must be a rate such as 60/min", ""),
        ("gateway: {api_keys: [{name: a, key: env:K, tokens: 1M}]}", 6, 52, "gateway.api_keys.0.tokens",
         "must be an amount of tokens such as 100k/h or 1M/day", ""),
    ],
)  # fmt: skip
def test_a_fault_of_a_name_has_its_place(text: str, line: int, column: int, path: str, summary: str, hint: str) -> None:
    fault = the_fault(f"{HEAD}{text}\n")
    assert fault.where is not None
    assert (fault.where.line, fault.where.column, fault.path) == (line, column, path)
    assert summary in fault.summary
    assert hint in fault.hint


def test_an_alias_may_not_look_like_a_model_of_a_provider() -> None:
    fault = the_fault(HEAD.replace("[default]", "[openai/x]"))
    assert fault.summary == "the name 'openai/x' already belongs to the provider 'openai'"


def test_two_circles_are_told_once_each_and_what_leads_into_one_is_not() -> None:
    text = "routes: {a: {targets: [b]}, b: {targets: [a]}, c: {targets: [a]}, d: {targets: [d, chat]}}\n"
    assert [fault.summary for fault in faults(HEAD + text)] == [
        "the routes lead in a circle: a → b → a",
        "the routes lead in a circle: d → d",
    ]


def test_routes_that_meet_again_are_no_circle() -> None:
    text = "routes: {a: {targets: [b, c]}, b: {targets: [d]}, c: {targets: [d]}, d: {targets: [chat]}}\n"
    assert [fork.name for fork in gateway_of(HEAD + text).routes] == ["a", "b", "c", "d"]


def test_routes_and_what_keys_may_do_arrive_at_the_gateway() -> None:
    spec = gateway_of(
        HEAD + "routes:\n"
        "  split: {targets: [{to: chat, weight: 3}, {to: openai/gpt-5.2}]}\n"
        "  claude-*: {targets: [claude/claude-*, default], on: [timeout]}\n"
        "  all: {targets: [split, claude/x]}\n"
        "gateway:\n"
        "  api_keys:\n"
        "    - {name: me, key: env:A}\n"
        "    - {name: ci, key: env:B, allow: [claude-*, openai/*, default, all], rate: 60/min, tokens: 1M/day}\n"
        "    - {name: no, key: env:C, allow: []}\n"
        "  cors: {origins: ['https://app.example.com']}\n"
        "  timeouts: {connect: 3s, first_byte: 30s}\n"
        "  body_limit: 1MiB\n"
    )
    assert [(fork.name, fork.targets, fork.on) for fork in spec.routes] == [
        ("all", (("split", None), ("claude/x", None)), ("unavailable", "overloaded", "timeout")),
        ("claude-*", (("claude/claude-*", None), ("default", None)), ("timeout",)),
        ("split", (("chat", 3), ("openai/gpt-5.2", 1)), ("unavailable", "overloaded", "timeout")),
    ]
    assert [(g.name, g.allow, g.rate, g.tokens) for g in spec.grants] == [
        ("ci", ("claude-*", "openai/*", "default", "all"), (60, 60.0), (1_000_000, 86_400.0)),
        ("no", (), None, None),
    ]
    assert spec.origins == ("https://app.example.com",)
    assert dict(spec.bounds) == {
        "body": 1 << 20,
        "connect_seconds": 3.0,
        "first_byte_seconds": 30.0,
        "idle_seconds": 120.0,
    }


WHEN = """\
version: 1
models:
  big: {source: "file:x", aliases: [large], when: host.gpu != ''}
  small: {source: "file:y"}
providers:
  lab: {base_url: "http://10.0.0.7/v1", when: host.gpu != ''}
routes:
  best: {targets: [large, lab/x, small]}
"""


def test_targets_that_are_not_for_this_machine_are_left_out_of_a_route() -> None:
    (fork,) = gateway_of(WHEN).routes
    assert fork.targets == (("small", None),)
    (fork,) = gateway_of(WHEN, gpu="amd").routes
    assert [to for to, _ in fork.targets] == ["large", "lab/x", "small"]
    assert [p.name for p in gateway_of(WHEN, gpu="amd").providers] == ["lab"]
    assert gateway_of(WHEN).providers == ()


def test_a_route_that_is_left_with_no_target_is_a_fault_at_its_place() -> None:
    text = WHEN.replace("[large, lab/x, small]", "[big, lab/x]")
    with pytest.raises(Refused) as caught:
        gateway_of(text)
    (fault,) = caught.value.diagnostics
    assert str(fault).startswith("stack.yaml:8:3: error: routes.best: none of its targets is for this machine")
    assert gateway_of(text, gpu="amd").routes[0].name == "best"


def test_requests_are_rewritten_as_the_manifest_says() -> None:
    request = "{set: {temperature: 0}, default: {max_tokens: 9}, strip: [user]}"
    spec = gateway_of(f"version: 1\nmodels: {{a: {{source: file:x, request: {request}}}, b: {{source: file:x}}}}\n")
    assert spec.models[0].request == '{"default":{"max_tokens":9},"set":{"temperature":0},"strip":["user"]}'
    assert spec.models[1].request == ""


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("{set: {model: x}}", "`model` is what requests are routed and answered by"),
        ("{strip: [stream]}", "`stream` is what requests are routed and answered by"),
        ("{set: {a: 1}, strip: [a]}", "`a` is here twice"),
        ("{default: {'a b': 1}}", ""),
    ],
)
def test_what_requests_are_routed_by_is_not_rewritten(request_: str, said: str) -> None:
    assert said in the_fault(f"version: 1\nmodels: {{a: {{source: file:x, request: {request_}}}}}\n").summary


def test_the_example_of_providers_becomes_routes_that_the_gateway_reads() -> None:
    manifest = load(ROOT / "examples" / "providers" / "stack.yaml")
    spec: GatewaySpec = resolve(manifest, "cp311")[Ref("gateway", "main")].spec
    written = content(spec, targets(spec, World()), ())
    routes = read_routes(json.dumps({**written, "serial": 1, "digest": "d"}).encode())
    assert list(routes.names) == ["chat"]
    assert sorted(written["providers"]) == ["anthropic", "lab", "openai"]
    assert sorted(written["routes"]) == ["claude-*", "mostly-local", "smart"]
    assert denials(manifest) == {}
