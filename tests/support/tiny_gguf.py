"""Writes tiny but valid GGUF models that a real llama.cpp loads in milliseconds.

Promises: the same arguments give the same bytes, and the file is complete when `tiny_gguf` returns. `chat` answers
`reply` word for word at any temperature; the others have random weights. Only `gguf` and `numpy` are needed, and both
are imported when a model is written, not when this module is.

    python -m tests.support.tiny_gguf OUT --kind chat --reply "Hello there."
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

Kind = Literal["chat", "random", "bert", "rerank", "mmproj"]

DEFAULT_REPLY = "The quick brown fox jumps over the lazy dog."
QUANTS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # what gguf-py can write without llama.cpp
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BERT_MAX_CTX = 512  # position embeddings are stored, so a bert's file grows with its context

_UNK, _BOS, _EOS = 0, 1, 2
_CONTROL = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>"]
_SPACE = "\u2581"  # how SentencePiece and llama.cpp's WordPiece write the space before a word
_BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_gguf(
    path: Path,
    *,
    kind: Kind = "chat",
    quant: str = "F32",
    reply: str = DEFAULT_REPLY,
    loop: bool = False,
    ctx: int = 2048,
    layers: int = 1,
    dim: int = 64,
    heads: int = 4,
    heads_kv: int = 2,
    seed: int = 0,
    name: str | None = None,
    split: int = 0,
) -> Path:
    """Write a model to `path` and return `path`.

    chat    llama architecture; says `reply` after the assistant header, then ends (`loop`: says it again and again
            until the token limit)
    random  the same with random weights: any text, never the same meaning
    bert    mean-pooled embedding model of `dim` dimensions
    rerank  bert with a one-class head, for /v1/rerank
    mmproj  vision projector for a chat model of the same `dim`; always F32

    With `split` a chat or random model is written in several files of so many tensors each; their names are those of
    llama.cpp (PATH without its suffix, -00001-of-00003.gguf), and `path` itself is not written.

    `quant` is one of QUANTS and applies to the matrices (block formats need a `dim` that is a multiple of 32);
    `ctx` is the trained context, capped at 512 for bert and rerank. ValueError on an unknown kind or quant.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(get_args(Kind))}")
    if quant not in QUANTS:
        raise ValueError(f"unknown quant {quant!r}: one of {', '.join(QUANTS)}")
    shape = _Shape(ctx=ctx, layers=layers, dim=dim, heads=heads, heads_kv=heads_kv)
    label = name or f"tiny-{kind}"
    match kind:
        case "chat" | "random":
            said = reply if kind == "chat" else None
            _write_llama(path, shape, quant, seed, label, reply=said, loop=loop, split=split)
        case "bert" | "rerank":
            _write_bert(path, shape, quant, seed, label, rerank=kind == "rerank")
        case "mmproj":
            _write_mmproj(path, dim, seed, label)
    return path


@dataclass(frozen=True)
class _Shape:
    ctx: int
    layers: int
    dim: int
    heads: int
    heads_kv: int

    @property
    def feed_forward(self) -> int:
        return 2 * self.dim

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class _Tensors:
    """Puts tensors into a GGUF writer, matrices in one quantization, and draws the random ones in a fixed order."""

    KEPT_F32 = ("position_embd", "token_types")  # llama.cpp wants these unquantized

    def __init__(self, writer: Any, quant: str, seed: int) -> None:
        import numpy as np

        self.writer = writer
        self.quant = quant
        self.rng = np.random.default_rng(seed)

    def random(self, *shape: int, scale: float) -> Array:
        return self.rng.standard_normal(shape).astype("float32") * scale

    def put(self, name: str, values: Array) -> None:
        import gguf
        import numpy as np

        array = np.ascontiguousarray(values, dtype=np.float32)
        if array.ndim == 1 or self.quant == "F32" or name.startswith(self.KEPT_F32):
            self.writer.add_tensor(name, array)
        elif self.quant == "F16":
            self.writer.add_tensor(name, array.astype(np.float16))
        else:
            quant = gguf.GGMLQuantizationType[self.quant]
            self.writer.add_tensor(name, gguf.quants.quantize(array, quant), raw_dtype=quant)

    def ones(self, name: str, size: int) -> None:
        import numpy as np

        self.put(name, np.ones(size))

    def zeros(self, name: str, *shape: int) -> None:
        import numpy as np

        self.put(name, np.zeros(shape))

    def linear(self, name: str, rows: int, columns: int, *, scale: float) -> None:
        """A random matrix with a zero bias."""
        self.put(f"{name}.weight", self.random(rows, columns, scale=scale))
        self.zeros(f"{name}.bias", rows)

    def layer_norm(self, name: str, size: int) -> None:
        self.ones(f"{name}.weight", size)
        self.zeros(f"{name}.bias", size)


