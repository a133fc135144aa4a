"""A folder of weights in small: files that have the form of a model for MLX or a Python engine, and nothing to say."""

from __future__ import annotations

import json


def safetensors(size: int = 4096, name: str = "w") -> bytes:
    """One tensor of so many bytes."""
    header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def folder_of_weights() -> dict[str, bytes]:
    """Two parts with their index, settings and a tokenizer; beside them what is none of it."""
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    return {
        "config.json": b'{"model_type": "tiny"}',
        "tokenizer.json": b"{}",
        "tokenizer.model": b"\x0a\x00",
        "chat_template.jinja": b"{{ messages }}",
        "model-00002-of-00002.safetensors": safetensors(3000, "b"),
        "model-00001-of-00002.safetensors": safetensors(5000, "a"),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "README.md": b"# Tiny",
        "modeling.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80\x02",
    }


KEPT = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "chat_template.jinja",
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
)
