"""A stage for end-to-end tests: a folder with a manifest and a data root, the real command line, real processes.

Whatever a test leaves running is found by its data root and ended when the stage closes; a process that the product
should not have left is the test's business to notice (`Stage.strays`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from reconciler.client import Client, NoController
from reconciler.host.layout import Layout
from reconciler.host.process import ABOUT, NONCE, ROOT
from reconciler.kinds.engine import io as engine_io
from tests.support.processes import Seen, alive, children_with_env, free_port, wait_until

CHECKOUT = Path(__file__).parents[2]


def real_engine(path: Path) -> Path:
    """A `llama-server` program: the real engine of the development environment behind the product's own flags."""
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{engine_io.HOST_PROGRAM}" "$@"\n')
    path.chmod(0o755)
    return path


@dataclass
class Stage:
    """One machine's worth of state, in one folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def manifest(self) -> Path:
        return self.folder / "stack.yaml"

    @property
    def root(self) -> Path:
        return self.folder / "state"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self, text: str) -> None:
        """Save the manifest the way editors do: a new file, renamed over the old one."""
        temp = self.folder / ".stack.yaml.swp"
        temp.write_text(text)
        temp.replace(self.manifest)

    def start(self, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
        """The command line, running."""
        argv = [sys.executable, "-m", "reconciler", *arguments]
        env = {**os.environ, "COLUMNS": "200", **self.environment}
        process = subprocess.Popen(
            argv, cwd=self.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, code: int | None = 0, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        """The command line, to its end; `code` is the exit code that it must have."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{arguments} took more than {timeout} s\n{out}\n{err}\n{self.log()}") from None
        done = subprocess.CompletedProcess(arguments, process.returncode, out, err)
        if code is not None:
            assert done.returncode == code, f"{arguments} exited {done.returncode}\n{out}\n{err}\n{self.log()}"
        return done

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("status", "-o", "json").stdout)
        return answer

    def condition(self, ref: str) -> dict[str, Any]:
        """The Ready condition of a resource."""
        for resource in self.status()["resources"]:
            if resource["ref"] == ref:
                ready: dict[str, Any] = resource["conditions"][0]
                return ready
        return {"status": "Absent", "reason": "", "message": ""}

    def until_ready(self, timeout: float = 30) -> None:
        wait_until(lambda: self.status()["ready"], timeout, f"not ready: {self.status()}\n{self.log()}")

    # -- asking the controller itself: a command takes half a second, and waiting asks often --------------------

    def snapshot(self) -> dict[str, Any]:
        """As `status -o json`; empty where no controller answers."""
        try:
            with Client(Layout(self.root)) as client:
                return client.status()
        except NoController:
            return {}

    def generation(self) -> int:
        """The one in force; 0 where no controller answers."""
        return int(self.snapshot().get("manifest", {}).get("generation", 0))

    def told(self, ref: str) -> dict[str, dict[str, Any]]:
        """The conditions of a resource by their type; empty where there is none of that name."""
        found = [r["conditions"] for r in self.snapshot().get("resources", ()) if r["ref"] == ref]
        return {c["type"]: c for group in found for c in group}

    def until_generation(self, number: int, timeout: float = 20) -> None:
        """Wait until that one is in force and ready."""

        def there() -> bool:
            now = self.snapshot()
            return bool(now) and now["ready"] and now["manifest"]["generation"] == number

        wait_until(there, timeout, f"generation {number} is not ready\n{self.log()}")

    def end_controller(self) -> None:
        """Have it stop as a person would; what it started goes on."""
        pid = self.controller
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), 20, "the controller does not stop")

    def happened(self, ref: str, type_: str) -> list[str]:
        """What the events of that type say, oldest first."""
        from reconciler.store.ledger import Ledger

        with Ledger.read(self.root / "ledger.db") as ledger:
            return [e["message"] for e in ledger.events() if (e["ref"], e["type"]) == (ref, type_)]

    def blobs(self) -> list[Path]:
        return sorted(p for p in (self.root / "artifacts" / "sha256").rglob("*") if p.is_file())

    def server(self, name: str = "chat") -> int:
        """The pid of the one process that serves a model; 0 while it is not exactly one."""
        found = [p.pid for p in self.workloads() if json.loads(p.environ[ABOUT])["ref"] == f"server/{name}"]
        return found[0] if len(found) == 1 else 0

    def log(self) -> str:
        path = self.root / "logs" / "controller.log"
        return path.read_text()[-4000:] if path.exists() else "(no controller log)"

    # -- processes ----------------------------------------------------------------------------------------------

    @property
    def controller(self) -> int:
        return int(json.loads((self.root / "run" / "controller.json").read_text())["pid"])

    def workloads(self) -> list[Seen]:
        """Every living process that was started for this data root, leaders of their group only."""
        return [p for p in children_with_env(ROOT, str(self.root)) if p.leads]

    def servers(self) -> list[int]:
        return sorted(p.pid for p in self.workloads() if "reconciler.gateway" not in p.argv)

    def gateway(self) -> int:
        (found,) = [p.pid for p in self.workloads() if "reconciler.gateway" in p.argv]
        return found

    def strays(self) -> list[Seen]:
        """Processes of this data root that its ledger does not know."""
        from reconciler.store.ledger import Ledger

        with Ledger.read(self.root / "ledger.db") as ledger:
            known = {row.nonce for row in ledger.processes()}
        return [p for p in self.workloads() if p.environ.get(NONCE) not in known]

    def close(self) -> None:
        wait_until(self._kill, 10, "processes that do not die")
        for process in self.started:
            process.kill()
            with process:  # closes its pipes and waits for it
                pass

    def _kill(self) -> bool:
        """Whether nothing is left to be killed: a controller may have just started one more."""
        left = self._everything()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def _everything(self) -> list[int]:
        found = [p.pid for p in children_with_env(ROOT, str(self.root))]
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            ours = str(self.manifest) in line or str(self.root) in line
            if ours and "watch" in line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        return found

    # -- asking -------------------------------------------------------------------------------------------------

    def ask(self, model: str = "chat", text: str = "hi", **more: Any) -> dict[str, Any]:
        """One chat completion through the gateway."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 40, **more}
        answer: dict[str, Any] = self.post("/v1/chat/completions", body)
        return answer

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return json.load(response)
