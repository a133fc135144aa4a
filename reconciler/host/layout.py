"""Where everything lives under the data root. Path arithmetic only."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOCKET_LIMIT = 100  # bytes; the kernel's sockaddr_un holds 108 on Linux and 104 on macOS


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under one data root (absolute)."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def lock(self) -> Path:
        return self.root / "controller.lock"

    @property
    def owner(self) -> Path:
        """Who holds the lock (JSON), for people and error messages; the lock itself is the OS lock."""
        return self.root / "run" / "controller.json"

    @property
    def labels(self) -> Path:
        """What people say of this machine, for `when:`."""
        return self.root / "labels.yaml"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def routes(self) -> Path:
        return self.root / "run" / "routes.json"

    @property
    def control_socket(self) -> Path:
        return self._socket("control.sock")

    @property
    def gateway_socket(self) -> Path:
        return self._socket("gateway.sock")

    @property
    def engines(self) -> Path:
        return self.root / "engines"

    @property
    def partial(self) -> Path:
        return self.root / "artifacts" / "partial"

    @property
    def quarantine(self) -> Path:
        return self.root / "artifacts" / "quarantine"

    @property
    def views(self) -> Path:
        """Folders of links to blobs, under the names that engines look for."""
        return self.root / "artifacts" / "views"

    @property
    def slots(self) -> Path:
        """What caches of servers held when they were unloaded: a folder a server, in it one for each way to run it."""
        return self.root / "slots"

    @property
    def responses(self) -> Path:
        """Answers that the gateway keeps so that requests can go on from them."""
        return self.root / "responses"

    def provider(self, name: str) -> Path:
        """What is known of a provider's models."""
        return self.root / "providers" / f"{name}.json"

    @property
    def generations(self) -> Path:
        return self.root / "generations"

    def blob(self, digest: str) -> Path:
        return self.root.joinpath("artifacts", "sha256", digest[:2], digest)

    def key(self, nonce: str) -> Path:
        return self.root / "run" / "keys" / nonce

    def log(self, ref: str) -> Path:
        """`server/chat` → logs/server/chat.log; `controller` → logs/controller.log."""
        return self.root / "logs" / f"{ref}.log"

    @property
    def access(self) -> Path:
        """One line for each request to the gateway."""
        return self.root / "logs" / "gateway" / "access.jsonl"

    def _socket(self, name: str) -> Path:
        """A Unix socket's path must be short; a long data root gets a private folder under the temporary one."""
        path = self.root / "run" / name
        if len(os.fsencode(path)) <= SOCKET_LIMIT:
            return path
        short = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"reconciler-{os.getuid()}-{short}" / name
