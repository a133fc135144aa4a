"""The flags of a llama-server as settings of a model: what has a key of its own gets it, the rest becomes `options`.

The names are those of llama.cpp's server, long and short, and of its LLAMA_ARG_ variables. Where a flag has a value is
seen from what follows it, since the program takes nothing but flags.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from reconciler.foreign.draft import count
from reconciler.foreign.secrets import holds_secret, says_secret

Source = Callable[[str], str | None]

_LONG = {
    "-m": "model", "-mu": "model-url", "-hf": "hf-repo", "-hfr": "hf-repo", "-hff": "hf-file", "-hft": "hf-token",
    "-hfd": "hf-repo-draft", "-hfrd": "hf-repo-draft", "-dr": "docker-repo", "-c": "ctx-size", "-np": "parallel",
    "-ngl": "gpu-layers", "-ctk": "cache-type-k", "-ctv": "cache-type-v", "-mm": "mmproj", "-mmu": "mmproj-url",
    "-md": "model-draft", "-a": "alias", "-fa": "flash-attn", "-b": "batch-size", "-ub": "ubatch-size", "-t": "threads",
    "-tb": "threads-batch", "-ts": "tensor-split", "-sm": "split-mode", "-mg": "main-gpu", "-dev": "device",
    "-ot": "override-tensor", "-cmoe": "cpu-moe", "-ncmoe": "n-cpu-moe", "-n": "predict", "-s": "seed",
    "-cb": "cont-batching", "-nocb": "no-cont-batching", "-kvo": "kv-offload", "-nkvo": "no-kv-offload",
    "-ctkd": "cache-type-k-draft", "-ctvd": "cache-type-v-draft", "-ngld": "gpu-layers-draft", "-devd": "device-draft",
    "-cd": "ctx-size-draft", "-td": "threads-draft", "-fit": "fit", "-fitt": "fit-target", "-fitc": "fit-ctx",
    "-dt": "defrag-thold", "-kvu": "kv-unified", "-l": "logit-bias", "-j": "json-schema", "-to": "timeout",
    "-sp": "special", "-v": "verbose", "-lv": "verbosity", "-C": "cpu-mask", "-cram": "cache-ram", "-e": "escape",
    "-nr": "no-repack", "-sps": "slot-prompt-similarity",
}  # fmt: skip
_SAME = {
    "n-gpu-layers": "gpu-layers", "embedding": "embeddings", "rerank": "reranking", "n-predict":
    "predict", "temperature": "temp", "lora-scaled": "lora", "spec-draft-model": "model-draft", "hfd": "hf-repo-draft",
}  # fmt: skip
_OURS = {"host", "port", "no-webui", "webui", "no-ui", "ui"}  # said by this program for every server
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_CACHES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
QUANT = re.compile(
    r"(?i)(?:^|[-._:])((?:UD-)?(I?Q[1-8]_(?:K_[SML]|K|[01]|XXS|XS|NL|[SM])|F16|F32|BF16|TQ[12]_0|MXFP4_MOE|NVFP4))(?=$|[-._:])"
)
_NO_QUANT = {"Q3_K", "Q4_K", "Q5_K", "IQ1_XS", "IQ1_XXS"}  # ways to write one that no file has


@dataclass(slots=True)
class Served:
    """What the flags say: keys of a model, further names for it, and what has no place (what, why, remedy)."""

    entry: dict[str, Any] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    left: list[tuple[str, str, str]] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)  # values that must appear nowhere
    port: str = ""

    @property
    def source(self) -> str:
        return str(self.entry.get("source", ""))


def words(command: str) -> list[str]:
    """A command line as a configuration writes it: over several lines, with comments and backslashes at line ends.

    Raises ValueError where its quotes do not close.
    """
    lines = [line for line in command.splitlines() if not line.lstrip().startswith("#")]
    joined = " ".join(re.sub(r"\\\s*$", "", line) for line in lines)
    return shlex.split(joined)


def is_llama_server(program: str) -> bool:
    """Whether a program is called like llama.cpp's server, in any of its builds."""
    name = PurePosixPath(program.replace("\\", "/")).name.lower().removesuffix(".exe")
    return bool(re.fullmatch(r"(llama[-_.]?server|llama-cpp-server)([-_.].*)?", name))


