"""Other programs made to use the local gateway: what each reads, and how that gets into its files and out again.

Everything but `writer.py` is pure. A client is a file here, and a line in `CLIENTS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler.clients.client import Client

CLIENTS = {
    "claude-code": "claude_code.CLIENT",
    "openai": "sdks.OPENAI",
    "anthropic": "sdks.ANTHROPIC",
    "codex": "codex.CLIENT",
    "aider": "aider.CLIENT",
    "continue": "continue_dev.CLIENT",
    "opencode": "opencode.CLIENT",
    "zed": "zed.CLIENT",
    "jan": "jan.CLIENT",
}  # how a client is called on the command line, and where it is described


def described(name: str) -> Client:
    """A client by its name. Raises KeyError."""
    module, _, attribute = CLIENTS[name].partition(".")
    found: Client = getattr(importlib.import_module(f"reconciler.clients.{module}"), attribute)
    return found
