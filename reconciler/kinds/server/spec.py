"""What a running server is made from: an engine, a model, and the settings that reach its command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.core.ids import digest_of

Option = bool | int | float | str


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """`engine_digest` and `model_digest` make a change of either one a change of the server.

    `gpu_layers` is -1 where the engine decides. `options` and `env` are sorted pairs.
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

    @property
    def digest(self) -> str:
        return digest_of(self)


def sorted_pairs(mapping: Mapping[str, Option]) -> tuple[tuple[str, Option], ...]:
    return tuple(sorted(mapping.items()))


def arguments(spec: ServerSpec, model_path: str, host: str, port: int) -> list[str]:
    """The llama-server flags, always in the same order. The key travels in the environment, never here."""
    flags: list[str] = ["--model", model_path, "--alias", spec.name, "--host", host, "--port", str(port)]
    flags += ["--ctx-size", str(spec.context * spec.parallel), "--parallel", str(spec.parallel)]
    if spec.gpu_layers >= 0:
        flags += ["--gpu-layers", str(spec.gpu_layers)]
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