def _file_type(quant: str) -> Any:
    import gguf

    return gguf.LlamaFileType["ALL_F32" if quant == "F32" else f"MOSTLY_{quant}"]


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- llama: chat and random -------------------------------------------------------------------------------------------


def _reply_pieces(text: str) -> list[str]:
    """Split into words that are all different: a repeated one is joined to its neighbour.

    Each piece becomes a token, and the chat model knows only "this token is followed by that one", so a piece that
    came twice would have two followers. Pieces of one character are joined too: they are in the vocabulary already.
    """
    pieces: list[str] = []
    for index, word in enumerate(text.split(" ") if text else []):
        piece = word if index == 0 else _SPACE + word
        if pieces and (piece in pieces or len(piece) <= 1 or len(pieces[-1]) <= 1):
            piece = pieces.pop() + piece
        while piece in pieces:
            piece = pieces.pop() + piece
        pieces.append(piece)
    return pieces


def _llama_vocabulary(reply: str) -> tuple[list[str], list[Any], list[int]]:
    """Tokens, their types, and the ids that spell `reply`: control, 256 bytes, ASCII, the reply's own pieces."""
    from gguf import TokenType

    tokens = [*_CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), _SPACE, *map(chr, range(33, 127))]
    types = [TokenType.UNKNOWN] + [TokenType.CONTROL] * (len(_CONTROL) - 1) + [TokenType.BYTE] * 256
    ids = []
    for piece in _reply_pieces(reply):
        if piece not in tokens:
            tokens.append(piece)
        ids.append(tokens.index(piece))
    types += [TokenType.NORMAL] * (len(tokens) - len(types))
    while len(tokens) % 32:  # block quantizations need whole blocks
        tokens.append(f"<pad{len(tokens)}>")
        types.append(TokenType.UNUSED)
    return tokens, types, ids


def _write_llama(
    path: Path, shape: _Shape, quant: str, seed: int, name: str, *, reply: str | None, loop: bool, split: int
) -> None:
    """With a `reply` the layers add nothing to the residual stream, so the output matrix sees the last token's
    embedding alone and works as a Markov chain; without one, every weight is random.
    """
    import gguf
    import numpy as np

    tokens, types, ids = _llama_vocabulary(DEFAULT_REPLY if reply is None else reply)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    _llama_header(writer, shape, quant, name, tokens, types)

    tensors = _Tensors(writer, quant, seed)
    size, dim = len(tokens), shape.dim
    embedding = tensors.rng.choice([-1.0, 1.0], (size, dim)).astype("float32")
    output = tensors.random(size, dim, scale=0.02)
    if reply is not None:
        chain = [tokens.index("<|assistant|>"), *ids, ids[0] if loop and ids else _EOS]
        output[:] = 0
        for before, after in pairwise(chain):
            output[after] += embedding[before]
    tensors.put("token_embd.weight", embedding)
    tensors.put("output_norm.weight", np.ones(dim))
    tensors.put("output.weight", output)
    for index in range(shape.layers):
        _llama_block(tensors, f"blk.{index}.", shape, silent=reply is not None)
    _finish(writer)


def _llama_header(writer: Any, shape: _Shape, quant: str, name: str, tokens: list[str], types: list[Any]) -> None:
    from gguf import TokenType

    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label("100K")
    writer.add_license("cc0-1.0")
    writer.add_context_length(shape.ctx)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(_file_type(quant))
    writer.add_quantization_version(2)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) if kind == TokenType.NORMAL else 0.0 for i, kind in enumerate(types)])
    writer.add_token_types(types)
    writer.add_unk_token_id(_UNK)
    writer.add_bos_token_id(_BOS)
    writer.add_eos_token_id(_EOS)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _llama_block(tensors: _Tensors, prefix: str, shape: _Shape, *, silent: bool) -> None:
    """One transformer layer; a `silent` one has zero output projections."""
    dim, wide, kv = shape.dim, shape.feed_forward, shape.head_dim * shape.heads_kv
    tensors.ones(f"{prefix}attn_norm.weight", dim)
    tensors.ones(f"{prefix}ffn_norm.weight", dim)
    for name, rows, columns in (
        ("attn_q", dim, dim),
        ("attn_k", kv, dim),
        ("attn_v", kv, dim),
        ("attn_output", dim, dim),
        ("ffn_gate", wide, dim),
        ("ffn_up", wide, dim),
        ("ffn_down", dim, wide),
    ):
        if silent and name in ("attn_output", "ffn_down"):
            tensors.zeros(f"{prefix}{name}.weight", rows, columns)
        else:
            tensors.put(f"{prefix}{name}.weight", tensors.random(rows, columns, scale=0.05))


# --- bert: embeddings and reranking -----------------------------------------------------------------------------------


