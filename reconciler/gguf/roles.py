"""What a GGUF file is for, by its header and never by its name: role, task, senses, and a summary to show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from reconciler.gguf.header import Header, histogram, type_name
from reconciler.gguf.quant import named


class RoleName(StrEnum):
    MODEL = "model"
    MMPROJ = "mmproj"  # turns images or sound into what a model reads
    LORA = "lora"
    DRAFT = "draft"  # guesses ahead for one certain model, and cannot be used alone
    MTP = "mtp"  # the layers of a model that guess ahead, in a file of their own
    VOCAB = "vocab"
    IMATRIX = "imatrix"
    CONTROL_VECTOR = "control-vector"
    UNKNOWN = "unknown"


class Task(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"  # continues text: a model without a chat template
    EMBEDDING = "embedding"
    RERANK = "rerank"
    NONE = ""  # what is no model has none


@dataclass(frozen=True, slots=True)
class Role:
    """`reason` says by which sign it was told."""

    name: RoleName
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What there is to show of a model's headers. Texts are printable. 0 and "" are what the header does not say.

    `senses` are image and audio (of an mmproj); `tools` and `thinks` are what the chat template knows of.
    `file_type` is what the header calls itself; `types` are (tensor type, tensors), the one with most weights first.
    """

    role: Role
    task: Task
    architecture: str
    name: str
    licence: str
    file_type: str
    parameters: int
    context_length: int
    layers: int
    experts: int
    senses: tuple[str, ...]
    chat_template: bool
    tools: bool
    thinks: bool
    parts: int
    types: tuple[tuple[str, int], ...]


_TYPES = {
    "adapter": RoleName.LORA,
    "mmproj": RoleName.MMPROJ,
    "imatrix": RoleName.IMATRIX,
    "controlvector": RoleName.CONTROL_VECTOR,
}
_DRAFTS = ("eagle3", "dflash", "gemma4-assistant", "gemma4_assistant")  # architectures of llama.cpp (b11434)
_ENCODERS = (
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "t5encoder", "gemma-embedding", "llama-embed",
)  # fmt: skip
_POOLED = (1, 2, 3)  # mean, cls, last (llama_pooling_type)
_RANKED = 4
_LAYER = re.compile(r"(?:^|\.)blk\.([0-9]{1,6})\.")


def role(header: Header) -> Role:
    """What the file is for. Of a split model, any part's header will do."""
    kind, architecture = header.text("general.type"), header.architecture
    if architecture == "clip":
        return Role(RoleName.MMPROJ, "its architecture is clip")
    if architecture == "controlvector" or any(key.startswith("controlvector.") for key in header.keys):
        return Role(RoleName.CONTROL_VECTOR, "it has keys of a control vector")
    if "adapter.type" in header.keys:
        return _adapter(header)
    if kind in _TYPES:
        return Role(_TYPES[kind], f"its general.type is {kind}")
    if any(key.startswith("imatrix.") for key in header.keys):
        return Role(RoleName.IMATRIX, "it has keys of an importance matrix")
    if header.integer("split.count") > 1:
        return Role(RoleName.MODEL, f"it is part {header.integer('split.no') + 1} of a split model")
    if not header.tensors:
        vocabulary = "tokenizer.ggml.tokens" in header.keys or "tokenizer.ggml.model" in header.keys
        found = RoleName.VOCAB if vocabulary else RoleName.UNKNOWN
        return Role(found, "it has a vocabulary and no tensors" if vocabulary else "it has no tensors")
    return _model(header)


def _adapter(header: Header) -> Role:
    said = header.text("adapter.type")
    names = {"lora": RoleName.LORA, "control_vector": RoleName.CONTROL_VECTOR}
    return Role(names.get(said, RoleName.UNKNOWN), f"its adapter.type is {printable(said) or 'no text'}")


