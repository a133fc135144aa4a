"""Sizes of caches computed by hand, laws that every estimate keeps, and verdicts on machines of every make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.state import Device, HostFacts
from reconciler.gguf.memory import (
    CACHE_TYPES,
    GIB,
    MIB,
    RUNTIME,
    Need,
    Use,
    Verdict,
    amount,
    best,
    device_reserve,
    estimate,
    fit,
    judge,
    reserve,
    row_bytes,
)
from reconciler.gguf.quant import Quant
from reconciler.gguf.shape import Layer, Shape, scaled, shape_of
from tests.support.headers import transformer

PURE = settings(max_examples=200, derandomize=True, deadline=None, database=None)
LLAMA = shape_of([transformer()])
GEMMA = shape_of(
    [transformer("gemma3", layers=48, embedding=3840, wide=15_360, heads=16, head=256, attention__sliding_window=1024)]
)
MAMBA = Shape("mamba", layers=(Layer(weights=MIB, state=3 * 5120 + 16 * 5120),) * 64, inner=5120, context=2048)
BERT = Shape(
    "bert", layers=(Layer(weights=MIB),) * 6, embedding=384, wide=1536, cached=False, causal=False, context=512
)
LATENT = Shape("deepseek2", layers=(Layer(weights=MIB, keys=576),) * 27, embedding=2048, queries=3072, context=4096)
HYBRID = Shape("jamba", layers=(Layer(keys=512, values=512), Layer(state=1000), Layer(state=1000)), context=4096)

SHAPES = [LLAMA, GEMMA, MAMBA, BERT, LATENT, HYBRID]
BITS = ["q4_0", "q5_0", "q8_0", "f16", "f32"]
uses = st.builds(
    Use,
    context=st.integers(1, 1 << 17),
    parallel=st.integers(1, 16),
    cache_k=st.sampled_from(BITS),
    cache_v=st.sampled_from(BITS),
    flash_attn=st.sampled_from(["auto", "on", "off"]),
    ubatch=st.integers(1, 2048),
    swa_full=st.booleans(),
    unified=st.booleans(),
)


@pytest.mark.parametrize(
    ("shape", "use", "expected"),
    [
        # 32 layers × 8 heads × 128 × 2 bytes, for K and for V, of 4096 cells
        (LLAMA, Use(4096), 32 * 2 * 1024 * 2 * 4096),
        (LLAMA, Use(4096, 4), 4 * 32 * 2 * 1024 * 2 * 4096),
        (LLAMA, Use(4096, 1, "q8_0", "q8_0"), 32 * 2 * (1024 // 32 * 34) * 4096),
        (LLAMA, Use(4096, 1, "q8_0", "q4_0"), 32 * (1024 // 32 * (34 + 18)) * 4096),
        (LLAMA, Use(0), 32 * 2 * 1024 * 2 * 8192),  # what it was trained for
        (LLAMA, Use(1000), 32 * 2 * 1024 * 2 * 1024),  # in steps of 256 cells
        (LLAMA, Use(100, 3), 3 * 32 * 2 * 1024 * 2 * 256),  # for each sequence
        (LLAMA, Use(100, 3, unified=True), 32 * 2 * 1024 * 2 * 512),  # or for all of them
        # 8 of 48 layers see everything, 40 only the window and one batch: 1024 + 512 cells
        (GEMMA, Use(32_768), (8 * 32_768 + 40 * 1536) * 2 * 2048 * 2),
        (GEMMA, Use(32_768, 2), 2 * (8 * 32_768 + 40 * 1536) * 2 * 2048 * 2),
        (GEMMA, Use(32_768, swa_full=True), 48 * 32_768 * 2 * 2048 * 2),
        (GEMMA, Use(1024), 48 * 1024 * 2 * 2048 * 2),  # no longer than everything is
        (GEMMA, Use(8192, 2, unified=True), (8 * 16_384 + 40 * 2560) * 2 * 2048 * 2),
        (LATENT, Use(4096), 27 * 576 * 2 * 4096),
        (MAMBA, Use(4096), 0),
        (BERT, Use(512), 0),
        (HYBRID, Use(4096), 2 * 512 * 2 * 4096),
    ],
)
def test_the_cache_has_a_row_for_each_cell(shape: Shape, use: Use, expected: int) -> None:
    assert estimate(shape, use).cache == expected


def test_recurrent_layers_keep_one_state_for_each_sequence() -> None:
    assert estimate(MAMBA, Use(4096, 3)).state == 3 * 64 * 19 * 5120 * 4
    assert estimate(HYBRID, Use(4096, 2)).state == 2 * 2 * 1000 * 4


def test_without_flash_attention_values_are_as_wide_as_the_widest() -> None:
    shape = replace(HYBRID, layers=(Layer(keys=512, values=512), Layer(keys=128, values=128)))
    assert estimate(shape, Use(4096)).cache == (1024 + 256) * 2 * 4096
    assert estimate(shape, Use(4096, flash_attn="off")).cache == (1024 + 128 + 512) * 2 * 4096


def test_rows_are_whole_blocks() -> None:
    assert row_bytes("q8_0", 33) == 68
    with pytest.raises(ValueError, match=r"'q3_0' is not known; one of f32, f16"):
        row_bytes("q3_0", 32)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.architecture)
def test_the_parts_are_the_whole(shape: Shape) -> None:
    need = estimate(shape, Use(4096, 2))
    assert sum(need.layers) + shape.input == need.weights + need.cache + need.state
    assert need.total > need.weights + need.cache + need.state + need.buffers
    assert len(need.layers) == len(shape.layers) + 1


@PURE
@given(st.sampled_from(SHAPES), uses, st.integers(0, 1 << 14), st.integers(0, 4))
def test_more_never_needs_less(shape: Shape, use: Use, tokens: int, slots: int) -> None:
    need = estimate(shape, use).total
    assert estimate(shape, replace(use, context=use.context + tokens)).total >= need
    assert estimate(shape, replace(use, parallel=use.parallel + slots)).total >= need
    for key in ("cache_k", "cache_v"):
        wider: list[str] = BITS[BITS.index(getattr(use, key)) :]
        sizes = [estimate(shape, replace(use, **{key: kind})).total for kind in wider]
        assert sizes == sorted(sizes)


@PURE
@given(st.sampled_from(SHAPES), uses, st.integers(1, 300))
def test_a_scaled_shape_needs_as_much_more_as_its_files_are_larger(shape: Shape, use: Use, percent: int) -> None:
    size = shape.header + shape.weights * percent // 100
    grown = estimate(scaled(shape, size), use).total - estimate(shape, use).total
    assert grown == size - shape.header - shape.weights


def test_what_comes_beside_the_model_is_counted() -> None:
    plain = estimate(LLAMA, Use(4096))
    eye = Shape("clip", "mmproj", output=800 * MIB, embedding=1152, wide=4304, queries=1152, image=896, patch=14)
    seeing = estimate(LLAMA, Use(4096, mmproj=eye))
    assert seeing.projector > 800 * MIB
    assert seeing.total == plain.total + seeing.projector
    drafted = estimate(LLAMA, Use(4096, draft=HYBRID, lora=7, prompt_cache=5))
    assert drafted.total == plain.total + drafted.draft + 7 + 5
    assert drafted.draft > estimate(HYBRID, Use(4096)).cache


def test_embedding_models_need_buffers_for_a_batch_only() -> None:
    assert estimate(BERT, Use(512)).buffers == estimate(BERT, Use(8192)).buffers > 0


def test_where_vectors_are_asked_for_every_token_is_an_output() -> None:
    text, vectors = (estimate(LLAMA, Use(4096, 2, embeddings=asked)).buffers for asked in (False, True))
    assert vectors - text == (512 - 2 * 2) * (128_256 + 4096) * 4


# --- machines -------------------------------------------------------------------------------------------------------


def machine(total: float, free: float | None = None, *devices: Device) -> HostFacts:
    available = total if free is None else free
    return HostFacts(memory_total=int(total * GIB), memory_available=int(available * GIB), devices=devices)


def gpu(total: float, free: float | None = None, name: str = "GPU", unified: bool = False) -> Device:
    return Device(name, int(total * GIB), int((total if free is None else free) * GIB), unified)


NEED = Need(
    weights=5 * GIB, cache=GIB, buffers=GIB // 4, process=32 * MIB, layers=(*[170 * MIB] * 32, 400 * MIB), inputs=MIB
)


@pytest.mark.parametrize(
    ("host", "verdict", "reason"),
    [
        (
            machine(16),
            "GREEN",
            "needs 6.3 GiB (weights 5.0, KV cache 1.0, buffers 0.3); 16.0 of 16.0 GiB are free, on the CPU",
        ),
        (machine(16, 3.1), "YELLOW", "; 3.1 of 16.0 GiB are free, so that other programs must end first"),
        (machine(4), "RED", "; this machine has 3.8 GiB for models"),
        (HostFacts(), "YELLOW", "; how much memory this machine has is not known"),
    ],
)
def test_without_a_gpu_main_memory_decides(host: HostFacts, verdict: str, reason: str) -> None:
    found = fit(NEED, host)
    assert (found.verdict, found.gpu_layers) == (verdict, 0)
    assert found.reason.endswith(reason) or found.reason == reason


def test_a_gpu_that_holds_everything_is_green() -> None:
    found = fit(NEED, machine(32, None, gpu(8)))
    assert (found.verdict, found.gpu_layers) == (Verdict.GREEN, 33)
    assert found.reason.endswith(
        "32.0 of 32.0 GiB of memory and 8.0 of 8.0 GiB of GPU are free; all 33 layers on the GPU"
    )
    main, device = found.rows
    assert device.takes == 32 * 170 * MIB + 400 * MIB + NEED.buffers + RUNTIME
    assert main.takes == NEED.total - 32 * 170 * MIB - 400 * MIB - NEED.buffers + MIB


def test_a_gpu_that_holds_some_layers_is_yellow() -> None:
    found = fit(NEED, machine(32, None, gpu(4)))
    assert found.verdict is Verdict.YELLOW
    room = 4 * GIB - device_reserve(4 * GIB) - RUNTIME - NEED.buffers - 400 * MIB
    assert found.gpu_layers == 1 + room // (170 * MIB)
    assert f"only {found.gpu_layers} of 33 layers fit the GPU" in found.reason
    assert found.remedy


def test_what_is_taken_of_a_gpu_now_leaves_fewer_layers() -> None:
    found = fit(NEED, machine(32, None, gpu(8, 4)))
    whole = fit(NEED, machine(32, None, gpu(8)))
    assert found.verdict is Verdict.YELLOW
    assert 0 < found.gpu_layers < whole.gpu_layers


def test_layers_are_split_over_gpus_by_their_free_memory() -> None:
    found = fit(NEED, machine(32, None, gpu(4, name="A"), gpu(8, name="B")))
    assert (found.verdict, found.gpu_layers) == (Verdict.GREEN, 33)
    _, a, b = found.rows
    assert a.takes + b.takes == 32 * 170 * MIB + 400 * MIB + 2 * (NEED.buffers + RUNTIME)
    assert a.takes == 11 * 170 * MIB + NEED.buffers + RUNTIME  # a third of 33 layers
    assert fit(NEED, machine(32, None, gpu(3, name="A"), gpu(3, name="B"))).verdict is Verdict.YELLOW


def test_a_full_gpu_among_several_gets_no_layer() -> None:
    found = fit(NEED, machine(32, None, gpu(8, 0, name="A"), gpu(8, name="B")))
    assert (found.verdict, found.gpu_layers) == (Verdict.GREEN, 33)
    assert [row.takes > 0 for row in found.rows] == [True, False, True]


def test_unified_memory_is_not_counted_twice() -> None:
    found = fit(NEED, machine(16, 12, gpu(10.7, 10.7, unified=True)))
    assert (found.verdict, found.gpu_layers) == (Verdict.GREEN, 33)
    main, device = found.rows
    assert NEED.total <= main.takes <= NEED.total + MIB
    assert device.takes < main.takes
    assert "GPU are free" not in found.reason
    crowded = fit(NEED, machine(16, 5, gpu(10.7, 5, unified=True)))
    assert crowded.verdict is Verdict.YELLOW
    assert fit(NEED, machine(6, None, gpu(5, unified=True))).verdict is Verdict.RED


def test_a_number_of_layers_that_was_asked_for_is_kept() -> None:
    asked = replace(NEED, gpu_layers=10)
    assert fit(asked, machine(32, None, gpu(8))).gpu_layers == 10
    assert fit(asked, machine(32, None, gpu(8))).verdict is Verdict.GREEN
    assert fit(asked, machine(32, None, gpu(1))).verdict is Verdict.RED
    assert fit(replace(NEED, gpu_layers=99), machine(32, None, gpu(8))).gpu_layers == 33


def test_a_tied_output_is_on_the_gpu_again() -> None:
    tied = replace(NEED, again=GIB)
    plain, twice = (fit(need, machine(32, None, gpu(10))).rows[1].takes for need in (NEED, tied))
    assert twice - plain == GIB


def test_a_limit_is_a_limit() -> None:
    found = fit(NEED, machine(64), at_most=6 * GIB)
    assert found.verdict is Verdict.RED
    assert found.reason.endswith(", more than the 6.0 GiB that it may take")
    assert fit(NEED, machine(64), at_most=7 * GIB).verdict is Verdict.GREEN


hosts = st.builds(
    lambda total, free, devices: HostFacts(
        memory_total=total,
        memory_available=min(total, free),
        devices=tuple(Device("G", a + b, a, u) for a, b, u in devices),
    ),
    st.integers(0, 64 * GIB),
    st.integers(0, 64 * GIB),
    st.lists(st.tuples(st.integers(0, 24 * GIB), st.integers(0, 8 * GIB), st.booleans()), max_size=3),
)
needs = st.builds(
    lambda layers, rest, buffers, asked: Need(
        weights=sum(layers) + rest, buffers=buffers, layers=tuple(layers), inputs=buffers // 8, gpu_layers=asked
    ),
    st.lists(st.integers(0, 2 * GIB), min_size=1, max_size=20),
    st.integers(0, 2 * GIB),
    st.integers(0, GIB),
    st.none() | st.integers(0, 25),
)


@PURE
@given(needs, hosts)
def test_green_is_never_more_than_there_is(need: Need, host: HostFacts) -> None:
    found = fit(need, host)
    assert 0 <= found.gpu_layers <= len(need.layers)
    if found.verdict is Verdict.GREEN:
        assert all(row.takes <= row.free for row in found.rows)
        assert found.rows[0].takes <= max(0, host.memory_total - reserve(host.memory_total))  # nothing always fits
        assert found.remedy == ""
    else:
        assert found.remedy or not host.memory_total
    if found.verdict is Verdict.YELLOW and host.memory_total:
        assert all(row.takes <= row.total for row in found.rows)


@PURE
@given(needs, hosts, st.integers(0, 8 * GIB))
def test_more_memory_is_never_worse(need: Need, host: HostFacts, more: int) -> None:
    order = [Verdict.RED, Verdict.YELLOW, Verdict.GREEN]
    if host.memory_total:
        larger = replace(host, memory_total=host.memory_total + 2 * more, memory_available=host.memory_available + more)
        assert order.index(fit(need, larger).verdict) >= order.index(fit(need, host).verdict)


# --- remedies and choices -------------------------------------------------------------------------------------------


def test_remedies_were_tried() -> None:
    use = Use(131_072, 2)
    found = judge(LLAMA, use, machine(32))
    assert found.verdict is Verdict.RED
    assert "context: 32768" in found.remedy
    assert "parallel: 1" not in found.remedy  # 16 GiB of weights and 16 of cache are still too much
    assert judge(LLAMA, replace(use, context=32_768), machine(32)).verdict is Verdict.GREEN
    small = judge(LLAMA, Use(4096), machine(8))
    size = amount(small_weights(LLAMA, Use(4096), machine(8)))
    assert small.remedy == f"a smaller quant (weights of at most {size})"


def small_weights(shape: Shape, use: Use, host: HostFacts) -> int:
    """The most hundredths of the weights that fit, found by trying them all."""
    sizes = [shape.weights * n // 100 for n in range(10, 100)]
    return max(s for s in sizes if judge(scaled(shape, shape.header + s), use, host).verdict is Verdict.GREEN)


def test_a_smaller_cache_is_offered_where_it_helps() -> None:
    use, host = Use(32_768, 2), machine(24)
    assert "cache_type: q8_0" in judge(LLAMA, use, host).remedy
    assert judge(LLAMA, replace(use, cache_k="q8_0", cache_v="q8_0"), host).verdict is Verdict.GREEN
    assert "cache_type" not in judge(LLAMA, replace(use, flash_attn="off"), host).remedy


RANKS: dict[Quant, float] = {Quant.Q2_K: 1, Quant.Q4_K_M: 2, Quant.Q5_K_M: 3, Quant.Q8_0: 4, Quant.F16: 5}
GIBS = {Quant.F16: 16.0, Quant.Q8_0: 8.5, Quant.Q5_K_M: 5.7, Quant.Q4_K_M: 4.9, Quant.Q2_K: 3.2}
CANDIDATES = [(q, estimate(scaled(LLAMA, int(size * GIB)), Use(4096))) for q, size in GIBS.items()]


def choose(host: HostFacts, **options: Any) -> tuple[Quant | None, tuple[str, ...]]:
    index, why = best(CANDIDATES, host, rank=RANKS.__getitem__, **options)
    return (None if index is None else CANDIDATES[index][0]), why


def test_the_best_that_fits_is_chosen_and_the_others_are_explained() -> None:
    chosen, why = choose(machine(8))
    assert chosen is Quant.Q5_K_M
    assert [line.split(":")[0] for line in why] == [q.value for q in GIBS]
    assert "this machine has 7.5 GiB for models" in why[0]
    assert "this machine has 7.5 GiB for models" in why[1]
    assert why[2].startswith("Q5_K_M: chosen; needs ")
    assert why[3].startswith("Q4_K_M: fits, but is of lower quality than Q5_K_M (needs ")


def test_what_happens_to_be_free_does_not_change_the_choice() -> None:
    assert choose(machine(8, 0.5)) == choose(machine(8))
    assert choose(machine(32, 1, gpu(8, 0.2))) == choose(machine(32, None, gpu(8)))


def test_the_choice_keeps_to_its_bounds() -> None:
    chosen, why = choose(machine(64), at_least=Quant.Q4_K_M, at_most=Quant.Q8_0)
    assert chosen is Quant.Q8_0
    assert (why[0], why[4]) == ("F16: above at_most: Q8_0", "Q2_K: below at_least: Q4_K_M")
    assert choose(machine(64), limit=6 * GIB)[0] is Quant.Q4_K_M
    assert choose(machine(4), at_least=Quant.Q5_K_M)[0] is None


def test_what_the_gpu_holds_is_better_than_what_is_larger() -> None:
    chosen, why = choose(machine(64, None, gpu(8)))
    assert chosen is Quant.Q5_K_M
    assert "only" in why[1]
    assert "layers fit the GPU" in why[1]


def test_where_no_gpu_holds_any_the_one_with_most_layers_on_it_is_chosen() -> None:
    chosen, why = choose(machine(64, None, gpu(3)))
    assert chosen is Quant.Q2_K
    assert why[0].startswith("F16: only ")
    assert choose(machine(64, None, gpu(0.1)))[0] is Quant.F16  # none has any: the best


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_every_cache_type_of_the_manifest_has_a_size(kind: str) -> None:
    assert row_bytes(kind, 256) > 0
