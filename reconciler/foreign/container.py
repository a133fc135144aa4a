"""Containers that serve models: which images do, what their folders are here, and which port they are reached at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reconciler.foreign.draft import Draft

Kind = Literal["llama.cpp", "ollama", "vllm", ""]
_VALUED = re.compile(  # flags of `docker run` that take a value
    r"-[vpweulmc]|--(volume|publish|env|env-file|name|network|gpus|device|mount|user|workdir|entrypoint|label|memory"
    r"|cpus|shm-size|ipc|pull|platform|runtime|restart|hostname|add-host|ulimit|ip|pid|security-opt|cap-add|cap-drop"
    r"|group-add|log-driver|log-opt|tmpfs|dns|annotation|userns)"
)


@dataclass(slots=True)
class Container:
    """One as it would be run. `folders` are (inside, here), `ports` inside → here."""

    image: str
    args: list[str] = field(default_factory=list)
    folders: list[tuple[str, Path]] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return kind_of(self.image)

    def here(self, inside: str) -> Path | None:
        """Where a path of the container lies on this machine; None where it is within the image or a volume."""
        for root, folder in sorted(self.folders, key=lambda one: -len(one[0])):
            if inside == root or inside.startswith(root.rstrip("/") + "/"):
                return folder / inside[len(root) :].lstrip("/")
        return None

    def source(self, draft: Draft) -> SourceOf:
        return SourceOf(self, draft)


@dataclass(slots=True)
class SourceOf:
    """Makes `file:` sources of paths inside a container."""

    container: Container
    draft: Draft

    def __call__(self, inside: str) -> str | None:
        found = self.container.here(inside)
        return self.draft.file(found) if found else None


def kind_of(image: str) -> Kind:
    """What an image runs, by its name: llama.cpp's server, Ollama or vLLM."""
    image = image.lower().partition("@")[0]
    name, _, tag = image.rpartition(":")
    name, tag = (name, tag) if name and "/" not in tag else (image, "")
    last = name.rpartition("/")[2]
    if last in ("llama.cpp", "llamacpp", "llama-server", "llama-cpp") and (not tag or "server" in tag or "full" in tag):
        return "llama.cpp"
    if last == "ollama":
        return "ollama"
    return "vllm" if last.startswith("vllm") or "/vllm" in name else ""


def from_run(argv: Sequence[str], base: Path, home: Path) -> Container | None:
    """`docker run …` (or podman) taken apart; None where this is something else."""
    if len(argv) < 3 or Path(argv[0]).name not in ("docker", "podman") or argv[1] not in ("run", "container"):
        return None
    out = Container("")
    i = 2 if argv[1] == "run" else 3
    while i < len(argv):
        flag, equals, inline = argv[i].partition("=")
        i += 1
        if not flag.startswith("-"):
            out.image, out.args = argv[i - 1], list(argv[i:])
            return out
        value = inline
        if not equals and _VALUED.fullmatch(flag) and i < len(argv):
            value = argv[i]
            i += 1
        if flag in ("-v", "--volume"):
            out.folders += mounts([value], base, home)
        elif flag in ("-p", "--publish"):
            out.ports |= ports([value])
        elif flag in ("-e", "--env"):
            out.environ |= dict([value.partition("=")[::2]])
    return None


def mounts(volumes: Iterable[object], base: Path, home: Path) -> list[tuple[str, Path]]:
    """Folders of this machine that are mounted: `./models:/models:ro`, or a mapping with `source` and `target`.

    Named volumes are not among them: they lie wherever the container engine keeps them."""
    out = []
    for one in volumes:
        if isinstance(one, Mapping):
            here, inside = str(one.get("source", "")), str(one.get("target", ""))
            bind = one.get("type", "bind") == "bind"
        else:
            here, _, rest = str(one).partition(":")
            inside, bind = rest.partition(":")[0], here.startswith((".", "/", "~"))
        if bind and here and inside.startswith("/") and "\0" not in here:
            out.append((inside, home / here[2:] if here.startswith("~/") else base / here))
    return out


def ports(published: Iterable[object]) -> dict[int, int]:
    """`127.0.0.1:8080:8000/tcp`, `8080:8000`, or a mapping with `target` and `published` → {8000: 8080}."""
    out: dict[int, int] = {}
    for one in published:
        if isinstance(one, Mapping):
            here, inside = str(one.get("published", "")), str(one.get("target", ""))
        else:
            *_, here, inside = ["", *str(one).partition("/")[0].split(":")]
        if re.fullmatch(r"[0-9]{1,5}", here) and re.fullmatch(r"[0-9]{1,5}", inside):
            out[int(inside)] = int(here)
    return out
