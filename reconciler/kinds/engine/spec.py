"""What the manifest may say of an engine, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field

from reconciler.core.ids import digest_of, pin_key
from reconciler.core.section import Section

EMBEDDED = "embedded"
EMBEDDED_VERSION = "2026.10.11549"  # of the xllamacpp package; the version that this release was tested with


class EmbeddedEngine(Section):
    """The llama.cpp server from a Python wheel (xllamacpp), in a virtual environment of its own."""

    type: Literal["embedded"]
    """Which kind of engine this is."""
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.!+]*$")] = EMBEDDED_VERSION
    """The version of the xllamacpp package."""


class LlamaCppEngine(Section):
    """A llama-server that is already on this machine."""

    type: Literal["llama.cpp"]
    """Which kind of engine this is."""
    path: Annotated[str, Field(min_length=1)]
    """The llama-server program; a relative path counts from the folder of the manifest."""


EngineSection = Annotated[EmbeddedEngine | LlamaCppEngine, Discriminator("type")]


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
    def folder(self) -> str:
        """The name of the folder under engines/ that an installed engine lives in."""
        return f"{self.type}-{self.version}-{self.python}"


def resolve(
    section: EmbeddedEngine | LlamaCppEngine, base: str, python: str, platform: str, pins: Mapping[str, Any]
) -> EngineSpec:
    """`base` is the folder of the manifest, `python` the tag of the interpreter, `pins` those of the lock."""
    if isinstance(section, EmbeddedEngine):
        spec = EngineSpec("embedded", version=section.version, python=python, platform=f"{platform}-{python}")
        return replace(spec, locked=str(pins.get(spec.pin, {}).get("sha256", "")))
    path = section.path if section.path.startswith(("/", "~")) else f"{base}/{section.path}"
    return EngineSpec("llama.cpp", path=path)
