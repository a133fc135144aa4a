"""What the manifest may say of an engine, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Discriminator, Field

from reconciler.core.ids import digest_of
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
    """`version` for embedded, `path` (absolute) for llama.cpp. `python` tags the interpreter of a venv (`cp311`)."""

    type: str
    version: str = ""
    path: str = ""
    python: str = ""

    @property
    def digest(self) -> str:
        return digest_of(self)

    @property
    def folder(self) -> str:
        """The name of the folder under engines/ that an installed engine lives in."""
        return f"{self.type}-{self.version}-{self.python}"


def resolve(section: EmbeddedEngine | LlamaCppEngine, base: str, python: str) -> EngineSpec:
    """`base` is the folder of the manifest, `python` the tag of the interpreter."""
    if isinstance(section, EmbeddedEngine):
        return EngineSpec("embedded", version=section.version, python=python)
    path = section.path if section.path.startswith(("/", "~")) else f"{base}/{section.path}"
    return EngineSpec("llama.cpp", path=path)
