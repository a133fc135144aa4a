"""Every fault of a manifest has its place, says what is wrong, and all of them come in one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.core.diagnostics import Refused
from reconciler.manifest.parse import load
from tests.manifest.helper import faults, places, read_text, the_fault

M = "version: 1\nmodels:\n"  # the next line is line 3
CHAT = M + "  chat:\n    source: file:x\n"  # the next line is line 5


# One fault a text: (what it is, the text, line, column, dotted path, part of the summary, part of the hint).
ONE = [
    ("unknown key at the top", "version: 1\nmodles: {}\n", 2, 1, "modles", "unknown key 'modles'", "'models'"),
    ("unknown key of a model", CHAT + "    contxt: 4k\n", 5, 5, "models.chat.contxt", "unknown key", "'context'"),
    (
        "unknown key deeper down",
        CHAT + "    cache_type: {key: f16}\n",
        5,
        18,
        "models.chat.cache_type.key",
        "unknown key 'key'",
        "k",
    ),
    (
        "unknown key of an engine",
        "version: 1\nengines:\n  e: {type: llama.cpp, path: x, verson: 3}\n",
        3,
        33,
        "engines.e.verson",
        "unknown key 'verson'",
        "'version'",
    ),
    (
        "unknown key of an api key",
        "version: 1\ngateway:\n  api_keys:\n    - {name: a, key: env:K, kee: 1}\n",
        4,
        29,
        "gateway.api_keys.0.kee",
        "unknown key 'kee'",
        "'key'",
    ),
    (
        "unknown key that is near to none",
        CHAT + "    zzz: 1\n",
        5,
        5,
        "models.chat.zzz",
        "unknown key 'zzz'",
        "one of: aliases, cache_type, context, draft",
    ),
    (
        "the same model twice",
        M + "  a: {source: file:x}\n  a: {source: file:y}\n",
        4,
        3,
        "",
        "'a' is here twice",
        "line 3",
    ),
    ("the same key twice", CHAT + "    source: file:y\n", 5, 5, "", "'source' is here twice", "line 4"),
    ("a number for text", M + "  a: {source: 7}\n", 3, 15, "models.a.source", "must be text (got 7)", "quotes"),
    ("text for a list", CHAT + "    aliases: x\n", 5, 14, "models.chat.aliases", "must be a list", ""),
    ("a list for a mapping", CHAT + "    options: [1]\n", 5, 14, "models.chat.options", "must be a mapping", ""),
    ("text for a whole number", CHAT + "    parallel: '2'\n", 5, 15, "models.chat.parallel", "whole number", ""),
    ("a fraction for a count", CHAT + "    context: 1.5\n", 5, 14, "models.chat.context", "whole number", ""),
    ("a truth for a number", CHAT + "    parallel: true\n", 5, 15, "models.chat.parallel", "whole number", ""),
    ("a number below the least", CHAT + "    parallel: 0\n", 5, 15, "models.chat.parallel", "at least 1", ""),
    ("a number above the most", CHAT + "    parallel: 257\n", 5, 15, "models.chat.parallel", "at most 256", ""),
    ("words for a count", CHAT + "    context: many\n", 5, 14, "models.chat.context", "not a count", ""),
    ("a count of nothing", CHAT + "    context: 0k\n", 5, 14, "models.chat.context", "at least 1", ""),
    ("a count beyond reason", CHAT + "    context: 9999999k\n", 5, 14, "models.chat.context", "at most", ""),
    ("a number in the environment", CHAT + "    env: {A: 1}\n", 5, 14, "models.chat.env.A", "must be text", "quotes"),
    ("a truth for the version", "version: true\n", 1, 10, "version", "must be 1", ""),
    ("another version", "version: 2\n", 1, 10, "version", "must be 1 (got 2)", ""),
    ("a port out of range", "version: 1\ngateway: {port: 65536}\n", 2, 17, "gateway.port", "at most 65535", ""),
    ("a missing version", "models: {}\n", 1, 1, "", "'version' is missing", "version:"),
    ("a missing source", M + "  a: {}\n", 3, 3, "models.a", "'source' is missing", "source:"),
    (
        "a missing command",
        "version: 1\nengines:\n  e: {type: command}\n",
        3,
        3,
        "engines.e",
        "'argv' is missing",
        "argv:",
    ),
    ("a missing engine type", "version: 1\nengines:\n  e: {}\n", 3, 3, "engines.e", "'type' is missing", "embedded"),
    (
        "an unknown engine type",
        "version: 1\nengines:\n  e: {type: vllm}\n",
        3,
        13,
        "engines.e.type",
        "'vllm' is not an engine type",
        "llama.cpp",
    ),
    ("a bad stack name", "version: 1\nname: a b\n", 2, 7, "name", "not well formed", "letters, digits"),
    ("a bad model name", M + "  a b: {source: file:x}\n", 3, 3, "models.a b", "not well formed", "letters, digits"),
    (
        "a bad alias",
        CHAT + "    aliases: [' x']\n",
        5,
        15,
        "models.chat.aliases.0",
        "not well formed",
        "letters, digits",
    ),
    (
        "an option as a variable",
        CHAT + "    env: {LLAMA_ARG_HOST: 0.0.0.0}\n",
        5,
        11,
        "models.chat.env.LLAMA_ARG_HOST",
        "is an option of the engine",
        "",
    ),
    (
        "the key of a process as a variable",
        CHAT + "    env: {LLAMA_API_KEY: mine}\n",
        5,
        11,
        "models.chat.env.LLAMA_API_KEY",
        "a key of its own",
        "",
    ),
    ("a bad sha256", CHAT + "    sha256: ABC\n", 5, 13, "models.chat.sha256", "not well formed", "64 lower-case"),
    ("a bad prefix", "version: 1\ngateway: {prefix: v1}\n", 2, 19, "gateway.prefix", "not well formed", ""),
    ("an unknown word", CHAT + "    task: embeding\n", 5, 11, "models.chat.task", "must be 'chat'", "'embedding'"),
    (
        "an engine that is not there",
        CHAT + "    engine: lama\n",
        5,
        13,
        "models.chat.engine",
        "no engine named 'lama'",
        "embedded",
    ),
    (
        "an engine whose name is misspelt",
        "version: 1\nengines: {llama: {type: embedded}}\nmodels:\n  a: {source: file:x, engine: lama}\n",
        4,
        31,
        "models.a.engine",
        "no engine named 'lama'",
        "did you mean 'llama'?",
    ),
    (
        "an alias that is a model",
        M + "  a: {source: file:x, aliases: [b]}\n  b: {source: file:x}\n",
        3,
        33,
        "models.a.aliases",
        "'b' already belongs to the model 'b'",
        "remove one",
    ),
    (
        "an alias that is its own model",
        M + "  a: {source: file:x, aliases: [a]}\n",
        3,
        33,
        "models.a.aliases",
        "'a' already belongs to the model 'a'",
        "remove one",
    ),
    (
        "an alias of two models",
        M + "  a: {source: file:x, aliases: [z]}\n  b: {source: file:x, aliases: [y, z]}\n",
        4,
        36,
        "models.b.aliases",
        "'z' already belongs to the model 'a'",
        "remove one",
    ),
    (
        "an alias twice in one model",
        M + "  a: {source: file:x, aliases: [z, z]}\n",
        3,
        36,
        "models.a.aliases",
        "'z' already belongs to the model 'a'",
        "remove one",
    ),
    (
        "an unencrypted foreign address",
        M + "  a: {source: 'http://example.com/m.gguf'}\n",
        3,
        15,
        "models.a.source",
        "unencrypted http:",
        "",
    ),
    (
        "an address with a password",
        M + "  a: {source: 'https://me:pw@example.com/m.gguf'}\n",
        3,
        15,
        "models.a.source",
        "credentials do not belong in an address",
        "",
    ),
    (
        "an address with a user",
        M + "  a: {source: 'https://token@example.com/m.gguf'}\n",
        3,
        15,
        "models.a.source",
        "credentials do not belong in an address",
        "",
    ),
    (
        "an address without a host",
        M + "  a: {source: 'https:///m.gguf'}\n",
        3,
        15,
        "models.a.source",
        "no host or no file",
        "",
    ),
    (
        "an address without a file",
        M + "  a: {source: 'https://h/'}\n",
        3,
        15,
        "models.a.source",
        "no host or no file",
        "",
    ),
    ("an address with half a bracket", M + "  a: {source: 'https://[h/m'}\n", 3, 15, "models.a.source", "", ""),
    (
        "an address with an impossible port",
        M + "  a: {source: 'https://h:99999/m'}\n",
        3,
        15,
        "models.a.source",
        "",
        "",
    ),
    ("an address with a port of letters", M + "  a: {source: 'https://h:abc/m'}\n", 3, 15, "models.a.source", "", ""),
    ("an unknown scheme", M + "  a: {source: 'ftp://h/m'}\n", 3, 15, "models.a.source", "'ftp' is not known", ""),
    ("a source without scheme", M + "  a: {source: m.gguf}\n", 3, 15, "models.a.source", "a source is written", ""),
    ("a bad requirement", M + "  a: {source: 'pypi:a b'}\n", 3, 15, "models.a.source", "not a package requirement", ""),
    (
        "a requirement that is an address",
        M + "  a: {source: 'pypi:a @ http://example.com/a.whl'}\n",
        3,
        15,
        "models.a.source",
        "",
        "",
    ),
    (
        "a requirement with a condition",
        M + "  a: {source: 'pypi:a; python_version < \"3\"'}\n",
        3,
        15,
        "models.a.source",
        "",
        "",
    ),
    (
        "an open address without keys",
        "version: 1\ngateway:\n  host: 0.0.0.0\n",
        3,
        3,
        "gateway",
        "0.0.0.0 without api_keys",
        "",
    ),
    (
        "a key in plain text",
        "version: 1\ngateway:\n  api_keys:\n    - {name: a, key: sk-123}\n",
        4,
        22,
        "gateway.api_keys.0.key",
        "not well formed",
        "env:NAME, file:PATH, keyring:NAME or command:PROGRAM",
    ),
    (
        "two keys of one name",
        "version: 1\ngateway:\n  api_keys: [{name: a, key: env:A}, {name: a, key: env:B}]\n",
        3,
        3,
        "gateway",
        "same name",
        "",
    ),
    ("an anchor", M + "  a: &x {source: file:x}\n", 3, 6, "", "anchors and aliases", "write the value out"),
    ("a merge key", CHAT + "    <<: {file: x}\n", 5, 5, "", "merge keys", "write the values out"),
    ("an alias without anchor", M + "  a: *x\n", 3, 6, "", "undefined alias 'x'", ""),
    ("a list for a key", "version: 1\n? [a, b]\n: x\n", 2, 3, "", "a key must be plain text", ""),
    ("a mapping for a key", "version: 1\n? {a: b}\n: x\n", 2, 3, "", "a key must be plain text", ""),
    ("a tag on text", "version: 1\nname: !!python/name:os.system x\n", 2, 7, "", "the tag", ""),
    ("a tag on a mapping", "version: 1\nmodels: !secret {}\n", 2, 9, "", "the tag", ""),
    ("a tag on a list", CHAT + "    aliases: !set [a]\n", 5, 14, "", "the tag", ""),
    ("no number", CHAT + "    options: {t: .nan}\n", 5, 18, "", "not a finite number", ""),
    ("infinity", CHAT + "    options: {t: .inf}\n", 5, 18, "", "not a finite number", ""),
    ("less than nothing", CHAT + "    options: {t: -.Inf}\n", 5, 18, "", "not a finite number", ""),
    ("infinity in digits", CHAT + "    options: {t: 1e999}\n", 5, 18, "", "not a finite number", ""),
    ("a number without end", f"version: {'9' * 65}\n", 1, 10, "", "more than 64 digits", ""),
    ("a tab", M + "\ta: {source: file:x}\n", 3, 1, "", "'\\t'", "indent with spaces"),
    ("two documents", "version: 1\n---\nversion: 1\n", 2, 1, "", "another document", "one file holds one document"),
    ("a colon too many", "version: 1\nname: a: b\n", 2, 8, "", "mapping values are not allowed", "quotes"),
    ("a key without colon", "version: 1\nname\nmodels: {}\n", 3, 1, "", "could not find expected ':'", "colon"),
    ("an open bracket", "version: 1\nmodels: {a: {\n", 3, 1, "", "not readable as YAML", ""),
    ("an open quote", 'version: 1\nname: "a\n', 3, 1, "", "not readable as YAML", ""),
    ("a control character", "version: 1\nname: a\x01\n", 2, 1, "", "not readable as YAML", ""),
    ("half a character", CHAT + '    env: {A: "\\ud800"}\n', 5, 14, "", "", ""),
    ("a zero byte", CHAT + '    env: {A: "\\0"}\n', 5, 14, "", "", ""),
    ("YAML from another century", "%YAML 2.0\n---\nversion: 1\n", 1, 1, "", "not readable as YAML", ""),
    ("a YAML that is not there yet", "%YAML 1.3\n---\nversion: 1\n", 1, 1, "", "", ""),
    ("an empty file", "", 1, 1, "", "the file is empty", "version: 1"),
    ("only a comment", "# nothing\n", 1, 1, "", "the file is empty", "version: 1"),
    ("only null", "~\n", 1, 1, "", "must be a mapping", ""),
    ("a list", "- 1\n", 1, 1, "", "must be a mapping", ""),
    ("a word", "hello\n", 1, 1, "", "must be a mapping", ""),
    ("empty models", "version: 1\nmodels:\n", 2, 1, "", "", ""),
    ("empty engines", "version: 1\nengines:\nmodels: {}\n", 2, 1, "", "", ""),
    ("empty gateway", "version: 1\ngateway:\nmodels: {}\n", 2, 1, "", "", ""),
    ("an empty model", M + "  a:\ngateway: {}\n", 3, 3, "", "", ""),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "summary", "hint"), [c[1:] for c in ONE], ids=[c[0] for c in ONE]
)
def test_a_fault_has_its_place_its_summary_and_its_hint(
    text: str, line: int, column: int, path: str, summary: str, hint: str
) -> None:
    fault = the_fault(text)
    assert fault.where is not None
    assert (fault.where.file, fault.where.line, fault.where.column) == ("stack.yaml", line, column)
    assert fault.summary
    assert summary in fault.summary
    assert hint in fault.hint
    if path:
        assert fault.path == path
    assert str(fault).startswith(f"stack.yaml:{line}:{column}: error: ")


def test_all_faults_come_in_one_run_in_the_order_of_the_file() -> None:
    found = faults(
        "version: 2\n"
        "name: a b\n"
        "nmae: x\n"
        "engines:\n"
        "  e: {type: command}\n"
        "  f: {type: vllm}\n"
        "models:\n"
        "  a:\n"
        "    source: ftp://x\n"
        "    engine: nowhere\n"
        "    context: many\n"
        "    context: 1k\n"
        "    aliases: [b, 7]\n"
        "  b: {}\n"
        "gateway:\n"
        "  port: 0\n"
    )
    assert places(found) == [
        (1, 10),
        (2, 7),
        (3, 1),
        (5, 3),
        (6, 13),
        (9, 13),
        (10, 13),
        (11, 14),
        (12, 5),
        (13, 15),
        (13, 18),
        (14, 3),
        (16, 9),
    ]


def test_an_open_address_is_reported_together_with_other_faults_of_the_gateway() -> None:
    found = faults("version: 1\ngateway:\n  host: 0.0.0.0\n  port: x\n")
    assert [("without api_keys" in d.summary, "whole number" in d.summary) for d in found] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\ngateway:\n  api_keys: [{name: a, key: hunter2-plain}]\n",
        M + "  a: {source: 'https://me:hunter2-plain@example.com/m.gguf'}\n",
        M + "  a: {source: 'https://hunter2-plain@example.com/m.gguf'}\n",
        M + "  a: {source: 'http://example.com/m.gguf?token=hunter2-plain'}\n",
    ],
    ids=["a plain api key", "a password", "a token for a user", "a token in a query"],
)
def test_a_refusal_never_repeats_a_secret(text: str) -> None:
    fault = the_fault(text)
    assert "hunter2" not in f"{fault} {fault.to_json()}"


def test_the_advice_for_a_version_without_quotes_keeps_its_digits() -> None:
    """2026.10 is the number 2026.1; quoting that would name another version."""
    fault = the_fault("version: 1\nengines:\n  e: {type: embedded, version: 2026.10}\n")
    assert "quotes" in fault.hint
    assert "2026.1'" not in fault.hint


def test_the_advice_for_a_quoted_number_is_not_to_quote_it() -> None:
    fault = the_fault("version: '1'\n")
    assert "must be 1" in fault.summary
    assert "did you mean '1'" not in fault.hint


def test_an_alias_bomb_is_refused_quickly_and_with_few_words() -> None:
    lines = ["version: 1", "models:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40)]
    found = faults("\n".join(lines))  # expanded it would be 10^40 values: this line would never end
    assert any("anchors and aliases" in d.summary for d in found)
    assert len(found) < 2000


@pytest.mark.parametrize("depth", [60, 400, 1000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")])
def test_deep_nesting_is_refused(depth: int, opening: str, closing: str) -> None:
    head = "" if opening in ("- ", "? ") else "version: 1\nmodels: "
    found = faults(head + opening * depth + "x" + closing * depth)
    assert any("deep" in d.summary or "recursion" in d.summary or "must be" in d.summary for d in found)


@pytest.mark.parametrize(("text", "line"), [(b"version: 1\nname: caf\xe9\n", 2), ("version: 1\n".encode("utf-16"), 1)])
def test_text_that_is_not_utf8_is_refused_with_its_line(text: bytes, line: int) -> None:
    fault = the_fault(text)
    assert fault.summary == "the text is not UTF-8"
    assert fault.where is not None
    assert fault.where.line == line
    assert "UTF-8" in fault.hint


def test_lines_count_the_same_with_crlf() -> None:
    text = CHAT + "    contxt: 4k\n"
    assert places(faults(text.replace("\n", "\r\n"))) == places(faults(text)) == [(5, 5)]


def test_a_byte_order_mark_does_not_move_the_columns() -> None:
    assert places(faults(b"\xef\xbb\xbfversion: 2\n")) == [(1, 10)]


@pytest.mark.parametrize(("name", "word"), [("nowhere.yaml", "there is no"), (".", "is not a file")])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, word: str) -> None:
    with pytest.raises(Refused, match=word):
        load(tmp_path / name)


def test_a_fault_can_be_printed_as_json() -> None:
    assert the_fault("version: 1\nmodles: {}\n").to_json() == {
        "severity": "error",
        "summary": "unknown key 'modles'",
        "path": "modles",
        "where": {"file": "stack.yaml", "line": 2, "column": 1},
        "hint": "did you mean 'models'?",
    }


def test_the_other_half_is_reported_with_a_fault_of_the_text() -> None:
    """A duplicate key is the reader's finding, an unknown one the checker's: neither hides the other."""
    found = faults("version: 1\nversion: 1\nmodles: {}\n")
    assert places(found) == [(2, 1), (3, 1)]


def test_a_good_manifest_is_not_refused() -> None:
    assert read_text(CHAT).stack.models["chat"].source == "file:x"
