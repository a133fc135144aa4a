"""What a running server is made from: an engine, a model, and the settings that reach its command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from reconciler.core.ids import digest_of
from reconciler.core.limits import NO_LIMITS, Limits

Option = bool | int | float | str


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

    `gpu_layers` is -1 where it follows from the memory. `options` and `env` are sorted pairs. `at_most` (bytes of
    memory, 0: no bound) and `force` decide whether it may start, and are not part of what runs.
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

    @property
    def digest(self) -> str:
        apart = ("extras", "at_most", "force", "limits")
        what = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        # Where these say nothing, what runs is what it was before they were part of the language.
        further = {"extras": self.extras, "limits": self.limits if self.limits != NO_LIMITS else ()}
        return digest_of(what | {key: value for key, value in further.items() if value})

    @property
    def attempt(self) -> str:
        return digest_of(self)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the files of one server lie; empty where there is none."""

    model: str
    mmproj: str = ""
    draft: str = ""
    loras: tuple[tuple[str, float], ...] = ()


def sorted_pairs(mapping: Mapping[str, Option]) -> tuple[tuple[str, Option], ...]:
    return tuple(sorted(mapping.items()))


def arguments(spec: ServerSpec, paths: Paths, host: str, port: int, gpu_layers: int = -1) -> list[str]:
    """The llama-server flags, always in the same order. The key travels in the environment, never here."""
    flags: list[str] = ["--model", paths.model, "--alias", spec.name, "--host", host, "--port", str(port)]
    flags += ["--ctx-size", str(spec.context * spec.parallel), "--parallel", str(spec.parallel)]
    if gpu_layers >= 0:
        flags += ["--gpu-layers", str(gpu_layers)]
    if paths.mmproj:
        flags += ["--mmproj", paths.mmproj]
    if paths.draft:
        flags += ["--model-draft", paths.draft]
    for path, scale in paths.loras:
        flags += ["--lora", path] if scale == 1 else ["--lora-scaled", f"{path}:{scale:g}"]
    if spec.cache_k != "f16":
        flags += ["--cache-type-k", spec.cache_k]
    if spec.cache_v != "f16":
        flags += ["--cache-type-v", spec.cache_v]
    if spec.task == "embedding":
        flags += ["--embeddings"]
    elif spec.task == "rerank":
        flags += ["--reranking"]
    for name, value in spec.options:
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    return [*flags, "--no-webui"]
