"""Jan: models with their model.yml, MCP servers, and, where its settings are in a file, providers and the API server.

Everything lies in its data folder; older versions keep providers and settings in a browser's store, which is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Refused, Where
from reconciler.foreign import mcp
from reconciler.foreign.argv import address, scalar
from reconciler.foreign.caches import jan_roots, walk
from reconciler.foreign.draft import Draft, count, is_secret, no_key, seconds
from reconciler.foreign.home import Home
from reconciler.foreign.text import Text, listed, mapping, parse, read, word

NAME = "Jan"
_PRESETS = {
    "openai", "azure", "anthropic", "openrouter", "mistral", "groq", "gemini", "huggingface", "xai", "minimax",
    "nvidia",
}  # fmt: skip
_LOCAL = {"llamacpp", "llama.cpp", "mlx", "cortex", "foundation-models"}
_OPTIONS = {
    "batch_size": "batch-size", "ubatch_size": "ubatch-size", "n_cpu_moe": "n-cpu-moe", "override_tensor":
    "override-tensor", "override_tensor_buffer_t": "override-tensor", "threads": "threads", "temperature": "temp",
    "top_k": "top-k", "top_p": "top-p", "min_p": "min-p", "repeat_penalty": "repeat-penalty", "presence_penalty":
    "presence-penalty", "frequency_penalty": "frequency-penalty", "repeat_last_n": "repeat-last-n",
    "pooling": "pooling", "flash_attn": "flash-attn",
}  # fmt: skip
_TRUTHS = {"cpu_moe": "cpu-moe", "no_kv_offload": "no-kv-offload", "no_mmap": "no-mmap", "mlock": "mlock"}
_FACTS = {
    "model_path", "mmproj_path", "name", "size_bytes", "model_sha256", "model_size_bytes", "mmproj_sha256", "embedding",
    "mmproj_size_bytes", "model", "id", "version", "mtp_layers", "engine", "model_id", "imported", "capabilities",
}  # fmt: skip
_CACHES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


def gather(path: Path | None, home: Home) -> Draft:
    """`path` is its data folder. Raises Refused where there is none."""
    data = next((root for root in ([path] if path else jan_roots(home)) if root.is_dir()), None)
    if data is None:
        hint = "name the folder that Jan shows under Settings, General, as PATH"
        raise Refused(f"there is no data folder of Jan{f' at {path}' if path else ''}", hint=hint)
    draft = Draft(NAME, home, [home.shown(data)])
    for found in walk(data / "llamacpp" / "models"):
        if found.name == "model.yml":
            _model(draft, data, found)
    if (data / "mcp_config.json").is_file():
        _tools(draft, read(data / "mcp_config.json", "json"))
    if (data / "settings.json").is_file():
        _settings(draft, read(data / "settings.json", "json"))
    elif (data / "store.json").is_file():
        why = "this version keeps them in a browser's store"
        draft.leave("providers, and the settings of its API server", why, "name them in `providers` and `gateway`")
    if (data / "mlx" / "models").is_dir() and any(walk(data / "mlx" / "models")):
        draft.leave("models for MLX", "their weights are not a GGUF file", "name a GGUF source of the same model")
    return draft


# -- models ----------------------------------------------------------------------------------------------------------


def _model(draft: Draft, data: Path, path: Path) -> None:
    identity = "/".join(path.parent.relative_to(data / "llamacpp" / "models").parts)
    what = f"the model {identity}"
    try:
        text = read(path, "yaml")
    except Refused as refused:
        draft.leave(what, refused.diagnostics[0].summary, "", refused.diagnostics[0].where)
        return
    said = mapping(text.values)
    source = _source(draft, data, word(said.get("model_path")))
    if not source:
        draft.leave(what, "its file is not there", "download it again in Jan", text.where("model_path"))
        return
    entry: dict[str, Any] = {"source": source}
    if re.fullmatch(r"[0-9a-f]{64}", sha256 := word(said.get("model_sha256"))):
        entry["sha256"] = sha256
    if projector := word(said.get("mmproj_path")):
        if found := _source(draft, data, projector):
            entry["mmproj"] = found
        else:
            draft.leave(f"the projector of {identity}", "its file is not there", "", text.where("mmproj_path"))
    if said.get("embedding") is True:
        entry["task"] = "embedding"
    rest = [key for key, value in said.items() if key not in _FACTS and not _setting(entry, key, value)]
    if rest:
        place = text.where(sorted(rest)[0])
        draft.leave(f"{', '.join(sorted(rest)[:8])} of {identity}", "there is no key for it", "", place)
    name = draft.add("models", identity.rpartition("/")[2], entry, word(said.get("name")) or identity)
    draft.alias(name, identity, text.where())


def _source(draft: Draft, data: Path, said: str) -> str | None:
    if said.startswith("https://"):
        return address(said)
    path = data / said
    try:
        return draft.file(path) if said and path.is_file() else None
    except (OSError, ValueError):
        return None


def _setting(entry: dict[str, Any], key: str, value: Any) -> bool:
    """Whether it could be carried over; what says nothing is."""
    whole = value if isinstance(value, int) and not isinstance(value, bool) else None
    if value is None or value in ("", "auto", False) or (key in ("mtp", "fit") and not value):
        return True
    if key in ("ctx_size", "ctx_len") and whole and whole > 0:
        entry["context"] = count(whole)
    elif key in ("n_gpu_layers", "ngl") and whole is not None:
        if 0 <= whole < 100:  # 100 and -1 mean all of them
            entry["gpu_layers"] = whole
    elif key == "parallel" and whole and 1 <= whole <= 256:
        entry["parallel"] = whole
    elif key in ("cache_type_k", "cache_type_v") and value in _CACHES:
        entry.setdefault("cache_type", {})[key[-1]] = value
    elif key in _TRUTHS and value is True:
        entry.setdefault("options", {})[_TRUTHS[key]] = True
    elif key in _OPTIONS and isinstance(value, int | float | str):
        entry.setdefault("options", {})[_OPTIONS[key]] = "on" if value is True else scalar(word(value))
    else:
        return False
    return True


# -- MCP servers -----------------------------------------------------------------------------------------------------


def _tools(draft: Draft, text: Text) -> None:
    draft.read.append(draft.home.shown(Path(text.file)))
    mcp.take(draft, text, ["mcpServers"], timeout=True)
    call = mapping(mapping(text.values).get("mcpSettings")).get("toolCallTimeoutSeconds")
    if isinstance(call, int | float) and not isinstance(call, bool) and 0 < call <= 86400:
        for server in draft.entries["mcp_servers"].values():
            server.setdefault("timeout", {})["call"] = seconds(call)
    if rest := sorted(set(mapping(mapping(text.values).get("mcpSettings"))) - {"toolCallTimeoutSeconds"}):
        draft.leave(f"mcpSettings: {', '.join(rest[:8])}", "there is no key for it", "", text.where("mcpSettings"))


# -- settings --------------------------------------------------------------------------------------------------------


def _settings(draft: Draft, text: Text) -> None:
    """Namespaces, each a JSON text of its own (or a mapping) with a `state`."""
    draft.read.append(draft.home.shown(Path(text.file)))
    for namespace, value in mapping(text.values).items():
        where = text.where(namespace)
        state = _state(value, text.file)
        if isinstance(state.get("providers"), list):
            _providers(draft, state["providers"], where)
        if "serverPort" in state or "serverHost" in state:
            _server(draft, state, where)


def _state(value: Any, file: str) -> dict[str, Any]:
    if isinstance(value, str) and value[:1] == "{":
        try:
            value = parse(value, file, "json").values
        except Refused:
            return {}
    inner = mapping(value)
    return mapping(inner.get("state")) or inner


def _providers(draft: Draft, providers: list[Any], where: Where) -> None:
    idle = []
    for one in map(mapping, providers):
        name = word(one.get("provider"))
        if not name or name in _LOCAL:
            continue
        key, base = word(one.get("api_key")), word(one.get("base_url"))
        if one.get("active") is False or (name in _PRESETS and no_key(key) and not listed(one.get("api_keys"))):
            idle.append(name)
            continue
        _provider(draft, name, one, key, base, where)
    if idle:
        why = "switched off, or without a key in this file (newer versions keep keys in the system's keyring)"
        draft.leave(f"providers {', '.join(idle[:12])}", why, "name them in `providers`", where)


def _provider(draft: Draft, name: str, one: dict[str, Any], key: str, base: str, where: Where) -> None:
    known = name in _PRESETS
    entry: dict[str, Any] = {"preset": name} if known else {}
    if base and (not known or name == "azure"):
        entry["base_url"] = base.rstrip("/")
    if not entry:
        draft.leave(f"the provider {name}", "it has no address", "", where)
        return
    keys = [k for k in [key, *map(word, listed(one.get("api_keys")))] if not no_key(k)]
    wanted = f"{name}_api_key"
    held = [draft.secret(k, wanted.upper().replace("-", "_"), f"the key of provider {name}", where) for k in keys]
    if held:
        entry["api_key"] = held[0] if len(held) == 1 else list(dict.fromkeys(held))
    for header in map(mapping, listed(one.get("custom_header")) + listed(one.get("custom_headers"))):
        title, value = word(header.get("header")), word(header.get("value"))
        if title and value:
            if is_secret(title, value):
                value = draft.secret(value, f"{name}_{title}", f"the header {title} of provider {name}", where)
            entry.setdefault("headers", {})[title] = value
    models = [word(mapping(m).get("id")) for m in listed(one.get("models"))]
    if models := [m for m in models if re.fullmatch(r"[!-~]{1,200}", m)]:
        entry["models"] = models[:200]
    draft.add("providers", name, entry)


def _server(draft: Draft, state: dict[str, Any], where: Where) -> None:
    gateway: dict[str, Any] = {}
    host, port, prefix = word(state.get("serverHost")), state.get("serverPort"), word(state.get("apiPrefix"))
    if isinstance(port, int) and 1 <= port <= 65535:
        gateway["port"] = port
    if re.fullmatch(r"(/[A-Za-z0-9._-]+)+", prefix):
        gateway["prefix"] = prefix
    elif prefix:
        draft.leave(f"the API prefix {prefix!r}", "a prefix has a name here", "clients ask below /v1", where)
    trusted = [word(h) for h in listed(state.get("trustedHosts"))]
    trusted = [h for h in trusted if re.fullmatch(r"[A-Za-z0-9.:\[\]_-]+", h)]
    if trusted:
        gateway["trusted_hosts"] = list(dict.fromkeys(["localhost", "127.0.0.1", *trusted]))
    if not no_key(key := word(state.get("apiKey"))):
        held = draft.secret(key, "JAN_API_KEY", "the key that clients show to the gateway", where)
        gateway["api_keys"] = [{"name": "jan", "key": held}]
    if host and host not in ("127.0.0.1", "localhost"):
        if "api_keys" in gateway:
            gateway["host"] = host
        else:
            draft.leave(f"listening on {host}", "without a key it would offer the models to everybody",
                        "add `api_keys`, then `host`", where)  # fmt: skip
    if state.get("corsEnabled") is True:
        why = "web pages of other origins are refused unless they are named"
        draft.leave("CORS for all origins", why, "name them in `gateway: {cors: {origins: […]}}`", where)
    draft.gateway.update(gateway)
