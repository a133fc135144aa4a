"""A model of some 50 kB that llama.cpp loads in a tenth of a second, written here and now: for trying out an engine.

Pure: the same bytes each time. One layer of the llama architecture whose weights are all zero, with a SentencePiece
vocabulary of the 256 bytes; what it would say means nothing. The form is that of GGUF version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

DIM, WIDE, HEADS, CONTEXT = 32, 32, 2, 256
ALIGNMENT = 32
_U32, _I32, _F32, _STRING, _ARRAY = 4, 5, 6, 8, 9  # GGUF's numbers for types of values
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # llama.cpp's for types of tokens


def tiny_model() -> bytes:
    """The whole file."""
    tokens, types = _vocabulary()
    facts = [
        _text("general.architecture", "llama"),
        _text("general.name", "tiny"),
        _number("llama.context_length", CONTEXT),
        _number("llama.embedding_length", DIM),
        _number("llama.block_count", 1),
        _number("llama.feed_forward_length", WIDE),
        _number("llama.attention.head_count", HEADS),
        _number("llama.rope.dimension_count", DIM // HEADS),
        _number("general.file_type", 0),
        _fact("llama.attention.layer_norm_rms_epsilon", _F32, struct.pack("<f", 1e-5)),
        _text("tokenizer.ggml.model", "llama"),
        _list("tokenizer.ggml.tokens", _STRING, [_string(token) for token in tokens]),
        _list("tokenizer.ggml.scores", _F32, [struct.pack("<f", 0.0)] * len(tokens)),
        _list("tokenizer.ggml.token_type", _I32, [struct.pack("<i", kind) for kind in types]),
        _number("tokenizer.ggml.unknown_token_id", 0),
        _number("tokenizer.ggml.bos_token_id", 1),
        _number("tokenizer.ggml.eos_token_id", 2),
    ]
    tensors = _tensors(len(tokens))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts)) + b"".join(facts)
    at, infos = 0, b""
    for name, shape in tensors:
        sizes = b"".join(struct.pack("<Q", size) for size in shape)
        infos += _string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", 0, at)
        at += _padded(_size(shape))
    whole = head + infos
    return whole + bytes(_padded(len(whole)) - len(whole)) + bytes(at)


def _vocabulary() -> tuple[list[str], list[int]]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    return tokens, [_UNKNOWN, _CONTROL, _CONTROL, *([_BYTE] * 256), _NORMAL]


def _tensors(vocabulary: int) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape), the shape with the innermost dimension first, as GGUF has it; all of 32 bit floats."""
    square, layer = (DIM, DIM), "blk.0."
    return [
        ("token_embd.weight", (DIM, vocabulary)),
        ("output_norm.weight", (DIM,)),
        (f"{layer}attn_norm.weight", (DIM,)),
        *((f"{layer}attn_{part}.weight", square) for part in ("q", "k", "v", "output")),
        (f"{layer}ffn_norm.weight", (DIM,)),
        (f"{layer}ffn_gate.weight", (DIM, WIDE)),
        (f"{layer}ffn_up.weight", (DIM, WIDE)),
        (f"{layer}ffn_down.weight", (WIDE, DIM)),
    ]


def _size(shape: Sequence[int]) -> int:
    size = 4
    for length in shape:
        size *= length
    return size


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _fact(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _text(key: str, value: str) -> bytes:
    return _fact(key, _STRING, _string(value))


def _number(key: str, value: int) -> bytes:
    return _fact(key, _U32, struct.pack("<I", value))


def _list(key: str, kind: int, items: Sequence[bytes]) -> bytes:
    return _fact(key, _ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items))
