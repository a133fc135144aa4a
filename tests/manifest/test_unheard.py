"""What a model asks for and its engine would not hear is a fault at its place; what says nothing is none."""

from __future__ import annotations

import pytest

from reconciler.core.ids import Ref
from reconciler.manifest.resolve import resolve
from tests.manifest.helper import faults, read_text, the_fault

HEAD = """\
version: 1
engines:
  own: {type: command, argv: [serve, "{model_path}", "{port}"]}
  told: {type: command, argv: [serve, "{model_path}", "{port}", "--len={context}"]}
  mac: {type: mlx}
  llama: {type: llama.cpp, path: /s}
models:
"""


@pytest.mark.parametrize("engine", ["own", "mac"])
@pytest.mark.parametrize(
    "said",
    [
        "parallel: 2", "gpu_layers: 0", "gpu_layers: 99", "cache_type: {k: q8_0}", "options: {flash_attn: on}",
        "mmproj: file:x", "mmproj: auto", "lora: [file:x]", "draft: file:x", "context: 4096", "context: 16k",
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_a_fault_where_it_is_said(said: str, engine: str) -> None:
    found = the_fault(f"{HEAD}  a: {{source: file:x, engine: {engine}, {said}}}\n")
    key = said.partition(":")[0]
    assert found.path == f"models.a.{key}"
    assert found.where is not None
    assert (found.where.line, found.where.column) == (8, 33 + len(engine))
    assert f"`{key}` would not be carried out: engine '{engine}'" in found.summary
    assert ("mlx-lm decides" if engine == "mac" else "`argv` of the engine") in found.hint


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("told", "context: 16k"),
        ("own", "parallel: 1, gpu_layers: auto, cache_type: {}, options: {}, mmproj: none, lora: [], draft: ~"),
        ("own", "env: {A: b}, limits: {memory: 6GiB}, nice: 5, memory: {at_most: 6GiB}, force: true, task: embedding"),
        ("mac", "start: on_demand, idle_timeout: 1m, priority: 3, aliases: [b], sha256: %s" % ("a" * 64)),
        ("llama", "parallel: 2, gpu_layers: 3, mmproj: auto, context: 4096"),
    ],
)
def test_what_is_heard_or_says_nothing_is_no_fault(engine: str, said: str) -> None:
    read_text(f"{HEAD}  a: {{source: file:x, engine: {engine}, {said}}}\n")


def test_all_of_it_is_told_at_once() -> None:
    text = f"{HEAD}  a: {{source: file:x, engine: own, parallel: 2}}\n"
    text += "  b: {source: file:x, engine: mac, draft: file:d}\n"
    assert [fault.path for fault in faults(text)] == ["models.a.parallel", "models.b.draft"]


def test_nothing_is_promised_of_a_context_that_nobody_is_told_of() -> None:
    text = f"{HEAD}  a: {{source: 'hf:o/n', engine: own}}\n  b: {{source: 'hf:o/n', engine: told, context: 8k}}\n"
    found = resolve(read_text(text), "cp311")
    routes = {route.name: route.context for route in found[Ref("gateway", "main")].spec.models}
    assert routes == {"a": 0, "b": 8192}
    assert not found[Ref("model", "a")].spec.projector, "a projector could not be passed on"


@pytest.mark.parametrize(
    ("argv", "path", "summary"),
    [
        ("[serve, '{model_path}']", "engines.e.argv", "does not say the port"),
        ("[serve, '{port}', '{modelpath}']", "engines.e.argv.2", "unknown place {modelpath}"),
        ("['{model_path}', '{port}']", "engines.e.argv", "begins with a place"),
    ],
)
def test_a_template_that_could_not_be_filled_in_is_refused(argv: str, path: str, summary: str) -> None:
    found = the_fault(f"version: 1\nengines:\n  e: {{type: command, argv: {argv}}}\n")
    assert found.path == path
    assert summary in found.summary
    assert found.hint


@pytest.mark.parametrize("name", ["RECONCILER_API_KEY", "LLAMA_API_KEY", "VLLM_API_KEY", "RECONCILER_NONCE"])
@pytest.mark.parametrize("engine", ["type: mlx", "type: command, argv: [s, '{port}']"])
def test_what_each_server_is_given_cannot_be_set(engine: str, name: str) -> None:
    found = the_fault(f"version: 1\nengines:\n  e: {{{engine}, env: {{{name}: x}}}}\n")
    assert found.path == f"engines.e.env.{name}"
    assert "is set by the reconciler" in found.summary
