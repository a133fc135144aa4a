"""A header becomes the few numbers that decide about memory, for architectures that do it in very different ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hollow import ARCHITECTURES, Dimensions, hollow
from reconciler.gguf.header import Header, Tensor, parse
from reconciler.gguf.shape import Layer, Shape, scaled, shape_of
from tests.support.headers import F16, F32, Q8_0, header, transformer
from tests.support.tiny_gguf import tiny_gguf

PURE = settings(max_examples=200, derandomize=True, deadline=None, database=None)
GIB = 1 << 30

sizes = st.integers(0, 1 << 40)
layers = st.builds(
    Layer, sizes, sizes, st.integers(0, 1 << 16), st.integers(0, 1 << 16), st.integers(0, 1 << 24), st.booleans()
)
shapes = st.builds(
    Shape,
    architecture=st.sampled_from(["llama", "bert", "mamba"]),
    parameters=sizes,
    layers=st.lists(st.one_of(layers, st.just(Layer(5, 0, 4, 4))), max_size=40).map(tuple),
    input=sizes,
    output=sizes,
    header=st.integers(0, 1 << 24),
    tied=st.booleans(),
    gated=st.booleans(),
    causal=st.booleans(),
    embedding=st.integers(0, 1 << 16),
    pooling=st.integers(-1, 4),
    window=st.integers(0, 1 << 14),
)


def rows(shape: Shape) -> list[tuple[int, int]]:
    return [(layer.keys, layer.values) for layer in shape.layers]


def test_llama_3_8b() -> None:
    shape = shape_of([transformer()])
    assert shape.parameters == 8_030_261_248 - 32 * 4096  # all but the second norm of each layer
    assert shape.weights == 2 * shape.parameters + 2 * 33 * 4096  # F16, but norms are F32
    assert rows(shape) == [(1024, 1024)] * 32
    assert (shape.embedding, shape.wide, shape.queries, shape.heads) == (4096, 14_336, 4096, 32)
    assert (shape.vocabulary, shape.context, shape.causal, shape.tied, shape.gated) == (
        128_256,
        8192,
        True,
        False,
        True,
    )
    assert shape.input == 128_256 * 4096 * 2
    assert shape.output == 128_256 * 4096 * 2 + 4 * 4096


def test_qwen_3_says_the_length_of_its_heads() -> None:
    shape = shape_of([transformer("qwen3", layers=36, embedding=2560, wide=9728, heads=32, heads_kv=8, output=False)])
    assert rows(shape) == [(1024, 1024)] * 36
    assert shape.queries == 4096  # wider than the embedding
    assert shape.tied


def test_without_lengths_a_head_is_its_share_of_the_embedding() -> None:
    tensors = [("blk.0.attn_qkv.weight", (768, 3 * 768), F16)]
    keys = {"block_count": 1, "embedding_length": 768, "attention.head_count": 12}
    assert rows(shape_of([header("gpt2", keys, tensors)])) == [(768, 768)]


@pytest.mark.parametrize(
    ("architecture", "keys", "full"),
    [
        ("gemma3", {"attention__sliding_window": 1024}, [5, 11]),
        ("gemma2", {}, [1, 3, 5, 7, 9, 11]),
        ("gpt-oss", {"attention__sliding_window": 128}, [1, 3, 5, 7, 9, 11]),
        ("cohere2", {"attention__sliding_window": 4096}, [3, 7, 11]),
        ("smallthinker", {"attention__sliding_window": 4096}, [0, 4, 8]),
        ("gemma3", {"attention__sliding_window": 512, "attention__sliding_window_pattern": 3}, [2, 5, 8, 11]),
        (
            "step35",
            {"attention__sliding_window": 512, "attention__sliding_window_pattern": [True] * 11 + [False]},
            [11],
        ),
        ("llama", {"attention__sliding_window": 4096}, list(range(12))),
        ("qwen2", {"attention__sliding_window": 131_072}, list(range(12))),
        ("exaone4", {"attention__sliding_window": 4096}, list(range(12))),
    ],
)
def test_which_layers_see_a_window_only(architecture: str, keys: dict[str, Any], full: list[int]) -> None:
    shape = shape_of([transformer(architecture, layers=12, vocabulary=1000, **keys)])
    assert [i for i, layer in enumerate(shape.layers) if not layer.window] == full


def test_heads_may_differ_from_layer_to_layer() -> None:
    shape = shape_of([transformer("openelm", layers=4, heads_kv=[3, 4, 0, 5], vocabulary=1000)])
    assert rows(shape) == [(384, 384), (512, 512), (0, 0), (640, 640)]


def test_windows_may_have_heads_of_their_own() -> None:
    keys = {"attention__sliding_window": 512, "attention__key_length_swa": 256, "attention__value_length_swa": 256}
    pattern = {"attention__sliding_window_pattern": [True, False]}
    shape = shape_of([transformer("gemma4", layers=2, heads_kv=2, head=512, vocabulary=1000, **keys, **pattern)])
    assert rows(shape) == [(512, 512), (1024, 1024)]


def test_layers_that_share_a_cache_have_none_of_their_own() -> None:
    shape = shape_of([transformer("gemma3n", layers=5, vocabulary=1000, attention__shared_kv_layers=2)])
    assert rows(shape) == [(1024, 1024)] * 3 + [(0, 0)] * 2


def test_layers_that_predict_ahead_have_no_cache() -> None:
    shape = shape_of([transformer("glm4moe", layers=3, vocabulary=1000, nextn_predict_layers=1)])
    assert rows(shape) == [(1024, 1024)] * 2 + [(0, 0)]


def deepseek(compressed: bool) -> Header:
    """DeepSeek V2 Lite: 16 heads; compressed keys of 512 and 64 for the rotation."""
    keys: dict[str, Any] = {
        "block_count": 27, "embedding_length": 2048, "feed_forward_length": 10_944, "leading_dense_block_count": 1,
        "expert_feed_forward_length": 1408, "expert_count": 64, "expert_used_count": 6, "attention.head_count": 16,
        "attention.kv_lora_rank": 512, "rope.dimension_count": 64,
    }  # fmt: skip
    if compressed:
        keys |= {"attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512}
        keys |= {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
    else:
        keys |= {"attention.head_count_kv": 16, "attention.key_length": 192, "attention.value_length": 128}
    tensors = [(f"blk.{i}.attn_kv_a_mqa.weight", (2048, 576), F16) for i in range(27)]
    tensors += [(f"blk.{i}.ffn_up_exps.weight", (2048, 1408, 64), Q8_0) for i in range(1, 27)]
    return header("deepseek2", keys, tensors)


def test_compressed_attention_keeps_keys_alone() -> None:
    shape = shape_of([deepseek(compressed=True)])
    assert rows(shape) == [(576, 0)] * 27
    assert shape.queries == 16 * 192


def test_files_from_before_compressed_attention_keep_everything() -> None:
    assert rows(shape_of([deepseek(compressed=False)])) == [(16 * 192, 16 * 128)] * 27


def test_experts_are_counted_by_their_names() -> None:
    shape = shape_of([deepseek(compressed=True)])
    assert [layer.experts for layer in shape.layers[:2]] == [0, 2048 * 1408 * 64 // 32 * 34]
    assert (shape.experts, shape.used, shape.wide) == (64, 6, 10_944)  # the dense layer is the widest


def test_mamba_has_states_and_no_cache() -> None:
    keys = {
        "block_count": 2, "embedding_length": 2560, "ssm.conv_kernel": 4, "ssm.inner_size": 5120, "ssm.state_size": 16,
        "attention.head_count": 0,
    }  # fmt: skip
    shape = shape_of([header("mamba", keys, [(f"blk.{i}.ssm_in.weight", (2560, 10_240), F16) for i in range(2)])])
    assert rows(shape) == [(0, 0)] * 2
    assert [layer.state for layer in shape.layers] == [3 * 5120 + 16 * 5120] * 2


def hybrid(architecture: str, second: str, **keys: Any) -> Shape:
    about = {
        "block_count": 2, "embedding_length": 2048, "attention.head_count": 16, "attention.head_count_kv": 2,
        "attention.key_length": 256, "attention.value_length": 256, "ssm.conv_kernel": 4, "ssm.inner_size": 4096,
        "ssm.state_size": 128, "ssm.group_count": 16, **keys,
    }  # fmt: skip
    tensors = [("blk.0.attn_k.weight", (2048, 512), F16)]
    tensors += [(f"blk.1.{name}", (2048, 16), F16) for name in second.split()]
    return shape_of([header(architecture, about, tensors)])


def test_hybrids_have_either_or_both() -> None:
    state = 3 * (4096 + 2 * 16 * 128) + 128 * 4096
    linear = hybrid("qwen3next", "attn_qkv.weight ssm_conv1d.weight")
    assert [(layer.keys, layer.state) for layer in linear.layers] == [(512, 0), (0, state)]
    both = hybrid("falcon-h1", "attn_k.weight ssm_conv1d.weight")
    assert [(layer.keys, layer.state) for layer in both.layers] == [(512, 0), (512, state)]
    some = hybrid("jamba", "attn_norm.weight ssm_in.weight", **{"attention.head_count_kv": [2, 0]})
    assert [(layer.keys, layer.state) for layer in some.layers] == [(512, 0), (0, state)]


def test_other_recurrences_have_their_own_states() -> None:
    assert hybrid("lfm2", "shortconv.conv.weight", **{"shortconv.l_cache": 3}).layers[1].state == 2048 * 2
    assert hybrid("rwkv6", "time_mix_w1.weight", **{"wkv.head_size": 64}).layers[1].state == 2048 * (2 + 64)


def test_a_bert_has_no_cache(tmp_path: Path) -> None:
    shape = shape_of([parse(tiny_gguf(tmp_path / "m.gguf", kind="bert", dim=64).read_bytes())])
    assert rows(shape) == [(0, 0)]
    assert (shape.cached, shape.causal, shape.gated, shape.tied, shape.pooling) == (False, False, False, False, 1)


def test_a_projector_is_measured_as_a_whole(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", kind="mmproj")
    shape = shape_of([parse(path.read_bytes())])
    assert (shape.role, shape.image, shape.patch, shape.embedding, shape.layers) == ("mmproj", 64, 8, 32, ())
    assert 0 <= path.stat().st_size - shape.header - shape.weights < 4096  # only alignment is between


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0"])
def test_the_bytes_of_all_tensors_are_those_of_the_file(tmp_path: Path, architecture: str, quant: str) -> None:
    size = Dimensions(
        layers=3, embedding=256, wide=512, heads=4, heads_kv=2, vocabulary=320, experts=4, used=2, inner=512, state=16
    )
    path = hollow(tmp_path / "m.gguf", architecture, size, quant)
    shape = shape_of([parse(path.read_bytes())])
    assert shape.header + shape.weights == path.stat().st_size


def test_the_parts_of_a_split_model_are_one() -> None:
    whole = transformer(layers=4, vocabulary=1000)
    first = Header(3, whole.keys, whole.tensors[:9], 4096)
    second = Header(3, {"split.no": 1}, whole.tensors[9:], 512)
    parts, one = shape_of([first, second]), shape_of([whole])
    assert (parts.layers, parts.weights, parts.parameters) == (one.layers, one.weights, one.parameters)
    assert parts.header == 4096 + 512


def test_a_tensor_of_an_unknown_type_is_as_large_as_the_gap_behind_it() -> None:
    tensors = (Tensor("blk.0.a", (10,), 999, 0), Tensor("blk.0.b", (4,), F32, 640))
    shape = shape_of([Header(3, {"general.architecture": "new", "new.block_count": 1}, tensors, 0)])
    assert shape.layers == (Layer(weights=640 + 16),)


@pytest.mark.parametrize("value", [-1, "many", None, [], [1, "x"], True, 1 << 63, 3.5])
@pytest.mark.parametrize(
    "key", ["block_count", "attention.head_count", "attention.sliding_window_pattern", "ssm.conv_kernel"]
)
def test_absurd_keys_are_survived(key: str, value: Any) -> None:
    about = {
        "block_count": 1,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.sliding_window": 8,
        key: value,
    }
    tensors = [("blk.0.attn_k.weight", (64, 64), F16), ("blk.0.ssm_in.weight", (64, 64), F16)]
    shape = shape_of([header("gemma3", about, tensors)])
    assert shape.weights == 2 * 64 * 64 * 2
    assert all(layer.keys >= 0 and layer.state >= 0 for layer in shape.layers)


@PURE
@given(shapes)
def test_json_keeps_everything(shape: Shape) -> None:
    assert Shape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


def test_the_json_of_a_real_model_is_small() -> None:
    shape = shape_of([transformer("gemma3", layers=48, attention__sliding_window=1024)])
    text = json.dumps(shape.to_json(), separators=(",", ":"))
    assert len(text) < 600, text
    assert Shape.from_json(json.loads(text)) == shape


def test_absent_and_unknown_keys_are_tolerated() -> None:
    assert Shape.from_json({}) == Shape()
    assert Shape.from_json({"embedding": 5, "later": [1]}) == Shape(embedding=5)


@pytest.mark.parametrize(
    "data",
    [
        {"embedding": "5"},
        {"tied": 1},
        {"layers": [1]},
        {"layers": {"kinds": [[1]], "order": [1, 1]}},
        {"layers": {"kinds": [[1]], "order": [0]}},
        {"layers": {"kinds": [[1]], "order": [0, -1]}},
        {"layers": {"kinds": [[1]], "order": [0, 1 << 40]}},
        {"layers": {"kinds": [[-1]], "order": [0, 1]}},
        {"layers": {"kinds": [[1] * 7], "order": [0, 1]}},
        {"layers": {"kinds": [5], "order": [0, 1]}},
    ],
)
def test_json_that_is_no_shape_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shape"):
        Shape.from_json(data)


@PURE
@given(shapes, st.integers(0, 1 << 42))
def test_another_quantization_has_the_bytes_of_its_files(shape: Shape, size: int) -> None:
    other = scaled(shape, size)
    if shape.weights:
        assert other.weights == max(0, size - shape.header)
    assert [(a.keys, a.state) for a in other.layers] == [(b.keys, b.state) for b in shape.layers]


@PURE
@given(shapes)
def test_scaled_to_its_own_size_it_is_the_same(shape: Shape) -> None:
    assert scaled(shape, shape.header + shape.weights) == shape
