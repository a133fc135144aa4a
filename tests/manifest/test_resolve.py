"""What follows from a manifest: which resources, what they need, where they were asked for, and what changes them."""

from __future__ import annotations

from pathlib import Path

from reconciler.core.ids import Ref
from reconciler.manifest.resolve import resolve
from tests.manifest.helper import read_text

TEXT = """\
version: 1
engines:
  llama: {type: llama.cpp, path: bin/llama-server}
models:
  embed:
    source: pypi:tiny==1.0
    task: embedding
  chat:
    source: file:m.gguf
    engine: llama
    aliases: [default]
    context: 16k
    parallel: 2
    gpu_layers: 3
    cache_type: {k: q8_0}
    options: {threads: 2, flash_attn: auto}
    env: {Z: "1", A: "2"}
gateway:
  port: 4000
"""
PATH = Path("/srv/stack/stack.yaml")


def digests(text: str) -> dict[str, str]:
    return {str(ref): declared.digest for ref, declared in resolve(read_text(text, PATH), "cp311").items()}


def changed(before: str, after: str) -> set[str]:
    assert before != after
    old, new = digests(before), digests(after)
    return {ref for ref in {*old, *new} if old.get(ref) != new.get(ref)}


def test_a_model_becomes_bytes_and_a_server_and_its_engine_comes_along() -> None:
    found = resolve(read_text(TEXT, PATH), "cp311")
    assert {str(ref) for ref in found} == {
        "engine/llama",
        "engine/embedded",
        "model/embed",
        "model/chat",
        "server/embed",
        "server/chat",
        "gateway/main",
    }
    assert all(declared.ref == ref for ref, declared in found.items())


def test_needs_name_what_must_be_there_first() -> None:
    found = resolve(read_text(TEXT, PATH), "cp311")
    needs = {str(ref): {str(n) for n in declared.needs} for ref, declared in found.items() if declared.needs}
    assert needs == {
        "server/chat": {"engine/llama", "model/chat"},
        "server/embed": {"engine/embedded", "model/embed"},
        "gateway/main": {"server/chat", "server/embed"},
    }
    assert all(Ref.parse(need) in found for group in needs.values() for need in group)


def test_where_is_the_line_that_asked_for_it() -> None:
    found = resolve(read_text(TEXT, PATH), "cp311")
    lines = {str(ref): declared.where.line if declared.where else None for ref, declared in found.items()}
    assert lines == {
        "engine/llama": 3,
        "engine/embedded": None,
        "model/embed": 5,
        "server/embed": 5,
        "model/chat": 8,
        "server/chat": 8,
        "gateway/main": 18,
    }


def test_every_default_is_filled_in_and_every_setting_arrives() -> None:
    found = resolve(read_text(TEXT, PATH), "cp311")
    chat, embed = found[Ref("server", "chat")].spec, found[Ref("server", "embed")].spec
    assert (chat.context, chat.parallel, chat.gpu_layers, chat.cache_k, chat.cache_v) == (16384, 2, 3, "q8_0", "f16")
    assert chat.options == (("flash_attn", "auto"), ("threads", 2))
    assert chat.env == (("A", "2"), ("Z", "1"))
    assert (embed.context, embed.parallel, embed.gpu_layers, embed.engine, embed.task) == (
        4096,
        1,
        -1,
        "embedded",
        "embedding",
    )
    assert found[Ref("engine", "llama")].spec.path == "/srv/stack/bin/llama-server"
    assert found[Ref("engine", "embedded")].spec.python == "cp311"
    gateway = found[Ref("gateway", "main")].spec
    assert (gateway.host, gateway.port, gateway.prefix) == ("127.0.0.1", 4000, "/v1")
    assert [(m.name, m.aliases, m.task, m.context) for m in gateway.models] == [
        ("chat", ("default",), "chat", 16384),
        ("embed", (), "embedding", 4096),
    ]


def test_a_manifest_without_models_still_has_a_gateway() -> None:
    assert [str(ref) for ref in resolve(read_text("version: 1\n", PATH), "cp311")] == ["gateway/main"]


def test_the_same_text_gives_the_same_digests_and_so_does_another_order_of_keys() -> None:
    assert digests(TEXT) == digests(TEXT)
    swapped = TEXT.replace('{Z: "1", A: "2"}', '{A: "2", Z: "1"}')
    swapped = swapped.replace("{threads: 2, flash_attn: auto}", "{flash_attn: auto, threads: 2}")
    head, models, rest = swapped.partition("  embed:\n    source: pypi:tiny==1.0\n    task: embedding\n")
    moved = head + rest.replace("gateway:", f"{models}gateway:")
    assert moved != TEXT
    assert digests(moved) == digests(TEXT)


def test_comments_and_defaults_written_out_change_nothing() -> None:
    after = TEXT.replace("    task: embedding\n", "    task: embedding   # small\n    context: 4096\n    parallel: 1\n")
    assert changed(TEXT, after) == set()


def test_a_new_alias_changes_the_gateway_only() -> None:
    assert changed(TEXT, TEXT.replace("[default]", "[standard]")) == {"gateway/main"}


def test_another_task_or_context_changes_the_server_and_what_the_gateway_says_of_it() -> None:
    assert changed(TEXT, TEXT.replace("context: 16k", "context: 8k")) == {"server/chat", "gateway/main"}


def test_a_setting_that_clients_do_not_see_changes_the_server_only() -> None:
    for before, after in (
        ("parallel: 2", "parallel: 3"),
        ("gpu_layers: 3", "gpu_layers: auto"),
        ("{k: q8_0}", "{v: q8_0}"),
        ("threads: 2", "threads: 3"),
        ('Z: "1"', 'Z: "2"'),
    ):
        assert changed(TEXT, TEXT.replace(before, after)) == {"server/chat"}, after


def test_another_source_changes_the_model_and_its_server() -> None:
    assert changed(TEXT, TEXT.replace("file:m.gguf", "file:n.gguf")) == {"model/chat", "server/chat"}
    pinned = TEXT.replace("source: file:m.gguf", f"source: file:m.gguf\n    sha256: {'a' * 64}")
    assert changed(TEXT, pinned) == {"model/chat", "server/chat"}


def test_another_engine_changes_the_engine_and_its_servers() -> None:
    assert changed(TEXT, TEXT.replace("bin/llama-server", "bin/other")) == {"engine/llama", "server/chat"}


def test_another_port_changes_the_gateway_only() -> None:
    assert changed(TEXT, TEXT.replace("4000", "4001")) == {"gateway/main"}


def test_another_interpreter_changes_the_embedded_engine_and_its_servers() -> None:
    manifest = read_text(TEXT, PATH)
    old, new = resolve(manifest, "cp311"), resolve(manifest, "cp312")
    assert {str(r) for r in old if old[r].digest != new[r].digest} == {"engine/embedded", "server/embed"}


def test_a_renamed_model_leaves_the_others_alone() -> None:
    assert changed(TEXT, TEXT.replace("  embed:\n", "  vectors:\n")) == {
        "model/embed",
        "server/embed",
        "model/vectors",
        "server/vectors",
        "gateway/main",
    }
