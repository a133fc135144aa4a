"""AI services that are known by name: one table, as data. Pure.

Addresses are those of each service's own documentation. Where a service documents an Anthropic-speaking address beside
its OpenAI-speaking one, both are here: what speaks the caller's dialect itself needs no translation. Each stands with
its version path, so that `/chat/completions` or `/messages` follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Auth = Literal["bearer", "x-api-key", "api-key", "none"]
Listing = Literal["openai", "anthropic", "none"]

ANTHROPIC_VERSION = "2023-06-01"


@dataclass(frozen=True, slots=True)
class Preset:
    """What a service is.

    `openai` and `anthropic` are base URLs, empty where it does not speak that; `responses` says that the OpenAI one
    has /responses too. `lists` is the dialect in which it lists its models; `none` where its list is not of what can
    be asked for. `keyed` says that it answers nobody without a key. `needs_base` that a person must say where it is,
    and `path` is then put to an address that has none. `quirks` are fields of `QuirksSection`.
    """

    openai: str = ""
    anthropic: str = ""
    responses: bool = False
    auth: Auth = "bearer"
    headers: tuple[tuple[str, str], ...] = ()
    lists: Listing = "openai"
    keyed: bool = True
    needs_base: bool = False
    path: str = ""
    quirks: Mapping[str, Any] = field(default_factory=dict)


_NEWER: Mapping[str, Any] = {"max_tokens": "max_completion_tokens", "effort": "xhigh", "files": True}
_LOCAL: Mapping[str, Any] = {"top_k": True, "anything": True, "stop_limit": 0, "strip_billing": True}
_THINKS: Mapping[str, Any] = {"reasoning": "reasoning_content"}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "openai": Preset(
            "https://api.openai.com/v1", responses=True, quirks=_NEWER
        ),
        # A model is a deployment there, and the list is of what could be deployed.
        "azure": Preset(
            responses=True, auth="api-key", lists="none", needs_base=True, path="/openai/v1",
            quirks=_NEWER,
        ),
        "anthropic": Preset(
            anthropic="https://api.anthropic.com/v1", auth="x-api-key", lists="anthropic",
            headers=(("anthropic-version", ANTHROPIC_VERSION),), quirks={"effort": "max", "files": True},
        ),
        "gemini": Preset(
            "https://generativelanguage.googleapis.com/v1beta/openai",
            quirks={"thought_signature": True, "no_thinking": "none"},
        ),
        "openrouter": Preset(
            "https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1", responses=True,
            quirks={"reasoning": "reasoning", "effort": "xhigh", "top_k": True},
        ),
        # It tells what a stream used without being asked, and refuses fields that it does not know.
        "mistral": Preset("https://api.mistral.ai/v1", quirks={"effort": "", "stream_options": False, "prefill": True}),
        "groq": Preset(
            "https://api.groq.com/openai/v1", responses=True, quirks={"reasoning": "reasoning", "choices": 1}
        ),
        "huggingface": Preset("https://router.huggingface.co/v1"),
        "xai": Preset("https://api.x.ai/v1", responses=True),
        "deepseek": Preset(
            "https://api.deepseek.com/v1", "https://api.deepseek.com/anthropic/v1",
            quirks={**_THINKS, "stop_limit": 16, "choices": 1},
        ),
        "together": Preset("https://api.together.xyz/v1", quirks={"top_k": True}),
        "fireworks": Preset(
            "https://api.fireworks.ai/inference/v1", "https://api.fireworks.ai/inference/v1", responses=True,
            quirks={**_THINKS, "top_k": True},
        ),
        "nvidia": Preset("https://integrate.api.nvidia.com/v1"),
        "minimax": Preset("https://api.minimax.io/v1", "https://api.minimax.io/anthropic/v1"),
        "ollama": Preset(
            "http://localhost:11434/v1", "http://localhost:11434/v1", keyed=False, path="/v1",
            quirks={**_LOCAL, "reasoning": "reasoning", "no_thinking": "none", "choices": 1},
        ),
        "lmstudio": Preset(
            "http://localhost:1234/v1", "http://localhost:1234/v1", responses=True, keyed=False, path="/v1",
            quirks={**_LOCAL, **_THINKS},
        ),
        "vllm": Preset(
            "http://localhost:8000/v1", responses=True, keyed=False, path="/v1",
            quirks={**_LOCAL, **_THINKS, "no_thinking": "template"},
        ),
        "reconciler": Preset(
            "http://localhost:1337/v1", "http://localhost:1337/v1", responses=True, keyed=False, path="/v1",
            quirks={**_LOCAL, **_THINKS, "no_thinking": "template", "prefill": True},
        ),
    }
)  # fmt: skip
OTHER = Preset(keyed=False)  # a service that nobody here knows
