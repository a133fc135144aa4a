"""What a server is started with after it ran out of memory: which reductions there are, and which is taken."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.limits import Limits
from reconciler.core.state import Device, HostFacts
from reconciler.gguf.memory import Verdict, estimate, fit
from reconciler.gguf.shape import Layer, Shape
from reconciler.kinds.fit import Demand, use_of
from reconciler.kinds.server.reduced import (
    FLOOR,
    LESS,
    MARGIN,
    Settings,
    Shortage,
    applied,
    next_settings,
    own,
    quantizable,
    read,
    reductions,
    shortage,
    told,
    told_words,
    words,
)
from reconciler.kinds.server.spec import ServerSpec

MIB, GIB = 1 << 20, 1 << 30
# Eight kv heads of 128 elements in 32 layers: 128 KiB of cache a token at f16; 4 GiB of weights.
SHAPE = Shape(
    architecture="llama",
    layers=(Layer(weights=128 * MIB, keys=1024, values=1024),) * 32,
    embedding=4096,
    wide=14336,
    heads=32,
    queries=4096,
    vocabulary=128256,
    context=131072,
)
TEXT = json.dumps(SHAPE.to_json())
SPEC = ServerSpec("chat", "e", "ed", "chat", "md", "chat", 32768, 2, -1, "f16", "f16", shrink=True)
OWN = own(SPEC)


def demand(spec: ServerSpec) -> Demand:
    return Demand(
        spec.context, spec.parallel, spec.cache_k, spec.cache_v, spec.gpu_layers, spec.at_most, options=spec.options
    )


def machine(available: int, total: int = 64 * GIB) -> HostFacts:
    return HostFacts(memory_total=total, memory_available=available)


def takes(made: Settings) -> int:
    return estimate(SHAPE, use_of(demand(applied(SPEC, made)))).total


def taken(spec: ServerSpec, host: HostFacts, short: Shortage | None = None, shape: str = TEXT) -> Settings | None:
    return next_settings(spec, demand(spec), shape, host, short or Shortage(spec.digest, host.free))


LADDER = [
    Settings(32768, 2, "q8_0", "q8_0"),
    Settings(32768, 1, "q8_0", "q8_0"),
    Settings(16384, 1, "q8_0", "q8_0"),
    Settings(8192, 1, "q8_0", "q8_0"),
    Settings(4096, 1, "q8_0", "q8_0"),
]


def test_caches_come_first_then_slots_then_context_down_to_a_floor() -> None:
    assert list(reductions(OWN, SHAPE, "auto")) == LADDER
    assert list(reductions(replace(OWN, context=6000, parallel=1), SHAPE, "off")) == [Settings(FLOOR, 1, "f16", "f16")]
    small = replace(SHAPE, context=2048)
    assert list(reductions(Settings(4096, 1, "q8_0", "q4_0"), small, "on")) == [Settings(2048, 1, "q8_0", "q4_0")]
    assert list(reductions(Settings(512, 1, "q8_0", "q8_0"), SHAPE, "on")) == []


@pytest.mark.parametrize(
    ("shape", "flash"),
    [
        (SHAPE, "off"),
        (replace(SHAPE, architecture="grok"), "auto"),
        (replace(SHAPE, heads=256), "auto"),  # of 16 elements: less than a block
        (replace(SHAPE, layers=(replace(SHAPE.layers[0], values=0),)), "auto"),  # keys and values in one
        (replace(SHAPE, layers=(replace(SHAPE.layers[0], keys=1000),)), "auto"),
        (replace(SHAPE, layers=(Layer(weights=1, state=64),)), "auto"),  # recurrent: no cache at all
        (replace(SHAPE, heads=0), "auto"),
    ],
    ids=["no flash attention", "an architecture without it", "small heads", "compressed", "odd heads", "recurrent",
         "unknown"],
)  # fmt: skip
def test_caches_stay_as_they_are_where_they_cannot_be_quantized(shape: Shape, flash: str) -> None:
    assert quantizable(SHAPE, "auto")
    assert not quantizable(shape, flash)
    assert all(made.cache_k == made.cache_v == "f16" for made in reductions(OWN, shape, flash))


@pytest.mark.parametrize("step", range(len(LADDER)))
def test_the_first_that_fits_with_a_margin_is_taken(step: int) -> None:
    room = machine(int(takes(LADDER[step]) * MARGIN) + MIB)
    assert taken(SPEC, room) == LADDER[step]


def test_nothing_is_taken_where_nothing_fits_or_nothing_may_be_taken() -> None:
    enough = machine(int(takes(LADDER[0]) * MARGIN) + MIB)
    assert taken(SPEC, machine(int(takes(LADDER[-1]) * MARGIN) - 64 * MIB)) is None
    assert taken(replace(SPEC, shrink=False), enough) is None
    assert next_settings(SPEC, demand(SPEC), TEXT, enough, None) is None
    assert taken(SPEC, enough, Shortage("another spec", 0)) is None
    assert taken(SPEC, enough, shape="{}") is None, "of what nothing is known nothing can be judged"
    assert taken(SPEC, enough, shape='{"layers": 3}') is None


def test_an_estimate_that_was_wrong_is_not_believed_again() -> None:
    plenty = machine(60 * GIB)
    assert taken(SPEC, plenty) == LADDER[0], "its own settings seemed to fit, and did not"
    short = replace(SPEC, context=256, parallel=1, cache_k="q8_0", cache_v="q8_0")
    assert taken(short, plenty) is None


def test_its_own_settings_come_back_once_more_is_free_and_enough() -> None:
    then = Shortage(SPEC.digest, 8 * GIB)
    assert taken(SPEC, machine(8 * GIB), then) is not None
    assert taken(SPEC, machine(9 * GIB), then) is not None, "more, but not enough"
    assert taken(SPEC, machine(int(takes(OWN) * MARGIN) + GIB), then) is None


def test_the_limits_of_the_manifest_hold_for_less_too() -> None:
    beside = [takes(made) - SHAPE.weights for made in LADDER]
    limited = replace(SPEC, limits=Limits(memory=int(beside[2] * MARGIN) + MIB))
    assert taken(limited, machine(60 * GIB)) == LADDER[2]
    bound = replace(SPEC, at_most=takes(LADDER[1]) + MIB)
    assert taken(bound, machine(60 * GIB)) == LADDER[1]


def test_memory_of_a_gpu_counts_where_the_layers_are() -> None:
    full = replace(SPEC, gpu_layers=33)
    gpu = Device("gpu", 12 * GIB, 9 * GIB)
    host = replace(machine(60 * GIB), devices=(gpu,))
    for made, fits in ((LADDER[0], False), (LADDER[1], True)):
        found = fit(estimate(SHAPE, use_of(demand(applied(full, made)))), host)
        assert (found.rows[1].takes * MARGIN <= gpu.free) == fits, "with both slots it is more than the GPU has free"
    assert taken(full, host) == LADDER[1]
    assert host.free == 69 * GIB
    assert replace(host, devices=(replace(gpu, unified=True),)).free == 60 * GIB


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 64 * GIB),
    st.integers(128, 1 << 18),
    st.integers(1, 16),
    st.sampled_from(["f16", "q8_0", "q4_0", "f32"]),
)
def test_whatever_is_taken_is_less_and_fits(available: int, context: int, parallel: int, kind: str) -> None:
    spec = replace(SPEC, context=context, parallel=parallel, cache_k=kind, cache_v=kind)
    host = machine(available)
    made = taken(spec, host)
    if made is None:
        return
    before, after = (estimate(SHAPE, use_of(demand(s))) for s in (spec, applied(spec, made)))
    assert after.total - after.weights <= (before.total - before.weights) * LESS
    assert fit(after, host).verdict is not Verdict.RED
    assert after.total <= available
    assert made.context <= context
    assert made.parallel <= parallel
    assert made.context >= min(FLOOR, context)
    assert words(spec, made)


def test_what_is_told_of_them_is_read_back() -> None:
    made = LADDER[3]
    text = told(SPEC, made)
    assert read(text) == made
    assert told_words(text) == words(SPEC, made) == (
        "context 32768 → 8192, parallel 2 → 1, cache_type.k f16 → q8_0, cache_type.v f16 → q8_0"
    )  # fmt: skip
    for broken in ("", "{", "[]", "3", '{"context": 3}', '{"context": [], "parallel": 1, "cache_k": 1, "cache_v": 2}'):
        assert read(broken) is None
        assert shortage(broken) is None
        assert told_words(broken) == ""
    assert shortage('{"digest":"d","free":7}') == Shortage("d", 7)


def test_leave_to_make_do_changes_nothing_of_what_runs() -> None:
    plain = replace(SPEC, shrink=False)
    assert plain.digest == SPEC.digest
    assert plain.attempt != SPEC.attempt, "but it is worth another try"
    assert applied(plain, None) == plain
    assert applied(SPEC, LADDER[0]).digest != SPEC.digest
    assert asdict(own(applied(SPEC, LADDER[0]))) == asdict(LADDER[0])