def served(flags: Sequence[str], source: Source, environ: Mapping[str, str] | None = None) -> Served:
    """`flags` are what follows the program's name; `source` makes a `file:` source of a path, None where it cannot."""
    out = Served()
    pairs = [*_of_environment(environ or {}), *_pairs(flags)]
    repeated = {name for name in (n for n, _ in pairs) if [n for n, _ in pairs].count(name) > 1}
    for name, value in pairs:
        _take(name, value, source, out, repeated)
    _sources(dict(pairs), source, out)
    _context(dict(pairs), out)
    return out


def _pairs(flags: Sequence[str]) -> list[tuple[str, str | None]]:
    """(long name without dashes, value or None)."""
    out: list[tuple[str, str | None]] = []
    i = 0
    while i < len(flags):
        flag, equals, inline = flags[i].partition("=") if flags[i].startswith("--") else (flags[i], "", "")
        i += 1
        if not flag.startswith("-") or flag in ("-", "--"):
            out.append(("", flag))
            continue
        name = _long(flag)
        value: str | None = inline if equals else None
        if not equals and i < len(flags) and (not flags[i].startswith("-") or _NUMBER.fullmatch(flags[i])):
            value = flags[i]
            i += 1
        if flag == "--lora-scaled" and i < len(flags) and _NUMBER.fullmatch(flags[i]):
            value = f"{value}:{flags[i]}"
            i += 1
        out.append((name, value))
    return out


def _long(flag: str) -> str:
    name = _LONG.get(flag) or flag.lstrip("-").replace("_", "-")
    return _SAME.get(name, name)