def _write_bert(path: Path, shape: _Shape, quant: str, seed: int, name: str, *, rerank: bool) -> None:
    import gguf

    letters = "".join(chr(c) for c in range(33, 127) if not chr(c).isupper())  # WordPiece input is lower-cased
    vocabulary = [*_BERT_SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    ctx = min(shape.ctx, BERT_MAX_CTX)
    writer = gguf.GGUFWriter(path, "bert")
    _bert_header(writer, shape, ctx, quant, name, rerank=rerank)
    _bert_tokenizer(writer, vocabulary)

    tensors = _Tensors(writer, quant, seed)
    dim, wide = shape.dim, shape.feed_forward
    tensors.put("token_embd.weight", tensors.random(len(vocabulary), dim, scale=1.0))
    tensors.put("token_types.weight", tensors.random(2, dim, scale=0.2))
    tensors.put("position_embd.weight", tensors.random(ctx, dim, scale=0.02))
    tensors.layer_norm("token_embd_norm", dim)
    for index in range(shape.layers):
        prefix = f"blk.{index}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors.linear(prefix + part, dim, dim, scale=0.2)
        tensors.layer_norm(f"{prefix}attn_output_norm", dim)
        tensors.linear(f"{prefix}ffn_up", wide, dim, scale=0.2)
        tensors.linear(f"{prefix}ffn_down", dim, wide, scale=0.2)
        tensors.layer_norm(f"{prefix}layer_output_norm", dim)
    if rerank:
        tensors.linear("cls.output", 1, dim, scale=0.2)
    _finish(writer)


def _bert_header(writer: Any, shape: _Shape, ctx: int, quant: str, name: str, *, rerank: bool) -> None:
    from gguf import PoolingType

    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(ctx)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.RANK if rerank else PoolingType.MEAN)
    writer.add_file_type(_file_type(quant))


def _bert_tokenizer(writer: Any, vocabulary: list[str]) -> None:
    """llama.cpp's WordPiece marks the start of a word with U+2581, where BERT marks the continuation with ##."""
    from gguf import TokenType

    def spelled(token: str) -> str:
        if token in _BERT_SPECIAL:
            return token
        return token.removeprefix("##") if token.startswith("##") else _SPACE + token

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    writer.add_token_list([spelled(token) for token in vocabulary])
    writer.add_token_types([TokenType.CONTROL if t in _BERT_SPECIAL else TokenType.NORMAL for t in vocabulary])
    pad, unk, cls, sep, mask = (vocabulary.index(token) for token in _BERT_SPECIAL)
    writer.add_pad_token_id(pad)
    writer.add_unk_token_id(unk)
    writer.add_uint32("tokenizer.ggml.cls_token_id", cls)
    writer.add_sep_token_id(sep)
    writer.add_mask_token_id(mask)
    writer.add_bos_token_id(cls)
    writer.add_eos_token_id(sep)


# --- mmproj: vision projector -----------------------------------------------------------------------------------------


def _write_mmproj(path: Path, text_dim: int, seed: int, name: str) -> None:
    """SigLIP-style tower with gemma3's projector: 64x64 pixels, patches of 8, four image tokens."""
    import gguf

    dim, layers, heads, wide, image, patch = 32, 1, 2, 64, 64, 8
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(name)
    writer.add_file_type(_file_type("F32"))
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": image,
        "patch_size": patch,
        "embedding_length": dim,
        "feed_forward_length": wide,
        "block_count": layers,
        "projection_dim": text_dim,
        "attention.head_count": heads,
        "projector.scale_factor": 4,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)

    tensors = _Tensors(writer, "F32", seed)
    tensors.put("v.patch_embd.weight", tensors.random(dim, 3, patch, patch, scale=0.1))
    tensors.zeros("v.patch_embd.bias", dim)
    tensors.put("v.position_embd.weight", tensors.random((image // patch) ** 2, dim, scale=0.1))
    for index in range(layers):
        prefix = f"v.blk.{index}."
        tensors.layer_norm(f"{prefix}ln1", dim)
        tensors.layer_norm(f"{prefix}ln2", dim)
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors.linear(prefix + part, dim, dim, scale=0.1)
        tensors.linear(f"{prefix}ffn_up", wide, dim, scale=0.1)
        tensors.linear(f"{prefix}ffn_down", dim, wide, scale=0.1)
    tensors.layer_norm("v.post_ln", dim)
    tensors.put("mm.input_projection.weight", tensors.random(dim, text_dim, scale=0.1))
    tensors.ones("mm.soft_emb_norm.weight", dim)
    _finish(writer)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model.")
    parser.add_argument("path", metavar="OUT", type=Path)
    parser.add_argument("--kind", default="chat", choices=get_args(Kind))
    parser.add_argument("--quant", default="F32", choices=QUANTS)
    parser.add_argument("--reply", default=DEFAULT_REPLY)
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--heads-kv", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name")
    path = tiny_gguf(**vars(parser.parse_args()))
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
