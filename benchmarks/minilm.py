"""Makes a GGUF file of a sentence-transformers BERT: a real embedding model from the files of its package."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
}
INSIDE = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def convert(folder: Path, path: Path) -> None:
    """Write `path` from config.json, vocab.txt and model.safetensors in `folder`; matrices become F16."""
    import gguf
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[: config["vocab_size"]]
    writer = gguf.GGUFWriter(path, "bert")
    _header(writer, config, vocabulary)
    for name, values in _weights(folder / "model.safetensors"):
        plain = values.ndim == 1 or name.startswith(("position_embd", "token_types"))
        writer.add_tensor(name, values if plain else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _header(writer: Any, config: dict[str, Any], vocabulary: list[str]) -> None:
    import gguf

    writer.add_type("model")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    special = [word.startswith("[") and word.endswith("]") and len(word) > 2 for word in vocabulary]
    kinds = [gguf.TokenType.CONTROL if s else gguf.TokenType.NORMAL for s in special]
    words = zip(vocabulary, special, strict=True)
    writer.add_token_list([w if s else w[2:] if w.startswith("##") else "\u2581" + w for w, s in words])
    writer.add_token_types(kinds)
    at = vocabulary.index
    writer.add_unk_token_id(at("[UNK]"))
    writer.add_sep_token_id(at("[SEP]"))
    writer.add_pad_token_id(at("[PAD]"))
    writer.add_mask_token_id(at("[MASK]"))
    writer.add_bos_token_id(at("[CLS]"))
    writer.add_eos_token_id(at("[SEP]"))


def _weights(path: Path) -> Iterator[tuple[str, Any]]:
    """The float32 tensors by their names in GGUF; others, such as positions that only count up, are left out."""
    import numpy as np

    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    for name, about in json.loads(data[8 : 8 + length]).items():
        renamed = _renamed(name)
        if renamed and about["dtype"] == "F32":
            begin, end = (8 + length + offset for offset in about["data_offsets"])
            yield renamed, np.frombuffer(data[begin:end], np.float32).reshape(about["shape"])


def _renamed(name: str) -> str:
    part, _, leaf = name.rpartition(".")
    if part in OUTSIDE:
        return f"{OUTSIDE[part]}.{leaf}"
    _, _, rest = part.partition("encoder.layer.")
    number, _, module = rest.partition(".")
    return f"blk.{number}.{INSIDE[module]}.{leaf}" if module in INSIDE else ""


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
