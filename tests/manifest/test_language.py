"""The whole language: every section means what it says, and each of its faults says where, what and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from reconciler.core import section
from reconciler.core.section import Entry, Section
from reconciler.gguf.quant import Quant
from reconciler.kinds.engine.spec import CommandEngine, LlamaCppEngine
from reconciler.kinds.gateway.spec import WeightedTarget
from reconciler.kinds.model.spec import Fit, Lora
from tests.manifest.helper import WHOLE, faults, meant, the_fault

MODEL = "version: 1\nmodels:\n  a:\n    source: file:x\n    "  # the next word is at 5:5
TOP = "version: 1\n"  # the next word is at 2:1

UNITS = "must be a duration such as 30s, 5m or 1h30m"
QUANT = "is no quantization that llama.cpp knows"
SECRET = "a secret is written as a reference: env:NAME, file:PATH, keyring:NAME or command:PROGRAM"
ONE_NAME = "clients could not tell them apart; remove one"


def said(brick: Any, text: object) -> Any:
    return TypeAdapter(brick).validate_python(text)


# -- what the texts mean -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("brick", "text", "value"),
    [
        ("Duration", "500ms", 0.5),
        ("Duration", "10s", 10.0),
        ("Duration", "5m", 300.0),
        ("Duration", "1h", 3600.0),
        ("Duration", "2d", 172800.0),
        ("Duration", "1h30m", 5400.0),
        ("Duration", "1d2h3m4s5ms", 93784.005),
        ("Duration", "90s", 90.0),
        ("Size", "12B", 12),
        ("Size", "1kB", 1000),
        ("Size", "1KiB", 1024),
        ("Size", "500MB", 500_000_000),
        ("Size", "64MiB", 64 << 20),
        ("Size", "1.5GB", 1_500_000_000),
        ("Size", "6GiB", 6 << 30),
        ("Size", "2TB", 2 * 10**12),
        ("Size", "0.5TiB", 1 << 39),
        ("Bandwidth", "10MB/s", 10_000_000),
        ("Bandwidth", "10MiB", 10 << 20),
        ("Share", "80%", 0.8),
        ("Share", "100%", 1.0),
        ("Rate", "60/min", (60, 60.0)),
        ("Rate", "5/s", (5, 1.0)),
        ("Rate", "1000/h", (1000, 3600.0)),
        ("Budget", "1M/day", (1_000_000, 86_400.0)),
        ("Budget", "250k/h", (250_000, 3600.0)),
        ("Budget", "500/min", (500, 60.0)),
        ("Budget", "2G/day", (2_000_000_000, 86_400.0)),
        ("Family", "claude-*", "claude-*"),
        ("Family", "*", "*"),
        ("Family", "smart", "smart"),
        ("Reference", "env:A_1", "env:A_1"),
        ("Reference", "file:~/a b", "file:~/a b"),
        ("Reference", "keyring:ci", "keyring:ci"),
        ("Reference", "keyring:team/ci", "keyring:team/ci"),
        ("Reference", "command:pass show x", "command:pass show x"),
        ("Value", "plain text", "plain text"),
        ("Value", "environment: good", "environment: good"),
        ("Value", "keyring:ci", "keyring:ci"),
        ("Address", "https://h/x?y=1", "https://h/x?y=1"),
    ],
)
def test_a_text_means_its_value(brick: str, text: str, value: object) -> None:
    got = said(getattr(section, brick), text)
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize(
    ("brick", "text"),
    [
        *(("Duration", t) for t in (30, 1.5, True, None, "", "30", "s")),
        *(("Duration", t) for t in ("0s", "0h0m", "1.5h", "-5s", "1m1h", "5 s", "5S")),
        *(("Duration", t) for t in ("5s\n", "1y", "9999999999s", [5])),
        *(("Size", t) for t in (6, 1.5, None, "", "6", "6G", "6Gi")),
        *(("Size", t) for t in ("6gib", "6 GiB", "0MB", "0.0GB", "1.5B", "-1MB", "1PB")),
        *(("Bandwidth", t) for t in (10, "10", "10MB/min", "/s", "MB/s")),
        *(("Share", t) for t in (80, 0.8, "80", "0%", "101%", "8.5%", "%", "08%")),
        *(("Rate", t) for t in (60, "60", "60/m", "0/s", "60/", "/s", "1.5/s", "60/day")),
        *(("Budget", t) for t in (1, "1M", "0/day", "1M/s", "1.5M/day", "1m/day", "M/day", "1 M/day")),
        *(("Family", t) for t in ("", "a*b", "**", "*a", "-a", "a b", "claude-**")),
        *(("Reference", t) for t in ("sk-123", "env:", "env:1A", "env:A-B", "file:", "keyring:", "keyring:a/b/c")),
        *(("Reference", t) for t in ("keyring:a b", "command:", "command:  ", "ENV:A")),
        *(("Reference", t) for t in (" env:A", "env:A ", "env:A\n", "")),
        *(("Value", t) for t in ("env:1A", "keyring:", "command:", "a\nb", "a\r", "a\x00")),
        *(("Address", t) for t in ("h/x", "ftp://h/x", "https://")),
        *(("Address", t) for t in ("https://u:p@h/", "https://h:0/", "https://h:99999/")),
    ],
)  # fmt: skip
def test_a_text_that_means_nothing_is_refused(brick: str, text: object) -> None:
    with pytest.raises(ValidationError):
        said(getattr(section, brick), text)


def test_the_whole_language_is_understood() -> None:
    stack = meant(WHOLE)
    assert (stack.include, stack.data_root, stack.on_failure) == (("team/*.yaml",), "state", "rollback")
    assert list(stack.engines) == ["llama", "mirrored", "forked", "packaged", "mine", "tiny", "mac", "vllm"]
    llama, vllm = stack.engines["llama"], stack.engines["vllm"]
    assert isinstance(llama, LlamaCppEngine)
    assert (llama.version, llama.variant, llama.source, llama.path) == ("b11434", "auto", "github", None)
    assert isinstance(vllm, CommandEngine)
    assert vllm.argv == ("vllm", "serve", "{model_path}", "--port", "{port}")
    assert (vllm.ready.http, vllm.ready.timeout, vllm.calls) == ("/health", 300.0, "{model_path}")
    chat, fitted = stack.models["chat"], stack.models["fitted"]
    assert chat.quant is Quant.Q4_K_M
    assert fitted.quant == Fit(fit="auto", at_least=Quant.Q4_K_S, at_most=Quant.Q8_0)
    assert chat.lora == ("file:style.gguf", Lora(source="https://example.com/more.gguf", scale=0.5))
    assert (chat.idle_timeout, chat.priority, chat.memory.at_most, chat.force) == (600.0, 10, 6 << 30, True)
    assert (chat.when, chat.override, chat.protect, chat.drift) == ("host.memory_gib >= 16", True, True, "correct")
    assert (chat.mcp, chat.start, fitted.start, fitted.mmproj) == (("files",), "always", "on_demand", "none")
    openai, anthropic, lab, odd = stack.providers.values()
    assert (openai.preset, openai.api_key, openai.models) == ("openai", "env:OPENAI_API_KEY", ("gpt-5.2",))
    assert (anthropic.models, anthropic.api_key) == (
        "discover",
        ("keyring:anthropic", "command:pass show anthropic"),
    )
    assert (lab.base_url, lab.dialect, lab.headers["X-Key"]) == ("http://10.0.0.7:8000/v1", "openai", "file:lab.key")
    assert (odd.auth, odd.private, odd.allow, odd.proxy) == ("api-key", True, ("qwen-*", "llama-70b"), "env:GPU_PROXY")
    assert (odd.timeouts.connect, odd.request.default, odd.quirks.effort) == (3.0, {"max_tokens": 1024}, "high")
    smart, split, family = stack.routes.values()
    assert (list(stack.routes)[2], family.targets) == ("claude-*", ("anthropic/claude-*", "smart"))
    assert smart.targets == ("chat", "anthropic/claude-sonnet-5", "default")
    assert split.targets == (WeightedTarget(to="chat", weight=3), WeightedTarget(to="openai/gpt-5.2", weight=1))
    files, search = stack.mcp_servers.values()
    assert (files.command, files.tools.allow, files.timeout.start, files.pin) == (
        "npx",
        ("read_*", "list_*"),
        30.0,
        True,
    )
    assert (search.url, search.transport) == ("https://mcp.example.com/mcp", "http")
    gateway, limits = stack.gateway, stack.limits
    ci = gateway.api_keys[1]
    assert ci.allow == ("chat", "smart", "lab/llama-70b", "anthropic/*")
    assert (ci.rate, ci.tokens) == ((60, 60.0), (1_000_000, 86_400.0))
    assert (gateway.timeouts.first_byte, gateway.body_limit, gateway.workers) == (600.0, 64 << 20, "auto")
    assert (limits.memory, limits.disk, limits.downloads, limits.bandwidth) == ("auto", 0.8, 3, "none")
    assert limits.scrub == 20_000_000
    assert stack.policy == ("policy.yaml",)


def test_the_example_of_the_whole_language_leaves_nothing_out() -> None:
    """Every field of every section is set somewhere in it, so that whoever adds a key shows it there."""
    said: dict[type[Section], set[str]] = {}

    def collect(value: Any) -> None:
        if isinstance(value, Section):
            said.setdefault(type(value), set()).update(value.model_fields_set)
            value = [getattr(value, name) for name in value.model_fields_set]
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            collect(inner)

    collect(meant(WHOLE))
    shared = set(Entry.model_fields)
    missing = {kind.__name__: set(kind.model_fields) - given - shared for kind, given in said.items()}
    assert {name: keys for name, keys in missing.items() if keys} == {}
    assert shared <= set().union(*said.values())


@pytest.mark.parametrize("quant", Quant)
def test_every_quant_goes_by_its_own_name(quant: Quant) -> None:
    assert quant.name == quant.value
    assert meant(f"{MODEL}quant: {quant}\n").models["a"].quant is quant


# -- faults --------------------------------------------------------------------------------------------------------

# (the text, line, column, dotted path, summary, hint)
FAULTS = [
    # durations, sizes, shares, rates
    (
        f"{MODEL}idle_timeout: 30", 5, 19,
        "models.a.idle_timeout", f"{UNITS} (got 30)", "say the unit: '30s', '30m', '30h'",
    ),
    (f"{MODEL}idle_timeout: 5M", 5, 19, "models.a.idle_timeout", f"{UNITS} (got '5M')", "did you mean '5m'?"),
    (f"{MODEL}idle_timeout: 0s", 5, 19, "models.a.idle_timeout", f"{UNITS} (got '0s')", "it must be more than nothing"),
    (f"{MODEL}idle_timeout: soon", 5, 19, "models.a.idle_timeout", f"{UNITS} (got 'soon')", ""),
    (
        f"{MODEL}memory: {{at_most: 6gb}}", 5, 23, "models.a.memory.at_most",
        "must be a size such as 500MB or 6GiB (got '6gb')", "did you mean '6GB'?",
    ),
    (
        f"{TOP}limits: {{disk: 80}}", 2, 16, "limits.disk",
        "must be a share such as 80% or a size such as 500MB or 6GiB (got 80)", "did you mean '80%'?",
    ),
    (
        f"{TOP}limits: {{memory: auot}}", 2, 18, "limits.memory",
        "must be a size such as 500MB or 6GiB or 'auto' (got 'auot')", "did you mean 'auto'?",
    ),
    (
        f"{TOP}limits: {{bandwidth: 5}}", 2, 21, "limits.bandwidth",
        "must be an amount a second such as 10MB/s or 'none' (got 5)", "say the unit: '5MB/s', '5MiB/s', '5kB/s'",
    ),
    (
        f"{TOP}gateway: {{api_keys: [{{name: a, key: env:K, rate: 60/m}}]}}", 2, 50, "gateway.api_keys.0.rate",
        "must be a rate such as 60/min (got '60/m')", "did you mean '60/min'?",
    ),
    # values that may be written in several ways
    (f"{MODEL}quant: Q4_KM", 5, 12, "models.a.quant", f"{QUANT} (got 'Q4_KM')", "did you mean 'Q4_K_M'?"),
    (f"{MODEL}quant: q4_k_m", 5, 12, "models.a.quant", f"{QUANT} (got 'q4_k_m')", "did you mean 'Q4_K_M'?"),
    (f"{MODEL}quant: [Q8_0]", 5, 12, "models.a.quant", "must be text or a mapping", ""),
    (f"{MODEL}quant: {{at_most: Q8_0}}", 5, 5, "models.a.quant", "'fit' is missing", "add `fit:` here"),
    (
        f"{MODEL}quant: {{fit: auto, at_lest: F16}}", 5, 24,
        "models.a.quant.at_lest", "unknown key 'at_lest'", "did you mean 'at_least'?",
    ),
    (f"{MODEL}gpu_layers: many", 5, 17, "models.a.gpu_layers", "must be a whole number or 'auto' (got 'many')", ""),
    (f"{MODEL}gpu_layers: -1", 5, 17, "models.a.gpu_layers", "must be at least 0 or 'auto' (got -1)", ""),
    (
        f"{MODEL}options: {{a: [1, [2]]}}", 5, 22,
        "models.a.options.a.1", "must be true or false, a whole number, a number or text", "",
    ),
    (
        f"{MODEL}mmproj: x.gguf", 5, 13, "models.a.mmproj",
        "a source is written hf:owner/name, pypi:package==version, https://host/file.gguf or file:path"
        " or 'auto' or 'none'", "",
    ),
    (f"{MODEL}lora: file:x", 5, 11, "models.a.lora", "must be a list", ""),
    (f"{MODEL}lora: [{{scale: 2}}]", 5, 12, "models.a.lora.0", "'source' is missing", "add `source:` here"),
    (
        f"{MODEL}lora: [{{source: file:x, scale: big}}]", 5, 36,
        "models.a.lora.0.scale", "must be a number (got 'big')", "",
    ),
    # words
    (
        f"{MODEL}start: ondemand", 5, 12, "models.a.start",
        "must be 'always', 'on_demand' or 'manual' (got 'ondemand')", "did you mean 'on_demand'?",
    ),
    (f"{MODEL}force: 'yes'", 5, 12, "models.a.force", "must be true or false (got 'yes')", ""),
    (f"{MODEL}protect: 1", 5, 14, "models.a.protect", "must be true or false (got 1)", ""),
    (f"{MODEL}drift: fix", 5, 12, "models.a.drift", "must be 'correct', 'warn' or 'ignore' (got 'fix')", ""),
    (
        f"{TOP}on_failure: rolback", 2, 13,
        "on_failure", "must be 'stay' or 'rollback' (got 'rolback')", "did you mean 'rollback'?",
    ),
    (f"{TOP}include: x.yaml", 2, 10, "include", "must be a list", "write it as `include: [team/*.yaml]`"),
    (f"{TOP}policy: ['']", 2, 10, "policy.0", "must not be empty (got '')", ""),
    (
        "version: 1\nmodels: {a: {source: 'hf:qwen'}}", 2, 22, "models.a.source",
        "a repository is written hf:owner/name or hf:owner/name@revision", "",
    ),
    # engines
    (
        f"{TOP}engines: {{e: {{type: vllm}}}}", 2, 21,
        "engines.e.type", "'vllm' is not an engine type", "one of: embedded, llama.cpp, mlx, command",
    ),
    (
        f"{TOP}engines: {{e: {{type: lama.cpp}}}}", 2, 21,
        "engines.e.type", "'lama.cpp' is not an engine type", "did you mean 'llama.cpp'?",
    ),
    (
        f"{TOP}engines: {{e: {{type: 5}}}}", 2, 21,
        "engines.e.type", "must be text", "one of: embedded, llama.cpp, mlx, command",
    ),
    (f"{TOP}engines: {{e: {{type: command, argv: []}}}}", 2, 36, "engines.e.argv", "must not be empty", ""),
    (
        f"{TOP}engines: {{e: {{type: command, argv: [x, '{{port}}'], command: x}}}}", 2, 51, "engines.e.command",
        "unknown key 'command'", "one of: argv, calls, drift, env, override, protect, ready, type, when",
    ),
    (
        f"{TOP}engines: {{e: {{type: mlx, ready: {{htp: /}}}}}}", 2, 34,
        "engines.e.ready.htp", "unknown key 'htp'", "did you mean 'http'?",
    ),
    (f"{TOP}engines: {{e: {{type: llama.cpp, source: url}}}}", 2, 14, "engines.e", "`source: url` needs `url`", ""),
    (
        f"{TOP}engines: {{e: {{type: llama.cpp, path: x, version: b1}}}}", 2, 14, "engines.e",
        "`version` is for a release, and does not go with `path`", "",
    ),
    (
        f"{TOP}engines: {{e: {{type: llama.cpp, path: x, source: pypi}}}}", 2, 14, "engines.e",
        "`path` does not go with `source: pypi`", "",
    ),
    (
        f"{TOP}engines: {{e: {{type: llama.cpp, path: x, url: 'http://h'}}}}", 2, 14,
        "engines.e", "`path` and `url` exclude each other", "",
    ),
    # providers
    (f"{TOP}providers: {{o: {{}}}}", 2, 16, "providers.o", "it has neither a `preset` nor a `base_url`", ""),
    (
        f"{TOP}providers: {{o: {{preset: openai, api_key: {{a: b}}}}}}", 2, 42,
        "providers.o.api_key", "must be text or a list", "",
    ),
    (
        f"{TOP}providers: {{o: {{preset: openai, models: all}}}}", 2, 41,
        "providers.o.models", "must be 'discover' (got 'all')", "",
    ),
    (
        f"{TOP}providers: {{o: {{base_url: h/v1}}}}", 2, 27,
        "providers.o.base_url", "an address begins with https:// or http://", "",
    ),
    # routes
    (f"{TOP}routes: {{r: {{targets: []}}}}", 2, 23, "routes.r.targets", "must not be empty", ""),
    (f"{TOP}routes: {{r: {{targets: [[x]]}}}}", 2, 24, "routes.r.targets.0", "must be text or a mapping", ""),
    (
        "version: 1\nmodels: {a: {source: file:x}}\nroutes: {r: {targets: [a, {to: a}]}}", 3, 23, "routes.r.targets",
        "targets are tried in order, or share by weight: give all of them a weight, or none", "",
    ),
    (
        "version: 1\nmodels: {a: {source: file:x}}\nroutes: {r: {targets: [a], on: [timeot]}}", 3, 33, "routes.r.on.0",
        "must be 'unavailable', 'overloaded' or 'timeout' (got 'timeot')", "did you mean 'timeout'?",
    ),
    # MCP servers
    (f"{TOP}mcp_servers: {{m: {{}}}}", 2, 18, "mcp_servers.m", "it has neither a `command` nor a `url`", ""),
    (
        f"{TOP}mcp_servers: {{m: {{command: x, url: 'http://h'}}}}", 2, 18,
        "mcp_servers.m", "it has both a `command` and a `url`", "",
    ),
    (
        f"{TOP}mcp_servers: {{m: {{command: x, headers: {{}}}}}}", 2, 18,
        "mcp_servers.m", "`headers` goes with `url`, not with `command`", "",
    ),
    (
        f"{TOP}mcp_servers: {{m: {{url: 'http://h', cwd: x}}}}", 2, 18,
        "mcp_servers.m", "`cwd` goes with `command`, not with `url`", "",
    ),
    (
        f"{TOP}mcp_servers: {{m: {{command: x, transport: sse}}}}", 2, 18,
        "mcp_servers.m", "`transport: sse` does not go with `command`", "",
    ),
    (
        f"{TOP}mcp_servers: {{m: {{command: x, tools: {{alow: []}}}}}}", 2, 39,
        "mcp_servers.m.tools.alow", "unknown key 'alow'", "did you mean 'allow'?",
    ),
    # gateway
    (
        f"{TOP}gateway: {{cors: {{origins: ['*']}}}}", 2, 28, "gateway.cors.origins.0",
        "is not well formed (got '*')", r"its form is ^https?://[A-Za-z0-9.:\[\]-]+$",
    ),
    (f"{TOP}gateway: {{workers: 0}}", 2, 20, "gateway.workers", "must be at least 1 or 'auto' (got 0)", ""),
    # references
    (
        "version: 1\nmcp_servers: {files: {command: x}}\nmodels: {a: {source: file:x, mcp: [flies]}}", 3, 36,
        "models.a.mcp.0", "there is no MCP server named 'flies'", "did you mean 'files'?",
    ),
    (
        f"{MODEL}mcp: [files]", 5, 11,
        "models.a.mcp.0", "there is no MCP server named 'files'", "name it in `mcp_servers`",
    ),
    (
        "version: 1\nmodels: {chat: {source: file:x}}\nroutes: {r: {targets: [chta]}}", 3, 24,
        "routes.r.targets.0", "there is no model or route named 'chta'", "did you mean 'chat'?",
    ),
    (
        "version: 1\nproviders: {openai: {preset: openai}}\nroutes: {r: {targets: [{to: opnai/x}]}}", 3, 29,
        "routes.r.targets.0.to", "there is no provider named 'opnai'", "did you mean 'openai'?",
    ),
    (
        "version: 1\nproviders: {o: {preset: openai, models: [gpt-5.2]}}\nroutes: {r: {targets: [o/gpt-52]}}", 3, 24,
        "routes.r.targets.0", "the provider 'o' does not list the model 'gpt-52'", "did you mean 'gpt-5.2'?",
    ),
    (
        "version: 1\nmodels: {a: {source: file:x}}\nroutes: {r: {targets: [a]}, s: {targets: [q]}}", 3, 43,
        "routes.s.targets.0", "there is no model or route named 'q'", "one of: a, r, s",
    ),
    (
        "version: 1\nmodels: {a: {source: file:x}}\nroutes: {a: {targets: [a]}}", 3, 10,
        "routes.a", "the name 'a' already belongs to the model 'a'", ONE_NAME,
    ),
    (
        "version: 1\nmodels: {a: {source: file:x, aliases: [b]}}\nroutes: {b: {targets: [a]}}", 3, 10,
        "routes.b", "the name 'b' already belongs to the model 'a'", ONE_NAME,
    ),
    (
        "version: 1\nmodels: {chat: {source: file:x}}\ngateway: {api_keys: [{name: a, key: env:K, allow: [caht]}]}",
        3, 52, "gateway.api_keys.0.allow.0", "there is no model or route named 'caht'", "did you mean 'chat'?",
    ),
    # secrets: the value is not in the message
    (
        f"{TOP}providers: {{o: {{preset: openai, api_key: sk-1}}}}", 2, 42,
        "providers.o.api_key", "is not well formed", SECRET,
    ),
    (
        f"{TOP}providers: {{o: {{preset: openai, api_key: [env:A, 5]}}}}", 2, 50,
        "providers.o.api_key.1", "must be text", "put it in quotes",
    ),
    (
        f"{TOP}providers: {{o: {{preset: openai, headers: {{A: 'env:9'}}}}}}", 2, 46,
        "providers.o.headers.A", "is no reference to a secret", SECRET,
    ),
    (
        f"{TOP}mcp_servers: {{m: {{command: x, env: {{A: 5}}}}}}", 2, 40,
        "mcp_servers.m.env.A", "must be text", "put it in quotes",
    ),
    (
        f"{TOP}engines: {{e: {{type: command, argv: [x, '{{port}}'], env: {{1A: x}}}}}}", 2, 57, "engines.e.env.1A",
        "is not well formed", "use letters, digits and underscores, and do not begin with a digit",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "summary", "hint"), FAULTS, ids=[f"{f[3]}: {f[4]}" for f in FAULTS]
)
def test_a_fault_says_where_and_what_and_the_remedy(
    text: str, line: int, column: int, path: str, summary: str, hint: str
) -> None:
    fault = the_fault(text + "\n")
    assert fault.where is not None
    assert (fault.where.line, fault.where.column, fault.path, fault.summary, fault.hint) == (
        line,
        column,
        path,
        summary,
        hint,
    )


@pytest.mark.parametrize(
    "text",
    [
        "providers: {o: {preset: openai, api_key: hunter2}}",
        "providers: {o: {preset: openai, api_key: [env:A, hunter2]}}",
        "providers: {o: {preset: openai, headers: {Authorization: 'env:hunter2!'}}}",
        "providers: {o: {preset: openai, headers: {Authorization: \"Bearer hunter2\\n\"}}}",
        "providers: {o: {base_url: 'https://hunter2@h/v1'}}",
        "providers: {o: {base_url: 'hunter2.example.com'}}",
        "mcp_servers: {m: {url: 'https://u:hunter2@h/mcp'}}",
        "mcp_servers: {m: {command: x, env: {TOKEN: 'keyring:hunter2/b/c'}}}",
        "mcp_servers: {m: {command: x, args: hunter2}}",
        "engines: {e: {type: command, argv: hunter2}}",
        "engines: {e: {type: command, argv: [x, '{port}'], env: {TOKEN: 'command:'}, ready: hunter}}",
        "gateway: {api_keys: [{name: a, key: hunter2}]}",
        "models: {a: {source: file:x, lora: ['https://u:hunter2@h/l.gguf']}}",
        "models: {a: {source: file:x, mmproj: 'https://u:hunter2@h/l.gguf'}}",
        "models: {a: {source: file:x, draft: hunter2}}",
    ],
)  # fmt: skip
def test_a_fault_never_repeats_what_may_be_a_secret(text: str) -> None:
    assert all("hunter2" not in f"{fault} {fault.to_json()}" for fault in faults(f"version: 1\n{text}\n"))


def test_a_fault_beside_items_that_are_all_wrong_is_not_that_there_are_none() -> None:
    """min_length counts the items that are right."""
    fault = the_fault(f"{TOP}routes: {{r: {{targets: [5]}}}}\n")
    assert (fault.path, fault.summary) == ("routes.r.targets.0", "must be text (got 5)")


def test_the_faults_of_a_very_large_manifest_do_not_take_minutes() -> None:
    """Each of them is compared with a bounded number of names, and a hint lists a few."""
    names = "".join(f"  model-{i}: {{source: file:x}}\n" for i in range(3000))
    routes = "".join(f"  route-{i}: {{targets: [{('modle', 'zzz')[i % 2]}-{i}]}}\n" for i in range(300))
    found = faults(f"version: 1\nmodels:\n{names}routes:\n{routes}")
    assert len(found) == 300
    assert max(len(f.hint) for f in found) < 1000
