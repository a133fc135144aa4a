"""The JSON Schema that editors use agrees with what the program accepts; nothing at all makes the reader stumble."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from reconciler.core.diagnostics import Diagnostic, Refused
from reconciler.manifest.parse import Manifest, check, load, understand
from reconciler.manifest.read import read
from reconciler.manifest.resolve import resolve
from reconciler.manifest.schema import schema, text
from reconciler.manifest.stack import Stack
from tests.manifest.helper import ROOT, WHOLE

EXAMPLES = sorted((ROOT / "examples").glob("*/stack.yaml"))
VALIDATOR = Draft202012Validator(schema())
QUICK = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

VALID: dict[str, Any] = {
    "version": 1,
    "name": "box",
    "data_root": "state",
    "include": ["team/*.yaml"],
    "on_failure": "rollback",
    "engines": {
        "llama": {"type": "llama.cpp", "path": "bin/x"},
        "embedded": {"type": "embedded", "version": "2026.1.1"},
    },
    "models": {
        "chat": {
            "source": "pypi:tiny==1.0",
            "file": "*.gguf",
            "sha256": "a" * 64,
            "engine": "llama",
            "aliases": ["default"],
            "task": "chat",
            "context": "16k",
            "parallel": 2,
            "gpu_layers": "auto",
            "cache_type": {"k": "q8_0"},
            "options": {"flash_attn": "on"},
            "env": {"A": "b"},
            "when": "host.cpu > 2",
            "protect": True,
            "drift": "warn",
        },
        "embed": {"source": "file:m.gguf", "task": "embedding", "context": 512, "gpu_layers": 0},
    },
    "gateway": {
        "host": "127.0.0.1",
        "port": 1337,
        "prefix": "/v1",
        "api_keys": [{"name": "me", "key": "env:KEY"}],
        "trusted_hosts": ["localhost"],
    },
    "limits": {"downloads": 2},
}
EVERYTHING: dict[str, Any] = YAML(typ="safe", pure=True).load(WHOLE)

# What YAML can hold and JSON too. YAML has no lone surrogates, and a number of more than 64 digits is refused.
WORDS = st.sampled_from(
    [
        "",
        "a",
        "version",
        "models",
        "source",
        "engine",
        "llama",
        "chat",
        "embedded",
        "type",
        "env:K",
        "env:",
        "auto",
        "none",
        "5m",
        "6GiB",
        "80%",
        "60/min",
        "Q4_K_M",
        "16k",
        "0k",
        "file:x",
        "yes",
        "null",
        "~",
        "<<",
        "0o17",
        "1_000",
        ".nan",
        "a b",
        "\n",
        "&x",
        "*x",
        "!t",
        "# c",
        "- a",
        "?",
        "\x00",
        "\x85",
        "\ufeff",
        "é",
        "😀",
        "::1",
    ]
)
TEXTS = WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.integers(-2, 70000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)


def dump(value: Any) -> bytes:
    out = io.BytesIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False  # in flow style it writes keys such as ::1 that it cannot read again
    yaml.allow_unicode = False  # it would write some of the rarer line ends as they are
    yaml.representer.ignore_aliases = lambda data: True
    yaml.dump(value, out)
    return out.getvalue()


def outcome(data: bytes) -> Manifest | list[Diagnostic]:
    """The manifest or its faults; anything else is an error of the reader and ends the test."""
    try:
        return check(data, Path("/srv/stack.yaml"))
    except Refused as refused:
        return list(refused.diagnostics)


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, item in inner for path in paths_of(item, (*here, key)))]


def has(holder: Any, part: Any) -> bool:
    if isinstance(holder, list):
        return isinstance(part, int) and part < len(holder)
    return isinstance(holder, dict) and part in holder


@st.composite
def mutants(draw: st.DrawFn, right: dict[str, Any]) -> Any:
    """A right manifest after up to three changes: a value replaced, a key removed, a key added, a key renamed."""
    root = copy.deepcopy(right)
    paths = [path for path in paths_of(right) if path]
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(paths))
        holder: Any = root
        for part in path[:-1]:
            if not has(holder, part):
                break
            holder = holder[part]
        key = path[-1]
        if isinstance(holder, dict) and not isinstance(key, str):
            continue  # a list was replaced by a mapping, whose keys are texts
        match draw(st.sampled_from(["replace", "remove", "add", "rename"])):
            case "replace" if isinstance(holder, dict) or has(holder, key):
                holder[key] = draw(VALUES)
            case "remove" if isinstance(holder, dict):
                holder.pop(key, None)
            case "add" if isinstance(holder, dict):
                holder[draw(TEXTS)] = draw(VALUES)
            case "rename" if isinstance(holder, dict) and key in holder:
                holder[draw(TEXTS)] = holder.pop(key)
    return root


def beyond_the_schema(fault: Diagnostic) -> bool:
    """The faults that a JSON Schema of this draft cannot find, or that ours leaves to the program."""
    return bool(
        re.fullmatch(r"models\.[^.]+.*\.(source|mmproj|draft|lora\.\d+)", fault.path)  # how a source is written
        or re.fullmatch(r".*\.(url|base_url)", fault.path)  # how an address is written
        or "not yet supported here" in fault.summary
        or re.search("has a field of its own|may not be set|is not the name of a flag|same flag", fault.summary)
        or re.search("there is no .* named|does not list the model", fault.summary)  # references
        or "already belongs to the model" in fault.summary
        or "without api_keys" in fault.summary  # two keys that must fit together
        or "have the same name" in fault.summary
        or re.search("does not go with|goes with|needs `|exclude each other", fault.summary)  # the same
        or "targets are tried in order, or share by weight" in fault.summary
        or re.search("it has neither|it has both", fault.summary)  # where one of them is null
        or (
            fault.path.endswith(".context") and ("at least 1" in fault.summary or "at most" in fault.summary)
        )  # 0k; above 2^31
        or re.search(r"whole number \(got -?\d[\d.e+]*\)", fault.summary)  # 5.0 is an integer to JSON, not to us
        or "merge keys" in fault.summary  # a quoted << as well
        or "character" in fault.summary  # characters that no text can hold
    )


def strings_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in inner for text in strings_in(item)]


def test_the_schema_is_a_valid_one() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_committed_schema_is_what_the_program_prints() -> None:
    assert (ROOT / "schemas" / "stack.schema.json").read_text(encoding="utf-8") == text()
    assert json.loads(text()) == schema()


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.parent.name)
def test_an_example_is_right_for_the_schema_and_for_the_program(path: Path) -> None:
    VALIDATOR.validate(YAML(typ="safe", pure=True).load(path))
    assert load(path).stack.models, "with all that it includes"


def test_the_model_of_a_right_manifest_is_right_for_both() -> None:
    VALIDATOR.validate(VALID)
    assert isinstance(outcome(dump(VALID)), Manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"modles": {}},
        {"version": 2},
        {"version": True},
        {"name": "a b"},
        {"models": {"a": {}}},
        {"models": {"a": {"source": 7}}},
        {"models": {"a b": {"source": "file:x"}}},
        {"models": {"-": 5}},
        {"engines": {"e": {"type": "vllm"}}},
        {"engines": {"e f": 1}},
        {"models": {"a": {"source": "file:x", "options": {"Bad Flag": 1}}}},
        {"models": {"a": {"source": "file:x", "env": {"1A": "x"}}}},
        {"gateway": {"port": "80"}},
        {"gateway": {"api_keys": [{"name": "a", "key": "sk-1"}]}},
        {"models": None},
        {"models": {"a": {"source": "file:x", "quant": "q8_0"}}},
        {"models": {"a": {"source": "file:x", "quant": {"at_least": "Q8_0"}}}},
        {"models": {"a": {"source": "file:x", "idle_timeout": "1h90"}}},
        {"models": {"a": {"source": "file:x", "memory": {"at_most": 6}}}},
        {"models": {"a": {"source": "file:x", "protect": "yes"}}},
        {"engines": {"e": {"type": "command"}}},
        {"engines": {"e": {"type": "embedded", "path": "x"}}},
        {"providers": {"p": {}}},
        {"providers": {"p": {"preset": "openai", "api_key": "sk-1"}}},
        {"providers": {"p": {"preset": "openai", "headers": {"A": "env:"}}}},
        {"routes": {"r": {"targets": []}}},
        {"mcp_servers": {"m": {}}},
        {"mcp_servers": {"m": {"command": "x", "url": "http://h/"}}},
        {"gateway": {"body_limit": 64}},
        {"limits": {"disk": "0%"}},
        {"limits": {"bandwidth": "fast"}},
    ],
    ids=str,
)
def test_what_the_program_refuses_an_editor_marks_too(change: dict[str, Any]) -> None:
    value = {**VALID, **change}
    assert isinstance(outcome(dump(value)), list)
    assert not VALIDATOR.is_valid(value)


@given(VALUES)
@QUICK
def test_any_value_at_all_gives_a_manifest_or_a_refusal(value: Any) -> None:
    found = outcome(dump(value))
    assert isinstance(found, Manifest) or (found and all(d.where and d.where.line >= 1 and d.summary for d in found))


@given(st.binary(max_size=60) | TEXTS.map(lambda t: ("version: 1\n" + t).encode()))
@QUICK
def test_any_bytes_at_all_give_a_manifest_or_a_refusal(data: bytes) -> None:
    found = outcome(data)
    assert isinstance(found, Manifest) or found


def test_the_whole_language_is_right_for_the_schema() -> None:
    VALIDATOR.validate(EVERYTHING)


def nodes(node: Any) -> list[Any]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [node, *(n for item in inner for n in nodes(item))]


def test_every_key_has_a_description_and_every_section_too() -> None:
    sections = {"Stack": schema(), **schema()["$defs"]}
    keys = {
        f"{name}.{key}": field for name, part in sections.items() for key, field in part.get("properties", {}).items()
    }
    assert len(keys) > 100
    silent = [name for name, field in keys.items() if not field.get("description", "").strip().endswith((".", "`"))]
    assert silent == []
    assert [name for name, part in sections.items() if "properties" in part and not part.get("description")] == []


def test_a_default_is_written_as_a_person_would_write_it() -> None:
    """What stands there as the default is right by its own schema: `10m`, not 600.0."""
    whole = schema()
    checked = 0
    for field in nodes(whole):
        if isinstance(field, dict) and "default" in field and "description" in field:
            checked += 1
            Draft202012Validator({**field, "$defs": whole["$defs"]}).validate(field["default"])
    assert checked > 80


def test_a_default_means_what_it_says() -> None:
    """Each one that is written in the schema is read back as the value that we use."""
    entries = {"models": {"a": {"source": "file:x"}}, "mcp_servers": {"m": {"command": "x"}}}
    plain = {"version": 1, "gateway": {}, "limits": {}, **entries}

    def written_out(value: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
        defaults = {
            key: field["default"] for key, field in part["properties"].items() if field.get("default") is not None
        }
        return {**{k: v for k, v in defaults.items() if k not in ("version",)}, **value}

    parts = schema()["$defs"]
    full = {
        "version": 1,
        "gateway": written_out({}, parts["GatewaySection"]),
        "limits": written_out({}, parts["Limits"]),
        "models": {"a": written_out({"source": "file:x"}, parts["ModelSection"])},
        "mcp_servers": {"m": {"command": "x", "timeout": written_out({}, parts["Timeout"])}},
    }
    assert full["models"]["a"]["idle_timeout"] == "10m"
    assert Stack.model_validate(full) == Stack.model_validate(plain)


@given(mutants(EVERYTHING))
@QUICK
def test_schema_and_language_agree_on_changed_manifests(value: Any) -> None:
    assume(not any(s.endswith("\n") for s in strings_in(value)))  # Python's `$` matches before a last newline
    stack, found = understand(read(dump(value), "stack.yaml"))
    if stack is not None and not found:
        assert VALIDATOR.is_valid(value), [e.message for e in VALIDATOR.iter_errors(value)]
    elif VALIDATOR.is_valid(value):
        assert all(beyond_the_schema(d) for d in found), [str(d) for d in found]


@given(mutants(VALID))
@QUICK
def test_schema_and_program_agree_on_changed_manifests(value: Any) -> None:
    assume(not any(s.endswith("\n") for s in strings_in(value)))  # Python's `$` matches before a last newline
    found = outcome(dump(value))
    if isinstance(found, Manifest):
        assert VALIDATOR.is_valid(value), [e.message for e in VALIDATOR.iter_errors(value)]
        assert all(len(declared.digest) == 64 for declared in resolve(found, "cp311").values())
    elif VALIDATOR.is_valid(value):
        assert all(beyond_the_schema(d) for d in found), [str(d) for d in found]


@given(VALUES)
@QUICK
def test_values_are_read_as_they_were_written(value: Any) -> None:
    assume("<<" not in strings_in(value))
    assume(not any("\x00" in s for s in strings_in(value)))
    document = read(dump(value), "stack.yaml")
    assert document.faults == []
    assert document.values == value
