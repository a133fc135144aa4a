"""A small stack that really runs: two tiny models on the fake engine, one gateway, in a folder of its own.

Leaves nothing behind: `down --purge` at the end, and whatever of it is still alive then is killed and reported.
"""

from __future__ import annotations

import http.client
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from benchmarks.measure import RECONCILE, Failed, call, compile_bytecode
from reconciler.client import Client
from reconciler.host.layout import Layout
from reconciler.host.probes import unix_request
from reconciler.host.process import ROOT
from reconciler.store import lock
from tests.support.engines import wrapper
from tests.support.processes import alive, children_with_env, free_port, kill9, wait_until
from tests.support.tiny_gguf import tiny_gguf

MANIFEST = """\
version: 1
name: benchmark
engines:
  fake: {{type: llama.cpp, path: ./llama-server}}
models:
  first: {{source: "file:first.gguf", engine: fake, aliases: [{alias}]}}
  second: {{source: "file:second.gguf", engine: fake}}
gateway: {{port: {port}}}
"""


class Stack:
    """Applied and ready inside `with`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="reconciler-benchmark-"))
        self.port = free_port()
        self.layout = Layout(self.folder / "state")

    def __enter__(self) -> Stack:
        compile_bytecode()
        wrapper(self.folder / "llama-server")
        for seed, name in enumerate(("first", "second")):
            tiny_gguf(self.folder / f"{name}.gguf", seed=seed, name=name)
        self.name_first("alias")
        try:
            self.reconcile("apply")
            self.controller, self.gateway = self._pids()
        except BaseException:
            with suppress(AssertionError):
                self.reconcile("down", "--purge")
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.reconcile("down", "--purge")
            wait_until(lambda: not alive(self.controller), message="the controller ends after down")
        finally:
            left = self._clean()
        if left and error is None:
            raise Failed(f"`down --purge` left processes running: {left}")

    def reconcile(self, *arguments: str) -> tuple[float, str]:
        """Run the command line → (wall seconds, stdout)."""
        return call([RECONCILE, *arguments], cwd=self.folder)

    def name_first(self, alias: str) -> None:
        """Give the first model this alias, by writing a new manifest over the old one as editors do."""
        new = self.folder / "stack.yaml.new"
        new.write_text(MANIFEST.format(alias=alias, port=self.port), encoding="utf-8")
        new.replace(self.folder / "stack.yaml")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def _pids(self) -> tuple[int, int]:
        with Client(self.layout) as client:
            controller = client.hello()["pid"]
        state = unix_request(self.layout.gateway_socket, "GET", "/state")
        if state is None:
            raise Failed("the gateway does not answer on its control socket")
        return int(controller), int(state["pid"])

    def _clean(self) -> list[int]:
        """End what is left and remove the folder → the pids that were left."""
        left = [p.pid for p in children_with_env(ROOT, str(self.layout.root))]
        if (holder := lock.owner(self.layout)) is not None:
            left.insert(0, holder["pid"])
        for pid in left:
            kill9(pid)
        shutil.rmtree(self.folder, ignore_errors=True)
        return left
