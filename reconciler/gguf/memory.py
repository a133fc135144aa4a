"""How much memory a model takes while it serves, and whether a machine has it.

Pure. The sizes are those that llama.cpp allocates, by its own rules, named beside each formula; they were measured
against a running engine (`python -m benchmarks.estimate`). All sizes are bytes, all contexts tokens.

What is counted is what cannot be given back while the server answers. Not counted are the pages of a file whose
weights the engine has copied into an order of its own: they are clean and never read again, so the kernel drops them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate

from reconciler.core.residency import Amount, device_reserve, reserve
from reconciler.core.state import Device, HostFacts
from reconciler.gguf.header import BLOCKS
from reconciler.gguf.quant import Quant
from reconciler.gguf.shape import Layer, Shape, scaled

GIB = 1 << 30
MIB = 1 << 20

CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
PAD = 256  # cells: llama.cpp rounds the context of a sequence up to these (`llama-context.cpp`)
SPACING = 8192  # tokens between two checkpoints of a slot (llama-server, `--checkpoint-min-step`)

# What a server takes without any model: its code, its threads, buffers of connections. Measured.
PROCESS = 32 * MIB
# What a graphics runtime takes of its device beside our buffers: kernels, handles, scratch. Typical of CUDA 12.
RUNTIME = 320 * MIB
TOKEN = 240  # bytes for a token of the vocabulary: its text, twice, in two hash maps and a list. Measured.
MERGE = 310  # bytes for a rule of a byte pair vocabulary: a hash map from two texts. Measured.
CANDIDATE = 12 + 4  # bytes for a token of the vocabulary in each slot: what samplers sort, and the logits


@dataclass(frozen=True, slots=True)
class Use:
    """How a model is served. `context` is what one request may use; 0 is what the model was trained for.

    `gpu_layers` is None where it is to be chosen. `unified` says that the slots share one cache of context × parallel.
    `embeddings` is for tasks that want vectors, embedding and rerank. `checkpoints` is the most that are kept of a
    slot, `prompt_cache` the bytes for prompts that no slot holds any more: the engine fills them as it goes, so they
    are a limit and not a need at the start.
    """

    context: int = 4096
    parallel: int = 1
    cache_k: str = "f16"
    cache_v: str = "f16"
    flash_attn: str = "auto"  # auto | on | off
    gpu_layers: int | None = None
    batch: int = 2048
    ubatch: int = 512
    swa_full: bool = False
    unified: bool = False
    embeddings: bool = False
    mmproj: Shape | None = None
    draft: Shape | None = None
    lora: int = 0
    checkpoints: int = 32
    prompt_cache: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """What one server takes. The parts add up to `total`, which holds where everything is in main memory.

    `layers` are the bytes that go wherever a layer goes, its weights, cache and state; the last one is the output
    matrix, which llama.cpp counts as a layer. `again` is what the output takes on a GPU in addition where it is the
    input matrix, `inputs` what of the buffers stays in main memory although no layer does.
    """

    weights: int = 0
    cache: int = 0
    state: int = 0
    buffers: int = 0
    projector: int = 0
    draft: int = 0
    lora: int = 0
    prompts: int = 0  # checkpoints and the prompt cache: always in main memory
    process: int = 0
    layers: tuple[int, ...] = ()
    again: int = 0
    inputs: int = 0
    gpu_layers: int | None = None

    @property
    def total(self) -> int:
        parts = self.weights + self.cache + self.state + self.buffers + self.projector + self.draft + self.lora
        return parts + self.prompts + self.process


class Verdict(StrEnum):
    """GREEN fits what is free now, YELLOW only what the machine has in total or only partly on its GPUs, RED never."""

    GREEN = "GREEN"
    YELLOW = "YELLOW"
    RED = "RED"


@dataclass(frozen=True, slots=True)
class Row:
    """What is taken of one memory: of a device, or of the machine itself."""

    name: str
    takes: int
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Fit:
    """`gpu_layers` is the number to pass to the engine. `reason` has the numbers, `remedy` what would help (or "")."""

    verdict: Verdict
    gpu_layers: int
    rows: tuple[Row, ...]
    reason: str
    remedy: str = ""


# --- what a model takes ---------------------------------------------------------------------------------------------


def row_bytes(kind: str, elements: int) -> int:
    """Bytes of one row of a cache in a number format of `CACHE_TYPES`, in whole blocks. ValueError on others."""
    if kind not in CACHE_TYPES:
        raise ValueError(f"cache type {kind!r} is not known; one of {', '.join(CACHE_TYPES)}")
    per, size = BLOCKS[CACHE_TYPES[kind]]
    return -(-elements // per) * size


def estimate(shape: Shape, use: Use) -> Need:
    """What a server of this model takes. ValueError on a cache type that is not known."""
    cells = cells_of(shape, use)
    caches = [_cache(layer, shape, use, cells) for layer in shape.layers]
    states = [layer.state * 4 * use.parallel for layer in shape.layers]
    each = [layer.weights + c + s for layer, c, s in zip(shape.layers, caches, states, strict=True)]
    buffers, inputs = _buffers(shape, use, cells)
    return Need(
        weights=shape.weights,
        cache=sum(caches),
        state=sum(states),
        buffers=buffers,
        projector=_projector(use.mmproj) if use.mmproj else 0,
        draft=_draft(use.draft, use) if use.draft else 0,
        lora=use.lora,
        prompts=_checkpoints(shape, use, caches, states) + use.prompt_cache,
        process=PROCESS + shape.vocabulary * (TOKEN + CANDIDATE * use.parallel) + shape.merges * MERGE,
        layers=(*each, shape.output),
        again=shape.input if shape.tied else 0,
        inputs=inputs,
        gpu_layers=use.gpu_layers,
    )


@dataclass(frozen=True, slots=True)
class Cells:
    """Places of the cache for tokens: in one stream (a slot's, or all slots'), with the window or without it."""

    full: int
    window: int
    streams: int
    tokens: int  # that are computed at once


def cells_of(shape: Shape, use: Use) -> Cells:
    """How long the cache is. `llama-context.cpp`: the engine gets context × parallel, divides it by the sequences and
    rounds up to `PAD`. `llama-kv-cache-iswa.cpp`: layers with a window hold the window and one batch, unless swa_full.
    """
    context = max(1, use.context or shape.context)
    streams = 1 if use.unified else use.parallel
    full = _padded(context * use.parallel if use.unified else context)
    tokens = min(use.ubatch, use.batch, context * use.parallel) if shape.causal else use.ubatch
    sequences = use.parallel if use.unified else 1
    window = full if use.swa_full else min(full, _padded(min(full, shape.window * sequences + tokens)))
    return Cells(full, window, streams, max(1, tokens))


def _padded(count: int) -> int:
    return -(-count // PAD) * PAD


def _cache(layer: Layer, shape: Shape, use: Use, cells: Cells) -> int:
    """`llama-kv-cache.cpp`: a row of K and one of V for each cell of each stream.

    Without flash attention V is stored transposed, with the width of the widest layer in all of them.
    """
    if not layer.keys:
        return 0
    length = (cells.window if layer.window else cells.full) * cells.streams
    values = layer.values
    if use.flash_attn == "off" and values:
        values = max(other.values for other in shape.layers)
    return length * (row_bytes(use.cache_k, layer.keys) + (row_bytes(use.cache_v, values) if values else 0))


def _checkpoints(shape: Shape, use: Use, caches: Sequence[int], states: Sequence[int]) -> int:
    """llama-server keeps copies of what cannot be wound back: the windows and the recurrent states, of each slot.

    One for each `SPACING` tokens, and two near the end of a prompt.
    """
    windows = sum(c for layer, c in zip(shape.layers, caches, strict=True) if layer.window and not use.swa_full)
    context = use.context or shape.context
    return min(use.checkpoints, 2 + context // SPACING) * (windows + sum(states))


def _buffers(shape: Shape, use: Use, cells: Cells) -> tuple[int, int]:
    """Scratch for one batch, and how much of it main memory needs in any case.

    ggml reuses the memory of tensors that are done with, so what counts is the worst moment within one layer (rows of
    float32, one for each token; found by measuring the sizes that the engine reports for models of many proportions):

    - attention: 3 embeddings (the layer's input, what comes out, the sum), 3 × queries (before and after rotation, and
      the result), 2 × keys; without flash attention also a score for each head and cell;
    - feed-forward: 3 embeddings and 3 × wide (gate, way up, product; 2 without a gate), and 2 embeddings more where
      wide rows do not fit the holes that the attention left;
    - experts: 3 embeddings, and what all used experts say, twice;
    - recurrent layers: 3 embeddings and 6 × their inner width.

    To that come masks (one for full layers, one for windows; 2 bytes for a token and cell, 4 without flash attention),
    logits, and the row format into which the processor converts what it multiplies with weights (2 bytes at most).
    """
    tokens, flash = cells.tokens, use.flash_attn != "off"
    keys = max((layer.keys for layer in shape.layers), default=0)
    long = cells.full if shape.cached else tokens
    attention = 3 * shape.embedding + 3 * shape.queries + 2 * keys + (0 if flash else shape.heads * long)
    feed = 3 * shape.embedding + (3 if shape.gated else 2) * shape.wide
    feed += 2 * shape.embedding if shape.wide > shape.queries else 0
    experts = (3 + 2 * shape.used) * shape.embedding if shape.experts else 0
    recurrent = 3 * shape.embedding + 6 * shape.inner if shape.inner else 0
    rows = max(attention, feed, experts, recurrent)
    masked = any(layer.keys and not layer.window for layer in shape.layers) or not shape.cached
    windowed = any(layer.window for layer in shape.layers)
    mask = (long * masked + cells.window * windowed) * tokens * (2 if flash else 4)
    # Where vectors are asked for, each token of a batch is an output, with room for logits that nobody reads
    # (`output_reserve`); otherwise the last token of each slot, there and once more while it is computed.
    outputs = tokens if use.embeddings or not shape.cached else 2 * use.parallel
    logits = (shape.vocabulary + shape.embedding) * 4 * outputs
    converted = max(shape.wide, shape.queries, shape.embedding, shape.inner) * tokens * 2
    inputs = shape.embedding * 4 * tokens + mask + logits
    return rows * 4 * tokens + mask + logits + converted, inputs


def _projector(shape: Shape) -> int:
    """Weights, and scratch for one image: each patch is a token (`clip.cpp`), and sees all others."""
    patches = (shape.image // shape.patch) ** 2 if shape.patch else 0
    row = max(3 * shape.embedding + 3 * shape.queries, 3 * shape.embedding + 3 * shape.wide)
    return shape.weights + patches * 4 * (row + patches)


def _draft(shape: Shape, use: Use) -> int:
    """A second model in the same process with the same context; its caches are f16."""
    need = estimate(shape, replace(use, cache_k="f16", cache_v="f16", mmproj=None, draft=None, lora=0, prompt_cache=0))
    return need.total - PROCESS


# --- whether a machine has it ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Room:
    """What may be taken: of main memory, and of each device."""

    main: int
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Taken:
    main: int
    devices: tuple[int, ...]
    gpu_layers: int


def fit(need: Need, host: HostFacts, at_most: int | None = None) -> Fit:
    """Where `need` goes on this machine, and whether that is well. `at_most` is a limit for all of it together.

    GREEN: everything fits what is free now, and all layers are on the GPU where there is one. YELLOW: it fits the
    machine's memory, but not what is free now, or only some layers fit the GPU. RED: it never fits. Without a GPU,
    what fits main memory is GREEN, and the reason says that it runs on the CPU.
    """
    if at_most is not None and need.total > at_most:
        text = f"{_needs(need)}, more than the {amount(at_most)} that it may take"
        return Fit(Verdict.RED, 0, _rows(host, _place(need, host, 0)), text, _remedy(need, need.total - at_most))
    if host.memory_total <= 0:
        return Fit(Verdict.YELLOW, 0, (), f"{_needs(need)}; how much memory this machine has is not known")
    whole, now = _room(host), _room(host, free=True)
    ever, at_once = _best_place(need, host, whole), _best_place(need, host, now)
    if ever is None:
        least = _place(need, host, need.gpu_layers if need.gpu_layers is not None else 0)
        text = f"{_needs(need)}; this machine has {amount(whole.main)} for models"
        text += "".join(f", {amount(room)} on {d.name}" for d, room in zip(host.devices, whole.devices, strict=True))
        missing = least.main - whole.main
        return Fit(Verdict.RED, least.gpu_layers, _rows(host, least), text, _remedy(need, missing))
    if at_once is None:
        missing = ever.main - now.main if ever.main > now.main else _missing(ever.devices, now.devices)
        text = f"{_needs(need)}; {_free(host)}, so that other programs must end first"
        return Fit(Verdict.YELLOW, ever.gpu_layers, _rows(host, ever), text, _remedy(need, missing))
    text = f"{_needs(need)}; {_free(host)}"
    if not host.devices:
        return Fit(Verdict.GREEN, 0, _rows(host, at_once), f"{text}, on the CPU")
    rows, count = _rows(host, at_once), len(need.layers)
    if need.gpu_layers is not None and at_once.gpu_layers >= min(need.gpu_layers, count):
        where = f"{at_once.gpu_layers} of {count} layers on the GPU, as asked for"
        return Fit(Verdict.GREEN, at_once.gpu_layers, rows, f"{text}; {where}")
    if at_once.gpu_layers >= count:
        return Fit(Verdict.GREEN, at_once.gpu_layers, rows, f"{text}; all {count} layers on the GPU")
    full = _place(need, host, count)
    missing = max(_missing(full.devices, now.devices), full.main - now.main)
    where = f"only {at_once.gpu_layers} of {count} layers fit the GPU, the rest is on the CPU"
    return Fit(Verdict.YELLOW, at_once.gpu_layers, rows, f"{text}; {where}", _remedy(need, missing))


def place(need: Need, devices: Sequence[Device], room: Amount) -> Amount | None:
    """What it takes of main memory and of each device where it may have `room` of them; None where it does not fit.

    As many layers are on the devices as fit, or as are asked for. What a device has of the machine's own memory counts
    as both.
    """
    taken = _best_place(need, HostFacts(devices=tuple(devices)), _Room(room[0], room[1:]))
    return None if taken is None else (taken.main, *taken.devices)


def judge(shape: Shape, use: Use, host: HostFacts, at_most: int | None = None) -> Fit:
    """`fit` of `estimate`, with remedies that were tried: what is offered does fit. ValueError as of `estimate`."""
    need = estimate(shape, use)
    found = fit(need, host, at_most)
    if found.verdict is Verdict.GREEN:
        return found
    ways = (_smaller_cache(shape, use), _fewer_slots(use), _shorter(shape, use))
    offers = []
    for way in ways:
        better = (text for text, other in way if _better(fit(estimate(shape, other), host, at_most), found))
        offers += [text for text in [next(better, "")] if text]
    offers += [text for text in [_smaller_weights(shape, use, host, at_most, found)] if text]
    return replace(found, remedy=" or ".join(offers)) if offers else found


def best(
    candidates: Sequence[tuple[Quant, Need]],
    host: HostFacts,
    at_least: Quant | None = None,
    at_most: Quant | None = None,
    *,
    rank: Callable[[Quant], float],
    limit: int | None = None,
) -> tuple[int | None, tuple[str, ...]]:
    """Which candidate to take → its index (None where none ever fits), and a line on each candidate, in their order.

    `rank` is higher for better quality; `limit` is what the server may take in all, in bytes. The choice depends on
    what the machine has in total and not on what is free now, so that it is the same tomorrow: the best that fits
    whole (GREEN), or where none does, the one of which most layers fit the GPU, and of those the best.
    """
    empty = _emptied(host)
    fits: list[Fit | None] = []
    lines: list[str] = []
    for quant, need in candidates:
        outside = _outside(quant, at_least, at_most, rank)
        found = None if outside else fit(need, empty, limit)
        fits.append(found)
        lines.append(f"{quant}: {outside or (found.reason if found else '')}")

    def worth(i: int) -> tuple[bool, int, float, int]:
        found = fits[i]
        assert found is not None
        whole = found.verdict is Verdict.GREEN
        return whole, 0 if whole else found.gpu_layers, rank(candidates[i][0]), -candidates[i][1].total

    usable = [i for i, found in enumerate(fits) if found is not None and found.verdict is not Verdict.RED]
    if not usable:
        return None, tuple(lines)
    chosen = max(usable, key=worth)
    for i in usable:
        lines[i] = _said(candidates, fits, i, chosen, rank)
    return chosen, tuple(lines)


def _outside(quant: Quant, least: Quant | None, most: Quant | None, rank: Callable[[Quant], float]) -> str:
    if least is not None and rank(quant) < rank(least):
        return f"below at_least: {least}"
    return f"above at_most: {most}" if most is not None and rank(quant) > rank(most) else ""


def _said(
    candidates: Sequence[tuple[Quant, Need]],
    fits: Sequence[Fit | None],
    i: int,
    chosen: int,
    rank: Callable[[Quant], float],
) -> str:
    (quant, need), winner, found, won = candidates[i], candidates[chosen], fits[i], fits[chosen]
    assert found is not None
    assert won is not None
    if i == chosen:
        return f"{quant}: chosen; {found.reason}"
    if won.verdict is Verdict.GREEN and found.verdict is not Verdict.GREEN:
        return f"{quant}: {found.reason}"
    if won.gpu_layers != found.gpu_layers and won.verdict is not Verdict.GREEN:
        return f"{quant}: only {found.gpu_layers} layers fit the GPU, {won.gpu_layers} of {winner[0]} do"
    worse = rank(quant) < rank(winner[0])
    return (
        f"{quant}: fits, but {'is of lower quality' if worse else 'is not smaller'} than {winner[0]} ({_needs(need)})"
    )


def _emptied(host: HostFacts) -> HostFacts:
    """The same machine with nothing running on it."""
    devices = tuple(replace(device, free=device.total) for device in host.devices)
    return replace(host, memory_available=host.memory_total, devices=devices)


def _smaller_cache(shape: Shape, use: Use) -> Iterator[tuple[str, Use]]:
    if shape.cached and use.flash_attn != "off" and use.cache_k == use.cache_v == "f16":
        yield "cache_type: q8_0", replace(use, cache_k="q8_0", cache_v="q8_0")


def _fewer_slots(use: Use) -> Iterator[tuple[str, Use]]:
    for parallel in range(use.parallel - 1, 0, -1):
        yield f"parallel: {parallel}", replace(use, parallel=parallel)


def _shorter(shape: Shape, use: Use) -> Iterator[tuple[str, Use]]:
    context = use.context or shape.context
    while shape.cached and context >= 1024:
        context //= 2
        yield f"context: {context}", replace(use, context=context)


def _smaller_weights(shape: Shape, use: Use, host: HostFacts, at_most: int | None, found: Fit) -> str:
    """How large the weights may be: searched to a hundredth of what they are now."""
    for hundredths in range(99, 9, -1):
        size = shape.weights * hundredths // 100
        smaller = scaled(shape, shape.header + size)
        if _better(fit(estimate(smaller, use), host, at_most), found):
            return f"a smaller quant (weights of at most {amount(size)})"
    return ""


def _better(one: Fit, than: Fit) -> bool:
    order = (Verdict.RED, Verdict.YELLOW, Verdict.GREEN)
    return order.index(one.verdict) > order.index(than.verdict)


def _room(host: HostFacts, free: bool = False) -> _Room:
    """What there is for models in total, or of that what is free now."""
    main = max(0, host.memory_total - reserve(host.memory_total))
    devices = [max(0, device.total - device_reserve(device.total)) for device in host.devices]
    if not free:
        return _Room(main, tuple(devices))
    now = (min(room, device.free) for room, device in zip(devices, host.devices, strict=True))
    return _Room(min(main, host.memory_available), tuple(now))


def _best_place(need: Need, host: HostFacts, room: _Room) -> _Taken | None:
    """With as many layers on the GPUs as fit, or as many as are asked for; None where it does not fit."""
    most = len(need.layers) if host.devices else 0
    counts = range(most, -1, -1) if need.gpu_layers is None else [min(max(need.gpu_layers, 0), most)]
    for count in counts:
        taken = _place(need, host, count, room)
        fits = all(takes <= has for takes, has in zip(taken.devices, room.devices, strict=True))
        if fits and taken.main <= room.main:
            return taken
    return None


def _place(need: Need, host: HostFacts, count: int, room: _Room | None = None) -> _Taken:
    """Where everything goes when the last `count` layers are on GPUs.

    `llama-model.cpp`: devices get consecutive layers in proportion to their free memory; each that has any also needs
    the buffers. Projector and draft model go to the first. Memory that is the machine's own counts as such, too.
    """
    have = (room or _room(host)).devices
    layers = len(need.layers)
    if count <= 0 or not any(have):
        return _Taken(need.total, (0,) * len(host.devices), 0)
    count, splits = min(count, layers), [part / sum(have) for part in accumulate(have)]
    takes = [0] * len(host.devices)
    used = set()
    for at in range(count):
        device = min(bisect_right(splits, at / count), len(have) - 1)
        takes[device] += need.layers[layers - count + at]
        used.add(device)
    moved = sum(takes)
    for device in used:
        takes[device] += need.buffers + (0 if host.devices[device].unified else RUNTIME)
    beside = need.projector + need.draft + need.lora
    takes[min(used)] += beside
    last = max(used)
    takes[last] += 0 if host.devices[last].unified else need.again
    main = need.total - moved - beside - (need.buffers - need.inputs if count == layers else 0)
    main += sum(t for t, device in zip(takes, host.devices, strict=True) if device.unified)
    return _Taken(main, tuple(takes), count)


def _missing(takes: Sequence[int], room: Sequence[int]) -> int:
    return sum(max(0, t - r) for t, r in zip(takes, room, strict=True))


def _rows(host: HostFacts, taken: _Taken) -> tuple[Row, ...]:
    main = Row("memory", taken.main, host.memory_available, host.memory_total)
    return (main, *(Row(d.name, t, d.free, d.total) for d, t in zip(host.devices, taken.devices, strict=True)))


# --- for people -----------------------------------------------------------------------------------------------------


def amount(size: int) -> str:
    """5476083302 → `5.1 GiB`; below one GiB in MiB. Binary units, as memory is sold."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _needs(need: Need) -> str:
    """`needs 5.1 GiB (weights 4.3, KV cache 0.6, buffers 0.2)`, all in one unit."""
    unit, name, digits = (GIB, "GiB", 1) if need.total >= GIB else (MIB, "MiB", 0)
    parts = {
        "weights": need.weights + need.lora,
        "KV cache": need.cache + need.state,
        "buffers": need.buffers + need.process,
        "projector": need.projector,
        "draft": need.draft,
        "kept prompts": need.prompts,
    }
    said = ", ".join(f"{part} {size / unit:.{digits}f}" for part, size in parts.items() if size >= unit / 20)
    return f"needs {need.total / unit:.{digits}f} {name} ({said})"


def _free(host: HostFacts) -> str:
    def share(free: int, total: int) -> str:
        return f"{free / GIB:.1f} of {total / GIB:.1f} GiB"

    own = [device for device in host.devices if not device.unified]
    devices = "".join(f" and {share(device.free, device.total)} of {device.name}" for device in own)
    return f"{share(host.memory_available, host.memory_total)}{' of memory' if own else ''}{devices} are free"


def _remedy(need: Need, missing: int) -> str:
    """In words only; `judge` tries what would help."""
    ways = ["a smaller context or cache_type: q8_0"] if need.cache > need.weights // 8 else []
    ways += ["a smaller quant"]
    return f"{amount(max(missing, 0))} too much: {', '.join(ways)}"
