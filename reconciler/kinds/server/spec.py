"""What a running server is made from: an engine, a model, and the settings that reach its command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from reconciler.core.ids import digest_of
from reconciler.core.limits import NO_LIMITS, Limits
from reconciler.core.residency import Start
from reconciler.kinds.flags import FlagSet, rendered
from reconciler.kinds.options import Option

# No part of what runs; the first three are where they say something.
UNSEEN = ("extras", "limits", "keep_cache", "at_most", "force", "start", "idle_timeout", "priority", "shrink")


@dataclass(frozen=True, slots=True)
class Extra:
    """An artefact beside the model: the name of its resource, what it is (mmproj, draft, lora), how strong (lora)."""

    name: str
    role: str
    digest: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """`engine_digest` and `model_digest` make a change of either one a change of the server.

    `gpu_layers` is -1 where it follows from the memory. `options` and `env` are sorted pairs, lists as tuples.
    `at_most` (bytes of memory, 0: no bound), `force`, `start`, `idle_timeout` (seconds, 0: never) and `priority` decide
    whether and when it runs, `shrink` whether it may make do with less; they are not part of what runs.
    """

    name: str
    engine: str
    engine_digest: str
    model: str
    model_digest: str
    task: str
    context: int
    parallel: int
    gpu_layers: int
    cache_k: str
    cache_v: str
    options: tuple[tuple[str, Option], ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    extras: tuple[Extra, ...] = ()
    at_most: int = 0
    force: bool = False
    limits: Limits = NO_LIMITS
    start: Start = "always"
    idle_timeout: float = 600.0
    priority: int = 0
    shrink: bool = False
    keep_cache: bool = False

    @property
    def digest(self) -> str:
        what = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in UNSEEN}
        # Where these say nothing, what runs is what it was before they were part of the language.
        limits = self.limits if self.limits != NO_LIMITS else ()
        further = {"extras": self.extras, "limits": limits, "keep_cache": self.keep_cache}
        return digest_of(what | {key: value for key, value in further.items() if value})

    @property
    def attempt(self) -> str:
        return digest_of(self)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the files of one server lie; empty where there is none. `slots` is where it writes what its cache holds."""

    model: str
    mmproj: str = ""
    draft: str = ""
    loras: tuple[tuple[str, float], ...] = ()
    slots: str = ""


def sorted_pairs(mapping: Mapping[str, Option]) -> tuple[tuple[str, Option], ...]:
    return tuple(sorted((name, tuple(value) if isinstance(value, list) else value) for name, value in mapping.items()))


UNASKED = FlagSet()


def arguments(
    spec: ServerSpec, paths: Paths, host: str, port: int, gpu_layers: int = -1, flags: FlagSet = UNASKED
) -> list[str]:
    """The llama-server flags in the form that this engine wants, always in the same order. Raises Unfit.

    Where nothing is known of the engine's flags they are those that most versions have. The key travels in the
    environment, never here.
    """
    out: list[str] = ["--model", paths.model, "--alias", spec.name, "--host", host, "--port", str(port)]
    out += ["--ctx-size", str(spec.context * spec.parallel), "--parallel", str(spec.parallel)]
    if gpu_layers >= 0:
        out += ["--gpu-layers", str(gpu_layers)]
    if paths.mmproj:
        out += ["--mmproj", paths.mmproj]
    if paths.draft:
        out += ["--model-draft", paths.draft]
    out += _adapters(paths.loras, flags)
    if paths.slots:
        out += ["--slot-save-path", paths.slots]
    if spec.cache_k != "f16":
        out += ["--cache-type-k", spec.cache_k]
    if spec.cache_v != "f16":
        out += ["--cache-type-v", spec.cache_v]
    if spec.task == "embedding":
        out += ["--embeddings"]
    elif spec.task == "rerank":
        out += ["--reranking"]
    out += rendered(spec.options, flags, f"engine/{spec.engine}")
    return [*out, *_pageless(flags)]


def _adapters(loras: Sequence[tuple[str, float]], flags: FlagSet) -> list[str]:
    """Of a flag that takes several at once the last one wins; an old one takes path and scale apart."""
    plain, scaled = (flags.spelled.get(name) for name in ("--lora", "--lora-scaled"))
    if plain is not None and plain[0].joined and scaled is not None and scaled[0].joined:
        whole = [path for path, scale in loras if scale == 1]
        part = [f"{path}:{scale:g}" for path, scale in loras if scale != 1]
        return (["--lora", ",".join(whole)] if whole else []) + (["--lora-scaled", ",".join(part)] if part else [])
    out: list[str] = []
    for path, scale in loras:
        if scale == 1:
            out += ["--lora", path]
        elif scaled is not None and scaled[0].parts == 2:
            out += ["--lora-scaled", path, f"{scale:g}"]
        else:
            out += ["--lora-scaled", f"{path}:{scale:g}"]
    return out


def _pageless(flags: FlagSet) -> list[str]:
    """The flag for no web page: it has had two names, and an engine may have no page to begin with."""
    if not flags.known:
        return ["--no-webui"]
    return next(([name] for name in ("--no-webui", "--no-ui") if flags.has(name)), [])