def _model(header: Header) -> Role:
    architecture = header.architecture
    if not architecture:
        return Role(RoleName.UNKNOWN, "it has tensors, but no architecture")
    if architecture in _DRAFTS:
        return Role(RoleName.DRAFT, f"its architecture is {architecture}")
    ahead, layers = header.integer(f"{architecture}.nextn_predict_layers"), _layers(header)
    last = header.integer(f"{architecture}.block_count") - ahead
    if ahead > 0 and last > 0 and layers and min(layers) >= last:
        return Role(RoleName.MTP, f"of {last + ahead} layers it has only the last {ahead}, which guess ahead")
    if all(tensor.name.endswith((".lora_a", ".lora_b")) for tensor in header.tensors):
        return Role(RoleName.LORA, "its tensors are pairs of a LoRA")
    if not layers and "tokenizer.ggml.model" not in header.keys:
        return Role(RoleName.UNKNOWN, f"it has neither layers nor a vocabulary that llama.cpp knows: {architecture}")
    return Role(RoleName.MODEL, f"it has the tensors of a model: {printable(architecture)}")


def _layers(header: Header) -> set[int]:
    return {int(found[1]) for tensor in header.tensors if (found := _LAYER.search(tensor.name))}


def task(header: Header) -> Task:
    """What the model is for; of a split one, by the header of its first part."""
    if role(header).name is not RoleName.MODEL:
        return Task.NONE
    architecture = header.architecture
    pooling = header.integer(f"{architecture}.pooling_type", -1)
    if pooling == _RANKED or any(tensor.name.startswith("cls.output.") for tensor in header.tensors):
        return Task.RERANK
    if pooling in _POOLED or architecture in _ENCODERS:
        return Task.EMBEDDING
    return Task.CHAT if templates(header) else Task.COMPLETION


def senses(header: Header) -> tuple[str, ...]:
    """What an mmproj lets a model take in besides text: image, audio."""
    if role(header).name is not RoleName.MMPROJ:
        return ()
    found = []
    for sense, key in (("image", "vision"), ("audio", "audio")):
        said = header.keys.get(f"clip.has_{key}_encoder")
        if said is True or (said is None and any(name.startswith(f"clip.{key}.") for name in header.keys)):
            found.append(sense)
    return tuple(found)


def templates(header: Header) -> tuple[str, ...]:
    """Its chat templates (Jinja), the ordinary one first."""
    keys = sorted(key for key in header.keys if key.split(".")[:2] == ["tokenizer", "chat_template"])
    return tuple(value for value in map(header.text, keys) if value.strip())


def takes_tools(header: Header) -> bool:
    """Whether a chat template does something with the tools of a request."""
    return any(re.search(r"\btools\b", code) for template in templates(header) for code in _code(template))


def _code(template: str) -> Iterator[str]:
    """What stands in {{ }} and {% %}. Each letter is looked at once: a stranger may have made it a MiB of braces."""
    for piece in re.split(r"\{[%{]", template)[1:]:
        yield re.split(r"[%}]\}", piece, maxsplit=1)[0]


def thinks(header: Header) -> bool:
    """Whether a chat template knows of reasoning that comes before the answer."""
    return any(re.search(r"enable_thinking|</?think>|reasoning_content", text) for text in templates(header))


def summary(headers: Sequence[Header]) -> Summary:
    """What to show of a model, from the headers of all its files, the first part first; at least one is needed."""
    first = headers[0]
    architecture, kind = first.architecture, first.keys.get("general.file_type")
    return Summary(
        role=role(first),
        task=task(first),
        architecture=printable(architecture),
        name=printable(first.text("general.name")),
        licence=printable(first.text("general.license")),
        file_type=named(kind) if type(kind) is int else "",
        parameters=sum(header.parameters for header in headers),
        context_length=first.context_length,
        layers=max(0, first.integer(f"{architecture}.block_count")),
        experts=max(0, first.integer(f"{architecture}.expert_count")),
        senses=senses(first),
        chat_template=bool(templates(first)),
        tools=takes_tools(first),
        thinks=thinks(first),
        parts=len(headers),
        types=tuple((type_name(kind), share.tensors) for kind, share in histogram(headers).items()),
    )


def printable(text: str, most: int = 200) -> str:
    """Text of a stranger on one line and without control characters, so that a terminal shows it and obeys nothing."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in short)
