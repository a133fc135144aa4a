"""Models of any size and of several architectures whose weights are all zero: files with holes, written at once.

Only the header is real, but the engine loads them, computes with them and holds their pages as it does with any other
model. So memory can be measured at gigabytes without a download. `python -m benchmarks.hollow OUT ARCHITECTURE`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.gguf.header import parse

Tensors = Iterator[tuple[str, tuple[int, ...]]]
HEADS = [b"<unk>", b"<s>", b"</s>"]


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Of a transformer; `inner`, `state` and `conv` of its recurrent layers, `rank` of its compressed attention."""

    layers: int = 16
    embedding: int = 1024
    wide: int = 4096
    heads: int = 16
    heads_kv: int = 4
    head: int = 64
    vocabulary: int = 32_000
    context: int = 32_768
    window: int = 0
    experts: int = 0
    used: int = 0
    inner: int = 0
    state: int = 0
    conv: int = 4
    rank: int = 0
    rope: int = 64

    @property
    def qkv(self) -> tuple[int, int]:
        return self.heads * self.head, self.heads_kv * self.head


def hollow(path: Path, architecture: str, size: Dimensions, quant: str = "F16") -> Path:
    """Write a model of `architecture` (one of `ARCHITECTURES`) with matrices of the ggml type `quant`."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, architecture)
    _header(writer, architecture, size)
    kind = gguf.GGMLQuantizationType[quant]
    for name, shape in ARCHITECTURES[architecture](size):
        plain = (
            len(shape) == 1 or name.startswith("position_embd") or "ssm_" in name or name.endswith("gate_inp.weight")
        )
        plain = plain and "ssm_in" not in name and "ssm_out" not in name
        raw = gguf.GGMLQuantizationType.F32 if plain else kind
        count = int(np.prod(shape))
        writer.add_tensor_info(name, shape[::-1], np.dtype("float32"), _bytes(gguf, count, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(parse(file.read()).size)
    return path


def _bytes(gguf: Any, count: int, kind: Any) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(count // block * size)


def _header(writer: Any, architecture: str, size: Dimensions) -> None:
    from gguf import TokenType

    writer.add_type("model")
    writer.add_name(f"hollow-{architecture}")
    for name, value in {
        "context_length": size.context,
        "embedding_length": size.embedding,
        "block_count": size.layers,
        "feed_forward_length": size.wide,
        "expert_feed_forward_length": size.wide if size.experts else 0,
        "attention.head_count": size.heads,
        "attention.head_count_kv": size.heads_kv,
        "attention.key_length": size.head,
        "attention.value_length": size.head,
        "attention.sliding_window": size.window,
        "rope.dimension_count": size.rope,
        "expert_count": size.experts,
        "expert_used_count": size.used,
        "ssm.conv_kernel": size.conv if size.inner else 0,
        "ssm.inner_size": size.inner,
        "ssm.state_size": size.state,
        "ssm.time_step_rank": size.embedding // 16 if size.inner else 0,
    }.items():
        if value:
            writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(size.vocabulary)
    pieces = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    words = [f"w{i}".encode() for i in range(size.vocabulary - len(HEADS) - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*HEADS, *pieces, *words])
    writer.add_token_scores([0.0] * size.vocabulary)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _ends(size: Dimensions, output: bool = True) -> Tensors:
    yield "token_embd.weight", (size.embedding, size.vocabulary)
    yield "output_norm.weight", (size.embedding,)
    if output:
        yield "output.weight", (size.embedding, size.vocabulary)


def _attention(size: Dimensions, at: str, norms: bool = False) -> Tensors:
    q, kv = size.qkv
    yield f"{at}attn_norm.weight", (size.embedding,)
    yield f"{at}attn_q.weight", (size.embedding, q)
    yield f"{at}attn_k.weight", (size.embedding, kv)
    yield f"{at}attn_v.weight", (size.embedding, kv)
    yield f"{at}attn_output.weight", (q, size.embedding)
    if norms:
        yield f"{at}attn_q_norm.weight", (size.head,)
        yield f"{at}attn_k_norm.weight", (size.head,)


def _dense(size: Dimensions, at: str) -> Tensors:
    yield f"{at}ffn_norm.weight", (size.embedding,)
    yield f"{at}ffn_gate.weight", (size.embedding, size.wide)
    yield f"{at}ffn_up.weight", (size.embedding, size.wide)
    yield f"{at}ffn_down.weight", (size.wide, size.embedding)


def _experts(size: Dimensions, at: str) -> Tensors:
    yield f"{at}ffn_norm.weight", (size.embedding,)
    yield f"{at}ffn_gate_inp.weight", (size.embedding, size.experts)
    yield f"{at}ffn_gate_exps.weight", (size.embedding, size.wide, size.experts)
    yield f"{at}ffn_up_exps.weight", (size.embedding, size.wide, size.experts)
    yield f"{at}ffn_down_exps.weight", (size.wide, size.embedding, size.experts)


def _llama(size: Dimensions) -> Tensors:
    yield from _ends(size)
    for i in range(size.layers):
        yield from _attention(size, f"blk.{i}.")
        yield from _dense(size, f"blk.{i}.")


def _qwen3(size: Dimensions) -> Tensors:
    yield from _ends(size)
    for i in range(size.layers):
        yield from _attention(size, f"blk.{i}.", norms=True)
        yield from _dense(size, f"blk.{i}.")


def _qwen3moe(size: Dimensions) -> Tensors:
    yield from _ends(size)
    for i in range(size.layers):
        yield from _attention(size, f"blk.{i}.", norms=True)
        yield from _experts(size, f"blk.{i}.")


def _gemma3(size: Dimensions) -> Tensors:
    yield from _ends(size, output=False)
    for i in range(size.layers):
        yield from _attention(size, f"blk.{i}.", norms=True)
        yield from _dense(size, f"blk.{i}.")
        yield f"blk.{i}.post_attention_norm.weight", (size.embedding,)
        yield f"blk.{i}.post_ffw_norm.weight", (size.embedding,)


def _mamba(size: Dimensions) -> Tensors:
    yield from _ends(size, output=False)
    rank = size.embedding // 16
    for i in range(size.layers):
        at = f"blk.{i}."
        yield f"{at}attn_norm.weight", (size.embedding,)
        yield f"{at}ssm_in.weight", (size.embedding, 2 * size.inner)
        yield f"{at}ssm_conv1d.weight", (size.conv, size.inner)
        yield f"{at}ssm_conv1d.bias", (size.inner,)
        yield f"{at}ssm_x.weight", (size.inner, rank + 2 * size.state)
        yield f"{at}ssm_dt.weight", (rank, size.inner)
        yield f"{at}ssm_dt.bias", (size.inner,)
        yield f"{at}ssm_a", (size.state, size.inner)
        yield f"{at}ssm_d", (size.inner,)
        yield f"{at}ssm_out.weight", (size.inner, size.embedding)


ARCHITECTURES: dict[str, Callable[[Dimensions], Tensors]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma3": _gemma3,
    "mamba": _mamba,
}


if __name__ == "__main__":
    print(hollow(Path(sys.argv[1]), sys.argv[2], Dimensions()))
