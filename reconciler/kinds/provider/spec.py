"""What the manifest may say of a provider, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, Tag, field_validator, model_validator

from reconciler.core.addresses import forbidden, near
from reconciler.core.ids import canonical, digest_of
from reconciler.core.section import SHAPE, Address, Duration, Entry, Header, Reference, Section, Truth, Value
from reconciler.kinds.provider.presets import ANTHROPIC_VERSION, OTHER, PRESETS, Auth, Listing
from reconciler.kinds.rewriting import RequestSection, rewriting

PresetName = Literal[
    "openai", "azure", "anthropic", "gemini", "openrouter", "mistral", "groq", "huggingface", "xai", "deepseek",
    "together", "fireworks", "nvidia", "minimax", "ollama", "lmstudio", "vllm", "reconciler",
]  # fmt: skip
ModelId = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]  # as the provider calls it: printable, without spaces
Glob = ModelId


def _plain(text: str) -> str:
    parts = urlsplit(text)
    if parts.query or parts.fragment:
        raise ValueError("an address ends with its path: no `?` and no `#`")
    if parts.hostname and _literal(parts.hostname) and (why := forbidden(parts.hostname, private=True)):
        raise ValueError(f"{why}: it is never asked")
    return text


def _literal(host: str) -> bool:
    return not forbidden(host, private=True).endswith("is not an IP address")


_OURS = {
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "expect",
}
_SECRET = {"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"}
BaseUrl = Annotated[Address, AfterValidator(_plain)]


class ProviderTimeouts(Section):
    """How long to wait for a provider. A stream as a whole may take as long as it likes."""

    connect: Duration | None = None
    """For a connection."""
    first_byte: Duration | None = None
    """For the beginning of an answer."""
    idle: Duration | None = None
    """Between two pieces of a stream."""


class QuirksSection(Section):
    """Where a provider differs from a plain server of its dialect. Default of each: what the preset says."""

    max_tokens: Literal["max_tokens", "max_completion_tokens"] | None = None
    """What the limit of an answer is called there."""
    reasoning: Literal["reasoning_content", "reasoning", "none"] | None = None
    """What the reasoning of earlier turns is sent as; `none`: it is not sent."""
    effort: Literal["", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """The highest reasoning effort that it takes; empty: none."""
    no_thinking: Literal["", "none", "template"] | None = None
    """How thinking is switched off: by the effort `none`, by the chat template, or not at all."""
    stop_limit: Annotated[int, Field(ge=0, le=1000, strict=True)] | None = None
    """How many stop sequences it takes; 0: any number."""
    sampling: Truth | None = None
    """Whether it takes temperature and top_p."""
    top_k: Truth | None = None
    """Whether it takes top_k in chats."""
    anything: Truth | None = None
    """Whether it takes fields that nobody here knows."""
    prefill: Truth | None = None
    """Whether it goes on where a last message of the assistant ends."""
    files: Truth | None = None
    """Whether it takes documents in chats."""
    stream_options: Truth | None = None
    """Whether it can be asked what a stream used."""
    choices: Annotated[int, Field(ge=0, le=1000, strict=True)] | None = None
    """The highest `n` that it takes; 0: any."""
    thought_signature: Truth | None = None
    """Whether its tool calls carry a thought signature that has to come back with them."""
    strip_billing: Truth | None = None
    """Whether the block that Claude Code changes in each request is taken out, so that caches of prompts hold."""


class ProviderSection(Entry):
    """An AI service elsewhere. Its models are asked for as provider/model."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": [key]} for key in ("preset", "base_url", "anthropic_base_url")],
        }
    )

    preset: PresetName | None = None
    """A service that is known: its address, dialect and way to authenticate come with the name."""
    base_url: BaseUrl | None = None
    """Where its API is, with its prefix: http://10.0.0.7:8000/v1. Default: what the preset says."""
    anthropic_base_url: BaseUrl | None = None
    """Where it speaks Anthropic's dialect, beside `base_url`; with or without `/v1` at its end. Default: what the
    preset says, unless `base_url` leads elsewhere."""
    dialect: Literal["openai", "anthropic"] | None = None
    """The API that it speaks at `base_url`. Default: what the preset says, otherwise openai."""
    auth: Auth | None = None
    """How it is shown its key: as `Authorization: Bearer`, as the header x-api-key or api-key, or not at all. Default:
    what the preset says, otherwise bearer, and x-api-key where it speaks Anthropic's dialect only."""
    responses: Truth | None = None
    """Whether it has OpenAI's /responses itself. Default: what the preset says, otherwise not."""
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
    allow: Annotated[tuple[Glob, ...], Field(min_length=1)] | None = None
    """Which of them may be asked for, as globs: `[gpt-5*, o4-mini]`. Default: all."""
    private: Truth | None = None
    """Whether it may lie on this machine or in a private network. Default: only where its address is written as one
    that does (localhost, 10.0.0.7)."""
    proxy: Value | None = None
    """A proxy on the way there: http://proxy:3128, or a reference where it has a password. Those of the environment do
    not count."""
    timeouts: ProviderTimeouts = ProviderTimeouts()
    """How long to wait for it. Default: as `gateway.timeouts`."""
    request: RequestSection = RequestSection()
    """Changes to each request that goes to it."""
    quirks: QuirksSection = QuirksSection()
    """Where it differs from what its preset says of its ways."""

    @field_validator("headers")
    @classmethod
    def _ours_or_secret(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name.lower() in _OURS:
                raise ValueError(f"the header {name} belongs to the connection; it cannot be set")
            if name.lower() in _SECRET and not referred(text):
                raise ValueError(
                    f"the header {name} holds a secret, which is written as a reference: env:NAME, file:PATH"
                )
        if len({name.lower() for name in value}) < len(value):
            raise ValueError("two headers have the same name")
        return value

    @field_validator("proxy")
    @classmethod
    def _a_proxy(cls, value: str | None) -> str | None:
        if value is not None and not referred(value):
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("a proxy is written http://host:port, or as a reference to that")
            if parts.username or parts.password:
                raise ValueError("a proxy with a password is written as a reference: env:NAME or file:PATH")
        return value

    @model_validator(mode="after")
    def _somewhere(self) -> ProviderSection:
        preset = PRESETS[self.preset] if self.preset is not None else None
        if self.base_url is None and preset is None and self.anthropic_base_url is None:
            raise ValueError("it has neither a `preset` nor a `base_url`")
        if self.base_url is None and preset is not None and preset.needs_base:
            raise ValueError(f"the preset {self.preset!r} needs a `base_url`: https://NAME.openai.azure.com")
        if not _speaks(self):
            raise ValueError(f"the preset {self.preset!r} does not speak {self.dialect}; leave `dialect` out")
        return self


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """A provider with every default filled in. `keys`, `secret_headers` and `secret_proxy` are references only.

    `speaks` leads from a dialect (openai, anthropic, responses) to its base URL, without a slash at the end.
    `declared` are its models as the manifest names them, None where it is asked for them (`lists`: in which dialect;
    `none`: nobody is asked, and any model is passed on). `allow` are globs over them, None for all. `timeouts` are
    seconds by (connect, first_byte, idle) `_seconds`. `quirks` and `request` are JSON. `keyless` says that it
    has no key and will hardly answer without.
    """

    name: str
    speaks: tuple[tuple[str, str], ...]
    auth: str
    lists: Listing
    headers: tuple[tuple[str, str], ...] = ()
    keys: tuple[str, ...] = ()
    secret_headers: tuple[tuple[str, str], ...] = ()
    declared: tuple[str, ...] | None = None
    allow: tuple[str, ...] | None = None
    private: bool = False
    proxy: str = ""
    secret_proxy: str = ""
    timeouts: tuple[tuple[str, float], ...] = ()
    request: str = ""
    quirks: str = ""
    keyless: bool = False

    @property
    def digest(self) -> str:
        return digest_of(self)

    @property
    def asked(self) -> str:
        """The digest of who is asked for a list: one that somebody else gave says nothing of this one."""
        return digest_of([dict(self.speaks), self.lists])

    @property
    def discovers(self) -> bool:
        return self.declared is None and self.lists != "none"

    def allowed(self, model: str) -> bool:
        return self.allow is None or any(fnmatchcase(model, glob) for glob in self.allow)

    @property
    def named(self) -> tuple[str, ...]:
        """The models that the manifest names, be it only among what is allowed."""
        if self.declared is not None:
            return tuple(model for model in self.declared if self.allowed(model))
        return tuple(glob for glob in self.allow or () if not set(glob) & set("*?["))


def referred(text: str) -> bool:
    """Whether a text is a reference to a secret, and not the text itself."""
    return text.partition(":")[0] in ("env", "file", "keyring", "command")


def resolve(name: str, section: ProviderSection) -> ProviderSpec:
    """`name` is what the manifest calls it."""
    preset = PRESETS[section.preset] if section.preset is not None else OTHER
    speaks = _speaks(section)
    plain = dict(preset.headers)
    if "anthropic" in speaks:
        plain.setdefault("anthropic-version", ANTHROPIC_VERSION)
    said = {key.lower() for key in section.headers}
    plain = {key: value for key, value in plain.items() if key.lower() not in said}
    plain |= {key: value for key, value in section.headers.items() if not referred(value)}
    keys = (section.api_key,) if isinstance(section.api_key, str) else section.api_key or ()
    hosts = [urlsplit(url).hostname or "" for url in speaks.values()]
    times = {"connect": section.timeouts.connect, "first_byte": section.timeouts.first_byte}
    times["idle"] = section.timeouts.idle
    proxy = section.proxy or ""
    only_anthropic = "openai" not in speaks
    auth = section.auth or ("x-api-key" if section.preset is None and only_anthropic else preset.auth)
    quirks = {**preset.quirks, **section.quirks.model_dump(exclude_none=True)}
    secrets = tuple(sorted((key, value) for key, value in section.headers.items() if referred(value)))
    return ProviderSpec(
        name=name,
        speaks=tuple(sorted(speaks.items())),
        auth=auth,
        lists=_lists(section, only_anthropic),
        headers=tuple(sorted(plain.items())),
        keys=tuple(keys),
        secret_headers=secrets,
        declared=None if section.models == "discover" else tuple(dict.fromkeys(section.models)),
        allow=section.allow,
        private=section.private if section.private is not None else all(near(host) for host in hosts),
        proxy="" if referred(proxy) else proxy,
        secret_proxy=proxy if referred(proxy) else "",
        timeouts=tuple(sorted((f"{key}_seconds", value) for key, value in times.items() if value is not None)),
        request=rewriting(section.request),
        quirks=canonical(quirks) if quirks else "",
        keyless=preset.keyed and auth != "none" and not keys and not secrets,
    )


def _lists(section: ProviderSection, only_anthropic: bool) -> Listing:
    if section.preset is not None and PRESETS[section.preset].lists == "none":
        return "none"
    return "anthropic" if only_anthropic else "openai"


def _speaks(section: ProviderSection) -> dict[str, str]:
    """Dialect → base URL. A preset's addresses count as far as the manifest does not lead elsewhere."""
    preset = PRESETS[section.preset] if section.preset is not None else OTHER
    openai, anthropic = preset.openai, preset.anthropic
    if section.base_url is not None:
        dialect = section.dialect or ("anthropic" if preset.anthropic and not preset.openai else "openai")
        both = preset.openai and preset.openai == preset.anthropic and section.dialect is None
        if dialect == "anthropic":
            openai, anthropic = "", _versioned(section.base_url)
        else:
            openai = _based(section.base_url, preset.path)
            anthropic = _versioned(openai) if both else ""
    elif section.dialect is not None:
        openai, anthropic = (openai, "") if section.dialect == "openai" else ("", anthropic)
    if section.anthropic_base_url is not None:
        anthropic = _versioned(section.anthropic_base_url)
    responses = section.responses if section.responses is not None else preset.responses
    spoken = {"openai": openai, "anthropic": anthropic, "responses": openai if responses else ""}
    return {name: url.rstrip("/") for name, url in spoken.items() if url}


def _based(url: str, path: str) -> str:
    return url.rstrip("/") + path if path and not urlsplit(url).path.strip("/") else url


def _versioned(url: str) -> str:
    """Anthropic's own client puts /v1 to the address that it is given, so people are used to leave it out."""
    bare = url.rstrip("/")
    return bare if bare.rsplit("/", 1)[-1] == "v1" else f"{bare}/v1"


def shape(text: str) -> Any:
    """A JSON text of a spec as its value; an empty mapping where it says nothing."""
    return json.loads(text) if text else {}
