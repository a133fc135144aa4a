"""Compose files: the models that they declare, and the services that serve some.

`models:` name an artefact, which is a source here if it is a repository of the hub, or lies in Docker's own store. A
service that runs llama.cpp's server is taken apart into settings; Ollama and vLLM go on in their containers, as
providers at the port that they publish.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconciler.core.diagnostics import Refused, Where
from reconciler.foreign import argv as flags
from reconciler.foreign import ollama
from reconciler.foreign.container import Container, mounts, ports
from reconciler.foreign.draft import Draft, count
from reconciler.foreign.home import Home
from reconciler.foreign.text import NotThere, Text, listed, mapping, read, small_text, tolerant, word

NAME = "Compose"
FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_VARIABLE = re.compile(
    r"\$(?:\$|(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<op>:?[-+?])?(?P<word>[^}]*)\})"
)


def gather(path: Path | None, home: Home) -> Draft:
    """`path` is the file, or its folder. Raises Refused where there is none, or nothing in it that serves models."""
    file = path or home.here
    if file.is_dir():
        file = next((file / name for name in FILES if (file / name).is_file()), file / FILES[0])
    text = read(file, "yaml")
    values = mapping(text.values)
    if not isinstance(values.get("services"), dict) and not isinstance(values.get("models"), dict):
        raise Refused(f"{file} is no Compose file: it has neither `services` nor `models`", hint="name another as PATH")
    draft = Draft(NAME, home, [home.shown(file)])
    reader = _Reader(draft, text, file.parent, {**_dotenv(file.parent / ".env"), **home.environ})
    for name, model in mapping(values.get("models")).items():
        reader.model(name, mapping(model))
    for name, service in mapping(values.get("services")).items():
        reader.service(name, mapping(service))
    return draft


def _dotenv(path: Path) -> dict[str, str]:
    try:
        lines = small_text(path, 1 << 20).splitlines()
    except NotThere:
        return {}
    pairs = [line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#")]
    return {name.strip().removeprefix("export "): value.strip().strip("\"'") for name, _, value in pairs}


class _Reader:
    def __init__(self, draft: Draft, text: Text, base: Path, environ: Mapping[str, str]) -> None:
        self.draft, self.text, self.base, self.environ = draft, text, base, environ

    def filled(self, value: Any) -> str:
        """A value with its variables filled in, as Compose does; what is not set is empty."""
        return _VARIABLE.sub(self._variable, word(value))

    def _variable(self, found: re.Match[str]) -> str:
        name = found["bare"] or found["name"]
        if not name:
            return "$"
        value, op = self.environ.get(name), found["op"] or ""
        missing = value is None or (op.startswith(":") and not value)
        if op.endswith("-") and missing:
            return found["word"]
        if op.endswith("+"):
            return "" if missing else found["word"]
        return value or ""

    # -- models --------------------------------------------------------------------------------------------------

    def model(self, name: str, said: dict[str, Any]) -> None:
        where, called = self.text.where("models", name), self.filled(said.get("model"))
        raw = [self.filled(flag) for flag in listed(said.get("runtime_flags"))]
        out = flags.served([part for flag in raw for part in self._split(flag)], lambda path: None)
        entry, sha256 = self._source(called)
        if not entry:
            why = f"{called!r} is an artefact of a container registry, and its bytes are not in Docker's store here"
            remedy = "give the model a `source`: hf:OWNER/NAME, https://… or file:…"
            self.draft.leave(f"the model {name}", why, remedy, where)
            return
        entry |= {k: v for k, v in out.entry.items() if k != "source"}
        if sha256:
            entry["sha256"] = sha256
        size = said.get("context_size")
        if isinstance(size, int) and not isinstance(size, bool) and size > 0:
            entry["context"] = count(size)
        self._told(out, name, where)
        entry["start"] = "on_demand"
        entry["idle_timeout"] = "5m"  # what the model runner waits
        given = self.draft.add("models", name, entry, called)
        self.draft.alias(given, name, where)
        self.draft.alias(given, called, where)
        if rest := sorted(set(said) - {"model", "context_size", "runtime_flags"}):
            self.draft.leave(f"{', '.join(rest[:8])} of {name}", "there is no key for it", "", where)

    def _split(self, flag: str) -> list[str]:
        try:
            return flags.words(flag) if " " in flag else [flag]
        except ValueError:
            return [flag]

    def _source(self, called: str) -> tuple[dict[str, Any], str]:
        """Keys that say where the bytes are, and their sha256 where that is known."""
        if re.match(r"(hf\.co|huggingface\.co)/", called):
            repository, quant = flags.repository(called.partition("@")[0])
            return ({"source": repository, **({"quant": quant} if quant else {})} if repository else {}), ""
        return self._stored(called)

    def _stored(self, called: str) -> tuple[dict[str, Any], str]:
        """The file of a model that Docker has pulled: models.json names the blobs of each tag."""
        store = self.draft.home.folder / ".docker" / "models"
        wanted = called if ":" in called.rpartition("/")[2] else f"{called}:latest"
        for model in map(mapping, listed(mapping(tolerant(store / "models.json")).get("models"))):
            tags = [word(tag) for tag in listed(model.get("tags"))]
            if not any(tag in (called, wanted) or tag.endswith(f"/{wanted}") for tag in tags):
                continue
            for digest in map(word, listed(model.get("files"))):
                found = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
                blob = store / "blobs" / "sha256" / found[1] if found else None
                if found and blob and _is_gguf(blob) and (source := self.draft.file(blob)):
                    return {"source": source}, found[1]
        return {}, ""

    # -- services ------------------------------------------------------------------------------------------------

    def service(self, name: str, said: dict[str, Any]) -> None:
        where = self.text.where("services", name)
        one = Container(self.filled(said.get("image")))
        one.folders = mounts([self._mount(v) for v in listed(said.get("volumes"))], self.base, self.draft.home.folder)
        one.ports = ports([v if isinstance(v, dict) else self.filled(v) for v in listed(said.get("ports"))])
        one.environ = self._environment(said.get("environment"))
        command = said.get("command")
        try:
            parts = flags.words(self.filled(command)) if isinstance(command, str) else map(self.filled, listed(command))
            one.args = list(parts)
        except ValueError as error:
            self.draft.leave(f"the service {name}", str(error), "write the entry by hand", where)
            return
        match one.kind:
            case "llama.cpp":
                self._llama(name, one, where)
            case "ollama":
                self._ollama(name, one, where)
            case "vllm":
                self._provider(name, "vllm", one, 8000, where)
            case _:
                used = said.get("models")
                if used:
                    why = "it finds its models at the gateway from now on"
                    remedy = "set its variables to the gateway's address, http://host.docker.internal:1337/v1"
                    self.draft.leave(f"`models` of the service {name}", why, remedy, where)

    def _mount(self, value: Any) -> Any:
        return {k: self.filled(v) for k, v in value.items()} if isinstance(value, dict) else self.filled(value)

    def _environment(self, value: Any) -> dict[str, str]:
        if isinstance(value, dict):
            return {name: self.filled(inner) for name, inner in value.items()}
        pairs = (self.filled(one).partition("=") for one in listed(value))
        return {name: inner for name, _, inner in pairs}

    def _llama(self, name: str, one: Container, where: Where) -> None:
        out = flags.served(one.args, one.source(self.draft), one.environ)
        self._told(out, name, where)
        if not out.source:
            why = "the file of its model is not in a folder of this machine that it mounts"
            self.draft.leave(f"the service {name}", why, "write the model with its `source`", where)
            return
        given = self.draft.add("models", name, out.entry, f"the service {name}, {one.image}")
        self.draft.alias(given, name, where)
        for alias in out.aliases:
            self.draft.alias(given, alias, where)
        why = "it is served without the container here: the service is no longer needed"
        self.draft.leave(f"the container of {name}", why, "remove it from the Compose file", where)

    def _ollama(self, name: str, one: Container, where: Where) -> None:
        """Its models, where they lie in a folder that it mounts; otherwise it stays a provider."""
        data = one.here("/root/.ollama") or one.here("/root/.ollama/models")
        if data and ((data / "models" / "manifests").is_dir() or (data / "manifests").is_dir()):
            home = self.draft.home
            theirs = Home(dict(one.environ), home.folder, home.system, home.here)
            found = ollama.gather(data, theirs)
            found.settle()
            for model, entry in found.models.items():
                aliases = entry.pop("aliases", [])
                given = self.draft.add("models", model, entry, found.notes.get(("models", model), ""))
                for alias in aliases:
                    self.draft.alias(given, alias, where)
            self.draft.left += found.left
            return
        self._provider(name, "ollama", one, 11434, where)

    def _provider(self, name: str, preset: str, one: Container, inside: int, where: Where) -> None:
        port = one.ports.get(inside) or next(iter(one.ports.values()), None)
        if port is None:
            why = "it publishes no port, so that nothing outside of Compose reaches it"
            self.draft.leave(f"the service {name}", why, "publish one, and add it to `providers`", where)
            return
        entry: dict[str, Any] = {"preset": preset, "base_url": f"http://127.0.0.1:{port}/v1"}
        key = one.environ.get("VLLM_API_KEY", "")
        for before, arg in zip(["", *one.args], one.args, strict=False):
            key = arg if before == "--api-key" else arg.partition("=")[2] if arg.startswith("--api-key=") else key
        if key:
            entry["api_key"] = self.draft.secret(key, f"{name}_API_KEY".upper(), f"the key of provider {name}", where)
        self.draft.add("providers", name, entry, f"the service {name}, {one.image}")
        why = "it goes on in its container, and is not started from here"
        self.draft.leave(f"the container of {name}", why, "keep it in the Compose file", where)

    def _told(self, out: flags.Served, name: str, where: Where) -> None:
        for secret in out.secrets:
            self.draft.hide(secret)
        for what, why, remedy in out.left:
            self.draft.leave(f"{what} of {name}", why, remedy, where)


def _is_gguf(path: Path) -> bool:
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with path.open("rb") as data:
            return data.read(4) == b"GGUF"
    except OSError:
        return False
