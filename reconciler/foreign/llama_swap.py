"""llama-swap's config.yaml: models as command lines, macros, groups, keys and peers.

A command that starts a llama-server is taken apart into settings; any other becomes an engine of type `command`. The
program loads on request and unloads after `ttl` seconds, so models start on demand here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Refused, Where
from reconciler.core.section import NAME as NAME_PATTERN
from reconciler.foreign import argv as flags
from reconciler.foreign import container
from reconciler.foreign.draft import Draft, is_secret, no_key, seconds
from reconciler.foreign.home import Home
from reconciler.foreign.secrets import holds_secret, says_secret
from reconciler.foreign.text import Text, listed, mapping, read, word

NAME = "llama-swap"
MOST = 64 << 10  # characters that a command may have once its macros are filled in
_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]+|env\.[A-Za-z_][A-Za-z0-9_]*)\}")
_TOP = {
    "models", "macros", "groups", "matrix", "routing", "hooks", "peers", "apiKeys", "globalTTL", "logLevel",
    "logTimeFormat", "logToStdout", "metricsMaxInMemory", "captureBuffer", "startPort", "healthCheckTimeout", "ui",
    "store", "performance",
}  # fmt: skip
_OF_MODEL = {"cmd", "name", "description", "env", "aliases", "ttl", "macros", "proxy", "checkEndpoint", "unlisted"}


class Unfit(Exception):
    """A command that cannot be understood; the message says why."""


def gather(path: Path | None, home: Home) -> Draft:
    """`path` is config.yaml, or its folder. Raises Refused where there is none."""
    file = _file(path, home)
    text = read(file, "yaml")
    values = mapping(text.values)
    if not isinstance(values.get("models"), dict) and not isinstance(values.get("peers"), dict):
        raise Refused(f"{file} is no configuration of llama-swap: it has no `models`", hint="name another as PATH")
    draft = Draft(NAME, home, [home.shown(file)])
    _keys(draft, text, values)
    preload = {word(name) for name in listed(mapping(mapping(values.get("hooks")).get("on_startup")).get("preload"))}
    for name, model in mapping(values.get("models")).items():
        _Model(draft, text, values, name, mapping(model), file.parent).add(name in preload)
    for name, peer in mapping(values.get("peers")).items():
        _peer(draft, text, name, mapping(peer))
    _rest(draft, text, values)
    return draft


def _file(path: Path | None, home: Home) -> Path:
    if path and not path.is_dir():
        return path
    folders = [path] if path else [home.here, home.settings / "llama-swap", Path("/etc/llama-swap")]
    names = [folder / name for folder in folders for name in ("config.yaml", "config.yml", "llama-swap.yaml")]
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        tried = ", ".join(str(folder) for folder in folders)
        raise Refused(f"there is no config.yaml of llama-swap in {tried}", hint="name the file as PATH")
    return found


class _Model:
    """One entry of `models`, on its way into the draft."""

    def __init__(
        self, draft: Draft, text: Text, values: Mapping[str, Any], name: str, said: dict[str, Any], base: Path
    ) -> None:
        self.draft, self.name, self.said, self.base = draft, name, said, base
        self.text, self.values, self.grown = text, values, 0
        self.where = text.where("models", name)
        self.macros = {**mapping(values.get("macros")), **mapping(said.get("macros"))}

    def add(self, preload: bool) -> None:
        command = word(self.said.get("cmd"))
        place = self.text.where("models", self.name, "cmd")
        try:
            argv = flags.words(self.filled(command))
            if not argv:
                raise Unfit("it has no command")
            entry = self._entry(argv, place)
        except (Unfit, ValueError) as error:
            self.draft.leave(f"the model {self.name}", str(error), "write the entry by hand", place)
            return
        if entry is None:
            return
        self._start(entry, preload)
        self._environment(entry)
        note = ". ".join(part for part in (word(self.said.get("name")), word(self.said.get("description"))) if part)
        name = self.draft.add("models", self.name, entry, note)
        self.draft.alias(name, self.name, self.where)
        for one in listed(self.said.get("aliases")):
            self.draft.alias(name, word(mapping(one).get("id")) or word(one), self.where)
        if rest := sorted(set(self.said) - _OF_MODEL):
            self.draft.leave(f"{', '.join(rest[:8])} of {self.name}", "there is no key for it", "", self.where)

    def filled(self, command: str) -> str:
        """The command with its macros filled in; {port} and {model_name} stand for what is known at the start only."""
        fixed = {"PORT": "{port}", "MODEL_ID": self.name, "PID": ""}
        self.grown = 0
        for _ in range(100):
            changed = _MACRO.sub(lambda found: self._macro(found[1], fixed), command)
            if changed == command:
                return command
            command = changed
        raise Unfit("its macros name each other in a circle")

    def _macro(self, name: str, fixed: Mapping[str, str]) -> str:
        if name in fixed:
            return fixed[name]
        if name.startswith("env."):
            variable = name.removeprefix("env.")
            value = self.draft.home.environ.get(variable)
            if value is None or is_secret(variable, value):
                raise Unfit(f"it needs the environment variable {variable}, which cannot be filled in")
            return value
        if name not in self.macros:
            raise Unfit(f"the macro {name} is not defined")
        value = word(self.macros[name])
        self.grown += len(value)
        if self.grown > MOST:
            raise Unfit("its macros make it too long")
        return value

    def _entry(self, argv: list[str], place: Where) -> dict[str, Any] | None:
        if flags.is_llama_server(argv[0]):
            out = flags.served(argv[1:], self._source)
            engine = _engine(self.draft, argv[0], self.base, place)
        elif (run := container.from_run(argv, self.base, self.draft.home.folder)) and run.kind == "llama.cpp":
            out = flags.served(run.args, run.source(self.draft), run.environ)
            engine = ""
            why = "it is served without the container here"
            self.draft.leave(f"the image {run.image} of {self.name}", why, "name an engine for it", place)
        else:
            return self._command(argv, place)
        for secret in out.secrets:
            self.draft.hide(secret)
        for what, why, remedy in out.left:
            self.draft.leave(f"{what} of {self.name}", why, remedy, place)
        if not out.source:
            self.draft.leave(f"the model {self.name}", "its command names no model file", "give it a `source`", place)
            return None
        entry = {"source": out.source, **({"engine": engine} if engine else {}), **out.entry}
        self._further(out.aliases)
        return entry

    def _further(self, names: list[str]) -> None:
        self.said = {**self.said, "aliases": [*listed(self.said.get("aliases")), *names]}

    def _source(self, path: str) -> str | None:
        return self.draft.file(self.draft.home.path(path) if path.startswith("~/") else self.base / path)

    def _command(self, argv: list[str], place: Where) -> dict[str, Any] | None:
        """Any other server: an engine of its own, with the places filled in that only the start knows."""
        what = f"the model {self.name}"
        for before, one in zip(["", *argv], argv, strict=False):
            if holds_secret(one) or (says_secret(before) and before.startswith("-")):
                self.draft.hide(one if holds_secret(one) else "")
                self.draft.leave(what, "a secret is on its command line", "give it in `env` of an engine", place)
                return None
        port = re.search(r":([0-9]{2,5})(/|$)", word(self.said.get("proxy")))
        source = calls = ""
        words: list[str] = []
        for before, one in zip(["", *argv], argv, strict=False):
            value = "{port}" if port and one == port[1] else _braced(one)
            if not source and (found := self._of_model(before, one)):
                source = found
                if before == "--hf-repo":  # it takes no path
                    calls = value
                else:
                    value = "{model_path}"
            words.append(value)
        if not source:
            remedy = "write an engine of `type: command`, and the model's `source`"
            self.draft.leave(what, "its command does not say which model it serves", remedy, place)
            return None
        if not any(re.search(r"(?<!{){port}(?!})", one) for one in words):
            remedy = "write an engine of `type: command` that passes {port} on"
            self.draft.leave(what, "its command does not say which port it listens on", remedy, place)
            return None
        check = word(self.said.get("checkEndpoint"))
        engine: dict[str, Any] = {"type": "command", "argv": words} | ({"calls": calls} if calls else {})
        if re.fullmatch(r"/[!-~]*", check) and check != "/health":
            engine["ready"] = {"http": check}
        elif check == "none":
            self.draft.leave(f"checkEndpoint of {self.name}", "a server must say that it is ready", "", self.where)
        return {"source": source, "engine": self.draft.add("engines", Path(argv[0]).name, engine)}

    def _of_model(self, before: str, one: str) -> str:
        if one.lower().endswith(".gguf"):
            return self._source(one) or ""
        if before in ("serve", "--model", "--model-path", "-m", "--model-id", "--hf-repo"):
            return flags.repository(one)[0] or ""
        return ""

    def _start(self, entry: dict[str, Any], preload: bool) -> None:
        ttl = self.said.get("ttl")
        ttl = self.values.get("globalTTL") if ttl in (None, -1) else ttl
        if preload:
            entry["start"] = "always"
            return
        entry["start"] = "on_demand"
        if isinstance(ttl, int | float) and not isinstance(ttl, bool) and ttl > 0:
            entry["idle_timeout"] = seconds(min(ttl, 86400 * 365))
        else:
            why = "there it stays until another one needs the room; here it goes after `idle_timeout`, 10m by default"
            self.draft.leave("models without `ttl`", why, "set `idle_timeout`, or `start: always`")

    def _environment(self, entry: dict[str, Any]) -> None:
        for one in listed(self.said.get("env")):
            name, _, value = self.filled_or_none(word(one)).partition("=")
            what, place = f"the variable {name} of {self.name}", self.text.where("models", self.name, "env")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                self.draft.leave(f"a variable of {self.name}", "it has no name, or cannot be filled in", "", place)
            elif is_secret(name, value):
                self.draft.hide(value)
                self.draft.leave(what, "a model's `env` is not for secrets", "give it in `env` of an engine", place)
            else:
                entry.setdefault("env", {})[name] = value

    def filled_or_none(self, text: str) -> str:
        try:
            return self.filled(text)
        except Unfit:
            return ""


def _braced(one: str) -> str:
    """A word with its braces written twice, as they stand for themselves; {port} is none of it."""
    return one.replace("{", "{{").replace("}", "}}").replace("{{port}}", "{port}")


def _engine(draft: Draft, program: str, base: Path, place: Where) -> str:
    """The name of the engine for a llama-server program; the same program, the same engine. Empty for the default."""
    found = shutil.which(program, path=draft.home.environ.get("PATH")) if "/" not in program else str(base / program)
    if not found or not Path(found).is_file():
        why = "it is not on this machine; the engine that comes with this program is used"
        remedy = "install it, and name it in `engines: {NAME: {type: llama.cpp, path: …}}`"
        draft.leave(f"the program {program}", why, remedy, place)
        return ""
    shown = draft.home.shown(Path(found))
    for name, entry in draft.entries["engines"].items():
        if entry.get("path") == shown:
            return name
    return draft.add("engines", "llama", {"type": "llama.cpp", "path": shown})


def _keys(draft: Draft, text: Text, values: Mapping[str, Any]) -> None:
    keys = []
    for i, key in enumerate(listed(values.get("apiKeys"))):
        value, where = word(key), text.where("apiKeys", i)
        found = re.fullmatch(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}", value)
        purpose = f"key {i + 1} that clients show to the gateway"
        if found:
            keys.append({"name": f"key-{i + 1}", "key": draft.variable(found[1], purpose, where)})
        elif value:
            keys.append({"name": f"key-{i + 1}", "key": draft.secret(value, f"LLAMA_SWAP_KEY_{i + 1}", purpose, where)})
    if keys:
        draft.gateway["api_keys"] = keys


def _peer(draft: Draft, text: Text, name: str, peer: dict[str, Any]) -> None:
    where, base = text.where("peers", name), word(peer.get("proxy")).rstrip("/")
    if not re.fullmatch(r"https?://[^\s@/]+(/[^\s?]*)?", base) or "$" in base:
        draft.hide(base if holds_secret(base) else "")
        draft.leave(f"the peer {name}", "its address is not a plain http(s) address", "add it to `providers`", where)
        return
    entry: dict[str, Any] = {"base_url": base if base.endswith("/v1") else f"{base}/v1"}
    key = word(peer.get("apiKey"))
    found = re.fullmatch(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}", key)
    purpose = f"the key of provider {name}"
    if found:
        entry["api_key"] = draft.variable(found[1], purpose, where)
    elif not no_key(key):
        entry["api_key"] = draft.secret(key, f"{name}_API_KEY".upper(), purpose, where)
    models = [word(one) for one in listed(peer.get("models"))]
    models = [one for one in models if re.fullmatch(r"[!-~]{1,200}", one)]
    if models:
        entry["models"] = models
    provider = draft.add("providers", name, entry)
    far = [one for one in models if not _route(draft, provider, one)]
    if far:
        why = f"a name with such characters is asked for as {provider}/NAME here"
        draft.leave(f"plain names of peer {name}: {', '.join(far[:5])}", why, "", where)
    if rest := sorted(set(peer) - {"proxy", "apiKey", "models"}):
        draft.leave(f"{', '.join(rest)} of peer {name}", "there is no key for it", "", where)


def _route(draft: Draft, provider: str, model: str) -> bool:
    """Have clients ask for a peer's model by its plain name, as they do there."""
    if not re.fullmatch(NAME_PATTERN, model) or model in draft.models or model in draft.entries["routes"]:
        return False
    draft.add("routes", model, {"targets": [f"{provider}/{model}"]})
    return True


def _rest(draft: Draft, text: Text, values: Mapping[str, Any]) -> None:
    for key, why in (
        ("groups", "who stays in memory is decided by room and `priority`"),
        ("matrix", "who stays in memory is decided by room and `priority`"),
        ("routing", "who stays in memory is decided by room and `priority`"),
        ("profiles", "names are not rewritten while it runs"),
        ("selectors", "routes choose in order or by weight"),
    ):
        if values.get(key):
            draft.leave(f"`{key}`", why, "set `priority` of models" if "priority" in why else "", text.where(key))
    known = _TOP | {"profiles", "selectors"}
    if rest := sorted(key for key in set(values) - known if not key.startswith("x-")):
        draft.leave(f"{', '.join(rest[:8])}", "there is no key for it", "", text.where(rest[0]))
    unlisted = [n for n, m in mapping(values.get("models")).items() if mapping(m).get("unlisted")]
    if unlisted:
        draft.leave(f"`unlisted` of {', '.join(unlisted[:8])}", "all models are listed", "", text.where("models"))
