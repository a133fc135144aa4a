"""What the manifest may say of an engine, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, model_validator

from reconciler.core.ids import digest_of, pin_key
from reconciler.core.section import (
    Address,
    Duration,
    Entry,
    Later,
    Section,
    Sha256,
    Text,
    Value,
    Variable,
    default,
    duration,
)
from reconciler.kinds.flags import FlagSet

EMBEDDED = "embedded"
EMBEDDED_VERSION = "2026.10.11549"  # of the xllamacpp package; the version that this release was tested with
VERSION = r"^[0-9A-Za-z][0-9A-Za-z._!+-]*$"

Variant = Literal["auto", "cpu", "cuda-12", "cuda-13", "vulkan", "rocm", "metal", "sycl", "opencl", "openvino"]


class EmbeddedEngine(Entry):
    """The llama.cpp server from a Python wheel (xllamacpp), in a virtual environment of its own."""

    type: Literal["embedded"]
    """Which kind of engine this is."""
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.!+]*$")] = EMBEDDED_VERSION
    """The version of the xllamacpp package."""


class LlamaCppEngine(Entry):
    """A llama-server: one that is already on this machine, or a release of llama.cpp."""

    type: Literal["llama.cpp"]
    """Which kind of engine this is."""
    path: Annotated[Text | None, Later(lambda path: path is None, says="`type: llama.cpp` without `path`")] = None
    """The llama-server program; a relative path counts from the folder of the manifest."""
    version: Annotated[str, Field(pattern=VERSION), Later()] = "latest"
    """The release: a tag such as b11434, or `latest`, which is pinned when it is first seen."""
    variant: Annotated[Variant, Later()] = "auto"
    """What it computes with. `auto` takes what suits this machine best."""
    source: Annotated[Literal["github", "pypi", "url", "path"] | None, Later("github", "pypi", "url")] = None
    """Where it comes from. Default: `path` or `url` where that key is there, otherwise github."""
    url: Annotated[Address | None, Later()] = None
    """The address of a release archive, for `source: url`."""
    sha256: Annotated[Sha256 | None, Later()] = None
    """The sha256 that the archive must have. Without it, what comes first is pinned."""

    @model_validator(mode="after")
    def _one_origin(self) -> LlamaCppEngine:
        if self.path is not None and self.url is not None:
            raise ValueError("`path` and `url` exclude each other")
        given = "path" if self.path is not None else "url" if self.url is not None else None
        if self.source in ("path", "url") and given != self.source:
            raise ValueError(f"`source: {self.source}` needs `{self.source}`")
        if self.source is not None and given is not None and given != self.source:
            raise ValueError(f"`{given}` does not go with `source: {self.source}`")
        if self.path is not None and (unfit := {"version", "variant", "sha256"} & self.model_fields_set):
            raise ValueError(f"`{min(unfit)}` is for a release, and does not go with `path`")
        return self


class Ready(Section):
    """When a server counts as ready."""

    http: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/health"
    """The path that answers 200 once it is."""
    timeout: Duration = default("5m", duration)
    """How long that may take."""


class MlxEngine(Entry):
    """The server of mlx-lm, for Macs with Apple silicon, in a virtual environment of its own."""

    type: Annotated[Literal["mlx"], Later("mlx")]
    """Which kind of engine this is."""
    version: Annotated[str, Field(pattern=VERSION)] = "latest"
    """The version of the mlx-lm package, or `latest`, which is pinned when it is first seen."""
    ready: Ready = Ready()
    """When a server of this engine counts as ready."""
    env: dict[Variable, Value] = {}
    """Environment variables for its servers: text, or references to secrets."""


class CommandEngine(Entry):
    """Any program that serves a model over an OpenAI-compatible API."""

    type: Annotated[Literal["command"], Later("command")]
    """Which kind of engine this is."""
    argv: Annotated[tuple[Text, ...], Field(min_length=1)]
    """The program and its arguments. {model_path}, {model_name}, {host}, {port} and {context} are filled in."""
    ready: Ready = Ready()
    """When a server of this engine counts as ready."""
    env: dict[Variable, Value] = {}
    """Environment variables for its servers: text, or references to secrets."""


EngineSection = Annotated[
    EmbeddedEngine | LlamaCppEngine | MlxEngine | CommandEngine,
    Discriminator("type"),
]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """`version` for embedded, `path` (absolute) for llama.cpp. `python` tags the interpreter of a venv (`cp311`).

    `platform` is what a wheel was built for, `locked` the sha256 that the lock has for it; neither is part of what
    the engine is.
    """

    type: str
    version: str = ""
    path: str = ""
    python: str = ""
    platform: str = ""
    locked: str = ""

    @property
    def digest(self) -> str:
        return digest_of({"type": self.type, "version": self.version, "path": self.path, "python": self.python})

    @property
    def attempt(self) -> str:
        return digest_of(self)

    @property
    def source(self) -> str:
        """Where it is installed from; empty for one that is there already."""
        return f"pypi:xllamacpp=={self.version}" if self.type == "embedded" else ""

    @property
    def pin(self) -> str:
        """The key under which ledger and lock remember its wheel; empty where there is nothing to pin."""
        return pin_key(self.source, "", self.platform) if self.source else ""

    @property
    def foreknown(self) -> FlagSet | None:
        """The flags that it will have, as far as that is known before it is here."""
        from reconciler.kinds.engine.flags import embedded

        return embedded(self.version) if self.type == "embedded" else None

    @property
    def folder(self) -> str:
        """The name of the folder under engines/ that an installed engine lives in."""
        return f"{self.type}-{self.version}-{self.python}"


def resolve(section: EngineSection, base: str, python: str, platform: str, pins: Mapping[str, Any]) -> EngineSpec:
    """`base` is the folder of the manifest, `python` the tag of the interpreter, `pins` those of the lock."""
    if isinstance(section, EmbeddedEngine):
        spec = EngineSpec("embedded", version=section.version, python=python, platform=f"{platform}-{python}")
        return replace(spec, locked=str(pins.get(spec.pin, {}).get("sha256", "")))
    assert isinstance(section, LlamaCppEngine)  # the others are refused when the manifest is checked,
    assert section.path is not None  # and so is a release
    path = section.path if section.path.startswith(("/", "~")) else f"{base}/{section.path}"
    return EngineSpec("llama.cpp", path=path)
