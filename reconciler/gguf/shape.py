"""What of a model's header decides how much memory it takes, small enough to be kept in a lock file.

Pure. A header is megabytes of vocabulary and thousands of tensor records; its `Shape` is a few hundred bytes of JSON.
The rules by which a header becomes sizes are those of llama.cpp's loaders (`llama-model.cpp`, `llama-hparams.cpp`,
`llama-kv-cache*.cpp`, `llama-memory-recurrent.cpp`): where an architecture keeps a rule in code and not in the file,
it is in a table here. What a layer *is* (attention, recurrent, both, experts) is read from the names of its tensors,
so that an architecture which is new here is still measured by what it has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from itertools import pairwise
from math import prod
from typing import Any

from reconciler.gguf.header import BLOCKS, Header, Tensor

_LAYER = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.(.+)")
_RECURRENT = ("ssm_", "shortconv.", "time_mix_", "kda_")
_ATTENTION = ("attn_k.", "attn_k_b.", "attn_kv_a_mqa.", "attn_kv_b.", "self_attn")
MAX_LAYERS = 4096

# Architectures for which llama.cpp makes no cache at all: each sequence is read whole, both ways.
_NO_CACHE = frozenset(
    [
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "neo-bert",
        "eurobert",
        "modern-bert",
        "gemma-embedding",
        "t5encoder",
        "wavtokenizer-dec",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
    ]
)
# How often a layer sees everything where others see a window: (every n-th, whether it is the first of the n). Only
# these architectures heed `attention.sliding_window` without a pattern in the file.
_PATTERNS: Mapping[str, tuple[int, bool]] = {
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "gemma-embedding": (6, False),
    "gpt-oss": (2, False), "cohere2": (4, False), "exaone4": (4, False), "exaone-moe": (4, False),
    "olmo2": (4, False), "afmoe": (4, False), "llama4": (4, False), "smallthinker": (4, True),
    "modern-bert": (3, True),
}  # fmt: skip
_WINDOWS = {"gemma2": 4096, "llama4": 8192}  # tokens, where the file does not say


@dataclass(frozen=True, slots=True)
class Layer:
    """One repeating layer. `keys` and `values` are elements that its cache holds for one token, `state` the float32
    elements that it holds for one sequence; `window` says that it sees only the shape's window.
    """

    weights: int = 0  # bytes of all its tensors
    experts: int = 0  # of which in experts
    keys: int = 0
    values: int = 0
    state: int = 0
    window: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, a projector or an adapter, as far as memory is concerned. Zero is what the file does not say.

    `input` and `output` are bytes of the tensors outside the layers: those that only look tokens up, and all others.
    `tied` says that the input matrix is the output matrix, too. `header` is where tensor bytes begin.
    """

    architecture: str = ""
    role: str = "model"  # as `general.type` says: model | mmproj | adapter …
    parameters: int = 0
    layers: tuple[Layer, ...] = ()
    input: int = 0
    output: int = 0
    header: int = 0
    tied: bool = False
    embedding: int = 0
    wide: int = 0  # the widest feed-forward row that one token makes, all experts in use together
    gated: bool = True
    heads: int = 0
    queries: int = 0  # elements of one token's queries in one layer
    experts: int = 0
    used: int = 0
    inner: int = 0  # the width of recurrent layers
    vocabulary: int = 0
    merges: int = 0
    context: int = 0  # tokens it was trained for
    window: int = 0
    causal: bool = True
    cached: bool = True  # whether there is a cache at all
    pooling: int = -1
    image: int = 0  # pixels of an image's edge
    patch: int = 0

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return self.input + self.output + sum(layer.weights for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without what is as by default. Layers are kinds, and a run-length order of the kinds."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.layers:
            kinds = list(dict.fromkeys(self.layers))
            out["layers"] = {"kinds": [_trimmed(kind) for kind in kinds], "order": _runs(self.layers, kinds)}
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Shape:
        """The reverse; absent keys are as by default, unknown ones do not count. ValueError on what cannot be."""
        out: dict[str, Any] = {}
        for f in fields(cls):
            if f.name not in data or f.name == "layers":
                continue
            value, wanted = data[f.name], type(f.default)
            if f.default is MISSING or type(value) is not wanted:
                raise ValueError(f"{f.name} of a model's shape is {value!r}")
            out[f.name] = value
        return cls(**out, layers=tuple(_layers(data.get("layers", {}))))


def shape_of(headers: Sequence[Header]) -> Shape:
    """The shape of a model, given the headers of all its parts in order (the first has the keys).

    Sizes that the header claims are taken as they are: they are checked against the file when that is here.
    """
    first = headers[0]
    tensors = [pair for header in headers for pair in _sized(header)]
    if first.architecture == "clip" or first.keys.get("general.type") in ("mmproj", "adapter"):
        return _beside(first, tensors, sum(header.data for header in headers))
    keys = _Keys(first)
    count = min(keys.integer("block_count"), MAX_LAYERS)
    found: dict[int, list[tuple[str, int]]] = {i: [] for i in range(count)}
    outside = []
    for tensor, size in tensors:
        match = _LAYER.match(tensor.name)
        if match and int(match[1]) in found:
            found[int(match[1])].append((match[2], size))
        else:
            outside.append((tensor.name, size))
    cached = first.architecture not in _NO_CACHE
    window, windowed = _window(keys, count)
    layers = tuple(_layer(keys, i, parts, windowed[i], cached) for i, parts in found.items())
    lookups = sum(size for name, size in outside if _looks_up(name))
    used = keys.integer("expert_used_count")
    return Shape(
        architecture=first.architecture,
        parameters=sum(prod(tensor.shape) for tensor, _ in tensors),
        layers=layers,
        input=lookups,
        output=sum(size for _, size in outside) - lookups,
        header=sum(header.data for header in headers),
        tied=not any(name.startswith("output.weight") for name, _ in outside) and cached,
        embedding=keys.integer("embedding_length"),
        wide=_wide(keys, used),
        gated=_gated(tensors, keys.integer("feed_forward_length")),
        heads=max(keys.each("attention.head_count", i) for i in range(max(count, 1))),
        queries=max(_queries(keys, i) for i in range(max(count, 1))),
        experts=keys.integer("expert_count"),
        used=used,
        inner=keys.integer("ssm.inner_size"),
        vocabulary=_length(first.keys.get("tokenizer.ggml.tokens")) or keys.integer("vocab_size"),
        merges=_length(first.keys.get("tokenizer.ggml.merges")),
        context=keys.integer("context_length"),
        window=window,
        causal=bool(first.keys.get(f"{first.architecture}.attention.causal", cached)),
        cached=cached,
        pooling=keys.integer("pooling_type", -1),
    )


def scaled(shape: Shape, size: int) -> Shape:
    """The same model in another quantization whose files have `size` bytes: every tensor grows or shrinks alike.

    Differences between quantizations in how they treat single tensors are lost, the sum is kept to the byte.
    """
    wanted, have = max(0, size - shape.header), shape.weights
    if have == 0:
        return shape

    def grown(count: int) -> int:
        return count * wanted // have

    layers = tuple(replace(layer, weights=grown(layer.weights), experts=grown(layer.experts)) for layer in shape.layers)
    lookups = grown(shape.input)
    rest = wanted - lookups - sum(layer.weights for layer in layers)
    return replace(shape, layers=layers, input=lookups, output=rest)


class _Keys:
    """The architecture's own keys; what is not a whole number counts as not there."""

    def __init__(self, header: Header) -> None:
        self.architecture, self.all = header.architecture, header.keys

    def integer(self, name: str, default: int = 0) -> int:
        value = self.all.get(f"{self.architecture}.{name}")
        if isinstance(value, list):  # one a layer
            value = max((v for v in value if isinstance(v, int)), default=default)
        return max(value, 0) if isinstance(value, int) else default

    def each(self, name: str, layer: int, default: int = 0) -> int:
        """The value of one layer: from an array, or the same for all."""
        value = self.all.get(f"{self.architecture}.{name}")
        if isinstance(value, list):
            value = value[layer] if layer < len(value) else 0
        return max(int(value), 0) if isinstance(value, int) else default


def _layer(keys: _Keys, i: int, parts: Sequence[tuple[str, int]], windowed: bool, cached: bool) -> Layer:
    names = [name for name, _ in parts]
    recurrent = any(name.startswith(_RECURRENT) for name in names)
    attention = any(name.startswith(_ATTENTION) for name in names)
    attention = attention or (not recurrent and any(name.startswith("attn_qkv.") for name in names))
    k, v = _cache_row(keys, i, windowed) if cached and attention else (0, 0)
    return Layer(
        weights=sum(size for _, size in parts),
        experts=sum(size for name, size in parts if "_exps." in name),
        keys=k,
        values=v,
        state=_state(keys) if recurrent else 0,
        window=windowed and k > 0,
    )


def _cache_row(keys: _Keys, i: int, windowed: bool) -> tuple[int, int]:
    """Elements of K and V for one token in layer `i` (`n_embd_k_gqa`, `n_embd_v_gqa`).

    Layers that use an earlier one's cache have none, nor have the layers for predicting several tokens ahead. With
    compressed attention (MLA) the values are a part of the keys.
    """
    last = keys.integer("block_count") - keys.integer("attention.shared_kv_layers")
    if i >= last - keys.integer("nextn_predict_layers"):
        return 0, 0
    heads = keys.each("attention.head_count_kv", i, keys.each("attention.head_count", i))
    k, v = _head(keys, i, windowed, "key"), _head(keys, i, windowed, "value")
    latent = keys.integer("attention.kv_lora_rank") > 0 and keys.integer("attention.key_length_mla") > 0
    return heads * k, 0 if latent else heads * v


def _head(keys: _Keys, i: int, windowed: bool, side: str) -> int:
    own = keys.each(f"attention.{side}_length_swa", i) if windowed else 0
    heads = keys.each("attention.head_count", i) or keys.integer("attention.head_count")
    return (
        own or keys.each(f"attention.{side}_length", i) or (keys.integer("embedding_length") // heads if heads else 0)
    )


def _queries(keys: _Keys, i: int) -> int:
    length = keys.integer("attention.key_length_mla") or _head(keys, i, False, "key")
    return keys.each("attention.head_count", i) * length


def _state(keys: _Keys) -> int:
    """float32 elements that a recurrent layer keeps for one sequence (`n_embd_r` + `n_embd_s`)."""
    embedding, convolution = keys.integer("embedding_length"), max(0, keys.integer("ssm.conv_kernel") - 1)
    if size := keys.integer("wkv.head_size"):
        return embedding * (keys.integer("token_shift_count", 2) + size)
    if length := keys.integer("shortconv.l_cache"):
        return embedding * (length - 1)
    if head := keys.integer("kda.head_dim"):
        heads = keys.integer("attention.head_count")
        return 3 * convolution * heads * head + heads * head * head
    inner, state = keys.integer("ssm.inner_size"), keys.integer("ssm.state_size")
    return convolution * (inner + 2 * keys.integer("ssm.group_count") * state) + state * inner


def _window(keys: _Keys, count: int) -> tuple[int, list[bool]]:
    """The tokens of the sliding window, and which layers have it (`set_swa_pattern`)."""
    architecture = keys.architecture
    window = keys.integer("attention.sliding_window") or _WINDOWS.get(architecture, 0)
    pattern = keys.all.get(f"{architecture}.attention.sliding_window_pattern")
    if window <= 0 or (architecture == "exaone4" and count != 64 and pattern is None):
        return 0, [False] * count
    if isinstance(pattern, list):
        return window, [bool(pattern[i]) if i < len(pattern) else False for i in range(count)]
    every, first = _PATTERNS.get(architecture, (1, False))
    if isinstance(pattern, int):
        every = int(pattern)
    full = 0 if first else every - 1
    return window, [every == 0 or i % every != full for i in range(count)]


def _wide(keys: _Keys, used: int) -> int:
    dense = keys.integer("feed_forward_length")
    routed = used * keys.integer("expert_feed_forward_length", dense) if used else 0
    return max(routed, dense if not used or keys.integer("leading_dense_block_count") else 0)


def _gated(tensors: Sequence[tuple[Tensor, int]], wide: int) -> bool:
    """Whether the feed-forward part has a gate, of its own or in one matrix with the way up."""
    return any(
        "ffn_gate" in tensor.name or ("ffn_up.weight" in tensor.name and tensor.shape[-1:] == (2 * wide,))
        for tensor, _ in tensors
    )


def _looks_up(name: str) -> bool:
    """Tensors of which a token needs only its own rows; llama.cpp always keeps them in main memory."""
    return name.startswith(("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types."))


def _beside(header: Header, tensors: Sequence[tuple[Tensor, int]], data: int) -> Shape:
    """A projector or an adapter: all its bytes are `output`."""
    keys = header.keys

    def vision(name: str) -> int:
        value = keys.get(f"clip.vision.{name}", keys.get(f"clip.audio.{name}", 0))
        return value if isinstance(value, int) else 0

    return Shape(
        architecture=header.architecture,
        role=str(keys.get("general.type", "mmproj")),
        parameters=sum(prod(tensor.shape) for tensor, _ in tensors),
        output=sum(size for _, size in tensors),
        header=data,
        embedding=vision("embedding_length"),
        wide=vision("feed_forward_length"),
        gated=any("ffn_gate" in tensor.name for tensor, _ in tensors),
        heads=vision("attention.head_count"),
        queries=vision("embedding_length"),
        causal=False,
        cached=False,
        image=vision("image_size"),
        patch=vision("patch_size"),
    )


def _sized(header: Header) -> Iterator[tuple[Tensor, int]]:
    """Each tensor with its bytes; of a type that is not known here, up to where the next tensor begins."""
    after = dict(pairwise(sorted(tensor.offset for tensor in header.tensors)))
    for tensor in header.tensors:
        if tensor.type in BLOCKS:
            per, size = BLOCKS[tensor.type]
            yield tensor, prod(tensor.shape) // per * size
        else:
            yield tensor, after.get(tensor.offset, tensor.offset) - tensor.offset


def _length(value: Any) -> int:
    """Of an array in a header: itself where it is short, its length where it is long."""
    return len(value) if isinstance(value, list) else value if isinstance(value, int) else 0


def _trimmed(kind: Layer) -> list[int]:
    values = [int(getattr(kind, f.name)) for f in fields(kind)]
    while values and not values[-1]:
        values.pop()
    return values


def _runs(layers: Sequence[Layer], kinds: Sequence[Layer]) -> list[int]:
    """[kind, times, kind, times, …]; the pattern of the runs themselves is not looked for."""
    number = {kind: i for i, kind in enumerate(kinds)}
    out: list[int] = []
    for layer in layers:
        if out and out[-2] == number[layer]:
            out[-1] += 1
        else:
            out += [number[layer], 1]
    return out


def _layers(data: Any) -> Iterator[Layer]:
    kinds, order = (data.get("kinds", []), data.get("order", [])) if isinstance(data, Mapping) else (None, None)
    if not (isinstance(kinds, list) and isinstance(order, list) and len(order) % 2 == 0):
        raise ValueError("the layers of a model's shape are not readable")
    known = [_kind(values) for values in kinds]
    if not all(type(n) is int and n >= 0 for n in order) or sum(order[1::2]) > MAX_LAYERS:
        raise ValueError("the order of layers of a model's shape is not readable")
    for kind, times in zip(order[::2], order[1::2], strict=True):
        if kind >= len(known):
            raise ValueError(f"layer kind {kind} of a model's shape is not there")
        for _ in range(times):
            yield known[kind]


def _kind(values: Any) -> Layer:
    names = [f.name for f in fields(Layer)]
    numbers = isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
    if not numbers or len(values) > len(names):
        raise ValueError(f"a layer of a model's shape is {values!r}")
    found = dict(zip(names, values, strict=False))
    return Layer(**{**found, "window": bool(found.get("window", 0))})
