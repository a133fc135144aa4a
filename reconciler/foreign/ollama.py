"""What Ollama has pulled or made: manifests/HOST/NAMESPACE/MODEL/TAG, each naming blobs by digest.

A manifest is JSON with `layers`; their media types say what each blob is: the model, a projector, an adapter, the
template, the system prompt, parameters. Tags of the same model with the same parameters become one entry with aliases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Refused, Where
from reconciler.foreign.caches import ollama_roots, walk
from reconciler.foreign.draft import Draft, count, seconds
from reconciler.foreign.home import Home
from reconciler.foreign.text import Text, listed, mapping, read, word

NAME = "Ollama"
_TYPE = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_OPTIONS = {
    "temperature": "temp", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p", "typical_p": "typical",
    "repeat_penalty": "repeat-penalty", "repeat_last_n": "repeat-last-n", "presence_penalty": "presence-penalty",
    "frequency_penalty": "frequency-penalty", "seed": "seed", "num_predict": "predict", "num_thread": "threads",
    "num_batch": "batch-size", "num_keep": "keep", "main_gpu": "main-gpu",
}  # fmt: skip
_EMBEDDERS = ("bert", "nomic-bert", "xlm-roberta", "jina-bert", "snowflake", "embed")


@dataclass(frozen=True, slots=True)
class _Tag:
    """One tag of a model: what it is called, and the blobs that it is made of by what they are."""

    host: str
    namespace: str
    model: str
    tag: str
    text: Text
    blobs: dict[str, list[str]]  # what it is → digests (64 hex)
    config: str

    @property
    def whole(self) -> str:
        """As Ollama prints it: its own registry and its own namespace are left out."""
        own = self.host.startswith("registry.ollama")
        parts = [] if own else [self.host]
        parts += [] if own and self.namespace == "library" else [self.namespace]
        return "/".join([*parts, self.model]) + f":{self.tag}"


def gather(path: Path | None, home: Home) -> Draft:
    """`path` is the folder of models (OLLAMA_MODELS) or the one above it. Raises Refused where there is none."""
    root = _root(path, home)
    draft = Draft(NAME, home, [home.shown(root)])
    groups: dict[tuple[Any, ...], list[_Tag]] = {}
    for tag in _tags(root, draft):
        what_it_is = {k: v for k, v in tag.blobs.items() if k != "license"}
        alone = (tag.whole,) if "model" not in tag.blobs else ()
        groups.setdefault((*sorted((k, tuple(v)) for k, v in what_it_is.items()), *alone), []).append(tag)
    for tags in groups.values():
        _add(draft, root, sorted(tags, key=lambda tag: (tag.tag != "latest", len(tag.whole))))
    return draft


def _root(path: Path | None, home: Home) -> Path:
    asked = [path, path / "models"] if path else [*ollama_roots(home)]
    for root in asked:
        if (root / "manifests").is_dir():
            return root
    tried = ", ".join(str(root) for root in asked)
    raise Refused(f"there are no models of Ollama: no manifests/ in {tried}", hint="name its folder of models as PATH")


def _tags(root: Path, draft: Draft) -> list[_Tag]:
    out = []
    for path in walk(root / "manifests"):
        parts = path.relative_to(root / "manifests").parts
        if len(parts) != 4 or path.name.startswith("."):
            continue
        try:
            text = read(path, "json")
        except Refused as refused:
            fault = refused.diagnostics[0]
            draft.leave(f"the model {parts[2]}:{parts[3]}", fault.summary, "pull it again", fault.where)
            continue
        values = mapping(text.values)
        blobs: dict[str, list[str]] = {}
        for layer in listed(values.get("layers")):
            kind = word(mapping(layer).get("mediaType")).partition(";")[0]
            found = _DIGEST.fullmatch(word(mapping(layer).get("digest")))
            if kind.startswith(_TYPE) and found:
                blobs.setdefault(kind.removeprefix(_TYPE), []).append(found[1])
        config = _DIGEST.fullmatch(word(mapping(values.get("config")).get("digest")))
        out.append(_Tag(parts[0], parts[1], parts[2], parts[3], text, blobs, config[1] if config else ""))
    return out


def _add(draft: Draft, root: Path, tags: list[_Tag]) -> None:
    first = tags[0]
    where, models = first.text.where("layers"), first.blobs.get("model", [])
    config = _json(root, first.config)
    if len(models) != 1:
        _no_model(draft, first, config, where)
        return
    source = _blob(draft, root, models[0])
    if not source:
        remedy = f"`ollama pull {first.whole}`, and import again"
        draft.leave(f"the model {first.whole}", f"its blob {models[0][:12]}… is missing", remedy, where)
        return
    entry: dict[str, Any] = {"source": source, "sha256": models[0]}
    if any(part in word(config.get("model_family")).lower() for part in _EMBEDDERS):
        entry["task"] = "embedding"
    _parts(draft, root, first, entry, where)
    _environment(draft, entry)
    _parameters(draft, root, first, entry, where)
    base = first.model if first.tag == "latest" else f"{first.model}-{first.tag}"
    size, quant = word(config.get("model_type")), word(config.get("file_type"))
    name = draft.add("models", base, entry, " ".join(part for part in (first.whole, size, quant) if part))
    for tag in tags:
        draft.alias(name, tag.whole, where)
        if tag.tag == "latest":
            draft.alias(name, tag.whole.removesuffix(":latest"), where)


def _no_model(draft: Draft, tag: _Tag, config: dict[str, Any], where: Where) -> None:
    what = f"the model {tag.whole}"
    if config.get("remote_host") or config.get("remote_model"):
        draft.leave(what, "it runs in the cloud", "name the service in `providers`", where)
    elif "tensor" in tag.blobs:
        draft.leave(what, "its weights are not a GGUF file", "name a GGUF source of the same model", where)
    else:
        count_ = len(tag.blobs.get("model", []))
        why = "its manifest names no model" if not count_ else "it has several model files"
        draft.leave(what, why, "name a GGUF source of the same model", where)


def _parts(draft: Draft, root: Path, tag: _Tag, entry: dict[str, Any], where: Where) -> None:
    """Projector and adapters; what has no place is said."""
    projectors = tag.blobs.get("projector", [])
    if projectors and (found := _blob(draft, root, projectors[0])):
        entry["mmproj"] = found
    elif projectors:
        draft.leave(f"the projector of {tag.whole}", "its blob is missing", f"`ollama pull {tag.whole}`", where)
    for adapter in tag.blobs.get("adapter", []):
        if found := _blob(draft, root, adapter):
            entry.setdefault("lora", []).append(found)
    for kind, what, remedy in (
        (
            "template",
            "the prompt template",
            "the GGUF's own is used; or set `options: {chat-template-file: …}`",
        ),
        ("system", "the system prompt", "send it with each request"),
        ("messages", "the example messages", "send them with each request"),
    ):
        if kind in tag.blobs:
            path = _path(root, tag.blobs[kind][0])
            draft.leave(f"{what} of {tag.whole}", "the manifest has no key for it", remedy, Where(str(path), 1, 1))


def _parameters(draft: Draft, root: Path, tag: _Tag, entry: dict[str, Any], where: Where) -> None:
    for digest in tag.blobs.get("params", []):
        params = _json(root, digest)
        for key, value in params.items():
            if not _parameter(entry, key, value):
                remedy = "clients send it with each request" if key == "stop" else ""
                place = Where(str(_path(root, digest)), 1, 1)
                draft.leave(f"the parameter {key} of {tag.whole}", "there is no key for it", remedy, place)


def _parameter(entry: dict[str, Any], key: str, value: Any) -> bool:
    """Whether it could be carried over."""
    whole = value if isinstance(value, int) and not isinstance(value, bool) else None
    if key == "num_ctx" and whole and whole > 0:
        entry["context"] = count(whole)
    elif key == "num_gpu" and whole is not None:
        if whole >= 0:
            entry["gpu_layers"] = whole
    elif key in _OPTIONS and isinstance(value, int | float) and not isinstance(value, bool):
        entry.setdefault("options", {})[_OPTIONS[key]] = value
    elif key == "use_mmap" and isinstance(value, bool):
        if not value:
            entry.setdefault("options", {})["no-mmap"] = True
    elif key == "use_mlock" and isinstance(value, bool):
        if value:
            entry.setdefault("options", {})["mlock"] = True
    else:
        return False
    return True


def _environment(draft: Draft, entry: dict[str, Any]) -> None:
    """What Ollama's own variables say, as this command sees them."""
    environ = draft.home.environ
    _start(draft, entry, environ.get("OLLAMA_KEEP_ALIVE", ""))
    if re.fullmatch(r"[1-9][0-9]{1,8}", length := environ.get("OLLAMA_CONTEXT_LENGTH", "")):
        entry["context"] = count(int(length))
    if re.fullmatch(r"[1-9][0-9]?", slots := environ.get("OLLAMA_NUM_PARALLEL", "")) and slots != "1":
        entry["parallel"] = int(slots)
    if environ.get("OLLAMA_FLASH_ATTENTION", "").lower() in ("1", "true"):
        entry.setdefault("options", {})["flash-attn"] = "on"
    if (cache := environ.get("OLLAMA_KV_CACHE_TYPE", "")) in ("q8_0", "q4_0"):
        entry["cache_type"] = {"k": cache, "v": cache}
    if "OLLAMA_HOST" in environ:
        what = "OLLAMA_HOST"
        draft.leave(what, "clients ask another address from now on", "set `gateway: {host: …, port: …}`")


def _start(draft: Draft, entry: dict[str, Any], alive: str) -> None:
    """Ollama loads on the first request and unloads after OLLAMA_KEEP_ALIVE, five minutes by default."""
    found = re.fullmatch(r"(-?)([0-9]{1,9})(ms|s|m|h)?", alive.strip())
    if found and found[1]:
        entry["start"] = "always"
        return
    entry["start"] = "on_demand"
    factor = {"ms": 0.001, "m": 60, "h": 3600}.get(found[3] or "s", 1) if found else 1
    entry["idle_timeout"] = seconds(int(found[2]) * factor) if found else "5m"


def _path(root: Path, digest: str) -> Path:
    return root / "blobs" / f"sha256-{digest}"


def _blob(draft: Draft, root: Path, digest: str) -> str | None:
    path = _path(root, digest)
    try:
        here = path.is_file()
    except OSError:
        here = False
    return draft.file(path) if here else None


def _json(root: Path, digest: str) -> dict[str, Any]:
    """A small blob as JSON; empty where it is missing or is none."""
    if not digest:
        return {}
    try:
        return mapping(read(_path(root, digest), "json").values)
    except Refused:
        return {}
