"""What files are for, by their headers alone, and what a terminal gets to see of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from reconciler.gguf.header import Header, parse
from reconciler.gguf.roles import RoleName, Task, printable, role, senses, summary, takes_tools, task, templates, thinks
from tests.support.gguf_header import SHAPES, Spec, header
from tests.support.tiny_gguf import tiny_gguf

LAYER = Spec("blk.0.ffn_up.weight", (32, 32))
AHEAD = {"glm.block_count": 47, "glm.nextn_predict_layers": 1}


def made(keys: dict[str, Any], *tensors: Spec, architecture: str = "llama") -> Header:
    return parse(header({"general.architecture": architecture, **keys}, tensors))


@pytest.mark.parametrize(
    ("kind", "name", "purpose", "sees"),
    [
        ("chat", RoleName.MODEL, Task.CHAT, ()),
        ("bert", RoleName.MODEL, Task.EMBEDDING, ()),
        ("rerank", RoleName.MODEL, Task.RERANK, ()),
        ("mmproj", RoleName.MMPROJ, Task.NONE, ("image",)),
    ],
)
def test_real_files(tmp_path: Path, kind: Any, name: RoleName, purpose: Task, sees: tuple[str, ...]) -> None:
    found = parse(tiny_gguf(tmp_path / "lora-draft-mmproj-vocab.gguf", kind=kind).read_bytes())
    assert (role(found).name, task(found), senses(found)) == (name, purpose, sees)


def test_files_that_the_gguf_package_writes(tmp_path: Path) -> None:
    def written(kind: str, architecture: str, **keys: str) -> Header:
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
        writer.add_type(kind)
        for key, value in keys.items():
            writer.add_string(key.replace("__", "."), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return parse((tmp_path / "m.gguf").read_bytes())

    assert role(written(gguf.GGUFType.ADAPTER, "llama", adapter__type="lora")).name is RoleName.LORA
    assert role(written(gguf.GGUFType.IMATRIX, "")).name is RoleName.IMATRIX
    assert role(written(gguf.GGUFType.MMPROJ, "clip")).name is RoleName.MMPROJ
    assert role(written(gguf.GGUFType.MODEL, "llama", tokenizer__ggml__model="llama")).name is RoleName.VOCAB


@pytest.mark.parametrize(
    ("found", "name", "reason"),
    [
        (made({}, LAYER), RoleName.MODEL, "tensors of a model: llama"),
        (made({}, architecture="clip"), RoleName.MMPROJ, "architecture is clip"),
        (made({"general.type": "mmproj"}, LAYER), RoleName.MMPROJ, "general.type is mmproj"),
        (made({"adapter.type": "lora"}), RoleName.LORA, "adapter.type is lora"),
        (made({"adapter.type": "control_vector"}), RoleName.CONTROL_VECTOR, "adapter.type is control_vector"),
        (made({"adapter.type": "x\x1b[2J"}), RoleName.UNKNOWN, "adapter.type is x\N{REPLACEMENT CHARACTER}"),
        (made({"adapter.type": 7}), RoleName.UNKNOWN, "no text"),
        (made({"general.type": "adapter"}), RoleName.LORA, "general.type is adapter"),
        (made({}, Spec("a.lora_a", (4,)), Spec("a.lora_b", (4,))), RoleName.LORA, "pairs of a LoRA"),
        (made({"controlvector.model_hint": "llama"}, architecture="x"), RoleName.CONTROL_VECTOR, "control vector"),
        (made({}, architecture="controlvector"), RoleName.CONTROL_VECTOR, "control vector"),
        (made({"imatrix.chunk_count": 5}, LAYER), RoleName.IMATRIX, "importance matrix"),
        (made({}, LAYER, architecture="eagle3"), RoleName.DRAFT, "architecture is eagle3"),
        (made({"tokenizer.ggml.tokens": ["a"]}), RoleName.VOCAB, "vocabulary and no tensors"),
        (made({}), RoleName.UNKNOWN, "no tensors"),
        (made({}, LAYER, architecture=""), RoleName.UNKNOWN, "no architecture"),
        (made({}, Spec("double_blocks.0.img", (4,)), architecture="flux"), RoleName.UNKNOWN, "neither layers nor"),
        (made({"split.count": 2, "split.no": 0}), RoleName.MODEL, "part 1 of a split model"),
        (
            made(AHEAD, Spec("blk.46.x", (4,)), architecture="glm"),
            RoleName.MTP,
            "of 47 layers it has only the last 1",
        ),
        (
            made(AHEAD, LAYER, Spec("blk.46.x", (4,)), architecture="glm"),
            RoleName.MODEL,
            "tensors of a model",
        ),
    ],
)  # fmt: skip
def test_roles_and_their_reasons(found: Header, name: RoleName, reason: str) -> None:
    assert role(found).name is name
    assert reason in role(found).reason
    if name is not RoleName.MODEL:
        assert task(found) is Task.NONE


@pytest.mark.parametrize(
    ("keys", "architecture", "purpose"),
    [
        ({}, "llama", Task.COMPLETION),
        ({"tokenizer.chat_template": "{{ messages }}"}, "llama", Task.CHAT),
        ({"tokenizer.chat_template": "  "}, "llama", Task.COMPLETION),
        ({"tokenizer.chat_template": ["{{ messages }}"]}, "llama", Task.COMPLETION),
        ({"llama.pooling_type": 3, "tokenizer.chat_template": "{{ m }}"}, "llama", Task.EMBEDDING),
        ({"llama.pooling_type": 0, "tokenizer.chat_template": "{{ m }}"}, "llama", Task.CHAT),
        ({"llama.pooling_type": 4}, "llama", Task.RERANK),
        ({}, "nomic-bert", Task.EMBEDDING),
        ({}, "gemma-embedding", Task.EMBEDDING),
    ],
)
def test_tasks(keys: dict[str, Any], architecture: str, purpose: Task) -> None:
    assert task(made(keys, LAYER, architecture=architecture)) is purpose


def test_a_class_head_makes_a_reranker() -> None:
    assert task(made({}, LAYER, Spec("cls.output.weight", (32, 1)))) is Task.RERANK


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"clip.has_vision_encoder": True, "clip.has_audio_encoder": True}, ("image", "audio")),
        ({"clip.has_vision_encoder": False, "clip.vision.image_size": 64, "clip.has_audio_encoder": True}, ("audio",)),
        ({"clip.vision.image_size": 64}, ("image",)),
        ({}, ()),
    ],
)
def test_senses_are_those_of_a_projector(keys: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert senses(made(keys, architecture="clip")) == expected
    assert senses(made(keys, LAYER)) == ()


@pytest.mark.parametrize(
    ("template", "tools", "reasons"),
    [
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True, False),
        ("{%- for t in tools -%}", True, False),
        ("Use the tools. {{ messages }}", False, False),
        ("{{ mytools }} {{ tools_used }}", False, False),
        ("{% if enable_thinking %}<think>{% endif %}", False, True),
        ("{{ '{%' }} tools", False, False),
        ("{% " * 100_000, False, False),
    ],
)
def test_what_a_template_knows_of(template: str, tools: bool, reasons: bool) -> None:
    found = made({"tokenizer.chat_template": template}, LAYER)
    assert (takes_tools(found), thinks(found)) == (tools, reasons)


def test_named_templates_count_too() -> None:
    found = made({"tokenizer.chat_template.tool_use": "{{ tools }}", "tokenizer.chat_template": "{{ m }}"}, LAYER)
    assert templates(found) == ("{{ m }}", "{{ tools }}")
    assert takes_tools(found)


def test_a_summary_adds_up_the_parts() -> None:
    shape = SHAPES["eight-experts"]
    specs = list(shape.tensors(8))
    keys = {**shape.keys(), "general.name": "Mix\x1b]0;x\x07", "general.license": "mit", "general.file_type": 7}
    whole = summary([parse(header(keys, specs))])
    first, second = parse(header({**keys, "split.count": 2}, specs[:9])), parse(header({"split.count": 2}, specs[9:]))
    both = summary([first, second])
    assert (whole.parameters, whole.types) == (both.parameters, both.types)
    assert whole.types == (("Q8_0", 226), ("F32", 97))
    assert (whole.parts, both.parts) == (1, 2)
    assert (whole.file_type, whole.layers, whole.experts, whole.context_length) == ("Q8_0", 32, 8, 4096)
    assert (whole.name, whole.licence) == ("Mix\N{REPLACEMENT CHARACTER}]0;x\N{REPLACEMENT CHARACTER}", "mit")
    assert 46e9 < whole.parameters < 47e9


def test_a_summary_of_nothing_known_is_empty() -> None:
    found = summary([parse(header({"general.file_type": "x", "general.name": 3}))])
    assert (found.role.name, found.name, found.file_type, found.parameters, found.types) == (
        RoleName.UNKNOWN,
        "",
        "",
        0,
        (),
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [("höher 模型", "höher 模型"), ("a\nb\tc", "a\ufffdb\ufffdc"), ("\x1b[31m", "\ufffd[31m"),
     ("\u202egnp", "\ufffdgnp"),
     ("x" * 201, "x" * 199 + "…")],
)  # fmt: skip
def test_texts_of_strangers_are_made_harmless(text: str, shown: str) -> None:
    assert printable(text) == shown
