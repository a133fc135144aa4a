"""What is in the language but cannot be carried out yet is refused where it is said, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import pytest

from reconciler.core.section import Later, Section
from reconciler.manifest.later import unsupported
from tests.manifest.helper import WHOLE, faults, meant, read_text, the_fault


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "summary"),
    [
        ("models:\n  a: {source: file:x, start: on_demand}", 3, 23, "models.a.start", "`start: on_demand`"),
        ("models:\n  a: {source: file:x, start: manual}", 3, 23, "models.a.start", "`start: manual`"),
        ("models:\n  a: {source: 'hf:a/b'}", 3, 7, "models.a.source", "`source: hf:`"),
        ("models:\n  a: {source: file:x, quant: Q8_0}", 3, 23, "models.a.quant", "`quant`"),
        ("models:\n  a: {source: file:x, quant: {fit: auto}}", 3, 23, "models.a.quant", "`quant`"),
        ("models:\n  a: {source: file:x, mmproj: none}", 3, 23, "models.a.mmproj", "`mmproj`"),
        ("models:\n  a: {source: file:x, lora: ['file:y']}", 3, 23, "models.a.lora", "`lora`"),
        ("models:\n  a: {source: file:x, draft: file:y}", 3, 23, "models.a.draft", "`draft`"),
        ("models:\n  a: {source: file:x, idle_timeout: 5m}", 3, 23, "models.a.idle_timeout", "`idle_timeout`"),
        ("models:\n  a: {source: file:x, priority: 1}", 3, 23, "models.a.priority", "`priority`"),
        ("models:\n  a: {source: file:x, memory: {at_most: 1GiB}}", 3, 23, "models.a.memory", "`memory`"),
        ("models:\n  a: {source: file:x, force: true}", 3, 23, "models.a.force", "`force`"),
        ("engines:\n  e: {type: mlx}", 3, 7, "engines.e.type", "`type: mlx`"),
        ("engines:\n  e: {type: command, argv: [x]}", 3, 7, "engines.e.type", "`type: command`"),
        ("engines:\n  e: {type: llama.cpp}", 3, 3, "engines.e.path", "`type: llama.cpp` without `path`"),
        ("gateway:\n  cors: {origins: ['http://a']}", 3, 3, "gateway.cors", "`cors`"),
        ("gateway:\n  timeouts: {idle: 1s}", 3, 3, "gateway.timeouts", "`timeouts`"),
        ("gateway:\n  body_limit: 1MiB", 3, 3, "gateway.body_limit", "`body_limit`"),
        ("gateway:\n  workers: 2", 3, 3, "gateway.workers", "`workers`"),
        (
            "gateway:\n  api_keys: [{name: a, key: env:K}, {name: b, key: env:K, rate: 1/s}]",
            3, 59, "gateway.api_keys.1.rate", "`rate`",
        ),
        ("gateway:\n  api_keys: [{name: a, key: env:K, allow: []}]", 3, 36, "gateway.api_keys.0.allow", "`allow`"),
        ("limits:\n  memory: 8GiB", 3, 3, "limits.memory", "`memory`"),
        ("limits:\n  disk: 50%", 3, 3, "limits.disk", "`disk`"),
        ("limits:\n  bandwidth: 1MB/s", 3, 3, "limits.bandwidth", "`bandwidth`"),
        ("policy: [p.yaml]", 2, 1, "policy", "`policy`"),
    ],
)  # fmt: skip
def test_a_key_that_comes_later_is_refused_at_its_place(
    text: str, line: int, column: int, path: str, summary: str
) -> None:
    fault = the_fault(f"version: 1\n{text}\n")
    assert fault.where is not None
    assert (fault.where.line, fault.where.column, fault.path) == (line, column, path)
    assert fault.summary == f"{summary} is not yet supported here"
    assert fault.hint == "change or remove it"


def test_each_entry_of_a_section_that_comes_later_is_refused() -> None:
    found = faults(
        "version: 1\n"
        "providers:\n"
        "  a: {preset: openai, models: [x]}\n"
        "  b: {preset: groq}\n"
        "routes:\n"
        "  r: {targets: [a/x]}\n"
        "mcp_servers:\n"
        "  m: {command: x}\n"
    )
    assert [(d.where and d.where.line, d.path, d.summary) for d in found] == [
        (3, "providers.a", "providers are not yet supported here"),
        (4, "providers.b", "providers are not yet supported here"),
        (6, "routes.r", "routes are not yet supported here"),
        (8, "mcp_servers.m", "mcp_servers are not yet supported here"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "models: {a: {source: file:x, quant: ~, mmproj: auto, lora: [], start: always, force: false}}",
        "models: {a: {source: file:x, priority: 0, memory: {}, mcp: [], draft: ~, idle_timeout: 600s}}",
        "models: {a: {source: file:x, when: host.cpu > 2, override: true, protect: true, drift: warn}}",
        "engines: {e: {type: llama.cpp, path: x, source: path}}",
        "{providers: {}, routes: {}, mcp_servers: {}, policy: []}",
        "gateway: {cors: {origins: []}, timeouts: {connect: 5000ms, idle: 2m}, body_limit: 64MiB, workers: auto}",
        "gateway: {api_keys: [{name: a, key: 'keyring:a', allow: ~, rate: ~}], override: true}",
        "limits: {memory: auto, disk: 80%, downloads: 7, bandwidth: none}",
        "{include: [a.yaml], override: true, on_failure: rollback}",
    ],
)
def test_a_default_that_is_written_out_and_all_that_is_there_is_accepted(text: str) -> None:
    whole = f"{{version: 1, {text[1:]}" if text.startswith("{") else f"version: 1\n{text}\n"
    assert list(unsupported(read_text(whole).stack)) == []


def test_of_the_whole_language_exactly_the_marked_keys_come_later() -> None:
    found = {".".join(map(str, path)) for path, _ in unsupported(meant(WHOLE))}
    assert found == {
        "engines.llama.path", "engines.llama.version", "engines.llama.source", "engines.llama.sha256",
        "engines.mirrored.path", "engines.mirrored.source", "engines.mirrored.url", "engines.mirrored.variant",
        "engines.mac.type", "engines.vllm.type",
        "models.chat.source", "models.chat.quant", "models.chat.lora", "models.chat.draft", "models.chat.priority",
        "models.chat.memory", "models.chat.force", "models.chat.mcp",
        "models.fitted.source", "models.fitted.quant", "models.fitted.mmproj", "models.fitted.start",
        "models.seeing.mmproj", "models.seeing.start",
        "providers.openai", "providers.anthropic", "providers.lab", "routes.smart", "routes.split",
        "mcp_servers.files", "mcp_servers.search",
        "gateway.cors", "gateway.api_keys.1.allow", "gateway.api_keys.1.rate", "policy",
    }  # fmt: skip


class Inner(Section):
    word: Annotated[Literal["now", "then", "soon"], Later("then", "soon")] = "now"
    size: Annotated[int, Later(lambda size: size > 5, says="a large `size`")] = 9


class Outer(Section):
    any: Annotated[int | None, Later()] = None
    inner: Inner = Inner(size=1)
    many: dict[str, Inner] = {}
    list: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        (Outer(), []),
        (Outer(any=None), []),
        (Outer(any=0), [(("any",), "`any` is not yet supported here")]),
        (Outer(inner=Inner(word="then", size=5)), [(("inner", "word"), "`word: then` is not yet supported here")]),
        (Outer(inner=Inner()), [(("inner", "size"), "a large `size` is not yet supported here")]),
        (
            Outer(many={"x": Inner(word="soon", size=1)}, list=(Inner(size=2), Inner(size=7))),
            [
                (("many", "x", "word"), "`word: soon` is not yet supported here"),
                (("list", 1, "size"), "a large `size` is not yet supported here"),
            ],
        ),
    ],
)
def test_a_mark_alone_decides(outer: Outer, expected: list[object]) -> None:
    found: Iterator[object] = unsupported(outer)  # type: ignore[arg-type]
    assert list(found) == expected
