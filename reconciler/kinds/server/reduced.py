"""Which settings a server is started with once it has ended for want of memory. Pure.

There is one retry with less, not a ladder: of the reductions, in their order (quantized caches, then one slot, then a
halved context, each on top of the ones before), the first whose estimate fits what is free now with a margin, and takes
a twentieth less than what has just failed, however much seemed to be free: that estimate was wrong. Where none is left,
the server is started as the manifest says, and fails plainly.

What is remembered of the end (`Shortage`) is in the ledger: later starts use the manifest's own settings again as soon
as more is free than then, and enough by the estimate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from reconciler.core.ids import canonical
from reconciler.core.plan import human_bytes
from reconciler.core.state import HostFacts
from reconciler.kinds.fit import Demand, shape_from, use_of
from reconciler.kinds.server.spec import ServerSpec

if TYPE_CHECKING:  # a server that never ended so does not wait for the tables of estimates
    from reconciler.gguf.memory import Need
    from reconciler.gguf.shape import Shape

MARGIN = 1.1  # so much more than the estimate must be free; the estimate is good to about 5 %
LESS = 0.95  # what is tried next takes at most this part, beside the weights, of what has just failed
FLOOR = 4096  # tokens of context that are left in any case
WHOLE = ("f32", "f16", "bf16")  # cache types that can be made smaller without much loss
BLOCK = 32  # elements of a block of q8_0: llama.cpp refuses heads that are no multiple of it
FLASHLESS = frozenset({"grok"})  # architectures for which llama.cpp switches flash attention off


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a server's settings is reduced; `context` is tokens of one request."""

    context: int
    parallel: int
    cache_k: str
    cache_v: str


@dataclass(frozen=True, slots=True)
class Shortage:
    """That a server made from a spec of this digest ended for want of memory, and bytes that were free after it."""

    digest: str
    free: int


def own(spec: ServerSpec) -> Settings:
    """What the manifest says."""
    return Settings(spec.context, spec.parallel, spec.cache_k, spec.cache_v)


def applied(spec: ServerSpec, settings: Settings | None) -> ServerSpec:
    """The spec as it is run with these settings."""
    return replace(spec, **asdict(settings)) if settings is not None else spec


def next_settings(
    spec: ServerSpec, demand: Demand, shape: str, host: HostFacts, short: Shortage | None
) -> Settings | None:
    """What to start it with; None for what the manifest says. `shape` is the model's, as JSON."""
    if not spec.shrink or short is None or short.digest != spec.digest:
        return None
    made = shape_from(shape) if len(shape) > 2 else None
    if made is None:
        return None
    before = _need(own(spec), demand, made)
    if host.free > short.free * MARGIN and _fits(before, spec, host):
        return None
    for settings in reductions(own(spec), made, use_of(demand).flash_attn):
        need = _need(settings, demand, made)
        if _beside(need) <= _beside(before) * LESS and _fits(need, spec, host):
            return settings
    return None


def reductions(now: Settings, shape: Shape, flash: str) -> Iterator[Settings]:
    """Every reduction in its order, each with those before it. `flash` is on, off or auto."""
    smaller = replace(now, cache_k=_smaller(now.cache_k), cache_v=_smaller(now.cache_v))
    if smaller != now and quantizable(shape, flash):
        now = smaller
        yield now
    if now.parallel > 1:
        now = replace(now, parallel=1)
        yield now
    floor = min(FLOOR, shape.context or FLOOR)
    while shape.cached and now.context > floor:
        now = replace(now, context=max(floor, now.context // 2))
        yield now


def quantizable(shape: Shape, flash: str) -> bool:
    """Whether the caches of this model can be of type q8_0 (`llama-context.cpp`).

    Values need flash attention, and each head a whole number of blocks. Where heads differ from layer to layer, or
    keys and values share a cache (compressed attention), the answer is no.
    """
    cached = [layer for layer in shape.layers if layer.keys]
    if flash == "off" or shape.architecture in FLASHLESS or not cached or not shape.heads:
        return False
    head = shape.queries // shape.heads
    return head > 0 and head % BLOCK == 0 and all(_whole_heads(layer.keys, layer.values, head) for layer in cached)


def _whole_heads(keys: int, values: int, head: int) -> bool:
    count, rest = divmod(keys, head)
    return not rest and count > 0 and values > 0 and values % (count * BLOCK) == 0


def words(spec: ServerSpec, settings: Settings) -> str:
    """`context 8192 → 4096, parallel 2 → 1`."""
    names = {"context": "context", "parallel": "parallel", "cache_k": "cache_type.k", "cache_v": "cache_type.v"}
    before, after = asdict(own(spec)), asdict(settings)
    told = [f"{name} {before[key]} → {after[key]}" for key, name in names.items() if before[key] != after[key]]
    return ", ".join(told)


def why(short: Shortage) -> str:
    """For people: what the reduction follows from."""
    return f"with its own settings it ended out of memory, with {human_bytes(short.free)} free after it"


# -- how they travel: in the ledger, and with the process -------------------------------------------------------------


def told(spec: ServerSpec, settings: Settings) -> str:
    """What a process carries of them (JSON): the settings, and how they differ from the manifest's."""
    return canonical({**asdict(settings), "words": words(spec, settings)})


def read(text: str) -> Settings | None:
    """The reverse; None where there are none."""
    data = _mapping(text)
    try:
        return Settings(int(data["context"]), int(data["parallel"]), str(data["cache_k"]), str(data["cache_v"]))
    except (KeyError, TypeError, ValueError):
        return None


def told_words(text: str) -> str:
    """How they differ from the manifest's, of what a process carries."""
    return str(_mapping(text).get("words", ""))


def shortage(text: str) -> Shortage | None:
    """From the ledger's JSON; None where it says nothing."""
    data = _mapping(text)
    try:
        return Shortage(str(data["digest"]), int(data["free"]))
    except (KeyError, TypeError, ValueError):
        return None


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


# -- whether they fit -------------------------------------------------------------------------------------------------


def _need(settings: Settings, demand: Demand, shape: Shape) -> Need:
    from reconciler.gguf.memory import estimate

    return estimate(shape, use_of(replace(demand, **asdict(settings))))


def _beside(need: Need) -> int:
    """What a process allocates beside the model file that it maps."""
    return need.total - need.weights


def _fits(need: Need, spec: ServerSpec, host: HostFacts) -> bool:
    """Whether it fits what is free now, with the margin, and what the manifest allows it."""
    from reconciler.gguf.memory import Verdict, fit

    if spec.limits.memory and _beside(need) * MARGIN > spec.limits.memory:
        return False
    devices = tuple(replace(device, free=int(device.free / MARGIN)) for device in host.devices)
    tight = replace(host, memory_available=int(host.memory_available / MARGIN), devices=devices)
    found = fit(need, tight, spec.at_most or None)
    return found.verdict is not Verdict.RED and all(row.takes <= row.free for row in found.rows)


def _smaller(kind: str) -> str:
    return "q8_0" if kind in WHOLE else kind
