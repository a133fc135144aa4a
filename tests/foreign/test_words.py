"""Flags become settings, secrets are seen as such, and what is written is read back as it was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.foreign import argv, container
from reconciler.foreign.draft import Draft, count, fit, no_key, seconds
from reconciler.foreign.secrets import holds_secret, referenced, says_secret, variable
from reconciler.foreign.text import parse
from reconciler.foreign.write import text
from reconciler.manifest.read import read
from tests.foreign.setups import home_at


def served(line: str, **environ: str) -> argv.Served:
    return argv.served(argv.words(line), lambda path: f"file:{path}", environ)


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("-m a.gguf", {"source": "file:a.gguf"}),
        ("--model=a.gguf --ctx-size=4096", {"source": "file:a.gguf", "context": "4k"}),
        ("-hf lab/X-GGUF:UD-Q4_K_XL", {"source": "hf:lab/X-GGUF"}),  # no file type of llama.cpp: the repository decides
        ("-hf lab/X-GGUF:q5_k_m", {"source": "hf:lab/X-GGUF", "quant": "Q5_K_M"}),
        ("-hf lab/X -hff x-Q8_0.gguf", {"source": "hf:lab/X", "file": "x-Q8_0.gguf"}),
        ("-mu https://h/x.gguf", {"source": "https://h/x.gguf"}),
        ("-c 10000 -np 3", {"context": 3333, "parallel": 3}),
        ("-ngl -1", {}),
        ("-ngl 0", {"gpu_layers": 0}),
        ("--embedding", {"task": "embedding"}),
        ("--reranking", {"task": "rerank"}),
        ("--no-mmproj", {"mmproj": "none"}),
        ("-fa", {"options": {"flash-attn": "on"}}),
        ("-fa off --no-mmap -t 8", {"options": {"flash-attn": "off", "no-mmap": True, "threads": 8}}),
        ("--temp -1 --seed 07", {"options": {"temp": -1, "seed": "07"}}),
        ("--host 0.0.0.0 --port 80 --no-webui", {}),
        ("--chat-template-kwargs '{\"a\": 1}'", {"options": {"chat-template-kwargs": '{"a": 1}'}}),
        ("--lora-scaled a.gguf 0.5", {"lora": [{"source": "file:a.gguf", "scale": 0.5}]}),
    ],
)
def test_flags(line: str, entry: dict[str, Any]) -> None:
    out = served(line)
    assert (out.entry, out.left) == (entry, [])


@pytest.mark.parametrize(
    "line", ["--api-key x", "-hft hf_abc", "stray", "-c 0", "--lora ''", "--header 'Bearer abcdef'"]
)
def test_flags_that_have_no_place_are_told(line: str) -> None:
    out = argv.served(argv.words(line), lambda path: f"file:{path}" if path else None)
    assert len(out.left) == 1
    assert out.entry == {}


def test_variables_of_llama_server() -> None:
    out = served("-c 8192", LLAMA_ARG_MODEL="/m.gguf", LLAMA_ARG_CTX_SIZE="1024", LLAMA_ARG_EMBEDDINGS="1", HOME="/")
    assert out.entry == {"source": "file:/m.gguf", "context": "8k", "task": "embedding"}


@pytest.mark.parametrize(
    ("name", "program"), [("llama-server", True), ("/opt/b/llama-server-b99", True), ("C:\\l\\llama-server.exe", True),
                          ("llama-server-runner/x", False), ("vllm", False), ("llama-cli", False)]
)  # fmt: skip
def test_what_a_llama_server_is_called(name: str, program: bool) -> None:
    assert argv.is_llama_server(name) is program


@pytest.mark.parametrize(
    ("image", "kind"),
    [("ghcr.io/ggml-org/llama.cpp:server-cuda", "llama.cpp"), ("ollama/ollama", "ollama"),
     ("vllm/vllm-openai:v1", "vllm"), ("localhost:5000/ollama/ollama@sha256:ab", "ollama"),
     ("ghcr.io/ggml-org/llama.cpp:light", ""), ("redis:7", "")],
)  # fmt: skip
def test_what_images_run(image: str, kind: str) -> None:
    assert container.kind_of(image) == kind


def test_a_container_from_a_command_line() -> None:
    line = "docker run --rm -it -v ./m:/models:ro -v data:/data -p 127.0.0.1:81:80 --gpus all -e A=b img -m /models/x"
    run = container.from_run(line.split(), Path("/base"), Path("/home"))
    assert run is not None
    assert (run.image, run.args, run.ports, run.environ) == ("img", ["-m", "/models/x"], {80: 81}, {"A": "b"})
    assert run.here("/models/x") == Path("/base/m/x")
    assert run.here("/models2/x") is None
    assert run.here("/data/x") is None


@pytest.mark.parametrize(
    "name", ["GITHUB_TOKEN", "apiKey", "X-Api-Key", "OPENAI_API_KEY", "password", "dbPassword", "AWS_SECRET_ACCESS_KEY",
             "DATABASE_URL", "Authorization", "PAT"]
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert says_secret(name)


@pytest.mark.parametrize("name", ["PATH", "LOG_LEVEL", "MAX_TOKENS", "AUTHOR", "KEYBOARD", "HOME", "MONKEY"])
def test_names_of_other_things(name: str) -> None:
    assert not says_secret(name)


@pytest.mark.parametrize(
    "value", ["sk-abc123", "ghp_x1", "Bearer x", "postgres://u:p@h/d", "https://h/x?token=a", "eyJhbGciOi", "hf_abc",
              "a1b2c3d4e5f6a7b8c9d0e1", "123e4567-e89b-12d3-a456-426614174000"]
)  # fmt: skip
def test_values_that_are_secrets(value: str) -> None:
    assert holds_secret(value)


@pytest.mark.parametrize(
    "value", ["info", "/srv/docs", "Qwen2.5-Coder-32B-Instruct-Q4_K_M.gguf", "https://h:8080/mcp", "true", "us-east-1",
              "@modelcontextprotocol/server-filesystem@2026.8.31", "https://h/x?page=2"]
)  # fmt: skip
def test_values_that_are_none(value: str) -> None:
    assert not holds_secret(value)


@pytest.mark.parametrize(
    "value", ["", "none", "EMPTY", "ollama", "lm-studio", "sk-no-key-required", "not-needed", "xxx"]
)
def test_keys_that_are_only_there_because_something_must_be(value: str) -> None:
    assert no_key(value)
    assert not no_key("sk-real")


@pytest.mark.parametrize(
    ("value", "name"),
    [("${A_B}", "A_B"), ("$A", "A"), ("${env:A}", "A"), ("${input:my-key}", "MY_KEY"), ("os.environ/A", "A"),
     ("%A%", "A"), ("${A:-x}", "A"), ("${env.A}", "A"), ("x${A}", ""), ("plain", ""), ("", "")],
)  # fmt: skip
def test_references(value: str, name: str) -> None:
    assert referenced(value) == name


def test_names_are_made_fit_and_numbered(tmp_path: Path) -> None:
    draft = Draft("x", home_at(tmp_path))
    names = [draft.add("models", name, {}) for name in ("a/b:c", "a-b-c", "…", "-", "x" * 80, "x" * 90, "a b c")]
    assert names == ["a-b-c", "a-b-c-2", "model", "model-2", "x" * 64, "x" * 62 + "-2", "a-b-c-3"]
    assert draft.add("routes", "a-b-c", {}) == "a-b-c-4"  # clients could not tell them apart
    assert draft.add("engines", "embedded", {}) == "embedded-2"
    assert (fit(".."), variable("1 a"), count(8192), count(1000), seconds(90), seconds(0.2)) == (
        "", "_1_A", "8k", 1000, "90s", "1s")  # fmt: skip


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, min_size=1, max_size=4) | st.dictionaries(TEXT.filter(lambda k: k != "<<"), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), VALUES, min_size=1, max_size=4))
def test_what_is_written_is_read_back(entry: dict[str, Any]) -> None:
    draft = Draft("x", home_at(Path("/tmp")))
    draft.entries["models"]["m"] = entry
    document = read(text(draft).encode(), "x")
    assert (document.values, document.faults) == ({"version": 1, "models": {"m": entry}}, [])


def test_anchors_merges_and_places_of_yaml() -> None:
    said = parse("a: &x {b: 1, c: [1, 2]}\nd:\n  <<: *x\n  b: 2\ne: *x\n", "f", "yaml")
    assert said.values["d"] == {"b": 2, "c": [1, 2]}
    assert said.values["e"] == {"b": 1, "c": [1, 2]}
    assert str(said.where("d", "b")) == "f:4:3"
    assert str(said.where("d", "c")) == "f:2:1"  # merged: it stands nowhere
    assert str(said.where("a", "c", 1)) == "f:1:21"


def test_comments_and_places_of_json() -> None:
    said = parse('{ // x\n  "a": [1, {"b": "/* no */"},], /* y */\n  "c": null,\n}', "f", "json")
    assert said.values == {"a": [1, {"b": "/* no */"}], "c": None}
    assert str(said.where("a", 1, "b")) == "f:2:13"
