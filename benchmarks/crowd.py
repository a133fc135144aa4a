"""A stack of any size in which everything is in place, without a server process for each model.

Ledger, store, keys and gateway are real. What cannot be had by the thousand are servers: one fake engine stands for
all of them, so each is alive, has the identity that the ledger says, and answers its probes.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ENVIRONMENT, Failed
from reconciler.app import tools_for
from reconciler.controller.turn import Wanted, look, wanted_of
from reconciler.core.ids import Ref
from reconciler.core.state import Declared
from reconciler.host.effects import Effects
from reconciler.host.layout import Layout
from reconciler.host.process import ROOT, identify
from reconciler.kinds.base import Tools
from reconciler.kinds.registry import KINDS
from reconciler.manifest.reading import reading
from reconciler.store.blobs import token
from reconciler.store.ledger import Ledger
from tests.support.engines import wrapper
from tests.support.processes import Seen, children_with_env, free_port, kill9, listeners, wait_until
from tests.support.tiny_gguf import tiny_gguf

GATEWAY = Ref("gateway", "main")
HEAD = """\
version: 1
name: crowd
engines:
  first: {{type: llama.cpp, path: ./llama-server}}
  second: {{type: llama.cpp, path: ./llama-server}}
gateway: {{port: {port}}}
models:
"""
MODEL = """\
  model-{n:05}:
    source: "file:models/{n:05}.gguf"
    engine: {engine}
    aliases: [{alias}-{n:05}]
    context: 8k
    options: {{flash_attn: "on"}}
"""


@dataclass(frozen=True, slots=True)
class Crowd:
    """A folder with a manifest of many models. `fill` makes its data root one in which all of it is in place."""

    folder: Path
    models: int
    port: int

    @property
    def manifest(self) -> Path:
        return self.folder / "stack.yaml"

    @property
    def layout(self) -> Layout:
        return Layout(self.folder / "state")

    def write(self, first_alias: str = "alias") -> None:
        """Write the manifest over the old one as editors do; the alias is that of the first model."""
        entries = [
            MODEL.format(n=n, engine="second" if n % 2 else "first", alias="alias" if n else first_alias)
            for n in range(self.models)
        ]
        new = self.folder / "stack.yaml.new"
        new.write_text(HEAD.format(port=self.port) + "".join(entries), encoding="utf-8")
        new.replace(self.manifest)

    @contextmanager
    def filled(self) -> Iterator[int]:
        """Everything in place → the gateway's pid. It and the one engine are gone afterwards."""
        port = free_port()
        engine = self._engine(port)
        try:
            self._fill(engine.pid, port)
            yield next(p.pid for p in self._ours())
        finally:
            engine.kill()
            engine.wait()
            for process in self._ours():
                kill9(process.pid)

    def _ours(self) -> list[Seen]:
        return children_with_env(ROOT, str(self.layout.root))

    def _engine(self, port: int) -> subprocess.Popen[bytes]:
        """In a session of its own, as servers are: a signal to it and its group reaches nobody else."""
        argv = [str(self.folder / "llama-server"), "--model", str(tiny_gguf(self.folder / "tiny.gguf"))]
        argv += ["--host", "127.0.0.1", "--port", str(port)]
        void = subprocess.DEVNULL
        engine = subprocess.Popen(argv, env=ENVIRONMENT, stdin=void, stdout=void, stderr=void, start_new_session=True)
        wait_until(lambda: listeners(port) == [engine.pid], 20, "the fake engine listens")
        return engine

    def _fill(self, engine: int, port: int) -> None:
        """Make the ledger and the store what they are after `apply`."""
        with Ledger.write(self.layout.ledger, Effects()) as ledger:
            ledger.rows("PRAGMA synchronous=OFF")  # nothing here has to outlive a power cut
            tools = tools_for(self.layout, self.folder, Effects(), ledger, KINDS)
            tools.files.private_folder(self.layout.run)
            wanted = wanted_of(reading(self.manifest), self.layout)
            for ref, declared in wanted.resources.items():
                if ref.kind == "model":
                    _place_model(declared, tools)
                elif ref.kind == "server":
                    model = wanted.resources[Ref("model", declared.spec.model)]
                    _place_server(declared, model, engine, port, tools)
                if ref != GATEWAY:
                    ledger.own(ref, declared.digest, declared.spec)
            asyncio.run(_start_gateway(wanted, tools))
            if left := look(wanted, tools, KINDS).plan.changes:
                raise Failed(f"something is left to do: {left[0]}")


@contextmanager
def crowd(models: int) -> Iterator[Crowd]:
    """A manifest of so many models in a folder of its own, nothing applied."""
    folder = Path(tempfile.mkdtemp(prefix="reconciler-benchmark-"))
    made = Crowd(folder, models, free_port())
    try:
        wrapper(folder / "llama-server")
        made.layout.root.mkdir(mode=0o700)
        made.write()
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _content(declared: Declared) -> bytes:
    return str(declared.spec.source).encode()


def _place_model(declared: Declared, tools: Tools) -> None:
    content = _content(declared)
    sha256 = hashlib.sha256(content).hexdigest()
    blob = tools.layout.blob(sha256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    tools.blobs.record(sha256)
    tools.ledger.pin(declared.spec.pin, {"sha256": sha256, "size": len(content)})


def _place_server(declared: Declared, model: Declared, engine: int, port: int, tools: Tools) -> None:
    identity, log = identify(engine), tools.layout.log(str(declared.ref))
    if identity is None:
        raise Failed("the fake engine has ended")
    nonce = hashlib.sha256(declared.spec.name.encode()).hexdigest()[:16]
    key = tools.layout.key(nonce)
    key.parent.mkdir(exist_ok=True)
    key.write_text("key")
    seen = token(tools.layout.blob(hashlib.sha256(_content(model)).hexdigest()))
    tools.ledger.intend_process(nonce, declared.ref, declared.digest, "127.0.0.1", port, {"model": str(seen)}, log)
    tools.ledger.record_spawned(nonce, identity)
    tools.ledger.record_ready(nonce)


async def _start_gateway(wanted: Wanted, tools: Tools) -> None:
    """Carry out what is left of the plan."""
    for change in look(wanted, tools, KINDS).plan.changes:
        if change.ref != GATEWAY:
            raise Failed(f"this was to be in place: {change}")
        for action in change.actions:
            await KINDS["gateway"].apply(action, change.ref, wanted.resources[change.ref], tools)