def _of_environment(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """LLAMA_ARG_CTX_SIZE=8192 → ctx-size; flags win over them, so they come first."""
    names = {"N_GPU_LAYERS": "gpu-layers", "N_PARALLEL": "parallel", "N_PREDICT": "predict", "BATCH": "batch-size"}
    out: list[tuple[str, str | None]] = []
    for key, value in environ.items():
        if key.startswith("LLAMA_ARG_"):
            rest = key.removeprefix("LLAMA_ARG_")
            name = names.get(rest) or rest.lower().replace("_", "-")
            truth = value.lower() in ("1", "true", "on", "enabled")
            if name in ("embeddings", "reranking", "jinja", "mlock", "cont-batching", "endpoint-metrics"):
                if truth:
                    out.append(("metrics" if name == "endpoint-metrics" else name, None))
            else:
                out.append((_SAME.get(name, name), value))
    return out


def _take(name: str, value: str | None, source: Source, out: Served, repeated: set[str]) -> None:
    """One flag that stands for itself; those that belong together are seen to afterwards."""
    match name:
        case "":
            out.left.append(("a word that is no flag", "llama-server takes only flags", ""))
        case "port":
            out.port = value or ""
        case "alias":
            out.aliases += [part for part in (value or "").split(",") if part]
        case "embeddings":
            out.entry["task"] = "embedding"
        case "reranking":
            out.entry["task"] = "rerank"
        case "no-mmproj":
            out.entry["mmproj"] = "none"
        case "gpu-layers":
            _gpu_layers(value or "", out)
        case "cache-type-k" | "cache-type-v":
            if value in _CACHES:
                out.entry.setdefault("cache_type", {})[name[-1]] = value
            else:
                out.left.append((f"--{name}", "this number format is not known here", ""))
        case "lora":
            _loras(value or "", source, out)
        case "mmproj" | "mmproj-url" | "model-draft" | "hf-repo-draft":
            _beside(name, value or "", source, out)
        case "model" | "model-url" | "hf-repo" | "hf-file" | "ctx-size" | "parallel" | "mmproj-auto":
            pass
        case _ if name in _OURS:
            pass
        case _ if value and (says_secret(name) or holds_secret(value)):
            out.secrets.append(value)
            remedy = "name clients' keys in `gateway.api_keys`" if name.startswith("api-key") else ""
            out.left.append((f"--{name}", "a secret does not belong on a command line", remedy))
        case _:
            _option(name, value, out, name in repeated)


def _option(name: str, value: str | None, out: Served, repeated: bool) -> None:
    options = out.entry.setdefault("options", {})
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        out.left.append((f"the flag {name[:40]!r}", "its name is not one that llama-server has", ""))
    elif repeated and name in options and name != "flash-attn":
        out.left.append((f"--{name}", "it is given more than once, and only the first counts here", ""))
    else:
        options[name] = ("on" if name == "flash-attn" else True) if value is None else scalar(value)
    if not options:
        del out.entry["options"]


def _gpu_layers(value: str, out: Served) -> None:
    if re.fullmatch(r"[0-9]{1,9}", value):
        out.entry["gpu_layers"] = int(value)
    elif value not in ("-1", "auto", "all", "-2"):
        out.left.append(("--gpu-layers", "it is not a number", ""))


def _loras(value: str, source: Source, out: Served) -> None:
    for one in value.split(","):
        path, _, scale = one.rpartition(":") if re.search(r":-?[0-9.]+$", one) else (one, "", "")
        if not (found := source(path)):
            out.left.append(("--lora", "the path cannot be told here", "name the adapter in `lora:`"))
        elif scale and _NUMBER.fullmatch(scale):
            out.entry.setdefault("lora", []).append({"source": found, "scale": float(scale)})
        else:
            out.entry.setdefault("lora", []).append(found)


def _beside(name: str, value: str, source: Source, out: Served) -> None:
    key = "mmproj" if name.startswith("mmproj") else "draft"
    found = address(value) if name.endswith("url") else repository(value)[0] if "repo" in name else source(value)
    if found:
        out.entry[key] = found
    else:
        out.left.append((f"--{name}", "this is not a source here", f"name it in `{key}:`"))


def _sources(flags: Mapping[str, str | None], source: Source, out: Served) -> None:
    if path := flags.get("model"):
        found = source(path)
    elif url := flags.get("model-url"):
        found = address(url)
    elif repo := flags.get("hf-repo"):
        found, quant = repository(repo)
        if found and (name := flags.get("hf-file")):
            out.entry["file"] = name
        elif found and quant:
            out.entry["quant"] = quant
    else:
        return
    if found:
        out.entry["source"] = found


def _context(flags: Mapping[str, str | None], out: Served) -> None:
    """llama-server divides its context among its slots; here it is what one request may use."""
    slots = flags.get("parallel") or ""
    parallel = int(slots) if re.fullmatch(r"[1-9][0-9]{0,2}", slots) else 1
    if parallel > 1:
        out.entry["parallel"] = parallel
    whole = flags.get("ctx-size") or ""
    if re.fullmatch(r"[0-9]{1,9}", whole) and int(whole):
        out.entry["context"] = count(max(1, int(whole) // parallel))
    elif whole:
        out.left.append(("--ctx-size", "the model's own length is not a context here", "write `context:` as a number"))


def scalar(value: str) -> bool | int | float | str:
    """A flag's value as a manifest writes it; what would not come out as the same text stays text."""
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,15})", value):
        return int(value)
    if re.fullmatch(r"-?[0-9]{1,15}\.[0-9]{1,15}", value) and repr(float(value)) == value:
        return float(value)
    return value


def address(text: str) -> str | None:
    """An address that may be a source: encrypted, without credentials."""
    return text if re.fullmatch(r"https://[^/\s@?]+/[^\s?]+", text) and not holds_secret(text) else None


def repository(text: str) -> tuple[str | None, str]:
    """`owner/name:Q4_K_M` → (`hf:owner/name`, quant or empty)."""
    name, _, tag = text.partition(":")
    name = re.sub(r"^(https://)?(hf\.co|huggingface\.co)/", "", name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+", name):
        return None, ""
    return f"hf:{name}", quant_of(tag)


def quant_of(text: str) -> str:
    """The quantization that a name speaks of, by its llama.cpp name; empty where it speaks of none."""
    found = [match[1].upper() for match in QUANT.findall(text)]
    return found[-1] if found and found[-1] not in _NO_QUANT else ""
