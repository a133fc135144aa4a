"""`explain` tells what every key means, with or without a manifest, and who set it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reconciler.manifest.explain import meaning
from reconciler.manifest.parse import Stack
from reconciler.manifest.schema import schema
from tests.cli.conftest import Run

STACK = """version: 1
engines:
  mine: {type: llama.cpp, path: bin/x}
  own: {type: embedded}
models:
  chat:
    source: file:a
    context: 16k
    aliases: [a, b]
  qwen2.5:
    source: file:b
    options: {flash_attn: true}
  context: {source: file:c}
"""


@pytest.fixture
def stack(run: Run) -> Path:
    path = Path("stack.yaml")
    path.write_text(STACK)
    return path


def test_a_key_has_a_meaning_a_type_a_default_a_value_and_a_place(run: Run, stack: Path) -> None:
    said = run("explain", "models.chat.context")
    assert said.code == 0
    assert said.out.splitlines() == [
        "models.chat.context",
        "  Tokens that one request may use; the engine gets this times `parallel`. `16k` means 16384.",
        "  type:     a whole number of at least 1 or a count such as 16k",
        "  default:  4096",
        "  value:    16384",
        "  set by:   stack.yaml:8:5",
    ]


def test_json_has_the_same(run: Run, stack: Path) -> None:
    told = run("explain", "models.chat.parallel", "-o", "json").json
    assert told == {
        "key": "models.*.parallel",
        "meaning": "Requests served at the same time.",
        "type": "a whole number from 1 to 256",
        "required": False,
        "default": 1,
        "keys": {},
        "value": 1,
        "set_by": None,
    }


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("models.qwen2.5.source", "file:b", 11),
        ("models.qwen2.5.options.flash_attn", "true", 12),
        ("models.context.source", "file:c", 13),
        ("models.chat.aliases.1", "b", 9),
        ("engines.mine.path", "bin/x", 3),
        ("version", "1", 1),
    ],
)
def test_names_are_those_of_the_manifest(run: Run, stack: Path, key: str, value: str, line: int) -> None:
    out = run("explain", key).out
    assert f"  value:    {value}\n" in out
    assert f"  set by:   stack.yaml:{line}:" in out


def test_what_is_not_written_is_set_by_default(run: Run, stack: Path) -> None:
    assert "  value:    1337\n  set by:   default\n" in run("explain", "gateway.port").out
    assert "  value:    f16\n  set by:   default\n" in run("explain", "models.chat.cache_type.k").out


@pytest.mark.parametrize("key", ["models.*.gpu_layers", "models.gpu_layers", "models.any.gpu_layers"])
def test_meanings_need_no_manifest(run: Run, key: str) -> None:
    said = run("explain", key)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[1:] == [
        "  Layers to offload to the GPU.",
        "  type:     a whole number of at least 0 or `auto`",
        "  default:  auto",
    ]


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_mapping_lists_its_keys(run: Run, stack: Path) -> None:
    assert " models Models to have and to serve. " in words(run("explain").out)
    assert " sha256 The sha256 that the GGUF must have." in words(run("explain", "models.chat").out)
    out = run("explain", "models").out
    assert "  value:    chat, qwen2.5, context\n  set by:   stack.yaml:5:1\n" in out
    assert " *.parallel Requests served" in words(out)


def test_only_the_keys_of_its_own_type_belong_to_an_engine(run: Run, stack: Path) -> None:
    assert "path" in run("explain", "engines.mine", "-o", "json").json["keys"]
    assert "path" not in run("explain", "engines.own", "-o", "json").json["keys"]
    assert "there is no key 'path'" in run("explain", "engines.own.path").err
    assert "llama-server program" in run("explain", "engines.path").out


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("modles", "error: there is no key 'modles'\n    hint: did you mean 'models'?"),
        ("models.chat.contxt", "models.chat: there is no key 'contxt'\n    hint: did you mean 'context'?"),
        ("models.chta.context", "models: there is no key 'chta'\n    hint: did you mean 'chat'?"),
        ("gateway.port.x", "gateway.port: there is no key 'x'"),
        ("models..source", "models: there is no key ''"),
    ],
)
def test_an_unknown_key_gets_the_nearest(run: Run, stack: Path, key: str, words: str) -> None:
    said = run("explain", key)
    assert said.code == 1
    assert words in said.err


def test_a_broken_manifest_leaves_the_meanings(run: Run, stack: Path) -> None:
    stack.write_text("version: 1\nmodles: {}\n")
    said = run("explain", "models.chat.parallel")
    assert (said.code, "value:" in said.out) == (0, False)
    assert "reconcile validate" in said.err


def test_a_manifest_that_was_named_must_be_there(run: Run) -> None:
    assert "there is no" in run("explain", "version", "-f", "gone.yaml").err


def test_every_key_of_the_language_is_told() -> None:
    for key in keys_of(schema(), schema()):
        found = meaning(key)
        assert found.text, key
        assert found.type not in ("", "anything"), key
    assert meaning("").keys.keys() == Stack.model_fields.keys()


def keys_of(node: dict[str, Any], root: dict[str, Any], here: str = "") -> list[str]:
    """Every key that the schema names, dotted."""
    out = []
    if "$ref" in node:
        out += keys_of(root["$defs"][node["$ref"].split("/")[-1]], root, here)
    for inner in [*node.get("anyOf", []), *node.get("oneOf", [])]:
        out += keys_of(inner, root, here)
    for entry in [*node.get("patternProperties", {}).values(), *([node["items"]] if "items" in node else [])]:
        out += keys_of(entry, root, f"{here}.*")
    for name, inner in node.get("properties", {}).items():
        out += [f"{here}.{name}".lstrip("."), *keys_of(inner, root, f"{here}.{name}")]
    return out
