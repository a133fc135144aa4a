"""LM Studio: the files below its folder of models, what it was told of each, and mcp.json.

Models lie at PUBLISHER/REPOSITORY/FILE. How one is loaded is kept apart from it, in lists of `{key, value}` fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Refused
from reconciler.foreign import mcp
from reconciler.foreign.argv import quant_of
from reconciler.foreign.caches import UNFINISHED, lmstudio_homes, lmstudio_roots, walk
from reconciler.foreign.draft import Draft, count, fit, seconds
from reconciler.foreign.home import Home
from reconciler.foreign.text import Text, listed, mapping, read, tolerant

NAME = "LM Studio"
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.I)
_CACHES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


def gather(path: Path | None, home: Home) -> Draft:
    """`path` is its home folder, a folder of models, or an mcp.json. Raises Refused where there is nothing of it."""
    if path is not None and path.suffix == ".json":
        draft = Draft(NAME, home, [home.shown(path)])
        mcp.take(draft, read(path, "json"), ["mcpServers"])
        return draft
    bases = [path] if path else [base for base in lmstudio_homes(home) if base.is_dir()]
    if not bases or not bases[0].is_dir():
        looked = path or home.folder / ".lmstudio"
        raise Refused(f"there is nothing of LM Studio in {looked}", hint="name its folder, or mcp.json, as PATH")
    base = bases[0]
    roots = [root for root in (base / "models", base) if root.is_dir()][:1] if path else [*lmstudio_roots(home)]
    draft = Draft(NAME, home)
    served = _server(base, draft)
    seen: set[Path] = set()
    for root in roots:
        if root.is_dir() and root.resolve() not in seen and ".internal" not in root.parts:
            seen.add(root.resolve())
            draft.read.append(home.shown(root))
            _models(draft, base, root, served)
    if (base / "mcp.json").is_file():
        draft.read.append(home.shown(base / "mcp.json"))
        mcp.take(draft, read(base / "mcp.json", "json"), ["mcpServers"])
    return draft


def _models(draft: Draft, base: Path, root: Path, served: dict[str, Any]) -> None:
    folders: dict[Path, list[Path]] = {}
    for file in walk(root):
        if file.suffix.lower() in (".gguf", ".safetensors") and not UNFINISHED.search(file.name):
            folders.setdefault(file.parent, []).append(file)
    for folder, files in sorted(folders.items()):
        ggufs = [file for file in files if file.suffix.lower() == ".gguf"]
        projectors = [file for file in ggufs if "mmproj" in file.name.lower()]
        if not ggufs:
            what = f"the model {folder.relative_to(root)}"
            draft.leave(what, "its weights are not a GGUF file", "name a GGUF source of the same model")
        for file in ggufs:
            if file not in projectors and not _later_part(file):
                _model(draft, base, root, file, projectors, served)


def _later_part(file: Path) -> bool:
    found = PART.search(file.name)
    return bool(found) and found[1] != "00001" if found else False


def _model(draft: Draft, base: Path, root: Path, file: Path, projectors: list[Path], served: dict[str, Any]) -> None:
    source = draft.file(file)
    if source is None:
        draft.leave("a model file", "its name cannot be written as text", "rename it")
        return
    entry: dict[str, Any] = {"source": source, **served}
    below = file.relative_to(root)
    if projectors and (found := draft.file(projectors[0])):
        entry["mmproj"] = found
        if len(projectors) > 1:
            draft.leave(f"other projectors of {below.parent}", "a model has one", "choose with `mmproj:`")
    if "embed" in file.name.lower():
        entry["task"] = "embedding"
    _loading(draft, base, below, entry)
    stem = PART.sub("", file.name) if PART.search(file.name) else file.stem
    name = draft.add("models", stem, entry, f"{'/'.join(below.parts[:-1])} {quant_of(stem)}")
    key = re.sub(r"[-_.]gguf$", "", below.parts[-2], flags=re.I).lower() if len(below.parts) > 1 else ""
    if fit(key) and key not in draft.models:  # what its clients ask for
        draft.alias(name, key)


def _loading(draft: Draft, base: Path, below: Path, entry: dict[str, Any]) -> None:
    """How the person had it loaded."""
    kept = base / ".internal" / "user-concrete-model-default-config" / f"{below}.json"
    if not kept.is_file():
        return
    try:
        text = read(kept, "json")
    except Refused as refused:
        draft.leave(f"how {below} is loaded", refused.diagnostics[0].summary, "", refused.diagnostics[0].where)
        return
    draft.read.append(draft.home.shown(kept))
    fields = listed(mapping(mapping(text.values).get("load")).get("fields"))
    rest = [key for key, value in _fields(fields) if not _field(entry, key, value)]
    operation = listed(mapping(mapping(text.values).get("operation")).get("fields"))
    rest += [key for key, _ in _fields(operation)]
    if rest:
        place = text.where("load", "fields")
        draft.leave(f"{', '.join(sorted(rest)[:8])} of {below}", "there is no key for it", "", place)


def _fields(fields: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    """Keys and values; a value that can be switched off is a mapping, and None when it is."""
    for one in fields:
        key, value = mapping(one).get("key"), mapping(one).get("value")
        if isinstance(value, dict) and "checked" in value:
            value = value.get("value") if value["checked"] else None
        if isinstance(key, str):
            yield key, value


def _field(entry: dict[str, Any], key: str, value: Any) -> bool:
    """Whether it could be carried over; what is switched off says nothing."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    options = {"cpuThreadPoolSize": "threads", "evalBatchSize": "batch-size", "ropeFrequencyBase": "rope-freq-base",
               "ropeFrequencyScale": "rope-freq-scale", "seed": "seed", "numCpuExpertLayersRatio": ""}  # fmt: skip
    last = key.rpartition(".")[2]
    if value is None:
        return True
    if last == "contextLength" and isinstance(value, int) and number and value > 0:
        entry["context"] = count(value)
    elif last == "numParallelSessions" and isinstance(value, int) and 1 <= value <= 256:
        entry["parallel"] = value
    elif last in ("kCacheQuantizationType", "vCacheQuantizationType") and value in _CACHES:
        entry.setdefault("cache_type", {})[last[0]] = value
    elif last == "flashAttention" and isinstance(value, bool):
        entry.setdefault("options", {})["flash-attn"] = "on" if value else "off"
    elif last == "tryMmap" and isinstance(value, bool):
        if not value:
            entry.setdefault("options", {})["no-mmap"] = True
    elif last == "keepModelInMemory" and isinstance(value, bool):
        if value:
            entry.setdefault("options", {})["mlock"] = True
    elif last == "offloadRatio" and value in ("max", "off", 0, 1):
        if value in ("off", 0):
            entry["gpu_layers"] = 0
    elif number and options.get(last):
        entry.setdefault("options", {})[options[last]] = value
    else:
        return False
    return True


def _server(base: Path, draft: Draft) -> dict[str, Any]:
    """How its server loads models; and, said once, what clients have to learn."""
    path = base / ".internal" / "http-server-config.json"
    told = mapping(tolerant(path)) if path.is_file() else {}
    place = Text(str(path)).where()
    if told:
        why = "clients ask another address from now on"
        draft.leave("the address of its server", why, "set `gateway: {port: …}`, or tell the clients", place)
    if told.get("justInTimeModelLoading") is False:
        return {}
    ttl = mapping(told.get("jitModelTTL"))
    wait = ttl.get("ttlSeconds")
    if ttl.get("enabled") is not False and isinstance(wait, int) and wait > 0:
        return {"start": "on_demand", "idle_timeout": seconds(wait)}
    return {"start": "on_demand", "idle_timeout": "1h"}  # its default
