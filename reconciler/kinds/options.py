"""`options` of a model: which names and values the manifest may hold, whatever the engine. Pure.

What has a field of its own is set there and only there, and what the reconciler sets itself is its own business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

Scalar = bool | int | float | str
Option = Scalar | tuple[Scalar, ...]
Options = tuple[tuple[str, Option], ...]

_FIELDS: Mapping[str, str] = {
    "context": "ctx-size",
    "parallel": "parallel",
    "gpu_layers": "gpu-layers n-gpu-layers",
    "cache_type.k": "cache-type-k",
    "cache_type.v": "cache-type-v",
    "mmproj": "mmproj mmproj-url mmproj-auto",
    "draft": "model-draft spec-draft-model",
    "lora": "lora lora-scaled",
    "task": "embedding embeddings rerank reranking",
    "source": "model",
}
_OURS: Mapping[str, str] = {
    "the name that requests ask for is the model's own; `aliases` adds more": "alias",
    "each server listens on a loopback port of its own, behind the gateway": "host port reuse-port api-prefix",
    "each server gets a key of its own, which is never written anywhere": "api-key api-key-file",
    "servers are asked over the loopback only; TLS belongs in front of the gateway": "ssl-key-file ssl-cert-file",
    "servers have no web page: people and programs ask the gateway": (
        "path ui webui ui-config webui-config ui-config-file webui-config-file ui-mcp-proxy webui-mcp-proxy"
    ),
    "where slots are saved is kept by the reconciler": "slot-save-path",
    "the log is kept and read by the reconciler: `reconcile logs`": "log-file log-disable",
    "models are fetched by the reconciler, which checks and pins them: write a `source`": (
        "hf-repo hf-file hf-token hf-repo-draft spec-draft-hf hf-repo-v hf-file-v model-url docker-repo model-vocoder"
        " cache-list"
    ),
    "each model has a server of its own": "models-dir models-preset models-max models-autoload",
    "memory of other machines cannot be planned here": "rpc",
    "it prints something and ends, so that nothing would be served": (
        "help usage version list-devices completion-bash license"
    ),
}
_PRESET = re.compile(r"(embd|fim|gpt-oss|vision|tts|asr)-[a-z0-9.-]+-(default|spec)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_WHY: Mapping[str, str] = {
    name: f"has a field of its own: `{field_}`" for field_, names in _FIELDS.items() for name in names.split()
} | {name: f"may not be set: {why}" for why, names in _OURS.items() for name in names.split()}


def spelling(name: str) -> str:
    """`flash_attn` → `flash-attn`."""
    return name.replace("_", "-")


def refused(name: str) -> str:
    """Why an option of this name may not be set, as the end of a sentence; empty where it may."""
    flag = spelling(name)
    if _PRESET.fullmatch(flag):
        return "may not be set: it fetches a model by itself; write a `source`"
    if flag.startswith(("models-", "no-models-")):
        return "may not be set: each model has a server of its own"
    return _WHY.get(flag) or _WHY.get(flag.removeprefix("no-"), "")


def allowed_name(name: str) -> str:
    """The name, or ValueError."""
    if why := refused(name):
        raise ValueError(f"--{spelling(name)} {why}")
    if "--" in spelling(name) or name.endswith(("-", "_")):
        raise ValueError("is not the name of a flag; write it without its dashes, as in flash_attn")
    return name


def allowed_variable(name: str) -> str:
    """The name of an environment variable, or ValueError where it would go around what is checked."""
    if name.startswith("LLAMA_ARG_"):
        raise ValueError("is an option of the engine: write it under `options`, where it is checked")
    if name == "LLAMA_API_KEY":
        raise ValueError("is set for each process, to a key of its own")
    return name


def allowed_value(value: Option) -> Option:
    """The value, or ValueError."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and _CONTROL.search(text):
            raise ValueError("must not hold control characters")
    return value


def distinct(options: Mapping[str, Option]) -> Mapping[str, Option]:
    """The options, or ValueError where one flag is written twice, with underscores and with dashes."""
    if twice := next(_twice(options), None):
        raise ValueError(f"{twice[0]!r} and {twice[1]!r} are the same flag")
    return options


def _twice(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    seen: dict[str, str] = {}
    for name in names:
        flag = spelling(name)
        base = flag.removeprefix("no-")
        for other in (flag, base, f"no-{base}"):
            if other in seen:
                yield seen[other], name
        seen[flag] = name
