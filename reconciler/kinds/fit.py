"""Whether a model fits the memory of this machine, as models and servers ask it. Pure.

The shape of a model travels as the JSON text that lock and ledger keep; reading it and estimating are remembered,
since every turn of the loop asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from reconciler.core.residency import Amount, device_reserve, reserve
from reconciler.core.state import Device, HostFacts

if TYPE_CHECKING:  # commands that judge nothing do not wait for the tables of estimates
    from reconciler.gguf.memory import Fit as Found
    from reconciler.gguf.memory import Need, Use
    from reconciler.gguf.shape import Shape

NONE = "{}"  # the shape of what nothing is known of


@dataclass(frozen=True, slots=True)
class Demand:
    """How a model is to be served. Bytes; `gpu_layers` is -1 where it is to be chosen, `at_most` 0 without a bound.

    `projector` and `lora` are the sizes of files beside the model, `draft` the shape (JSON) of a draft model.
    `options` are flags of llama-server by their names in the manifest, as sorted pairs.
    """

    context: int = 4096
    parallel: int = 1
    cache_k: str = "f16"
    cache_v: str = "f16"
    gpu_layers: int = -1
    at_most: int = 0
    projector: int = 0
    lora: int = 0
    draft: str = NONE
    embeds: bool = False  # it answers with vectors or ranks
    options: tuple[tuple[str, Any], ...] = ()


PLAIN = Demand()


@dataclass(frozen=True, slots=True)
class Fit:
    """A verdict with its numbers. `memory` (bytes) is what the server takes, `trained` the model's own context."""

    memory: int
    found: Found
    trained: int = 0

    @property
    def refused(self) -> bool:
        return self.found.verdict.value == "RED"

    @property
    def reason(self) -> str:
        return f"{self.found.verdict}: {self.found.reason}"

    @property
    def refusal(self) -> str:
        """Why it will not be started, and what would help."""
        ways = f"{self.found.remedy}, or " if self.found.remedy else ""
        return f"it does not fit: {self.found.reason} ({ways}`force: true` starts it all the same)"


def judged(shape: str, demand: Demand, host: HostFacts) -> Fit | None:
    """How it fits; None where the shape says nothing."""
    if len(shape) <= len(NONE):
        return None
    from reconciler.gguf.memory import judge

    made, use = shape_from(shape), use_of(demand)
    if made is None:
        return None
    return Fit(_need(made, use).total, judge(made, use, host, demand.at_most or None), made.context)


def needed(shape: str, demand: Demand) -> int:
    """Bytes that the server takes in all; 0 where the shape says nothing."""
    made = shape_from(shape) if len(shape) > len(NONE) else None
    return _need(made, use_of(demand)).total if made is not None else 0


def placed(shape: str, demand: Demand, devices: tuple[Device, ...], room: Amount) -> Amount | None:
    """What it takes of each memory where it may have `room`; None where that is too little, or nothing is known."""
    made = shape_from(shape) if len(shape) > len(NONE) else None
    if made is None:
        return None
    return _placed(_need(made, use_of(demand)), tuple(device.unified for device in devices), room)


def ceiling(host: HostFacts, bound: int = 0) -> Amount:
    """What servers could take if nothing else ran: the machine's less a reserve, or `bound`; nothing if not known."""
    if not (bound or host.memory_total):
        return ()
    main = bound or max(1, host.memory_total - reserve(host.memory_total))
    return (main, *(max(1, d.total - device_reserve(d.total)) for d in host.devices))


@lru_cache(maxsize=4096)
def _placed(need: Need, unified: tuple[bool, ...], room: Amount) -> Amount | None:
    """Remembered without what is free of the devices, which is another in every look."""
    from reconciler.gguf.memory import place

    return place(need, [Device("", 0, 0, own) for own in unified], room)


@lru_cache(maxsize=1024)
def shape_from(text: str) -> Shape | None:
    """A shape from its JSON; None for one that a person has broken in a lock."""
    from reconciler.gguf.shape import Shape

    try:
        return Shape.from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=1024)
def _need(shape: Shape, use: Use) -> Need:
    from reconciler.gguf.memory import estimate

    return estimate(shape, use)


def use_of(demand: Demand) -> Use:
    """The demand in the words of the estimate."""
    from reconciler.gguf.memory import Use
    from reconciler.gguf.shape import Shape

    options = {name.replace("-", "_"): value for name, value in demand.options}
    draft = shape_from(demand.draft) if len(demand.draft) > len(NONE) else None
    return Use(
        context=demand.context,
        parallel=demand.parallel,
        cache_k=demand.cache_k,
        cache_v=demand.cache_v,
        flash_attn=_flash(options.get("flash_attn", "auto")),
        gpu_layers=None if demand.gpu_layers < 0 else demand.gpu_layers,
        batch=_count(options, "batch_size", Use().batch),
        ubatch=_count(options, "ubatch_size", Use().ubatch),
        swa_full=options.get("swa_full") is True,
        unified=options.get("kv_unified") is True,
        embeddings=demand.embeds,
        mmproj=Shape(role="mmproj", output=demand.projector) if demand.projector else None,
        draft=draft,
        lora=demand.lora,
    )


def _flash(value: Any) -> str:
    return value if value in ("on", "off") else "on" if value is True else "off" if value is False else "auto"


def _count(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name)
    return value if type(value) is int and value > 0 else default
