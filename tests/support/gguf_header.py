"""Writes GGUF headers of any keys, types and shapes, right or wrong, with the tensors' bytes left out.

`header` gives bytes; `sparse` writes a file as long as the whole model would be, whose data is a hole that takes no
room on the disk. Nothing is checked, since half of what is written here is meant to be refused.

`SHAPES` are models in outline: the tensors that a converter writes for them, by which llama.cpp's own quantizer can be
asked what it would do with each (`python -m tests.support.gguf_header OUT --shape dense-8b`).
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.gguf.header import BLOCKS

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True, slots=True)
class Typed:
    """A value with its GGUF type, where the type that Python suggests is not the one that is meant."""

    type: int
    value: Any


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor: `shape` as in the file, rows' length first. `offset` where it is not to follow the one before."""

    name: str
    shape: tuple[int, ...]
    type: int = 0
    offset: int | None = None


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(name: bytes | str, value: Any) -> bytes:
    kind, raw = _encoded(value)
    return text(name) + struct.pack("<I", kind) + raw


def _encoded(value: Any) -> tuple[int, bytes]:
    match value:
        case Typed(type, inner) if type == ARRAY:
            return ARRAY, _array(inner)
        case Typed(type, bytes(raw)):
            return type, raw
        case Typed(type, inner):
            return type, struct.pack(_SCALARS[type], inner)
        case bool():
            return BOOL, struct.pack("<?", value)
        case int():
            return (U32, struct.pack("<I", value)) if 0 <= value < 1 << 32 else (U64, struct.pack("<Q", value))
        case float():
            return F32, struct.pack("<f", value)
        case str() | bytes():
            return STRING, text(value)
        case _:
            return ARRAY, _array(value)


def _array(values: Sequence[Any]) -> bytes:
    kinds_values = [_encoded(value) for value in values]
    kind = kinds_values[0][0] if kinds_values else U32
    return struct.pack("<IQ", kind, len(kinds_values)) + b"".join(raw for _, raw in kinds_values)


def size_of(spec: Spec) -> int:
    """Bytes of a tensor's data; of a type that is not known, none."""
    count = 1
    for extent in spec.shape:
        count *= extent
    per, block = BLOCKS.get(spec.type, (1, 0))
    return count // per * block


def header(
    keys: Mapping[str, Any] | Sequence[tuple[bytes | str, Any]],
    tensors: Sequence[Spec] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """The header's bytes, filled up to the alignment. `alignment` goes into the offsets, not into the keys."""
    pairs = list(keys.items() if isinstance(keys, Mapping) else keys)
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(pairs)), *(pair(k, v) for k, v in pairs)]
    at = 0
    for spec in tensors:
        offset = at if spec.offset is None else spec.offset
        out.append(
            text(spec.name) + struct.pack(f"<I{len(spec.shape)}QIQ", len(spec.shape), *spec.shape, spec.type, offset)
        )
        end = offset + size_of(spec)
        at = end + -end % alignment
    raw = b"".join(out)
    return raw + bytes(-len(raw) % alignment)


def sparse(path: Path, keys: Mapping[str, Any], tensors: Sequence[Spec]) -> Path:
    """A file of the whole model's length whose tensors are all zero."""
    raw = header(keys, tensors)
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + sum(size + -size % 32 for size in map(size_of, tensors)))
    return path


@dataclass(frozen=True, slots=True)
class Shape:
    """A llama-like model in outline. `experts` 0 is a dense one; `tied` has no output matrix of its own."""

    layers: int
    dim: int
    wide: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    experts: int = 0
    tied: bool = False

    def keys(self) -> dict[str, Any]:
        of = "llama."
        keys: dict[str, Any] = {
            "general.architecture": "llama",
            "general.type": "model",
            f"{of}context_length": 4096,
            f"{of}embedding_length": self.dim,
            f"{of}block_count": self.layers,
            f"{of}feed_forward_length": self.wide,
            f"{of}attention.head_count": self.heads,
            f"{of}attention.head_count_kv": self.kv_heads,
            f"{of}attention.key_length": self.head,
            f"{of}attention.value_length": self.head,
            f"{of}attention.layer_norm_rms_epsilon": 1e-5,
            f"{of}rope.dimension_count": self.head,
            f"{of}vocab_size": self.vocabulary,
            "tokenizer.ggml.model": "no_vocab",
        }
        if self.experts:
            keys |= {f"{of}expert_count": self.experts, f"{of}expert_used_count": 2}
        return keys

    def tensors(self, type_: int = 1) -> Iterator[Spec]:
        """Every tensor, all matrices of one type (F16), vectors in F32."""
        yield Spec("token_embd.weight", (self.dim, self.vocabulary), type_)
        yield Spec("output_norm.weight", (self.dim,), 0)
        if not self.tied:
            yield Spec("output.weight", (self.dim, self.vocabulary), type_)
        query, kv = self.heads * self.head, self.kv_heads * self.head
        stack = (self.experts,) if self.experts else ()
        suffix = "_exps" if self.experts else ""
        for layer in range(self.layers):
            at = f"blk.{layer}."
            yield Spec(f"{at}attn_norm.weight", (self.dim,), 0)
            yield Spec(f"{at}ffn_norm.weight", (self.dim,), 0)
            yield Spec(f"{at}attn_q.weight", (self.dim, query), type_)
            yield Spec(f"{at}attn_k.weight", (self.dim, kv), type_)
            yield Spec(f"{at}attn_v.weight", (self.dim, kv), type_)
            yield Spec(f"{at}attn_output.weight", (query, self.dim), type_)
            if self.experts:
                yield Spec(f"{at}ffn_gate_inp.weight", (self.dim, self.experts), 0)
            yield Spec(f"{at}ffn_gate{suffix}.weight", (self.dim, self.wide, *stack), type_)
            yield Spec(f"{at}ffn_up{suffix}.weight", (self.dim, self.wide, *stack), type_)
            yield Spec(f"{at}ffn_down{suffix}.weight", (self.wide, self.dim, *stack), type_)


SHAPES = {
    "dense-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "dense-7b-no-gqa": Shape(32, 4096, 11008, 32, 32, 128, 32000),
    "dense-70b": Shape(80, 8192, 28672, 64, 8, 128, 128256),
    "eight-experts": Shape(32, 4096, 14336, 32, 8, 128, 32000, experts=8),
    "many-experts": Shape(48, 2048, 768, 32, 4, 128, 151936, experts=128),
    "narrow-576": Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "narrow-640": Shape(18, 640, 2048, 4, 1, 256, 262144, tied=True),
    "one-layer": Shape(1, 256, 512, 4, 2, 64, 384),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model in outline: its header, and a hole for its data.")
    parser.add_argument("path", metavar="OUT", type=Path)
    parser.add_argument("--shape", default="dense-8b", choices=SHAPES)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    sparse(arguments.path, {**shape.keys(), "general.file_type": 1}, list(shape.tensors()))
    print(arguments.path, arguments.path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
