"""What the manifest may say of a provider."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Tag, model_validator

from reconciler.core.section import SHAPE, Address, Entry, Header, Reference, Value

Preset = Literal[
    "openai", "azure", "anthropic", "gemini", "openrouter", "mistral", "groq", "huggingface", "xai", "deepseek",
    "together", "fireworks", "nvidia", "minimax", "ollama", "lmstudio", "vllm", "reconciler",
]  # fmt: skip
ModelId = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]  # as the provider calls it: printable, without spaces


class ProviderSection(Entry):
    """An AI service elsewhere. Its models are asked for as provider/model."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["preset"]}, {"required": ["base_url"]}]})

    preset: Preset | None = None
    """A service that is known: its address, dialect and way to authenticate come with the name."""
    base_url: Address | None = None
    """Where its API is, with its prefix: http://10.0.0.7:8000/v1. Default: what the preset says."""
    dialect: Literal["openai", "anthropic"] | None = None
    """The API that it speaks. Default: what the preset says, otherwise openai."""
    api_key: (
        Annotated[
            Annotated[Reference, Tag("plain")] | Annotated[tuple[Reference, ...], Field(min_length=1), Tag("list")],
            SHAPE,
        ]
        | None
    ) = None
    """Where its key is: env:NAME, file:PATH, keyring:NAME or command:PROGRAM; or several, to take turns."""
    headers: dict[Header, Value] = {}
    """Headers to send with each request: text, or references to secrets."""
    models: Annotated[
        Annotated[Literal["discover"], Tag("plain")] | Annotated[tuple[ModelId, ...], Tag("list")], SHAPE
    ] = "discover"
    """Its models that may be asked for. `discover` asks the provider for its list."""

    @model_validator(mode="after")
    def _somewhere(self) -> ProviderSection:
        if self.preset is None and self.base_url is None:
            raise ValueError("it has neither a `preset` nor a `base_url`")
        return self
