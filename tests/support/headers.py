"""Headers of well-known models as plain data: the keys and tensors that decide about memory, and no file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reconciler.gguf.header import Header, Tensor

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
Named = tuple[str, tuple[int, ...], int]


def header(architecture: str, keys: dict[str, Any], tensors: list[Named], data: int = 4096) -> Header:
    """`keys` without the architecture's own prefix, unless they have one of `general` or `tokenizer`."""
    own = ("general.", "tokenizer.", "clip.")
    named = {key if key.startswith(own) else f"{architecture}.{key}": value for key, value in keys.items()}
    records = tuple(Tensor(name, shape, kind, i * 32) for i, (name, shape, kind) in enumerate(tensors))
    return Header(3, {"general.architecture": architecture, **named}, records, data)


def transformer(
    architecture: str = "llama",
    *,
    layers: int = 32,
    embedding: int = 4096,
    wide: int = 14_336,
    heads: int = 32,
    heads_kv: int | list[int] = 8,
    head: int = 128,
    vocabulary: int = 128_256,
    kind: int = F16,
    output: bool = True,
    **keys: Any,
) -> Header:
    """Attention and feed-forward in each layer; the defaults are those of Llama 3 8B."""
    about = {
        "block_count": layers,
        "embedding_length": embedding,
        "feed_forward_length": wide,
        "context_length": 8192,
        "attention.head_count": heads,
        "attention.head_count_kv": heads_kv,
        "attention.key_length": head,
        "attention.value_length": head,
        "tokenizer.ggml.tokens": vocabulary,
        **{name.replace("__", "."): value for name, value in keys.items()},
    }
    each = heads_kv if isinstance(heads_kv, list) else [heads_kv] * layers
    tensors: list[Named] = [
        ("token_embd.weight", (embedding, vocabulary), kind),
        ("output_norm.weight", (embedding,), F32),
    ]
    tensors += [("output.weight", (embedding, vocabulary), kind)] if output else []
    for i, kv in enumerate(each):
        tensors += layer(i, embedding, wide, heads * head, kv * head, kind)
    return header(architecture, about, tensors)


def layer(i: int, embedding: int, wide: int, queries: int, keys: int, kind: int = F16) -> Iterator[Named]:
    at = f"blk.{i}."
    if keys:
        yield f"{at}attn_q.weight", (embedding, queries), kind
        yield f"{at}attn_k.weight", (embedding, keys), kind
        yield f"{at}attn_v.weight", (embedding, keys), kind
        yield f"{at}attn_output.weight", (queries, embedding), kind
    yield f"{at}attn_norm.weight", (embedding,), F32
    yield f"{at}ffn_gate.weight", (embedding, wide), kind
    yield f"{at}ffn_up.weight", (embedding, wide), kind
    yield f"{at}ffn_down.weight", (wide, embedding), kind
